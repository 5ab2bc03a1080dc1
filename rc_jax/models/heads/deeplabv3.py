"""DeepLabV3's head (Chen et al., *Rethinking Atrous Convolution*, 2017), in RegionContrast's form."""

import flax.linen as nn
import jax.numpy as jnp

from rc_jax.fields import Config
from rc_jax.models.heads import aspp
from rc_jax.models.heads.aspp import ASPP
from rc_jax.models.layers import CONTRAST_FEATURES, ConvNormRelu, classify, numerics
from rc_jax.models.network import Head, Outputs, PublishedHead, Stages


class DeepLabV3Head(nn.Module):
  """ASPP, a 3x3 fusing convolution, dropout of channels, and a 1x1 classifier.

  Attributes:
    num_classes: ``N``.
    channels: ``C``, of each ASPP branch and of the features.
    rates: ASPP's dilations.
    project: see ``ASPP``.
    dropout: share of channels dropped before the classifier in training.
    features_before_relu: whether the features are those before the last ReLU, ``model.contrast_features``.
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
  features_before_relu: bool = False

  @nn.compact
  def __call__(self, stages: Stages, train: bool) -> Outputs:
    norm = (self.dtype, self.momentum, self.epsilon)
    x = ASPP(self.channels, self.rates, self.project, *norm, name="aspp")(stages.last, train)
    before_relu = self.features_before_relu
    features = ConvNormRelu(self.channels, 3, 1, *norm, relu=not before_relu, name="fuse")(x, train)
    logits = classify(features, self.num_classes, self.dropout, train, features_before_relu=before_relu)
    return Outputs(logits, features)


def _build(model: Config, num_classes: int) -> nn.Module:
  return DeepLabV3Head(
    num_classes,
    model.channels,
    rates=tuple(model.aspp_rates),
    project=model.aspp_project,
    dropout=model.dropout,
    features_before_relu=model.contrast_features == "linear",
    **numerics(model),
  )


_MMSEGMENTATION = PublishedHead(
  key_rules=(
    (r"decode_head\.image_pool\.1\.", "head.aspp.pool."),
    (r"decode_head\.aspp_modules\.0\.", "head.aspp.conv1x1."),
    (r"decode_head\.aspp_modules\.1\.", "head.aspp.rate0."),
    (r"decode_head\.aspp_modules\.2\.", "head.aspp.rate1."),
    (r"decode_head\.aspp_modules\.3\.", "head.aspp.rate2."),
    (r"decode_head\.bottleneck\.", "head.fuse."),
    (r"decode_head\.conv_seg\.", "head.classifier."),
  ),
  fields={"aspp_rates": (12, 24, 36)},
  input_shift=aspp.pooled_branch_first,
)

_TORCHVISION = PublishedHead(
  key_rules=(
    (r"classifier\.0\.convs\.0\.0\.", "head.aspp.conv1x1.conv."),
    (r"classifier\.0\.convs\.0\.1\.", "head.aspp.conv1x1.bn."),
    (r"classifier\.0\.convs\.1\.0\.", "head.aspp.rate0.conv."),
    (r"classifier\.0\.convs\.1\.1\.", "head.aspp.rate0.bn."),
    (r"classifier\.0\.convs\.2\.0\.", "head.aspp.rate1.conv."),
    (r"classifier\.0\.convs\.2\.1\.", "head.aspp.rate1.bn."),
    (r"classifier\.0\.convs\.3\.0\.", "head.aspp.rate2.conv."),
    (r"classifier\.0\.convs\.3\.1\.", "head.aspp.rate2.bn."),
    (r"classifier\.0\.convs\.4\.1\.", "head.aspp.pool.conv."),
    (r"classifier\.0\.convs\.4\.2\.", "head.aspp.pool.bn."),
    (r"classifier\.0\.project\.0\.", "head.aspp.project.conv."),
    (r"classifier\.0\.project\.1\.", "head.aspp.project.bn."),
    (r"classifier\.1\.", "head.fuse.conv."),
    (r"classifier\.2\.", "head.fuse.bn."),
    (r"classifier\.4\.", "head.classifier."),
  ),
  fields={"aspp_rates": (12, 24, 36)},
)

_REGIONCONTRAST = PublishedHead(
  key_rules=(
    (r"decoder\.aspp\.conv1\.1\.", "head.aspp.pool.conv."),
    (r"decoder\.aspp\.conv1\.2\.", "head.aspp.pool.bn."),
    (r"decoder\.aspp\.conv2\.0\.", "head.aspp.conv1x1.conv."),
    (r"decoder\.aspp\.conv2\.1\.", "head.aspp.conv1x1.bn."),
    (r"decoder\.aspp\.conv3\.0\.", "head.aspp.rate0.conv."),
    (r"decoder\.aspp\.conv3\.1\.", "head.aspp.rate0.bn."),
    (r"decoder\.aspp\.conv4\.0\.", "head.aspp.rate1.conv."),
    (r"decoder\.aspp\.conv4\.1\.", "head.aspp.rate1.bn."),
    (r"decoder\.aspp\.conv5\.0\.", "head.aspp.rate2.conv."),
    (r"decoder\.aspp\.conv5\.1\.", "head.aspp.rate2.bn."),
    (r"decoder\.head\.0\.", "head.fuse.conv."),
    (r"decoder\.head\.1\.", "head.fuse.bn."),
    (r"decoder\.final\.", "head.classifier."),
  ),
  fields={"aspp_rates": (12, 24, 36)},
  input_shift=aspp.pooled_branch_first,
  ignored_keys=(r"decoder\.(queue|ptr)\d+",),  # the memory banks
)

HEAD = Head(
  build=_build,
  fields=(*aspp.FIELDS, CONTRAST_FEATURES),
  markers=("head.aspp.",),
  fields_from_shapes=aspp.fields_from_shapes,
  published={
    "mmsegmentation": _MMSEGMENTATION,
    "torchvision": _TORCHVISION,
    "regioncontrast": _REGIONCONTRAST,
  },
)
