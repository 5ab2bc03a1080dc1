"""The fully convolutional head (Long et al., CVPR 2015) that supervises stage 3 during training."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from rc_jax.models.aspp import ConvNormRelu
from rc_jax.models.conv import Conv


class FCNHead(nn.Module):
  """A 3x3 convolution, dropout of whole channels, and a 1x1 classifier: ``[B,h,w,C3] -> [B,h,w,N]`` float32.

  Attributes:
    num_classes: ``N``.
    channels: of the 3x3 convolution.
    dropout: the share of channels dropped before the classifier in training.
    dtype: of the 3x3 convolution; the classifier computes in float32.
  """

  num_classes: int
  channels: int = 256
  dropout: float = 0.1
  dtype: jnp.dtype = jnp.float32
  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = ConvNormRelu(self.channels, 3, 1, self.dtype, self.momentum, self.epsilon, name="conv3x3")(x, train)
    x = nn.Dropout(self.dropout, broadcast_dims=(1, 2))(x, deterministic=not train)
    return Conv(self.num_classes, 1, use_bias=True, name="classifier")(x)
