"""Convolutions by XLA: the forms of ``conv.py`` for accelerators, and for CPUs where they are fast.

In the shapes of this module, ``h = ceil(H/stride)`` and ``w = ceil(W/stride)`` are the sides of the output.
"""

import jax
import jax.numpy as jnp
from jax import lax

# On grids of more than SPLIT_PIXELS, a CPU's kernel gradient of a 3x3 slows down fourfold beyond 64 outputs.
SPLIT_CHANNELS = 64
SPLIT_PIXELS = 64 * 64


def forward(x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int) -> jax.Array:
  """Convolves as ``conv.conv2d``.

  Args:
    x: ``[B,H,W,C]``, any float dtype.
    kernel: ``[k,k,C,O]`` of the dtype of ``x``, ``k`` odd.
    stride: as for ``conv.conv2d``.
    dilation: as for ``conv.conv2d``.

  Returns:
    ``[B,h,w,O]`` of the dtype of ``x``.
  """
  pad = dilation * (kernel.shape[0] // 2)
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride, stride),
    padding=((pad, pad), (pad, pad)),
    rhs_dilation=(dilation, dilation),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def input_gradient(
  dy: jax.Array, x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
  """Computes the gradient of the input of `forward`, the transposed convolution.

  Args:
    dy: ``[B,h,w,O]`` of the dtype of ``x``, the gradient of the output.
    x: ``[B,H,W,C]``; only its shape and dtype are read.
    kernel: as for `forward`.
    stride: as for `forward`.
    dilation: as for `forward`.

  Returns:
    ``[B,H,W,C]`` of the dtype of ``x``.
  """
  return jax.linear_transpose(lambda x: forward(x, kernel, stride=stride, dilation=dilation), x)(dy)[0]


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
  # A convolution with the outputs' gradients as its kernel and images as its channels. Transposing the forward
  # convolution gives the same, but offers no float32 result.
  size = kernel.shape[0]
  pad = dilation * (size // 2)
  pads = [
    (pad, (size - 1) * dilation + (outputs - 1) * stride + 1 - pixels - pad)
    for pixels, outputs in zip(x.shape[1:3], dy.shape[1:3], strict=True)
  ]
  return lax.conv_general_dilated(
    x,
    dy,
    window_strides=(dilation, dilation),
    padding=pads,
    rhs_dilation=(stride, stride),
    dimension_numbers=("CHWN", "IHWO", "HWNC"),
    preferred_element_type=jnp.float32,
  )


def transposed_kernel_gradient(
  dy: jax.Array, x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
  """Computes the gradient of the kernel of `forward` by transposing that convolution, for GPUs.

  The sum is rounded to the dtype of ``kernel`` first, and then widened. With bfloat16, `kernel_gradient` is more exact.

  Args:
    dy: as for `kernel_gradient`.
    x: as for `kernel_gradient`.
    kernel: ``[k,k,C,O]`` of the dtype of ``x``; only its shape and dtype are read.
    stride: as for `forward`.
    dilation: as for `forward`.

  Returns:
    ``[k,k,C,O]`` float32.
  """
  transposed = jax.linear_transpose(lambda k: forward(x, k, stride=stride, dilation=dilation), kernel)
  gradient: jax.Array = transposed(dy)[0]
  return gradient.astype(jnp.float32)


def phases(x: jax.Array, dilation: int) -> jax.Array:
  """Splits each image into ``d^2`` images that hold every ``d``-th pixel along both axes.

  Rows and columns beyond the edge are zero. In this order a dilated convolution is a plain one on each image. The batch
  stays outermost, so that devices keep their images.

  Args:
    x: ``[B,H,W,C]``, any dtype.
    dilation: ``d``.

  Returns:
    ``[B d d, ceil(H/d), ceil(W/d), C]`` of the dtype of ``x``.
  """
  batch, height, width, channels = x.shape
  rows, columns = -(-height // dilation), -(-width // dilation)
  x = jnp.pad(x, ((0, 0), (0, rows * dilation - height), (0, columns * dilation - width), (0, 0)))
  x = x.reshape(batch, rows, dilation, columns, dilation, channels).transpose(0, 2, 4, 1, 3, 5)
  return x.reshape(-1, rows, columns, channels)


def phases_kernel_gradient(
  dy: jax.Array, x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
  """Computes the kernel gradient of a dilated convolution of stride 1 as that of a plain one, for GPUs.

  XLA has no backward filter convolution with a dilation: its forward convolution has a filter of the size of an image.
  On an H200 that took 6.3 ms where this takes 0.8 ms (batch 8, 97 x 97, 512 to 512 channels, dilation 4, bfloat16).
  As in `transposed_kernel_gradient`, the sum is rounded to the dtype of ``kernel`` and then widened.

  Args:
    dy: ``[B,H,W,O]`` of the dtype of ``x``, the gradient of the output.
    x: ``[B,H,W,C]``.
    kernel: ``[k,k,C,O]`` of the dtype of ``x``; only its shape and dtype are read.
    stride: 1.
    dilation: as for `forward`.

  Returns:
    ``[k,k,C,O]`` float32.
  """
  assert stride == 1, "a strided convolution has no phases of its output"
  plain = transposed_kernel_gradient
  return plain(phases(dy, dilation), phases(x, dilation), kernel, stride=1, dilation=1)


def product_kernel_gradient(
  dy: jax.Array, x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
  """Computes the kernel gradient of a convolution of stride 1 as one matrix product, in float32, for GPUs.

  ``dW[tap] = sum over pixels q of x[q] dy[q - offset(tap)]``, with zeros beyond the edge: the shifted copies of ``dy``
  stand beside each other. They take as much memory as ``k^2`` arrays of its size, so it pays where ``x`` has several
  times the channels of ``dy``.

  Args:
    dy: ``[B,H,W,O]`` of the dtype of ``x``, the gradient of the output.
    x: ``[B,H,W,C]``.
    kernel: ``[k,k,C,O]``; only its shape is read.
    stride: 1.
    dilation: as for `forward`.

  Returns:
    ``[k,k,C,O]`` float32, not rounded.
  """
  assert stride == 1, "a strided convolution reads other pixels for each tap"
  size, (inputs, outputs) = kernel.shape[0], kernel.shape[2:]
  height, width = dy.shape[1:3]
  reach = dilation * (size // 2)
  padded = jnp.pad(dy, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
  starts = [2 * reach - dilation * tap for tap in range(size)]
  shifted = [padded[:, i : i + height, j : j + width] for i in starts for j in starts]
  beside = jnp.concatenate(shifted, axis=-1)  # [B,H,W,k k O]
  product = jnp.einsum("bhwc,bhwt->ct", x, beside, preferred_element_type=jnp.float32)
  return product.reshape(inputs, size, size, outputs).transpose(1, 2, 0, 3)


def split_kernel_gradient(
  dy: jax.Array, x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
  """Computes `kernel_gradient` for ``SPLIT_CHANNELS`` output channels at a time, for large grids on CPUs.

  Args:
    dy: as for `kernel_gradient`.
    x: as for `kernel_gradient`.
    kernel: as for `kernel_gradient`.
    stride: as for `forward`.
    dilation: as for `forward`.

  Returns:
    ``[k,k,C,O]`` float32, not rounded.
  """
  parts = []
  for start in range(0, dy.shape[3], SPLIT_CHANNELS):
    part = slice(start, start + SPLIT_CHANNELS)
    parts.append(kernel_gradient(dy[..., part], x, kernel[..., part], stride=stride, dilation=dilation))
  return jnp.concatenate(parts, axis=-1)


def depthwise(x: jax.Array, kernel: jax.Array, *, dilation: int) -> jax.Array:
  """Convolves each channel separately, as ``conv.depthwise_conv2d``.

  Args:
    x: ``[B,H,W,C]``, any float dtype.
    kernel: ``[k,k,1,C]`` of the dtype of ``x``, ``k`` odd.
    dilation: as for `forward`.

  Returns:
    ``[B,H,W,C]`` of the dtype of ``x``.
  """
  pad = dilation * (kernel.shape[0] // 2)
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(1, 1),
    padding=((pad, pad), (pad, pad)),
    rhs_dilation=(dilation, dilation),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=x.shape[3],
  )


def depthwise_kernel_gradient(dy: jax.Array, x: jax.Array, kernel: jax.Array, *, dilation: int) -> jax.Array:
  """Computes the gradient of the kernel of `depthwise`, rounded to the dtype of the kernel and then widened.

  Args:
    dy: ``[B,H,W,C]`` of the dtype of ``x``, the gradient of the output.
    x: ``[B,H,W,C]``.
    kernel: ``[k,k,1,C]`` of the dtype of ``x``; only its shape and dtype are read.
    dilation: as for `forward`.

  Returns:
    ``[k,k,1,C]`` float32.
  """
  gradient: jax.Array = jax.linear_transpose(lambda k: depthwise(x, k, dilation=dilation), kernel)(dy)[0]
  return gradient.astype(jnp.float32)
