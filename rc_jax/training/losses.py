"""Losses over pixels at label resolution, and over the classes that an image holds."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


def cross_entropy(logits: ArrayLike, labels: ArrayLike, ignore_label: int = 255) -> Array:
  """Mean of ``-log softmax(logits)[label]`` over the pixels that count.

  Args:
    logits: ``[B,H,W,N]``, float; computed in float32.
    labels: ``[B,H,W]``, integer. Pixels labelled ``ignore_label``, or anything outside ``0..N-1``, do not
      count.
    ignore_label: the label of pixels that do not count.

  Returns:
    A float32 scalar; 0, with zero gradient, when no pixel counts.
  """
  losses, counted = _pixel_losses(logits, labels, ignore_label)
  return losses.sum() / jnp.maximum(counted.sum(), 1)


def ohem_cross_entropy(
  logits: ArrayLike,
  labels: ArrayLike,
  threshold: ArrayLike = 0.7,
  min_kept: ArrayLike = 100_000,
  ignore_label: int = 255,
) -> Array:
  """Cross entropy over the hard pixels: online hard example mining.

  With ``p`` a pixel's probability of its true class, the pixels with ``p <= max(threshold, p_k)`` are kept,
  where ``p_k`` is the ``k``-th smallest ``p`` of all pixels that count and ``k = min(min_kept, their
  number)``. Pixels that tie with ``p_k`` are all kept.

  Args:
    logits: ``[B,H,W,N]``, float; computed in float32.
    labels: ``[B,H,W]``, integer; counting as in `cross_entropy`.
    threshold: the probability up to which a pixel is hard.
    min_kept: least number of pixels to keep, over the whole batch; it may exceed the number of pixels.
    ignore_label: the label of pixels that do not count.

  Returns:
    The mean over the kept pixels, a float32 scalar; 0, with zero gradient, when no pixel counts.

  Source: RegionContrast, section 4.4; ties and the inclusive threshold as in the authors' code.
  """
  if isinstance(min_kept, int) and min_kept < 0:
    raise ValueError(f"min_kept must not be negative, got {min_kept}")
  losses, counted = _pixel_losses(logits, labels, ignore_label)
  probability = jax.lax.stop_gradient(jnp.exp(-losses))
  hardest = jnp.minimum(min_kept, counted.sum())
  # p_0 is -inf: with nothing to keep in any case the threshold decides alone.
  at_least = jnp.where(hardest > 0, _kth_smallest(probability, counted, hardest), -jnp.inf)
  kept = counted & (probability <= jnp.maximum(threshold, at_least))
  return jnp.where(kept, losses, 0).sum() / jnp.maximum(kept.sum(), 1)


def presence_loss(logits: ArrayLike, labels: ArrayLike, ignore_label: int = 255) -> Array:
  """Binary cross entropy of "this class is somewhere in this image", the mean over images and classes.

  Args:
    logits: ``[B,N]``, float; computed in float32.
    labels: ``[B,H,W]``, integer; a pixel counts as in `cross_entropy`.
    ignore_label: the label of pixels that do not count.

  Returns:
    A float32 scalar.

  Source: Zhang et al., Context Encoding for Semantic Segmentation (CVPR 2018), section 3.1: the semantic encoding loss.
  """
  logits, labels = jnp.asarray(logits, jnp.float32), jnp.asarray(labels).astype(jnp.int32)
  if logits.ndim != 2 or labels.ndim != 3 or logits.shape[0] != labels.shape[0]:
    raise ValueError(f"labels must be [B,H,W] for logits [B,N], got {labels.shape} and {logits.shape}")
  classes = jnp.arange(logits.shape[1])
  found = (labels[..., None] == classes) & (labels != ignore_label)[..., None]
  present = found.any(axis=(1, 2))
  # log(1 + e^z) - z y, which no z overflows.
  return (jax.nn.softplus(logits) - jnp.where(present, logits, 0)).mean()


def _pixel_losses(logits: ArrayLike, labels: ArrayLike, ignore_label: int) -> tuple[Array, Array]:
  """Cross entropy ``[B,H,W]`` float32 of each pixel, 0 where it does not count; and whether it counts."""
  logits, labels = jnp.asarray(logits), jnp.asarray(labels)
  if labels.shape != logits.shape[:-1]:
    raise ValueError(f"labels must be [B,H,W] for logits [B,H,W,N], got {labels.shape} and {logits.shape}")
  logits, labels = logits.astype(jnp.float32), labels.astype(jnp.int32)
  num_classes = logits.shape[-1]
  counted = (labels >= 0) & (labels < num_classes) & (labels != ignore_label)
  # Picked by a mask, not by an index, whose gradient would scatter.
  truth = labels[..., None] == jnp.arange(num_classes)
  true_logits = jnp.where(truth, logits, 0).sum(axis=-1)
  losses = jax.nn.logsumexp(logits, axis=-1) - true_logits
  # Rounding can leave a loss at -1e-7, and exp(-loss) would pass 1.
  return jnp.where(counted, jnp.maximum(losses, 0), 0), counted


def _kth_smallest(values: Array, counted: Array, k: Array) -> Array:
  """The ``k``-th smallest, from 1, of the values in ``0..1`` that count; exact.

  Non-negative floats are ordered as their bits, so 30 halvings of the integers up to the bits of 1.0 find it.
  Each is one count over the pixels: a sort of millions is slower, and would gather a batch that is spread
  over devices.
  """
  bits = jax.lax.bitcast_convert_type(values, jnp.int32)

  def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = bounds  # the answer is in low..high
    middle = low + (high - low) // 2
    enough = (counted & (bits <= middle)).sum() >= k
    return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

  one = jax.lax.bitcast_convert_type(jnp.float32(1), jnp.int32)
  _, answer = jax.lax.fori_loop(0, 30, halve, (jnp.zeros_like(one), one))
  return jax.lax.bitcast_convert_type(answer, jnp.float32)
