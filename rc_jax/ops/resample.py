"""Resampling between an image, its labels and a feature grid, with aligned corners or without."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike


def upsample(x: ArrayLike, size: tuple[int, int], align_corners: bool = True) -> Array:
  """Interpolates bilinearly, as ``torch.nn.functional.interpolate(mode="bilinear")``.

  With aligned corners, output pixel ``(y,x)`` reads the input at ``(y (h-1)/(H-1), x (w-1)/(W-1))``: corners map
  to corners. Without, pixels are areas that tile the image: it reads at ``((y + 1/2) h/H - 1/2, ...)``, clamped
  to the grid. A smaller ``size`` is sampled, not averaged.

  Args:
    x: ``[B,h,w,C]``.
    size: ``(H,W)``.
    align_corners: whether corners are aligned.

  Returns:
    ``[B,H,W,C]`` in the dtype of ``x``, or float32 where that is an integer.
  """
  x = jnp.asarray(x)
  if not jnp.issubdtype(x.dtype, jnp.floating):
    x = x.astype(jnp.float32)
  if x.ndim != 4:
    raise ValueError(f"upsample: x has shape {x.shape}; expected [B,h,w,C]")
  pairs = zip(x.shape[1:3], size, strict=True)
  rows, columns = (interpolation(*lengths, align_corners) for lengths in pairs)
  return apply_separable(x, rows, columns)


def apply_separable(x: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
  """Mixes the rows and the columns of a map: ``y[b,Y,X,c] = sum rows[Y,y] columns[X,x] x[b,y,x,c]``.

  Args:
    x: ``[B,h,w,C]``, float.
    rows: ``[H,h]``, 0 or more; each row sums to 1.
    columns: ``[W,w]``, likewise.

  Returns:
    ``[B,H,W,C]`` in the dtype of ``x``; sums are in float32.
  """
  rows, columns = (rounded_weights(weights, x.dtype) for weights in (rows, columns))
  # Matrix products, not gathers: their gradients are matrix products too, where those of gathers scatter. Width comes
  # first because street images are wider than tall, and the second product dominates.
  options = {"precision": jax.lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}
  wide = jnp.einsum("bhwc,Ww->bhWc", x, columns, **options).astype(x.dtype)
  return jnp.einsum("bhWc,Hh->bHWc", wide, rows, **options).astype(x.dtype)


def rounded_weights(weights: np.ndarray, dtype: DTypeLike) -> np.ndarray:
  """Rounds the weights of means to a dtype such that their sum stays 1.

  Rounded one by one, the weights of bfloat16 sum to 0.998 to 1.002, and all channels of a pixel become too large or too
  small together.

  Args:
    weights: ``[n,m]`` float32, 0 or more; each row sums to 1.
    dtype: float; with float32, the weights stay as they are.

  Returns:
    ``[n,m]`` of the dtype. With a shorter dtype, each weight is a multiple of the dtype's spacing below 1: one of the
    two around the weight given.

  >>> rounded_weights(np.float32([[1 / 3, 2 / 3]]), jnp.bfloat16).astype(np.float32).sum()
  np.float32(1.0)
  """
  bits = jnp.finfo(dtype).nmant + 1
  if bits > jnp.finfo(jnp.float32).nmant:
    return weights.astype(dtype)
  units = np.float64(weights) * 2**bits
  lower = np.floor(units)
  # The weights that lose most are rounded up.
  order = np.argsort(lower - units, axis=1, kind="stable")
  place = np.argsort(order, axis=1, kind="stable")
  missing = 2**bits - lower.sum(axis=1, keepdims=True)
  return ((lower + (place < missing)) / 2**bits).astype(dtype)


def interpolation(source: int, target: int, align_corners: bool = True) -> np.ndarray:
  """Returns the matrix ``[target,source]`` float32 of linear interpolation along one side; rows sum to 1."""
  position = sample_positions(source, target, align_corners)
  return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(source))).astype(np.float32)


def sample_positions(source: int, target: int, align_corners: bool = True) -> np.ndarray:
  """Returns the positions along one side of the source at which each pixel of the target is sampled.

  Target pixel ``i`` is sampled at ``i (source-1)/(target-1)`` with aligned corners, and at
  ``(i + 1/2) source/target - 1/2``, clamped to the source, without.

  Args:
    source: length of the side before resampling, in pixels.
    target: length after resampling.
    align_corners: as in ``upsample``.

  Returns:
    float64 ``[target]`` in ``0..source-1``.

  >>> sample_positions(3, 5).tolist()
  [0.0, 0.5, 1.0, 1.5, 2.0]
  """
  # float64, because float32 positions at 2048 pixels are wrong in the fourth decimal.
  if align_corners:
    return np.arange(target) * ((source - 1) / max(target - 1, 1))
  return np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)


def downsample_labels(labels: ArrayLike, size: tuple[int, int], align_corners: bool = True) -> Array:
  """Samples the nearest label at each position that ``upsample`` maps a feature to.

  Args:
    labels: ``[B,H,W]``.
    size: ``(h,w)``. Row ``i`` is row ``i (H-1)/(h-1)`` of the input with aligned corners, ``(i + 1/2) H/h - 1/2``
      without, to the nearest, halves up.
    align_corners: as in ``upsample``.

  Returns:
    ``[B,h,w]`` of the same dtype.
  """
  labels = jnp.asarray(labels)
  if labels.ndim != 3:
    raise ValueError(f"downsample_labels: labels have shape {labels.shape}; expected [B,H,W]")
  pairs = zip(labels.shape[1:], size, strict=True)
  rows, columns = (_nearest(*lengths, align_corners) for lengths in pairs)
  return labels[:, rows[:, None], columns]


def _nearest(source: int, target: int, align_corners: bool) -> np.ndarray:
  """Returns indices ``[target]`` into ``source``, rounded in exact integers."""
  index = np.arange(target)
  if not align_corners:
    return (2 * index + 1) * source // (2 * target)
  steps = max(target - 1, 1)
  return (2 * index * (source - 1) + steps) // (2 * steps)
