"""Soft Dice loss: the overlap of probabilities and labels, class by class."""

import functools

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from rc_jax.fields import Config, Field, at_least
from rc_jax.losses.cross_entropy import probabilities_and_truth
from rc_jax.losses.pixel_loss import LossFunction, PixelLoss

FIELDS = (
  Field(
    "loss.dice_smooth",
    0.0,
    "Number of pixels that Dice adds to numerator and denominator. Classes of few pixels then change less from batch "
    "to batch.",
    at_least(0),
    read_when=("loss.pixel", ("dice",)),
  ),
)


def dice_loss(
  logits: ArrayLike, labels: ArrayLike, smooth: ArrayLike = 0.0, ignore_label: int = 255
) -> Array:
  """Mean over classes of ``1 - (2 sum p t + smooth) / (sum p + sum t + smooth)``.

  ``p = softmax(logits)[class]`` and ``t`` is 1 where the label is the class, else 0. The sums run over all pixels of
  the batch that count. A class without such a pixel does not enter the mean.

  The ratio is that of ``DiceLoss("multiclass")`` of segmentation_models.pytorch. Its sums run over the batch, closer to
  those of the mIoU than sums over one image, and its denominator has no squares, as mmsegmentation's. That library
  divides the sum over classes by ``N``. On ADE20K, a batch shows few of the 150 classes, and the loss would shrink.

  Args:
    logits: ``[B,H,W,N]``, float; computed in float32.
    labels: ``[B,H,W]``, integer; pixels count as in `cross_entropy`.
    smooth: 0 or more, in pixels.
    ignore_label: the label of pixels that do not count.

  Returns:
    A float32 scalar in 0..1; 0, with zero gradient, when no pixel counts.

  Raises:
    ValueError: the shapes do not belong together.

  Source: Milletari et al., V-Net (3DV 2016), with the denominator of Drozdzal et al. (2016).
  """
  probabilities, truth, _ = probabilities_and_truth(logits, labels, ignore_label)
  pixels = tuple(range(truth.ndim - 1))
  intersection = jnp.where(truth, probabilities, 0).sum(pixels)  # [N]
  shown = truth.sum(pixels)  # [N]
  present = shown > 0
  total = jnp.where(present, probabilities.sum(pixels) + shown + smooth, 1)
  losses = jnp.where(present, 1 - (2 * intersection + smooth) / total, 0)
  return losses.sum() / jnp.maximum(present.sum(), 1)


def _build(config_loss: Config) -> LossFunction:
  return functools.partial(dice_loss, smooth=config_loss.dice_smooth)


PIXEL_LOSS = PixelLoss(_build, FIELDS, title="Dice loss")
