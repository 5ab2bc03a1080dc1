"""DeepLabV3+'s head (Chen et al., *Encoder-Decoder with Atrous Separable Convolution*, ECCV 2018)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from rc_jax.fields import Config, Field, at_least
from rc_jax.models.heads import aspp
from rc_jax.models.heads.aspp import ASPP
from rc_jax.models.layers import (
  CONTRAST_FEATURES,
  ConvNormRelu,
  SeparableConvNormRelu,
  classify,
  numerics,
)
from rc_jax.models.network import Head, Outputs, PublishedHead, Shapes, Stages
from rc_jax.ops.resample import upsample

FIELDS = (
  *aspp.FIELDS,
  CONTRAST_FEATURES,
  Field("model.early_channels", 48, "DeepLabV3+: channels of the reduced stage 1.", at_least(1)),
  Field("model.separable", True, "DeepLabV3+: uses depthwise separable 3x3 convolutions."),
)


class DeepLabV3PlusHead(nn.Module):
  """ASPP, upsampled to stage 1, concatenated with it and refined; logits on stage 1's grid.

  Attributes:
    num_classes: ``N``.
    channels: ``C``, of each ASPP branch and of the features.
    rates: ASPP's dilations.
    project: whether a 1x1 convolution reduces ASPP's concatenation to ``channels``, as in the paper; otherwise a 3x3
      does, as in mmsegmentation.
    early_channels: channels to which a 1x1 convolution reduces stage 1.
    separable: whether ASPP's dilated branches and the two refining 3x3 convolutions are depthwise separable.
    align_corners: of the upsampling of ASPP's result.
    dropout: share of channels dropped before the classifier in training.
    features_before_relu: whether the features are those before the last ReLU, ``model.contrast_features``.
    dtype: of the computation up to the features; the classifier computes in float32.
  """

  num_classes: int
  channels: int = 256
  rates: tuple[int, ...] = (12, 24, 36)
  project: bool = False
  early_channels: int = 48
  separable: bool = True
  align_corners: bool = False
  dropout: float = 0.1
  dtype: jnp.dtype = jnp.float32
  momentum: float = 0.9
  epsilon: float = 1e-5
  features_before_relu: bool = False

  @nn.compact
  def __call__(self, stages: Stages, train: bool) -> Outputs:
    norm = (self.dtype, self.momentum, self.epsilon)
    aspp = ASPP(self.channels, self.rates, self.project, *norm, separable=self.separable, name="aspp")
    x = aspp(stages.last, train)
    if not self.project:
      x = ConvNormRelu(self.channels, 3, 1, *norm, name="fuse")(x, train)
    height, width = stages.stage1.shape[1:3]
    # Named "early" in checkpoints.
    stage1 = ConvNormRelu(self.early_channels, 1, 1, *norm, name="early")(stages.stage1, train)
    x = jnp.concatenate([upsample(x, (height, width), self.align_corners), stage1], axis=-1)
    refine = SeparableConvNormRelu if self.separable else ConvNormRelu
    x = refine(self.channels, 3, 1, *norm, name="refine0")(x, train)
    before_relu = self.features_before_relu
    features = refine(self.channels, 3, 1, *norm, relu=not before_relu, name="refine1")(x, train)
    logits = classify(features, self.num_classes, self.dropout, train, features_before_relu=before_relu)
    return Outputs(logits, features)


def _build(model: Config, num_classes: int) -> nn.Module:
  return DeepLabV3PlusHead(
    num_classes,
    model.channels,
    rates=tuple(model.aspp_rates),
    project=model.aspp_project,
    early_channels=model.early_channels,
    separable=model.separable,
    align_corners=model.align_corners,
    dropout=model.dropout,
    features_before_relu=model.contrast_features == "linear",
    **numerics(model),
  )


def _fields_from_shapes(shapes: Shapes) -> dict[str, Any]:
  return aspp.fields_from_shapes(shapes) | {
    "early_channels": shapes.get("head.early.conv.weight", (0,))[0],
    "separable": "head.refine0.depthwise.weight" in shapes,
  }


_SEPARABLE_PARTS = (
  (r"depthwise_conv\.conv\.", "depthwise."),
  (r"depthwise_conv\.bn\.", "depthwise_bn."),
  (r"pointwise_conv\.", "pointwise."),
)

HEAD = Head(
  build=_build,
  fields=FIELDS,
  markers=("head.aspp.", "head.early."),
  fields_from_shapes=_fields_from_shapes,
  published={
    "mmsegmentation": PublishedHead(
      key_rules=(
        (r"decode_head\.image_pool\.1\.", "head.aspp.pool."),
        (r"decode_head\.aspp_modules\.0\.", "head.aspp.conv1x1."),
        *(
          (rf"decode_head\.aspp_modules\.{i + 1}\.{theirs}", f"head.aspp.rate{i}.{ours}")
          for i in range(3)
          for theirs, ours in _SEPARABLE_PARTS
        ),
        (r"decode_head\.bottleneck\.", "head.fuse."),
        (r"decode_head\.c1_bottleneck\.", "head.early."),
        *(
          (rf"decode_head\.sep_bottleneck\.(\d+)\.{theirs}", rf"head.refine\1.{ours}")
          for theirs, ours in _SEPARABLE_PARTS
        ),
        (r"decode_head\.conv_seg\.", "head.classifier."),
      ),
      fields={"aspp_rates": (12, 24, 36)},
      input_shift=aspp.pooled_branch_first,
    )
  },
)
