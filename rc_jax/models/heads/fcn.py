"""The fully convolutional head (Long et al., CVPR 2015), also the auxiliary head on stage 3 in training."""

import re
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from rc_jax.fields import Check, Config, Field, at_least, require
from rc_jax.models.layers import CONTRAST_FEATURES, ConvNormRelu, classify, numerics
from rc_jax.models.network import Head, KeyRules, Outputs, PublishedHead, Shapes, Stages

FIELDS = (
  CONTRAST_FEATURES,
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
  """Convolutions, dropout of channels, and a 1x1 classifier.

  Attributes:
    num_classes: ``N``.
    channels: ``C``, of each convolution and of the features.
    convs: number of convolutions: 1 in torchvision and in auxiliary heads, 2 in mmsegmentation's FCN.
    kernel_size: of each; 1 with one convolution is HRNetV2's head.
    concat_input: whether one more convolution reads the backbone's map and the last convolution's, concatenated, as in
      mmsegmentation.
    dropout: share of channels dropped before the classifier in training.
    features_before_relu: whether the features are those before the last ReLU, ``model.contrast_features``.
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
  features_before_relu: bool = False

  @nn.compact
  def __call__(self, stages: Stages, train: bool) -> Outputs:
    options = (self.kernel_size, 1, self.dtype, self.momentum, self.epsilon)
    features = stages.last
    before_relu = self.features_before_relu
    for i in range(self.convs):
      relu = self.concat_input or i < self.convs - 1 or not before_relu
      features = ConvNormRelu(self.channels, *options, relu=relu, name=f"conv{i}")(features, train)
    if self.concat_input:
      both = jnp.concatenate([stages.last, features], axis=-1)
      features = ConvNormRelu(self.channels, *options, relu=not before_relu, name="fuse")(both, train)
    logits = classify(features, self.num_classes, self.dropout, train, features_before_relu=before_relu)
    return Outputs(logits, features)


def _build(model: Config, num_classes: int) -> nn.Module:
  fused = model.fcn_convs or model.fcn_concat_input
  expected = "relu where no convolution of the head precedes the classifier, as with fcn_convs=0"
  found = model.contrast_features
  require(found == "relu" or bool(fused), "model.contrast_features", found, expected)
  return FCNHead(
    num_classes,
    model.channels,
    convs=model.fcn_convs,
    kernel_size=model.fcn_kernel_size,
    concat_input=model.fcn_concat_input,
    dropout=model.dropout,
    features_before_relu=model.contrast_features == "linear",
    **numerics(model),
  )


def _fields_from_shapes(shapes: Shapes) -> dict[str, Any]:
  fields: dict[str, Any] = {
    "fcn_convs": len({m[0] for name in shapes if (m := re.match(r"head\.conv\d+\.", name))}),
    "fcn_concat_input": "head.fuse.conv.weight" in shapes,
  }
  kernel = shapes.get("head.conv0.conv.weight") or shapes.get("head.fuse.conv.weight")
  return fields | ({"fcn_kernel_size": kernel[-1]} if kernel else {})


HEAD = Head(
  build=_build,
  fields=FIELDS,
  markers=("head.conv0.",),
  fields_from_shapes=_fields_from_shapes,
  published={
    "mmsegmentation": PublishedHead(
      key_rules=(
        (r"decode_head\.convs\.(\d+)\.", r"head.conv\1."),
        (r"decode_head\.conv_cat\.", "head.fuse."),
        (r"decode_head\.conv_seg\.", "head.classifier."),
      ),
      optional=("head.conv", "head.fuse."),
    ),
    "torchvision": PublishedHead(
      key_rules=(
        (r"classifier\.0\.", "head.conv0.conv."),
        (r"classifier\.1\.", "head.conv0.bn."),
        (r"classifier\.4\.", "head.classifier."),
      ),
    ),
  },
)

# Family -> the rules for the auxiliary head on stage 3, which is an FCNHead beside any head.
AUXILIARY_KEY_RULES: dict[str, KeyRules] = {
  "mmsegmentation": (
    (r"auxiliary_head\.convs\.(\d+)\.", r"aux_head.conv\1."),
    (r"auxiliary_head\.conv_cat\.", "aux_head.fuse."),
    (r"auxiliary_head\.conv_seg\.", "aux_head.classifier."),
  ),
  "torchvision": (
    (r"aux_classifier\.0\.", "aux_head.conv0.conv."),
    (r"aux_classifier\.1\.", "aux_head.conv0.bn."),
    (r"aux_classifier\.4\.", "aux_head.classifier."),
  ),
  "regioncontrast": (
    (r"auxor\.aux\.0\.", "aux_head.conv0.conv."),
    (r"auxor\.aux\.1\.", "aux_head.conv0.bn."),
    (r"auxor\.aux\.4\.", "aux_head.classifier."),
  ),
}

# Family -> keys of biases that its auxiliary head has before a BatchNorm, and this project's has not: an import folds
# them into the BatchNorm's mean.
AUXILIARY_BIASES: dict[str, tuple[str, ...]] = {"regioncontrast": ("auxor.aux.0.bias",)}
