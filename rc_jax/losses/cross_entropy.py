"""Cross entropy over pixels, with weights of the classes and label smoothing."""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from rc_jax.fields import Config, Field, below_one
from rc_jax.losses.pixel_loss import LossFunction, PixelLoss, Reduction

FIELDS = (
  Field(
    "loss.label_smoothing",
    0.0,
    "Share of a pixel's target that cross entropy spreads evenly over all classes, as in PyTorch. The auxiliary head's "
    "loss is not smoothed.",
    below_one("0 or more, below 1"),
    read_when=("loss.pixel", ("ce",)),
  ),
)


def cross_entropy(
  logits: ArrayLike,
  labels: ArrayLike,
  ignore_label: int = 255,
  *,
  class_weights: ArrayLike | None = None,
  label_smoothing: float = 0.0,
) -> Array:
  """Mean of ``-log softmax(logits)[label]`` over the labelled pixels.

  With weights ``w`` of the ``N`` classes and a smoothing ``s``, the loss of a pixel of class ``y`` is
  ``-(1 - s) w_y log p_y - s/N sum_c w_c log p_c``. The sum over pixels is divided by the sum of their ``w_y``, not by
  their number.

  Args:
    logits: ``[B,H,W,N]``, float; computed in float32.
    labels: ``[B,H,W]``, integer. Pixels labelled ``ignore_label``, or anything outside ``0..N-1``, do not
      count.
    ignore_label: the label of pixels that do not count.
    class_weights: ``[N]``, 0 or more; None: all classes weigh the same.
    label_smoothing: ``s``, 0 or more and below 1.

  Returns:
    A float32 scalar; 0, with zero gradient, when no pixel counts or the weights of those that count are all 0.

  Raises:
    ValueError: the shapes do not belong together.

  Source: ``torch.nn.functional.cross_entropy`` with ``weight``, ``ignore_index`` and ``label_smoothing``.

  >>> logits, labels = jnp.array([[[[1.0, 0.0]]]]), jnp.array([[[1]]])
  >>> losses = cross_entropy(logits, labels), cross_entropy(logits, labels, label_smoothing=0.5)
  >>> [round(float(loss), 3) for loss in losses]
  [1.313, 1.063]
  """
  weights = weights_of_pixels(logits, labels, class_weights)
  if not label_smoothing:
    return mean_over_counted(*cross_entropy_per_pixel(logits, labels, ignore_label), weights=weights)
  losses, counted = _smoothed_per_pixel(logits, labels, ignore_label, class_weights, label_smoothing)
  if weights is None:
    return mean_over_counted(losses, counted)
  return losses.sum() / _divisor(jnp.where(counted, weights, 0))


def counted_pixels(labels: Array, num_classes: int, ignore_label: int = 255) -> Array:
  """Returns which pixels count: labels in ``0..num_classes-1`` other than ``ignore_label``; bool, of the same shape."""
  return (labels >= 0) & (labels < num_classes) & (labels != ignore_label)


def mean_over_counted(losses: Array, counted: Array, weights: Array | None = None) -> Array:
  """Returns the mean of the losses of pixels that count, of the results of `cross_entropy_per_pixel`.

  Args:
    losses: ``[B,H,W]`` float32.
    counted: ``[B,H,W]`` bool.
    weights: ``[B,H,W]`` float32, for the weighted mean, whose divisor is the sum of the weights of these pixels.
  """
  if weights is None:
    return losses.sum() / jnp.maximum(counted.sum(), 1)
  weights = jnp.where(counted, weights, 0)
  return (weights * losses).sum() / _divisor(weights)


def pixel_shares(labels: Array, num_classes: int, class_weights: ArrayLike | None = None) -> Array:
  """Returns the share of each part of a batch in the pixels that count, relative to the mean of the parts.

  The mean over parts of ``share * mean over the pixels of the part`` is the mean over the pixels of the batch.

  Args:
    labels: of ``K`` parts, ``[K,B,H,W]``, integer.
    num_classes: ``N``.
    class_weights: ``[N]``, of means that are divided by the sum of the pixels' weights; None: all weigh the same.

  Returns:
    ``[K]`` float32 whose mean is 1; 0 where no pixel of the batch counts.

  >>> pixel_shares(jnp.array([[[[0, 1, 1]]], [[[255, 255, 0]]]]), 2).tolist()
  [1.5, 0.5]
  """
  pixels = (1, 2, 3)
  if class_weights is None:
    totals = counted_pixels(labels, num_classes).sum(pixels).astype(jnp.float32)
  else:
    weights = _checked_weights(class_weights, (num_classes,))
    counted = counted_pixels(labels, num_classes)[..., None]
    of_classes = (_one_hot(labels, num_classes) & counted).sum(pixels)  # [K,N]
    totals = (of_classes * weights).sum(axis=-1)
  return totals / _divisor(totals) * len(totals)


def weights_of_pixels(logits: ArrayLike, labels: ArrayLike, class_weights: ArrayLike | None) -> Array | None:
  """Returns the weight of each pixel's class, ``[B,H,W]`` float32, 0 for labels outside ``0..N-1``.

  Args:
    logits: ``[B,h,w,N]``; only ``N`` is read.
    labels: ``[B,H,W]``, integer.
    class_weights: ``[N]``; None: the result is None.

  Raises:
    ValueError: there are not ``N`` weights.
  """
  if class_weights is None:
    return None
  weights = _checked_weights(class_weights, jnp.shape(logits))
  # By a mask, as below. Both fuse with the operation that reads them.
  return jnp.where(_one_hot(jnp.asarray(labels), len(weights)), weights, 0).sum(axis=-1)


def cross_entropy_per_pixel(
  logits: ArrayLike, labels: ArrayLike, ignore_label: int = 255
) -> tuple[Array, Array]:
  """``-log softmax(logits)[label]`` of each pixel; arguments as for `cross_entropy`.

  Returns:
    The losses ``[B,H,W]`` float32, not negative, 0 where a pixel does not count; and ``[B,H,W]`` bool, True where it
    counts.
  """
  logits, labels = float_logits(logits, labels)
  num_classes = logits.shape[-1]
  counted = counted_pixels(labels, num_classes, ignore_label)
  # Selected by a mask, not by an index: the gradient of an index is a scatter, which accelerators do slowly.
  truth = _one_hot(labels, num_classes)  # [B,H,W,N]
  true_logits = jnp.where(truth, logits, 0).sum(axis=-1)
  losses = jax.nn.logsumexp(logits, axis=-1) - true_logits
  # Rounding can leave a loss at -1e-7, and exp(-loss) would exceed 1.
  return jnp.where(counted, jnp.maximum(losses, 0), 0), counted


def float_logits(logits: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
  """Returns logits ``[B,H,W,N]`` in float32 and labels ``[B,H,W]`` in int32.

  Raises:
    ValueError: the shapes do not belong together.
  """
  logits, labels = jnp.asarray(logits), jnp.asarray(labels)
  if labels.shape != logits.shape[:-1]:
    raise ValueError(f"labels must be [B,H,W] for logits [B,H,W,N], got {labels.shape} and {logits.shape}")
  return logits.astype(jnp.float32), labels.astype(jnp.int32)


def probabilities_and_truth(
  logits: ArrayLike, labels: ArrayLike, ignore_label: int
) -> tuple[Array, Array, Array]:
  """Returns what losses on regions compare, with 0 and False where a pixel does not count.

  Args:
    logits: ``[B,H,W,N]``, float.
    labels: ``[B,H,W]``, integer.
    ignore_label: the label of pixels that do not count.

  Returns:
    ``softmax(logits)``, ``[B,H,W,N]`` float32; the one-hot labels, ``[B,H,W,N]`` bool; which pixels count, ``[B,H,W]``
    bool.

  Raises:
    ValueError: the shapes do not belong together.
  """
  logits, labels = float_logits(logits, labels)
  counted = counted_pixels(labels, logits.shape[-1], ignore_label)
  probabilities = jnp.where(counted[..., None], jax.nn.softmax(logits, axis=-1), 0)
  return probabilities, _one_hot(labels, logits.shape[-1]) & counted[..., None], counted


def _smoothed_per_pixel(
  logits: ArrayLike,
  labels: ArrayLike,
  ignore_label: int,
  class_weights: ArrayLike | None,
  label_smoothing: float,
) -> tuple[Array, Array]:
  """As `cross_entropy_per_pixel`, of smoothed targets; weighted where there are weights."""
  logits, labels = float_logits(logits, labels)
  num_classes = logits.shape[-1]
  counted = counted_pixels(labels, num_classes, ignore_label)
  targets = (1 - label_smoothing) * _one_hot(labels, num_classes) + label_smoothing / num_classes
  if class_weights is not None:
    targets = targets * _checked_weights(class_weights, logits.shape)
  losses = -(targets * jax.nn.log_softmax(logits, axis=-1)).sum(axis=-1)
  return jnp.where(counted, losses, 0), counted


def _one_hot(labels: Array, num_classes: int) -> Array:
  return labels[..., None] == jnp.arange(num_classes)


def _divisor(weights: Array) -> Array:
  total = weights.sum()
  return jnp.where(total > 0, total, 1)


def _checked_weights(class_weights: ArrayLike, shape: tuple[int, ...]) -> Array:
  weights = jnp.asarray(class_weights, jnp.float32)
  if weights.shape != shape[-1:]:
    raise ValueError(f"class_weights must be [N] for logits [B,H,W,N], got {weights.shape} and {shape}")
  return weights


def _build(config_loss: Config) -> LossFunction:
  return functools.partial(
    cross_entropy,
    class_weights=config_loss.class_weights or None,
    label_smoothing=config_loss.label_smoothing,
  )


def _reduction(config_loss: Config) -> Reduction | None:
  # A smoothed target reads all log-probabilities of a pixel.
  return None if config_loss.label_smoothing else mean_over_counted


PIXEL_LOSS = PixelLoss(
  _build, FIELDS, _reduction, weighted=True, mean_over_pixels=True, title="cross entropy"
)
