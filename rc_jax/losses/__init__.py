"""The losses of segmentation: the pixel losses that a config can choose, and the loss of image-level class labels.

Each pixel loss stands in one file with the config fields that it alone reads. A new one needs that file and one entry
in ``PIXEL_LOSSES``; ``docs/adding/loss.md`` shows both.
"""

from jax import Array

from rc_jax.fields import Config, Field, one_of
from rc_jax.losses import cross_entropy, ohem
from rc_jax.losses.pixel_loss import LossFunction, PixelLoss, Reduction
from rc_jax.losses.upsampled import upsampled_cross_entropy_per_pixel
from rc_jax.ops import resample

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


def build_pixel_loss(config_loss: Config, align_corners: bool) -> LossFunction:
  """Returns the pixel loss of a config on a grid, ``(logits [B,h,w,N], labels [B,H,W]) -> float32 scalar``.

  The logits are upsampled to the labels.

  Args:
    config_loss: the fields of ``config.loss``.
    align_corners: of the upsampling.
  """
  pixel_loss = PIXEL_LOSSES[config_loss.pixel]
  if pixel_loss.reduction is None:
    return on_grid(pixel_loss.build(config_loss), align_corners)
  return _reduced(pixel_loss.reduction(config_loss), align_corners)


def on_grid(loss: LossFunction, align_corners: bool) -> LossFunction:
  """Returns ``loss`` after upsampling of the logits, ``[B,h,w,N] -> [B,H,W,N]``."""
  if loss is cross_entropy.cross_entropy:
    return _reduced(cross_entropy.mean_over_counted, align_corners)

  def upsampled(logits: Array, labels: Array) -> Array:
    return loss(resample.upsample(logits, (labels.shape[1], labels.shape[2]), align_corners), labels)

  return upsampled


def _reduced(reduction: Reduction, align_corners: bool) -> LossFunction:
  def loss(logits: Array, labels: Array) -> Array:
    return reduction(*upsampled_cross_entropy_per_pixel(logits, labels, align_corners))

  return loss
