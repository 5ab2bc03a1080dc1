"""Batch normalisation by the statistics of the batch, with a backward pass that keeps little memory."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from rc_jax.ops.separate import separate


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def normalize(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  shift: jax.Array,
  residual: jax.Array | None,
  relu: bool,
  epsilon: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Normalises each channel by the mean and the biased variance of this batch.

  ``y = (x - mean) / sqrt(var + epsilon) * scale + bias``, over all axes but the last; then ``y + residual`` and
  ``max(y, 0)`` where asked for, so that a device writes one array and not three.

  One pass over ``x`` computes mean and variance as moments about ``shift``. They are as exact as those of two passes
  when ``shift`` is near the mean. On several devices they need one all-reduce, where two passes need two in sequence.

  Args:
    x: ``[...,C]``, any float dtype.
    scale: ``[C]`` float32.
    bias: ``[C]`` float32.
    shift: ``[C]`` float32, a constant near the mean, such as the running mean.
    residual: ``[...,C]``, added to the result in float32; None: nothing.
    relu: whether the result is rectified. Its gradient at 0 is 0.
    epsilon: added to the variance.

  Returns:
    ``y`` with the shape and dtype of ``x``; mean ``[C]`` and biased variance ``[C]``, float32. No gradient flows
    through the latter two, which only the running statistics use.
  """
  return _normalize_forward(x, scale, bias, shift, residual, relu, epsilon)[0]


def scaled(
  x: jax.Array, mean: jax.Array, factor: jax.Array, bias: jax.Array, residual: jax.Array | None, relu: bool
) -> jax.Array:
  """Returns ``(x - mean) * factor + bias [+ residual]``, rectified where ``relu``, in the dtype of ``x``."""
  y = (x.astype(jnp.float32) - mean) * factor + bias
  if residual is not None:
    y = y + residual.astype(jnp.float32)
  return (jnp.maximum(y, 0) if relu else y).astype(x.dtype)


def _normalize_forward(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  shift: jax.Array,
  residual: jax.Array | None,
  relu: bool,
  epsilon: float,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[Any, ...]]:
  offset, mean_square = _moments(x, shift)
  var = jnp.maximum(mean_square - jnp.square(offset), 0.0)
  mean = offset + shift
  inverse = jax.lax.rsqrt(var + epsilon)
  y = separate(functools.partial(scaled, relu=relu))(x, mean, inverse * scale, bias, residual)
  # Not the bias itself: the optimizer would have to copy it before its update, for the backward pass to read.
  offset = bias - mean * (inverse * scale)
  return (y, mean, var), (x, scale, offset, mean, inverse, y if relu else None, residual is not None)


def _moments(x: jax.Array, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
  centred = x.astype(jnp.float32) - shift
  count = x.size // x.shape[-1]
  total, squares = _channel_sums(centred, jnp.square(centred))
  return total / count, squares / count


def _channel_sums(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Sums two float32 arrays ``[...,C]`` over all axes but the last."""
  sums: tuple[jax.Array, jax.Array] = jax.lax.platform_dependent(
    first, second, cuda=sums_by_rows, rocm=sums_by_rows, default=_sums_at_once
  )
  return sums


def _sums_at_once(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
  axes = tuple(range(first.ndim - 1))
  return jnp.sum(first, axes), jnp.sum(second, axes)


def sums_by_rows(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The sums of `_channel_sums` in two operations, for GPUs: rows of pixels, then the rows of both arrays together.

  XLA divides a long sum in two itself, but then adds the parts of each array in an operation of its own.
  """
  channels = first.shape[-1]
  rows = jnp.concatenate([jnp.sum(first, -2), jnp.sum(second, -2)], axis=-1)
  sums = jnp.sum(rows.reshape(-1, 2 * channels), 0)
  return sums[:channels], sums[channels:]


def _normalize_backward(
  relu: bool, epsilon: float, residuals: tuple[Any, ...], cotangents: tuple[jax.Array, ...]
) -> tuple[jax.Array | None, ...]:
  # Written out so that the forward pass keeps x in its dtype and vectors, and no second array as large as x: such
  # arrays are most of the memory of a training step.
  x, scale, offset, mean, inverse, y, has_residual = residuals
  arrays = (cotangents[0], x, y, scale, offset, mean, inverse)
  plain = functools.partial(_gradients, relu=relu)
  if relu and not has_residual:
    dx, dy, d_scale, d_bias = jax.lax.platform_dependent(
      *arrays, cuda=gradients_by_sign, rocm=gradients_by_sign, default=plain
    )
  else:
    dx, dy, d_scale, d_bias = plain(*arrays)
  return dx, d_scale, d_bias, jnp.zeros_like(mean), dy if has_residual else None


def _gradients(
  dy: jax.Array,
  x: jax.Array,
  y: jax.Array | None,
  scale: jax.Array,
  offset: jax.Array,
  mean: jax.Array,
  inverse: jax.Array,
  relu: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Returns the gradients of x, of the residual, of scale and of bias."""
  if relu:
    assert y is not None
    # Of the rectified result the sign is needed, and the next layer keeps that array in any case.
    dy = separate(_rectified)(dy, y)
  d_scale, d_bias = _sums(x, dy, mean, inverse)
  count = x.size // x.shape[-1]
  dx = separate(_input_gradient)(x, dy, mean, inverse, inverse * scale, d_bias / count, d_scale / count)
  return dx, dy, d_scale, d_bias


def gradients_by_sign(
  dy: jax.Array,
  x: jax.Array,
  y: jax.Array,
  scale: jax.Array,
  offset: jax.Array,
  mean: jax.Array,
  inverse: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Computes the gradients of `normalize` with ``relu`` and without a residual, for GPUs.

  The sign of ``x * scale * inverse + offset`` replaces that of the stored result: both passes over the arrays read
  ``x`` anyway. The passes then read and write five arrays of the size of ``x``. With ``y`` they take seven, because XLA
  writes the rectified gradient. Near 0 both signs can differ, because the formula rounds differently from the forward
  pass. There a gradient is kept or dropped that the stored result would drop or keep.

  Args:
    dy: ``[...,C]``, the gradient of ``y``.
    x: ``[...,C]``, the input of `normalize`.
    y: ``[...,C]``, its result; not read.
    scale: ``[C]`` float32.
    offset: ``[C]`` float32, ``bias - mean * scale * inverse``.
    mean: ``[C]`` float32, of the batch.
    inverse: ``[C]`` float32, ``1 / sqrt(var + epsilon)`` of the batch.

  Returns:
    The gradient of ``x``, of its shape and dtype; ``dy`` as it was given, not rectified, in the place of a residual's
    gradient; the gradients of scale and bias, ``[C]`` float32.
  """
  del y
  factor = inverse * scale

  def rectified(dy: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(x.astype(jnp.float32) * factor + offset > 0, dy, 0)

  d_scale, d_bias = _sums(x, rectified(dy, x), mean, inverse)
  count = x.size // x.shape[-1]
  # Behind a barrier these are other arrays to the compiler. It would keep the rectified gradient between the passes.
  later_dy, later_x = jax.lax.optimization_barrier((dy, x))
  dx = _input_gradient(
    later_x, rectified(later_dy, later_x), mean, inverse, factor, d_bias / count, d_scale / count
  )
  return dx, dy, d_scale, d_bias


def _rectified(dy: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.where(y > 0, dy, 0)


def _sums(x: jax.Array, dy: jax.Array, mean: jax.Array, inverse: jax.Array) -> tuple[jax.Array, jax.Array]:
  dy = dy.astype(jnp.float32)
  return _channel_sums(dy * ((x.astype(jnp.float32) - mean) * inverse), dy)


def _input_gradient(
  x: jax.Array,
  dy: jax.Array,
  mean: jax.Array,
  inverse: jax.Array,
  factor: jax.Array,
  mean_dy: jax.Array,
  mean_product: jax.Array,
) -> jax.Array:
  normal = (x.astype(jnp.float32) - mean) * inverse
  return ((dy.astype(jnp.float32) - mean_dy - normal * mean_product) * factor).astype(x.dtype)


normalize.defvjp(_normalize_forward, _normalize_backward)
