"""Cross entropy of logits that are upsampled to the labels, on GPUs without an array of that size.

The upsampled logits ``[B,H,W,N]`` are the largest array of a train step: 2.2 GB for 16 crops of ADE20K. A GPU that
writes them spends most of its time on reading them again. Here it interpolates along the height by a matrix product,
and along the width anew in each operation that reads the result. The backward pass sums, for each column of the grid,
over the few columns of the image that read it, without an array of these terms.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from rc_jax.losses.cross_entropy import counted_pixels, cross_entropy_per_pixel
from rc_jax.ops import resample


def upsampled_cross_entropy_per_pixel(
  logits: ArrayLike, labels: ArrayLike, align_corners: bool = True
) -> tuple[Array, Array]:
  """``-log softmax(upsample(logits))[label]`` of each pixel.

  Args:
    logits: ``[B,h,w,N]``, float; computed in float32.
    labels: ``[B,H,W]``, integer; pixels count as in `cross_entropy`, with 255 ignored.
    align_corners: as in `upsample`.

  Returns:
    As `cross_entropy_per_pixel`: losses ``[B,H,W]`` float32, 0 where a pixel does not count, and ``[B,H,W]`` bool.

  Raises:
    ValueError: the shapes do not belong together.
  """
  logits, labels = jnp.asarray(logits), jnp.asarray(labels)
  if logits.ndim != 4 or labels.ndim != 3 or labels.shape[0] != logits.shape[0]:
    raise ValueError(f"labels must be [B,H,W] for logits [B,h,w,N], got {labels.shape} and {logits.shape}")
  counted = counted_pixels(labels, logits.shape[-1])
  plain = functools.partial(_plain, align_corners=align_corners)
  again = functools.partial(cross_entropy_recomputed, align_corners=align_corners)
  losses: Array = jax.lax.platform_dependent(logits, labels, cuda=again, rocm=again, default=plain)
  return losses, counted


def _plain(logits: Array, labels: Array, align_corners: bool) -> Array:
  upsampled = resample.upsample(logits, (labels.shape[1], labels.shape[2]), align_corners)
  return cross_entropy_per_pixel(upsampled, labels)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def cross_entropy_recomputed(logits: Array, labels: Array, align_corners: bool) -> Array:
  """The losses of `upsampled_cross_entropy_per_pixel` without upsampled logits in memory, for GPUs.

  Args:
    logits: ``[B,h,w,N]``, float.
    labels: ``[B,H,W]``, integer.
    align_corners: as in `upsample`.

  Returns:
    ``[B,H,W]`` float32, 0 where a pixel does not count. The gradient has the dtype of the logits.
  """
  return _forward(logits, labels, align_corners)[0]


class _Neighbours(NamedTuple):
  """The two columns of the grid between which each column of the image lies: indices and weights ``[W]``."""

  left: np.ndarray
  right: np.ndarray
  left_weight: np.ndarray
  right_weight: np.ndarray


class _Readers(NamedTuple):
  """The columns of the image that read each column of the grid: indices and weights ``[w,T]``, 0 where none reads."""

  columns: np.ndarray
  weights: np.ndarray


def _neighbours(source: int, target: int, align_corners: bool) -> _Neighbours:
  weights = resample.interpolation(source, target, align_corners)  # [W,w]
  left = (weights > 0).argmax(axis=1)
  right = np.minimum(left + 1, source - 1)
  columns = np.arange(target)
  return _Neighbours(
    left, right, weights[columns, left], np.where(right > left, weights[columns, right], 0).astype(np.float32)
  )


def _readers(source: int, target: int, align_corners: bool) -> _Readers:
  weights = resample.interpolation(source, target, align_corners)  # [W,w]
  spans = [np.flatnonzero(column) for column in weights.T]
  length = max(span[-1] - span[0] + 1 if len(span) else 1 for span in spans)
  first = np.array([min(span[0], target - length) if len(span) else 0 for span in spans])
  columns = first[:, None] + np.arange(length)
  return _Readers(columns, np.take_along_axis(weights.T, columns, axis=1))


def _columns(x: Array, index: np.ndarray) -> Array:
  """Returns columns of ``x [B,H,W,...]`` by static indices."""
  return jnp.take(x, jnp.asarray(index, jnp.int32), axis=2, mode="clip")


def _widened(tall: Array, neighbours: _Neighbours) -> Array:
  """Interpolates ``[B,H,w,N]`` along the width, ``-> [B,H,W,N]``."""
  left = _columns(tall, neighbours.left) * neighbours.left_weight[..., None]
  return left + _columns(tall, neighbours.right) * neighbours.right_weight[..., None]


def _forward(
  logits: Array, labels: Array, align_corners: bool
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
  (grid_height, grid_width, num_classes), (height, width) = logits.shape[1:], labels.shape[1:]
  rows = resample.interpolation(grid_height, height, align_corners)
  neighbours = _neighbours(grid_width, width, align_corners)
  # [B,h,w,N] -> [B,H,w,N]
  tall = jnp.einsum("bhwc,Hh->bHwc", logits.astype(jnp.float32), rows, precision=jax.lax.Precision.HIGHEST)
  upsampled = _widened(tall, neighbours)
  truth = labels[..., None] == jnp.arange(num_classes)
  true_logits = jnp.where(truth, upsampled, 0).sum(axis=-1)
  largest = upsampled.max(axis=-1)
  # Behind a barrier this is another array to the compiler. It would write an array with several readers to memory.
  again = _widened(jax.lax.optimization_barrier(tall), neighbours)
  log_sum = jnp.log(jnp.exp(again - largest[..., None]).sum(axis=-1)) + largest
  losses = jnp.where(counted_pixels(labels, num_classes), jnp.maximum(log_sum - true_logits, 0), 0)
  # The empty array carries the dtype and the height of the grid.
  return losses, (tall, labels, log_sum, jnp.zeros((grid_height, 0), logits.dtype))


def _backward(
  align_corners: bool, residuals: tuple[Array, Array, Array, Array], d_losses: Array
) -> tuple[Array, None]:
  tall, labels, log_sum, grid = residuals
  (height, grid_width, num_classes), width = tall.shape[1:], labels.shape[2]
  neighbours = _neighbours(grid_width, width, align_corners)
  readers = _readers(grid_width, width, align_corners)
  d_losses = jnp.where(counted_pixels(labels, num_classes), d_losses, 0)
  # [B,H,w,T,N]: the logits at the columns of the image that read each column of the grid.
  logits = _widened(tall, _Neighbours(*(part[readers.columns] for part in neighbours)))
  truth = _columns(labels, readers.columns)[..., None] == jnp.arange(num_classes)
  surplus = jnp.exp(logits - _columns(log_sum, readers.columns)[..., None]) - truth  # softmax minus one-hot
  d_tall = (surplus * (_columns(d_losses, readers.columns) * readers.weights)[..., None]).sum(axis=3)
  rows = resample.interpolation(grid.shape[0], height, align_corners)
  d_logits = jnp.einsum("bHwc,Hh->bhwc", d_tall, rows, precision=jax.lax.Precision.HIGHEST)
  return d_logits.astype(grid.dtype), None


cross_entropy_recomputed.defvjp(_forward, _backward)
