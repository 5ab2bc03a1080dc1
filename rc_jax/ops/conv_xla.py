"""Convolutions as XLA has them: the forms of ``conv.py`` for accelerators, and for CPUs where they are fast there."""

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
  # A convolution whose kernel are the outputs' gradients, images taking the place of channels: what transposing the
  # forward one gives, which cannot be asked for a float32 result.
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
