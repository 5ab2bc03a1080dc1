"""Two-dimensional convolution with PyTorch's padding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


def conv2d(x: jax.Array, kernel: jax.Array, stride: int = 1, dilation: int = 1) -> jax.Array:
  """Convolves as PyTorch's ``Conv2d`` with ``padding = dilation * (k - 1) / 2`` on every side."""
  pad = [(dilation * (k - 1) // 2,) * 2 for k in kernel.shape[:2]]
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    pad,
    rhs_dilation=(dilation, dilation),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


class Conv(nn.Module):
  """``Conv2d``: parameters ``kernel [k,k,in,out]`` and, if asked for, ``bias [out]``, both float32.

  Attributes:
    features: output channels.
    kernel_size: ``k``, odd.
    stride: step of the output grid.
    dilation: distance of the kernel's taps.
    use_bias: adds a bias; a convolution before a BatchNorm needs none.
    dtype: of the computation and of the output.
  """

  features: int
  kernel_size: int
  stride: int = 1
  dilation: int = 1
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
    # Shapes alone: values come from ``initial.py``.
    kernel = self.param("kernel", nn.initializers.zeros, shape, jnp.float32)
    y = conv2d(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.dilation)
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
      y += bias.astype(self.dtype)
    return y
