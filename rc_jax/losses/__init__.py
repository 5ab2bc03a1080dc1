"""The losses of segmentation: the pixel losses that a config can choose, and the loss of image-level class labels.

Each pixel loss stands in one file with the config fields that it alone reads. A new one needs that file and one entry
in ``PIXEL_LOSSES``; ``docs/adding/loss.md`` shows both.
"""

from rc_jax.fields import Config, Field, one_of
from rc_jax.losses import cross_entropy, ohem
from rc_jax.losses.pixel_loss import LossFunction, PixelLoss

# A value of ``loss.pixel`` -> the loss.
PIXEL_LOSSES: dict[str, PixelLoss] = {
  "ce": cross_entropy.PIXEL_LOSS,
  "ohem": ohem.PIXEL_LOSS,
}


def fields() -> tuple[Field, ...]:
  """Returns the config fields of the pixel losses: ``loss.pixel``, then those that one loss alone reads."""
  choice = Field(
    "loss.pixel", "ce", "The pixel loss: cross entropy, or OHEM cross entropy.", one_of(*PIXEL_LOSSES)
  )
  return (choice, *(field for loss in PIXEL_LOSSES.values() for field in loss.fields))


def build_pixel_loss(config_loss: Config) -> LossFunction:
  """Returns the pixel loss of a config, ``(logits [B,H,W,N], labels [B,H,W]) -> float32 scalar``.

  Args:
    config_loss: the fields of ``config.loss``.
  """
  return PIXEL_LOSSES[config_loss.pixel].build(config_loss)
