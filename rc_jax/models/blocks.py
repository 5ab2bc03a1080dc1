"""The two pieces that every head is built of."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from rc_jax.models.batch_norm import BatchNorm
from rc_jax.models.conv import Conv


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
