"""Focal loss: cross entropy that gives pixels of a confident, correct prediction less weight."""

import functools

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from rc_jax.fields import Config, Field, at_least
from rc_jax.losses.cross_entropy import cross_entropy_per_pixel, mean_over_counted, weights_of_pixels
from rc_jax.losses.pixel_loss import LossFunction, PixelLoss, Reduction

FIELDS = (
  Field(
    "loss.focal_gamma",
    2.0,
    "Power of the focal loss's factor ``(1 - p)``; 0 is cross entropy.",
    at_least(0),
    read_when=("loss.pixel", ("focal",)),
  ),
)


def focal_loss(
  logits: ArrayLike,
  labels: ArrayLike,
  gamma: ArrayLike = 2.0,
  ignore_label: int = 255,
  *,
  class_weights: ArrayLike | None = None,
) -> Array:
  """Mean of ``-(1 - p)^gamma log p`` over the labelled pixels, with ``p = softmax(logits)[label]``.

  This is the form over classes that exclude each other. Detectors use one sigmoid for each class, which is another
  loss. The mean is over pixels, or over their class weights; it is not divided by the number of objects.

  Args:
    logits: ``[B,H,W,N]``, float; computed in float32.
    labels: ``[B,H,W]``, integer; pixels count as in `cross_entropy`.
    gamma: 0 or more; 0 is cross entropy.
    ignore_label: the label of pixels that do not count.
    class_weights: ``[N]``, as in `cross_entropy`: the ``alpha`` of the paper, for several classes.

  Returns:
    A float32 scalar; 0, with zero gradient, when no pixel counts.

  Raises:
    ValueError: the shapes do not belong together.

  Source: Lin et al., Focal Loss for Dense Object Detection (ICCV 2017), Eq. 4 and 5.
  """
  losses, counted = cross_entropy_per_pixel(logits, labels, ignore_label)
  return focal_mean(losses, counted, gamma, weights_of_pixels(logits, labels, class_weights))


def focal_mean(losses: Array, counted: Array, gamma: ArrayLike, weights: Array | None = None) -> Array:
  """Returns the focal loss of the results of `cross_entropy_per_pixel`; as `focal_loss`."""
  # 1 - p. Where the loss is 0, the factor does not matter, and a power below 1 would have an infinite gradient.
  factor = jnp.where(losses > 0, -jnp.expm1(-losses), 1) ** gamma
  return mean_over_counted(factor * losses, counted, weights)


def _build(config_loss: Config) -> LossFunction:
  return functools.partial(
    focal_loss, gamma=config_loss.focal_gamma, class_weights=config_loss.class_weights or None
  )


def _reduction(config_loss: Config) -> Reduction:
  return functools.partial(focal_mean, gamma=config_loss.focal_gamma)


PIXEL_LOSS = PixelLoss(_build, FIELDS, _reduction, weighted=True, mean_over_pixels=True, title="focal loss")
