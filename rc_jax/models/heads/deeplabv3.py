"""DeepLabV3's head (Chen et al., *Rethinking Atrous Convolution*, 2017), in RegionContrast's form."""

import flax.linen as nn
import jax.numpy as jnp

from rc_jax.models.heads.aspp import ASPP
from rc_jax.models.layers import ConvNormRelu, classify
from rc_jax.models.network import Outputs, Stages


class DeepLabV3Head(nn.Module):
  """ASPP, a 3x3 fusing convolution, dropout of whole channels, and a 1x1 classifier.

  Attributes:
    num_classes: ``N``.
    channels: ``C``, of each ASPP branch and of the features.
    rates: ASPP's dilations.
    project: see ``ASPP``.
    dropout: the share of channels dropped before the classifier in training.
    dtype: of the computation up to the features; the classifier computes in float32.
  """

  num_classes: int
  channels: int = 256
  rates: tuple[int, ...] = (12, 24, 36)
  project: bool = False
  dropout: float = 0.1
  dtype: jnp.dtype = jnp.float32
  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, stages: Stages, train: bool) -> Outputs:
    norm = (self.dtype, self.momentum, self.epsilon)
    x = ASPP(self.channels, self.rates, self.project, *norm, name="aspp")(stages.last, train)
    features = ConvNormRelu(self.channels, 3, 1, *norm, name="fuse")(x, train)
    return Outputs(classify(features, self.num_classes, self.dropout, train), features)
