"""Convolutions by XLA: the forms of ``conv.py`` for accelerators, and for CPUs where they are fast."""

import jax
import jax.numpy as jnp
from jax import lax

# On grids of more than SPLIT_PIXELS, a CPU's kernel gradient of a 3x3 slows down fourfold beyond 64 outputs.
SPLIT_CHANNELS = 64
SPLIT_PIXELS = 64 * 64


def forward(x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int) -> jax.Array:
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
  return jax.linear_transpose(lambda x: forward(x, kernel, stride=stride, dilation=dilation), x)(dy)[0]


def kernel_gradient(
  dy: jax.Array, x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
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
  transposed = jax.linear_transpose(lambda k: forward(x, k, stride=stride, dilation=dilation), kernel)
  gradient: jax.Array = transposed(dy)[0]
  return gradient.astype(jnp.float32)


def phases(x: jax.Array, dilation: int) -> jax.Array:
  """Splits ``[B,H,W,C]`` into ``[B d d, ceil(H/d), ceil(W/d), C]``: each image holds every ``d``-th pixel.

  Rows and columns beyond the edge are zero. In this order a dilated convolution is a plain one on each image. The batch
  stays outermost, so that devices keep their images.
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
  parts = []
  for start in range(0, dy.shape[3], SPLIT_CHANNELS):
    part = slice(start, start + SPLIT_CHANNELS)
    parts.append(kernel_gradient(dy[..., part], x, kernel[..., part], stride=stride, dilation=dilation))
  return jnp.concatenate(parts, axis=-1)


def depthwise(x: jax.Array, kernel: jax.Array, *, dilation: int) -> jax.Array:
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
  return jax.linear_transpose(lambda k: depthwise(x, k, dilation=dilation), kernel)(dy)[0]
