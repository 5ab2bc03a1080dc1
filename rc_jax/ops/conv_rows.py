"""Convolutions row by row: the forms of ``conv.py`` for TPUs.

XLA for TPUs computes a convolution of eight images or more as it stands. It cuts fewer, larger images into strips, and
the pads, slices and copies between strips and images take as long as the convolutions (``docs/tpu.md``). Here a 1x1 is
a matrix product over pixels, and a larger kernel is a sum over its rows: each is a convolution along the image's rows,
which are its batch. No size and no dilation needs padding of the image.

In the shapes of this module, ``h = ceil(H/stride)`` and ``w = ceil(W/stride)`` are the sides of the output.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class RowTap(NamedTuple):
  """A row of the kernel, and the image's rows that it reads for rows of the output.

  Attributes:
    row: of the kernel.
    inputs: rows of the image, in steps of the stride.
    outputs: rows of the output.
  """

  row: int
  inputs: slice
  outputs: slice


def row_taps(height: int, size: int, stride: int, dilation: int) -> list[RowTap]:
  """Lists the rows of a kernel that read pixels of an image; the others read padding alone.

  Args:
    height: of the image.
    size: of the kernel, odd.
    stride: as for ``conv.conv2d``.
    dilation: as for ``conv.conv2d``.
  """
  taps = []
  for row in range(size):
    offset = (row - size // 2) * dilation
    start, stop = max(0, -(offset // stride)), min(-(-height // stride), (height - 1 - offset) // stride + 1)
    if start < stop:
      inputs = slice(start * stride + offset, (stop - 1) * stride + offset + 1, stride)
      taps.append(RowTap(row, inputs, slice(start, stop)))
  return taps


def forward(x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int) -> jax.Array:
  """Convolves as ``conv.conv2d``.

  Args:
    x: ``[B,H,W,C]``, any float dtype.
    kernel: ``[k,k,C,O]`` of the dtype of ``x``, ``k`` odd.
    stride: as for ``conv.conv2d``.
    dilation: as for ``conv.conv2d``.

  Returns:
    ``[B,h,w,O]`` of the dtype of ``x``. Rows of the kernel are summed in float32, and the sum is rounded.
  """
  size = kernel.shape[0]
  if size == stride == 1:
    return jnp.einsum("bhwc,co->bhwo", x, kernel[0, 0])
  pad = dilation * (size // 2)
  height = -(-x.shape[1] // stride)
  y = jnp.zeros((), jnp.float32)
  for tap in row_taps(x.shape[1], size, stride, dilation):
    part = _along_rows(x[:, tap.inputs], kernel[tap.row], (pad, pad), stride, dilation)
    y += _placed(part, height, tap.outputs, 1)
  return y.astype(x.dtype)


def input_gradient(
  dy: jax.Array, x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
  """Computes the gradient of the input of `forward`.

  Args:
    dy: ``[B,h,w,O]`` of the dtype of ``x``, the gradient of the output.
    x: ``[B,H,W,C]``; only its shape and dtype are read.
    kernel: as for `forward`.
    stride: as for `forward`.
    dilation: as for `forward`.

  Returns:
    ``[B,H,W,C]`` of the dtype of ``x``. Rows of the kernel are summed in float32, and the sum is rounded.
  """
  kernel = kernel.swapaxes(2, 3)
  size = kernel.shape[0]
  if size == stride == 1:
    return jnp.einsum("bhwo,oc->bhwc", dy, kernel[0, 0])
  (height, width), pad = x.shape[1:3], dilation * (size // 2)
  # Columns that no output reads lie behind the last one that some output reads.
  pads = (pad, pad + width - 1 - (dy.shape[2] - 1) * stride)
  dx = jnp.zeros((), jnp.float32)
  for tap in row_taps(height, size, stride, dilation):
    part = _along_rows(dy[:, tap.outputs], kernel[tap.row, ::-1], pads, 1, dilation, stride)
    dx += _placed(part, height, tap.inputs, stride)
  return dx.astype(x.dtype)


def kernel_gradient(
  dy: jax.Array, x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
  """Computes the gradient of the kernel of `forward`, summed in float32 and not rounded afterwards.

  Args:
    dy: ``[B,h,w,O]`` of the dtype of ``x``, the gradient of the output.
    x: ``[B,H,W,C]``.
    kernel: ``[k,k,C,O]``; only its shape is read.
    stride: as for `forward`.
    dilation: as for `forward`.

  Returns:
    ``[k,k,C,O]`` float32.
  """
  size = kernel.shape[0]
  if size == stride == 1:
    product = jnp.einsum("bhwc,bhwo->co", x, dy, preferred_element_type=jnp.float32)
    return product[None, None]
  pad = dilation * (size // 2)
  pads = (pad, pad + (dy.shape[2] - 1) * stride + 1 - x.shape[2])
  rows = [jnp.zeros(kernel.shape[1:], jnp.float32)] * size
  for tap in row_taps(x.shape[1], size, stride, dilation):
    inputs, outputs = x[:, tap.inputs], dy[:, tap.outputs]
    # A convolution with the outputs' gradients as its kernel and rows as its channels.
    rows[tap.row] = lax.conv_general_dilated(
      inputs.reshape(-1, *inputs.shape[2:]),
      outputs.reshape(-1, *outputs.shape[2:]),
      window_strides=(dilation,),
      padding=(pads,),
      rhs_dilation=(stride,),
      dimension_numbers=("CWN", "IWO", "WNC"),
      preferred_element_type=jnp.float32,
    )
  return jnp.stack(rows)


def _along_rows(
  x: jax.Array, kernel: jax.Array, pads: tuple[int, int], stride: int, dilation: int, spread: int = 1
) -> jax.Array:
  """Convolves ``[B,H,W,C]``, its columns ``spread`` apart, with ``[k,C,O]`` along the rows; float32."""
  batch, height, width, channels = x.shape
  y = lax.conv_general_dilated(
    x.reshape(batch * height, width, channels),
    kernel,
    window_strides=(stride,),
    padding=(pads,),
    lhs_dilation=(spread,),
    rhs_dilation=(dilation,),
    dimension_numbers=("NWC", "WIO", "NWC"),
    preferred_element_type=jnp.float32,
  )
  return y.reshape(batch, height, y.shape[1], y.shape[2])


def _placed(part: jax.Array, height: int, rows: slice, step: int) -> jax.Array:
  """Returns ``height`` rows that hold those of ``part`` at ``rows``, ``step`` apart, and zeros elsewhere."""
  return lax.pad(
    part,
    jnp.zeros((), part.dtype),
    ((0, 0, 0), (rows.start, height - rows.stop, step - 1), (0,) * 3, (0,) * 3),
  )
