"""Lovász-softmax: a surrogate of the intersection over union that has a gradient."""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from rc_jax.fields import Config, Field
from rc_jax.losses.cross_entropy import probabilities_and_truth
from rc_jax.losses.pixel_loss import LossFunction, PixelLoss

FIELDS = (
  Field(
    "loss.lovasz_per_image",
    False,
    "Lovász-softmax of each image, then the mean, instead of one over the batch. Devices then sort their own images "
    "alone; over the batch, each sorts all of its pixels.",
    read_when=("loss.pixel", ("lovasz",)),
  ),
)


def lovasz_softmax(
  logits: ArrayLike, labels: ArrayLike, per_image: bool = False, ignore_label: int = 255
) -> Array:
  """Mean over classes of the Lovász extension of the Jaccard loss ``1 - IoU`` at the pixels' errors.

  A pixel's error for class ``c`` is ``1 - p_c`` where its label is ``c``, else ``p_c``, with ``p = softmax(logits)``.
  Let ``e_1 >= e_2 >= ...`` be the errors of the pixels that count, and ``J_k`` the Jaccard loss of a prediction that is
  wrong at the first ``k`` pixels alone. The loss of the class is ``sum_k e_k (J_k - J_(k-1))``. Classes that no label
  shows do not enter the mean.

  Each class needs a sort of all pixels, so this loss costs much more than the others.

  Args:
    logits: ``[B,H,W,N]``, float; computed in float32.
    labels: ``[B,H,W]``, integer; pixels count as in `cross_entropy`.
    per_image: computes the loss of each image, and averages over the images with a pixel that counts.
    ignore_label: the label of pixels that do not count.

  Returns:
    A float32 scalar in 0..1; 0, with zero gradient, when no pixel counts.

  Raises:
    ValueError: the shapes do not belong together.

  Source: Berman et al., The Lovász-Softmax loss (CVPR 2018), Eq. 8 to 11 and Algorithm 1; ``classes="present"``.
  """
  probabilities, truth, counted = probabilities_and_truth(logits, labels, ignore_label)
  groups = truth.shape[0] if per_image else 1
  # [B,H,W,N] -> [G,P,N]: the pixels that are sorted together.
  errors, truth = (
    each.reshape(groups, -1, truth.shape[-1])
    for each in (jnp.where(truth, 1 - probabilities, probabilities), truth)
  )
  slopes = jax.lax.stop_gradient(_slopes(errors, truth, counted.reshape(groups, -1)))
  present = truth.any(axis=1)  # [G,N]
  losses = jnp.where(present, (errors * slopes).sum(axis=1), 0)
  # [G,N] -> [G] -> scalar
  of_groups = losses.sum(axis=-1) / jnp.maximum(present.sum(axis=-1), 1)
  return of_groups.sum() / jnp.maximum(present.any(axis=-1).sum(), 1)


def _slopes(errors: Array, truth: Array, counted: Array) -> Array:
  """Returns ``J_k - J_(k-1)`` of each pixel and class, ``[G,P,N]``: the gradient of the loss by the error.

  The difference in closed form: subtracted in float32, two Jaccard losses of millions of pixels would leave noise.
  """

  def of_class(arrays: tuple[Array, Array]) -> Array:
    errors, truth = arrays  # [G,P] each
    place = jax.lax.broadcasted_iota(jnp.int32, errors.shape, 1)
    # Pixels that do not count come last, behind errors of 0.
    key = jnp.where(counted, -errors, 1)
    _, sorted_truth, order = jax.lax.sort((key, truth, place), dimension=1, num_keys=1)
    positives = sorted_truth.astype(jnp.int32)
    wrong_positives = jnp.cumsum(positives, axis=1) - positives  # among the pixels before
    wrong_negatives = place - wrong_positives
    number = positives.sum(axis=1, keepdims=True)
    union = jnp.maximum(number + wrong_negatives, 1).astype(jnp.float32)
    # A wrong positive takes a pixel from the intersection; a wrong negative adds a pixel to the union.
    slope = jnp.where(sorted_truth, 1 / union, (number - wrong_positives) / union / (union + 1))
    # Back to the order of the pixels by a sort: accelerators scatter slowly.
    _, slope = jax.lax.sort((order, slope), dimension=1, num_keys=1)
    return jnp.where(counted, slope, 0)

  # One class at a time: the sorted arrays of all would take several times the memory of the logits.
  by_class = jax.lax.map(of_class, (jnp.moveaxis(errors, -1, 0), jnp.moveaxis(truth, -1, 0)))
  return jnp.moveaxis(by_class, 0, -1)


def _build(config_loss: Config) -> LossFunction:
  return functools.partial(lovasz_softmax, per_image=config_loss.lovasz_per_image)


PIXEL_LOSS = PixelLoss(_build, FIELDS, title="Lovász-softmax")
