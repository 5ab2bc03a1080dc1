"""The losses of segmentation: the pixel losses that a config can choose, and the loss of image-level class labels.

Each pixel loss stands in one file with the config fields that it alone reads. A new one needs that file and one entry
in ``PIXEL_LOSSES``; ``docs/adding/loss.md`` shows both. Each is also a function ``(logits, labels) -> scalar``, to be
used alone:

>>> import jax.numpy as jnp
>>> from rc_jax import losses
>>> logits, labels = jnp.array([[[[2.0, 0.0], [0.0, 1.0]]]]), jnp.array([[[0, 1]]])
>>> loss = losses.cross_entropy(logits, labels) + 0.5 * losses.dice_loss(logits, labels)
>>> round(float(loss), 3)
0.318
"""

import math
import re

import numpy as np
from jax import Array

from rc_jax.fields import Check, Config, Field, one_of, require
from rc_jax.losses import dice, focal, lovasz, ohem
from rc_jax.losses.cross_entropy import PIXEL_LOSS as CROSS_ENTROPY
from rc_jax.losses.cross_entropy import cross_entropy, mean_over_counted, pixel_shares, weights_of_pixels
from rc_jax.losses.dice import dice_loss
from rc_jax.losses.focal import focal_loss
from rc_jax.losses.lovasz import lovasz_softmax
from rc_jax.losses.ohem import ohem_cross_entropy
from rc_jax.losses.pixel_loss import LossFunction, PixelLoss, Reduction
from rc_jax.losses.presence import presence_loss
from rc_jax.losses.upsampled import upsampled_cross_entropy_per_pixel
from rc_jax.ops import resample

# A name in ``loss.pixel`` -> the loss.
PIXEL_LOSSES: dict[str, PixelLoss] = {
  "ce": CROSS_ENTROPY,
  "ohem": ohem.PIXEL_LOSS,
  "focal": focal.PIXEL_LOSS,
  "dice": dice.PIXEL_LOSS,
  "lovasz": lovasz.PIXEL_LOSS,
}

CLASS_WEIGHTINGS = ("none", "median_frequency", "sqrt_median_frequency")


def fields() -> tuple[Field, ...]:
  """Returns the config fields of the pixel losses: the choice, class weights, then those of one loss alone."""
  weighted = ("loss.pixel", tuple(name for name, loss in PIXEL_LOSSES.items() if loss.weighted))
  names = ", ".join(map(repr, PIXEL_LOSSES))
  return (
    Field(
      "loss.pixel",
      "ce",
      "The pixel loss: cross entropy, OHEM cross entropy, focal loss, soft Dice or Lovász-softmax; or a sum of several "
      "with factors, as ``ce+0.5*dice``.",
      Check(f"{names} or a sum of these such as 'ce+0.5*dice'", _is_sum),
      parts=lambda value: tuple(pixel_loss_parts(value)),
    ),
    Field(
      "loss.class_weighting",
      "none",
      "Counts class weights in the labels of the training split. ``median_frequency``: the median of the classes' "
      "frequencies, divided by the class's (Eigen and Fergus, ICCV 2015); ``sqrt_median_frequency``: its square root.",
      one_of(*CLASS_WEIGHTINGS),
      read_when=weighted,
    ),
    Field(
      "loss.class_weights",
      (),
      "Weights of the classes in the pixel loss and in the auxiliary head's cross entropy; (): all weigh the same. As "
      "in PyTorch, a mean over pixels is divided by the sum of their weights. Dice and Lovász-softmax read none, even "
      "in a sum.",
      Check("() or a number of 0 or more for each class, not all 0", _are_weights),
      read_when=weighted,
    ),
    *(field for loss in PIXEL_LOSSES.values() for field in loss.fields),
  )


def check_class_weights(config_loss: Config) -> None:
  """Refuses class weights that are both given and counted.

  Raises:
    ValueError: one line.
  """
  expected = "() with loss.class_weighting, which counts the weights"
  counted = config_loss.class_weighting != "none"
  require(
    not (counted and config_loss.class_weights), "loss.class_weights", config_loss.class_weights, expected
  )


def pixel_loss_parts(text: str) -> dict[str, float]:
  """Returns name -> factor of the losses in a value of ``loss.pixel``; empty for text that is none.

  >>> pixel_loss_parts("ce+0.5*dice")
  {'ce': 1.0, 'dice': 0.5}
  >>> pixel_loss_parts("ce+ce")
  {}
  """
  parts: dict[str, float] = {}
  for part in text.split("+"):
    match = re.fullmatch(r"(?:([0-9.]+(?:e-?[0-9]+)?)\*)?(\w+)", part.replace(" ", ""), re.ASCII)
    if match is None or match[2] not in PIXEL_LOSSES or match[2] in parts:
      return {}
    try:
      parts[match[2]] = float(match[1] or 1)
    except ValueError:
      return {}
  return parts


def pixel_loss_title(text: str) -> str:
  """Returns a value of ``loss.pixel`` in words.

  >>> pixel_loss_title("ce+0.5*dice")
  'cross entropy + 0.5 x Dice loss'
  """
  titles = ((PIXEL_LOSSES[name].title or name, factor) for name, factor in pixel_loss_parts(text).items())
  return " + ".join(title if factor == 1 else f"{factor:g} x {title}" for title, factor in titles)


def build_pixel_loss(
  config_loss: Config, align_corners: bool, pixel_share: Array | None = None
) -> LossFunction:
  """Returns the pixel loss of a config on a grid, ``(logits [B,h,w,N], labels [B,H,W]) -> float32 scalar``.

  The logits are upsampled to the labels.

  Args:
    config_loss: the fields of ``config.loss``; the class weights are numbers.
    align_corners: of the upsampling.
    pixel_share: of a part of a batch, one of ``pixel_shares``; multiplies the means over pixels. None: 1.

  Raises:
    ValueError: class weights are still to be counted; see ``rc_jax.training.class_weights``.
  """
  require_counted_weights(config_loss)
  parts: list[tuple[PixelLoss, float | Array]] = []
  for name, number in pixel_loss_parts(config_loss.pixel).items():
    share = pixel_share if PIXEL_LOSSES[name].mean_over_pixels else None
    parts.append((PIXEL_LOSSES[name], number if share is None else number * share))
  reductions: list[tuple[Reduction, float | Array]] = []
  for loss, factor in parts:
    reduction = loss.reduction(config_loss) if loss.reduction else None
    if reduction is None:
      # The upsampled logits are in memory anyway: the others read them too.
      return on_grid(_sum([(each.build(config_loss), factor) for each, factor in parts]), align_corners)
    reductions.append((reduction, factor))
  return _reduced(reductions, align_corners, config_loss.class_weights)


def require_counted_weights(config_loss: Config) -> None:
  """Refuses a config whose class weights are still to be counted, which would train without them.

  Raises:
    ValueError: one line.
  """
  counted = config_loss.class_weighting == "none" or config_loss.class_weights
  expected = (
    f"the weights that loss.class_weighting={config_loss.class_weighting} counts in the training split"
  )
  require(bool(counted), "loss.class_weights", config_loss.class_weights, expected)


def on_grid(
  loss: LossFunction,
  align_corners: bool,
  class_weights: tuple[float, ...] = (),
  pixel_share: Array | None = None,
) -> LossFunction:
  """Returns ``loss`` after upsampling of the logits, ``[B,h,w,N] -> [B,H,W,N]``.

  Args:
    loss: ``(logits [B,H,W,N], labels [B,H,W]) -> float32 scalar``.
    align_corners: of the upsampling.
    class_weights: for ``cross_entropy`` itself, ``N`` numbers; (): none.
    pixel_share: for ``cross_entropy`` itself, as for `build_pixel_loss`.
  """
  if loss is cross_entropy:
    share: float | Array = 1.0 if pixel_share is None else pixel_share
    return _reduced([(mean_over_counted, share)], align_corners, class_weights)

  def upsampled(logits: Array, labels: Array) -> Array:
    return loss(resample.upsample(logits, (labels.shape[1], labels.shape[2]), align_corners), labels)

  return upsampled


def _reduced(
  reductions: list[tuple[Reduction, float | Array]], align_corners: bool, class_weights: tuple[float, ...]
) -> LossFunction:
  def loss(logits: Array, labels: Array) -> Array:
    losses, counted = upsampled_cross_entropy_per_pixel(logits, labels, align_corners)
    weights = weights_of_pixels(logits, labels, np.array(class_weights)) if class_weights else None
    values = [(reduction(losses, counted, weights=weights), factor) for reduction, factor in reductions]
    return _weighted_sum(values)

  return loss


def _sum(losses: list[tuple[LossFunction, float | Array]]) -> LossFunction:
  def loss(logits: Array, labels: Array) -> Array:
    return _weighted_sum([(loss(logits, labels), factor) for loss, factor in losses])

  return loss


def _weighted_sum(values: list[tuple[Array, float | Array]]) -> Array:
  first, *others = (
    value if isinstance(factor, float) and factor == 1 else factor * value for value, factor in values
  )
  total = first
  for value in others:
    total = total + value
  return total


def _is_sum(value: str) -> bool:
  factors = pixel_loss_parts(value).values()
  return bool(factors) and all(factor > 0 and math.isfinite(factor) for factor in factors)


def _are_weights(value: object) -> bool:
  if not isinstance(value, tuple):
    return False
  numbers = all(
    isinstance(each, int | float) and not isinstance(each, bool) and 0 <= each < math.inf for each in value
  )
  return numbers and (not value or max(value) > 0)


__all__ = [
  "CLASS_WEIGHTINGS",
  "PIXEL_LOSSES",
  "LossFunction",
  "PixelLoss",
  "Reduction",
  "build_pixel_loss",
  "check_class_weights",
  "cross_entropy",
  "dice_loss",
  "fields",
  "focal_loss",
  "lovasz_softmax",
  "ohem_cross_entropy",
  "on_grid",
  "pixel_loss_parts",
  "pixel_loss_title",
  "pixel_shares",
  "presence_loss",
  "require_counted_weights",
]
