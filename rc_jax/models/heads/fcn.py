"""The fully convolutional head (Long et al., CVPR 2015): of whole networks, and of stage 3 during training."""

import flax.linen as nn
import jax.numpy as jnp

from rc_jax.fields import Check, Field, at_least
from rc_jax.models.layers import ConvNormRelu, classify
from rc_jax.models.network import Outputs, Stages

FIELDS = (
  Field(
    "model.fcn_convs",
    1,
    "Number of convolutions before the classifier; mmsegmentation's FCN has 2.",
    at_least(0),
  ),
  Field(
    "model.fcn_kernel_size",
    3,
    "Kernel size of these convolutions; HRNetV2's head has 1.",
    Check("an odd number, 1 or more", lambda value: value >= 1 and value % 2 == 1),
  ),
  Field(
    "model.fcn_concat_input",
    False,
    "Concatenates the input to the result and fuses both by another convolution, as mmsegmentation's FCN.",
  ),
)


class FCNHead(nn.Module):
  """Convolutions, dropout of whole channels, and a 1x1 classifier.

  Attributes:
    num_classes: ``N``.
    channels: ``C``, of each convolution and of the features.
    convs: how many: 1 as in torchvision and in auxiliary heads, 2 in mmsegmentation's FCN.
    kernel_size: of each; 1 with one convolution is HRNetV2's head.
    concat_input: one more convolution reads the backbone's map beside the last convolution's, as in mmsegmentation.
    dropout: the share of channels dropped before the classifier in training.
    dtype: of the computation up to the features; the classifier computes in float32.
  """

  num_classes: int
  channels: int = 256
  convs: int = 1
  kernel_size: int = 3
  concat_input: bool = False
  dropout: float = 0.1
  dtype: jnp.dtype = jnp.float32
  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, stages: Stages, train: bool) -> Outputs:
    options = (self.kernel_size, 1, self.dtype, self.momentum, self.epsilon)
    features = stages.last
    for i in range(self.convs):
      features = ConvNormRelu(self.channels, *options, name=f"conv{i}")(features, train)
    if self.concat_input:
      both = jnp.concatenate([stages.last, features], axis=-1)
      features = ConvNormRelu(self.channels, *options, name="fuse")(both, train)
    return Outputs(classify(features, self.num_classes, self.dropout, train), features)
