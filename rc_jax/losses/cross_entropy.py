"""Cross entropy over pixels."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from rc_jax.losses.pixel_loss import PixelLoss


def cross_entropy(logits: ArrayLike, labels: ArrayLike, ignore_label: int = 255) -> Array:
  """Mean of ``-log softmax(logits)[label]`` over the labelled pixels.

  Args:
    logits: ``[B,H,W,N]``, float; computed in float32.
    labels: ``[B,H,W]``, integer. Pixels labelled ``ignore_label``, or anything outside ``0..N-1``, do not
      count.
    ignore_label: the label of pixels that do not count.

  Returns:
    A float32 scalar; 0, with zero gradient, when no pixel counts.

  Raises:
    ValueError: the shapes do not belong together.
  """
  return mean_over_counted(*cross_entropy_per_pixel(logits, labels, ignore_label))


def counted_pixels(labels: Array, num_classes: int, ignore_label: int = 255) -> Array:
  """Returns which pixels count: labels in ``0..num_classes-1`` other than ``ignore_label``; bool, of the same shape."""
  return (labels >= 0) & (labels < num_classes) & (labels != ignore_label)


def mean_over_counted(losses: Array, counted: Array) -> Array:
  """Returns the mean of the losses of pixels that count, of the results of `cross_entropy_per_pixel`."""
  return losses.sum() / jnp.maximum(counted.sum(), 1)


def cross_entropy_per_pixel(
  logits: ArrayLike, labels: ArrayLike, ignore_label: int = 255
) -> tuple[Array, Array]:
  """``-log softmax(logits)[label]`` of each pixel; arguments as for `cross_entropy`.

  Returns:
    The losses ``[B,H,W]`` float32, not negative, 0 where a pixel does not count; and ``[B,H,W]`` bool, True where it
    counts.
  """
  logits, labels = jnp.asarray(logits), jnp.asarray(labels)
  if labels.shape != logits.shape[:-1]:
    raise ValueError(f"labels must be [B,H,W] for logits [B,H,W,N], got {labels.shape} and {logits.shape}")
  logits, labels = logits.astype(jnp.float32), labels.astype(jnp.int32)
  num_classes = logits.shape[-1]
  counted = counted_pixels(labels, num_classes, ignore_label)
  # Selected by a mask, not by an index: the gradient of an index is a scatter, which accelerators do slowly.
  truth = labels[..., None] == jnp.arange(num_classes)  # [B,H,W,N]
  true_logits = jnp.where(truth, logits, 0).sum(axis=-1)
  losses = jax.nn.logsumexp(logits, axis=-1) - true_logits
  # Rounding can leave a loss at -1e-7, and exp(-loss) would exceed 1.
  return jnp.where(counted, jnp.maximum(losses, 0), 0), counted


PIXEL_LOSS = PixelLoss(
  build=lambda config_loss: cross_entropy, reduction=lambda config_loss: mean_over_counted
)
