"""Convolutions as one matrix product for each tap of the kernel, over the pixels alone; ``conv.py`` says when."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rc_jax.ops.separate import separate

_PRODUCT = (((1,), (0,)), ((), ()))

Spans = tuple[tuple[int, int], tuple[int, int]]


class Tap(NamedTuple):
  """A position in the kernel, and the outputs for which it reads pixels, not padding.

  Attributes:
    row: in the kernel.
    column: in the kernel.
    outputs: for each axis, ``(start, stop)`` on the output's grid.
    inputs: for each axis, ``(start, stop)`` of the pixels that it reads for these outputs, in steps of the stride.
  """

  row: int
  column: int
  outputs: Spans
  inputs: Spans


def valid_taps(size: tuple[int, ...], kernel_size: int, stride: int, dilation: int) -> list[Tap]:
  """Lists the taps that read at least one pixel of an input of ``size`` (height, width)."""

  def axis(pixels: int, position: int) -> tuple[tuple[int, int], tuple[int, int]]:
    offset = (position - kernel_size // 2) * dilation
    start = max(0, -(offset // stride))
    stop = min(-(-pixels // stride), (pixels - 1 - offset) // stride + 1)
    return (start, stop), (start * stride + offset, (stop - 1) * stride + offset + 1)

  taps = []
  for row in range(kernel_size):
    for column in range(kernel_size):
      (rows, rows_in), (columns, columns_in) = axis(size[0], row), axis(size[1], column)
      if rows[0] < rows[1] and columns[0] < columns[1]:
        taps.append(Tap(row, column, (rows, columns), (rows_in, columns_in)))
  return taps


def pixels_at(x: jax.Array, spans: Spans, stride: int) -> jax.Array:
  """Returns every ``stride``-th pixel of ``x [B,H,W,C]`` within ``spans``."""
  (top, bottom), (left, right) = spans
  return lax.slice(x, (0, top, left, 0), (x.shape[0], bottom, right, x.shape[3]), (1, stride, stride, 1))


def _pixels_at_last(x: jax.Array, spans: Spans, stride: int) -> jax.Array:
  """As ``pixels_at`` of ``x [C,B,H,W]``."""
  (top, bottom), (left, right) = spans
  return lax.slice(x, (0, 0, top, left), (*x.shape[:2], bottom, right), (1, 1, stride, stride))


def _sum_placed(parts: list[tuple[jax.Array, Spans]], stride: int, size: tuple[int, ...]) -> jax.Array:
  """Adds each part, spread by ``stride``, to zeros of ``size`` at its spans: the adjoint of ``pixels_at``."""
  total = None
  for part, spans in parts:
    pads = [(start, end - stop, stride - 1) for (start, stop), end in zip(spans, size, strict=True)]
    placed = lax.pad(part, jnp.zeros((), part.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
    total = placed if total is None else total + placed
  # Without the barrier, XLA adds the parts up again inside every operation that reads the sum.
  summed: jax.Array = lax.optimization_barrier(total)
  return summed


def forward(x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int) -> jax.Array:
  """Convolves as ``conv.conv2d``, with arguments as for ``conv_xla.forward``.

  Returns:
    ``[B,ceil(H/stride),ceil(W/stride),O]`` of the dtype of ``x``, to which each product and each sum is rounded.
  """
  over_channels = (((3,), (0,)), ((), ()))
  parts = [
    (
      lax.dot_general(pixels_at(x, tap.inputs, stride), kernel[tap.row, tap.column], over_channels),
      tap.outputs,
    )
    for tap in valid_taps(x.shape[1:3], kernel.shape[0], stride, dilation)
  ]
  return _sum_placed(parts, 1, tuple(-(-n // stride) for n in x.shape[1:3]))


def input_gradient(
  dy: jax.Array, x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
  """Computes the gradient of the input of `forward`, with arguments as for ``conv_xla.input_gradient``.

  Returns:
    ``[B,H,W,C]`` of the dtype of ``dy``, to which each product and each sum is rounded.
  """
  over_outputs = (((3,), (1,)), ((), ()))
  parts = [
    (lax.dot_general(pixels_at(dy, tap.outputs, 1), kernel[tap.row, tap.column], over_outputs), tap.inputs)
    for tap in valid_taps(x.shape[1:3], kernel.shape[0], stride, dilation)
  ]
  return _sum_placed(parts, stride, x.shape[1:3])


def kernel_gradient(
  dy: jax.Array, x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
  """Computes the gradient of the kernel of `forward`, with arguments as for ``conv_xla.kernel_gradient``.

  Returns:
    ``[k,k,C,O]`` of the dtype of ``x``, to which the sum is rounded: ``conv.conv2d`` gives float32 arrays.
  """
  # A product over pixels reads one operand with its channels outermost. The one with fewer channels is transposed, once
  # for all taps, and apart from the operation that computes it: a fused transposition takes longer than the product.
  size, (inputs, outputs) = kernel.shape[0], kernel.shape[2:]
  taps = valid_taps(x.shape[1:3], size, stride, dilation)
  transpose_x = inputs <= outputs
  turned = separate(lambda array: array.transpose(3, 0, 1, 2))(x if transpose_x else dy)

  def product(tap: Tap) -> jax.Array:
    if transpose_x:
      rows, columns = _pixels_at_last(turned, tap.inputs, stride), pixels_at(dy, tap.outputs, 1)
    else:
      rows, columns = _pixels_at_last(turned, tap.outputs, 1), pixels_at(x, tap.inputs, stride)
    return lax.dot_general(rows.reshape(rows.shape[0], -1), columns.reshape(-1, columns.shape[3]), _PRODUCT)

  products = {(tap.row, tap.column): product(tap) for tap in taps}
  unread = jnp.zeros((inputs, outputs) if transpose_x else (outputs, inputs), x.dtype)
  gradient = jnp.stack(
    [jnp.stack([products.get((row, column), unread) for column in range(size)]) for row in range(size)]
  )
  return gradient if transpose_x else separate(lambda array: array.swapaxes(2, 3))(gradient)


def depthwise(x: jax.Array, kernel: jax.Array, *, dilation: int) -> jax.Array:
  """Convolves each channel separately, with arguments as for ``conv_xla.depthwise``.

  Returns:
    ``[B,H,W,C]``, summed in float32, then rounded to the dtype of ``x``.
  """
  parts = []
  for tap in valid_taps(x.shape[1:3], kernel.shape[0], 1, dilation):
    pixels, weights = pixels_at(x, tap.inputs, 1), kernel[tap.row, tap.column, 0]
    parts.append((pixels.astype(jnp.float32) * weights.astype(jnp.float32), tap.outputs))
  return _sum_placed(parts, 1, x.shape[1:3]).astype(x.dtype)


def depthwise_kernel_gradient(dy: jax.Array, x: jax.Array, kernel: jax.Array, *, dilation: int) -> jax.Array:
  """Computes the gradient of the kernel of `depthwise`, with arguments as for ``conv_xla.depthwise_kernel_gradient``.

  It loops over the rows once for all taps: a reduction for each tap takes several times as long.

  Returns:
    ``[k,k,1,C]`` float32, not rounded.
  """
  size = kernel.shape[0]
  taps = valid_taps(x.shape[1:3], size, 1, dilation)
  offsets = [(tap.row - size // 2) * dilation for tap in taps]
  reach = max(offsets)  # of the taps that read pixels: less than the height
  padded = jnp.pad(x, ((0, 0), (reach, reach), (0, 0), (0, 0)))

  def add_row(i: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
    gradient = lax.dynamic_index_in_dim(dy, i, 1, keepdims=False).astype(jnp.float32)
    added = []
    for total, tap, offset in zip(sums, taps, offsets, strict=True):
      pixels = lax.dynamic_index_in_dim(padded, i + reach + offset, 1, keepdims=False).astype(jnp.float32)
      added.append(total + pixels[:, slice(*tap.inputs[1])] * gradient[:, slice(*tap.outputs[1])])
    return added

  widths = [tap.outputs[1][1] - tap.outputs[1][0] for tap in taps]
  zeros = [jnp.zeros((x.shape[0], width, x.shape[3]), jnp.float32) for width in widths]
  sums = lax.fori_loop(0, dy.shape[1], add_row, zeros)
  gradient = jnp.zeros(kernel.shape, jnp.float32)
  for total, tap in zip(sums, taps, strict=True):
    gradient = gradient.at[tap.row, tap.column, 0].set(total.sum((0, 1)))
  return gradient
