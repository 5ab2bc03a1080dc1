"""Cross entropy over the hard pixels of a batch: online hard example mining (OHEM)."""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from rc_jax.fields import Config, Field, at_least, within
from rc_jax.losses.cross_entropy import cross_entropy_per_pixel, mean_over_counted, weights_of_pixels
from rc_jax.losses.pixel_loss import LossFunction, PixelLoss, Reduction

_OHEM = ("loss.pixel", ("ohem",))

FIELDS = (
  Field(
    "loss.ohem_threshold",
    0.7,
    "OHEM keeps pixels whose true class has at most this probability.",
    within(0, 1, "a probability in 0..1"),
    read_when=_OHEM,
  ),
  Field(
    "loss.ohem_min_kept",
    100_000,
    "OHEM keeps at least this many pixels of the batch, or of each of its parts (``train.microbatches``).",
    at_least(1),
    read_when=_OHEM,
  ),
)


def ohem_cross_entropy(
  logits: ArrayLike,
  labels: ArrayLike,
  threshold: ArrayLike = 0.7,
  min_kept: ArrayLike = 100_000,
  ignore_label: int = 255,
  *,
  class_weights: ArrayLike | None = None,
) -> Array:
  """Mean of ``-log p`` over the pixels with ``p <= max(threshold, p_k)``, where ``p = softmax(logits)[label]``.

  ``p_k`` is the ``k``-th smallest ``p`` of all pixels that count, with ``k = min(min_kept, number of these pixels)``.
  All pixels whose ``p`` equals ``p_k`` are kept.

  Args:
    logits: ``[B,H,W,N]``, float; computed in float32.
    labels: ``[B,H,W]``, integer; pixels count as in `cross_entropy`.
    threshold: the probability up to which a pixel is hard, in 0..1.
    min_kept: least number of pixels to keep, over the global batch; it may exceed the number of pixels.
    ignore_label: the label of pixels that do not count.
    class_weights: ``[N]``, of the mean over the kept pixels, as in `cross_entropy`; they do not change which are kept.

  Returns:
    A float32 scalar; 0, with zero gradient, when no pixel counts.

  Raises:
    ValueError: ``min_kept`` is negative, or the shapes do not belong together.

  Source: RegionContrast, section 4.4; ties and the inclusive threshold as in the authors' code.
  """
  if isinstance(min_kept, int) and min_kept < 0:
    raise ValueError(f"min_kept must not be negative, got {min_kept}")
  losses, counted = cross_entropy_per_pixel(logits, labels, ignore_label)
  weights = weights_of_pixels(logits, labels, class_weights)
  return mean_over_hard(losses, counted, threshold, min_kept, weights)


def mean_over_hard(
  losses: Array,
  counted: Array,
  threshold: ArrayLike,
  min_kept: ArrayLike,
  weights: Array | None = None,
) -> Array:
  """Returns the mean over hard pixels, of the results of `cross_entropy_per_pixel`; as `ohem_cross_entropy`."""
  probability = jax.lax.stop_gradient(jnp.exp(-losses))
  k = jnp.minimum(min_kept, counted.sum())
  # p_0 is -inf: with min_kept=0 the threshold alone decides.
  p_k = jnp.where(k > 0, kth_smallest(probability, counted, k), -jnp.inf)
  kept = counted & (probability <= jnp.maximum(threshold, p_k))
  if weights is not None:
    return mean_over_counted(losses, kept, weights)
  return jnp.where(kept, losses, 0).sum() / jnp.maximum(kept.sum(), 1)


def kth_smallest(values: Array, counted: Array, k: Array) -> Array:
  """Returns the ``k``-th smallest of the values that count, exactly.

  Non-negative floats are ordered as their bits, so 30 bisections of the integers up to the bits of 1.0 find it.
  Each bisection is one count over the pixels. A sort of millions of pixels is slower, and would gather a batch that
  is spread over devices.

  Args:
    values: float32 in 0..1.
    counted: bool, of the same shape.
    k: integer scalar, from 1 to the number of values that count.

  Returns:
    A float32 scalar.
  """
  bits = jax.lax.bitcast_convert_type(values, jnp.int32)

  def bisect(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = bounds  # the answer is in low..high
    middle = low + (high - low) // 2
    enough = (counted & (bits <= middle)).sum() >= k
    return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

  one = jax.lax.bitcast_convert_type(jnp.float32(1), jnp.int32)
  _, answer = jax.lax.fori_loop(0, 30, bisect, (jnp.zeros_like(one), one))
  return jax.lax.bitcast_convert_type(answer, jnp.float32)


def _build(config_loss: Config) -> LossFunction:
  return functools.partial(
    ohem_cross_entropy,
    threshold=config_loss.ohem_threshold,
    min_kept=config_loss.ohem_min_kept,
    class_weights=config_loss.class_weights or None,
  )


def _reduction(config_loss: Config) -> Reduction:
  return functools.partial(
    mean_over_hard, threshold=config_loss.ohem_threshold, min_kept=config_loss.ohem_min_kept
  )


PIXEL_LOSS = PixelLoss(
  _build, FIELDS, _reduction, weighted=True, mean_over_pixels=True, title="OHEM cross entropy"
)
