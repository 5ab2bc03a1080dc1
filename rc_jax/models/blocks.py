"""The pieces that heads are built of."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from rc_jax.models.batch_norm import BatchNorm
from rc_jax.models.conv import Conv, DepthwiseConv


class ConvNormRelu(nn.Module):
  """Convolution ``conv``, BatchNorm ``bn``, ReLU: ``[B,h,w,C] -> [B,h,w,features]`` in ``dtype``."""

  features: int
  kernel_size: int
  dilation: int = 1
  dtype: jnp.dtype = jnp.float32
  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = Conv(self.features, self.kernel_size, dilation=self.dilation, dtype=self.dtype, name="conv")(x)
    return nn.relu(BatchNorm(self.momentum, self.epsilon, name="bn")(x, train))


class SeparableConvNormRelu(nn.Module):
  """Depthwise separable convolution: ``depthwise``, its BatchNorm and ReLU, then a 1x1 ``pointwise`` with its own.

  ``[B,h,w,C] -> [B,h,w,features]`` in ``dtype``.

  Attributes:
    features: output channels.
    kernel_size: of the depthwise convolution.
    dilation: of the depthwise convolution.
  """

  features: int
  kernel_size: int
  dilation: int = 1
  dtype: jnp.dtype = jnp.float32
  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = DepthwiseConv(self.kernel_size, self.dilation, self.dtype, name="depthwise")(x)
    x = nn.relu(BatchNorm(self.momentum, self.epsilon, name="depthwise_bn")(x, train))
    return ConvNormRelu(self.features, 1, 1, self.dtype, self.momentum, self.epsilon, name="pointwise")(
      x, train
    )


def classify(features: jax.Array, num_classes: int, dropout: float, train: bool) -> jax.Array:
  """Dropout of whole channels in training, then the calling module's 1x1 convolution ``classifier``.

  Args:
    features: ``F [B,h,w,C]``.
    num_classes: ``N``.
    dropout: the share of channels that training drops.
    train: whether it does.

  Returns:
    Logits ``P [B,h,w,N]``, computed in float32.
  """
  x = nn.Dropout(dropout, broadcast_dims=(1, 2))(features, deterministic=not train)
  logits: jax.Array = Conv(num_classes, 1, use_bias=True, name="classifier")(x)
  return logits
