"""Atrous spatial pyramid pooling (Chen et al., *Rethinking Atrous Convolution*, 2017)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from rc_jax.models.blocks import ConvNormRelu


class ASPP(nn.Module):
  """Looks at each position at several scales: 1x1, a dilated 3x3 for each rate, and the whole image's mean.

  Attributes:
    features: channels of each branch.
    rates: dilations of the 3x3 branches.
    project: adds torchvision's 1x1 convolution back to ``features`` channels after the concatenation. The
      authors of RegionContrast have none: their 3x3 fusing convolution reads the concatenation.
  """

  features: int = 256
  rates: tuple[int, ...] = (12, 24, 36)
  project: bool = False
  dtype: jnp.dtype = jnp.float32
  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Computes ``[B,h,w,C] -> [B,h,w,(2+len(rates)) features]``, or ``[B,h,w,features]`` if ``project``."""

    def branch(name: str, kernel_size: int, dilation: int = 1) -> ConvNormRelu:
      return ConvNormRelu(
        self.features, kernel_size, dilation, self.dtype, self.momentum, self.epsilon, name=name
      )

    branches = [branch("conv1x1", 1)(x, train)]
    branches += [branch(f"rate{i}", 3, rate)(x, train) for i, rate in enumerate(self.rates)]
    # Summed in float32: a bfloat16 sum over thousands of positions loses its digits.
    pooled = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(self.dtype)
    pooled = branch("pool", 1)(pooled, train)
    branches.append(jnp.broadcast_to(pooled, branches[0].shape))
    x = jnp.concatenate(branches, axis=-1)
    return branch("project", 1)(x, train) if self.project else x
