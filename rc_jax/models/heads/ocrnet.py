"""OCRNet's head (Yuan et al., *Object-Contextual Representations for Semantic Segmentation*, ECCV 2020)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rc_jax.fields import Config, Field, at_least
from rc_jax.losses.cross_entropy import cross_entropy
from rc_jax.models.heads.fcn import FCNHead
from rc_jax.models.layers import CONTRAST_FEATURES, ConvNormRelu, classify, numerics
from rc_jax.models.network import ExtraOutput, Head, Outputs, PublishedHead, Shapes, Stages
from rc_jax.ops.resample import upsample

FIELDS = (
  CONTRAST_FEATURES,
  Field(
    "model.ocr_key_channels",
    256,
    "OCRNet: channels of the queries, keys and values between pixels and object regions.",
    at_least(1),
  ),
)


class OCRHead(nn.Module):
  """Describes each pixel by the object regions that it resembles.

  A coarse prediction, the extra output ``aux``, gives the soft region of each class. The vector of a region is the
  mean of the pixels under it. Each pixel attends to the ``N`` regions, and a 1x1 convolution fuses the result with the
  pixel. As in mmsegmentation, the coarse prediction reads stage 3 through a 3x3 convolution; on a backbone without
  stage 3 (HRNet), it reads the last map through a 1x1 that keeps its channels.

  Attributes:
    num_classes: ``N``.
    channels: ``C``, of the pixels' vectors and of the features.
    key_channels: of queries, keys and values between pixels and regions.
    coarse_channels: of the convolution on stage 3.
    align_corners: of the resampling of the coarse prediction, where stage 3 has another grid than stage 4.
    dropout: share of channels dropped before both classifiers in training.
    features_before_relu: whether the features are those before the last ReLU, ``model.contrast_features``.
    dtype: of the computation up to the features; classifiers and softmaxes compute in float32.
  """

  num_classes: int
  channels: int = 512
  key_channels: int = 256
  coarse_channels: int = 256
  align_corners: bool = False
  dropout: float = 0.1
  dtype: jnp.dtype = jnp.float32
  momentum: float = 0.9
  epsilon: float = 1e-5
  features_before_relu: bool = False

  @nn.compact
  def __call__(self, stages: Stages, train: bool) -> Outputs:
    norm = (self.dtype, self.momentum, self.epsilon)

    def pointwise(name: str, channels: int, x: jax.Array, relu: bool = True) -> jax.Array:
      return ConvNormRelu(channels, 1, 1, *norm, relu=relu, name=name)(x, train)

    coarse_logits = self._coarse_logits(stages, train)
    height, width = stages.last.shape[1:3]
    soft_regions = coarse_logits
    if soft_regions.shape[1:3] != (height, width):  # output stride 32: stage 3 is twice as fine
      soft_regions = upsample(soft_regions, (height, width), self.align_corners)

    pixels = ConvNormRelu(self.channels, 3, 1, *norm, name="pixels")(stages.last, train)
    regions = gather_regions(pixels, soft_regions)[:, :, None]  # [B,N,1,C]: a column of N pixels
    queries, keys = pixels, regions
    for i in range(2):
      queries = pointwise(f"query{i}", self.key_channels, queries)
      keys = pointwise(f"key{i}", self.key_channels, keys)
    values = pointwise("value", self.key_channels, regions)
    context = pointwise("out", self.channels, attend(queries, keys[:, :, 0], values[:, :, 0]))
    both = jnp.concatenate([context, pixels], axis=-1)
    before_relu = self.features_before_relu
    features = pointwise("fuse", self.channels, both, relu=not before_relu)
    logits = classify(features, self.num_classes, self.dropout, train, features_before_relu=before_relu)
    aux = ExtraOutput(coarse_logits, term="aux", loss=cross_entropy)
    return Outputs(logits, features, {"aux": aux})

  def _coarse_logits(self, stages: Stages, train: bool) -> jax.Array:
    source, channels, size = stages.stage3, self.coarse_channels, 3
    if source is None:
      source, channels, size = stages.last, stages.last.shape[-1], 1
    head = FCNHead(
      self.num_classes,
      channels,
      kernel_size=size,
      dropout=self.dropout,
      dtype=self.dtype,
      momentum=self.momentum,
      epsilon=self.epsilon,
      name="coarse",
    )
    logits: jax.Array = head(stages._replace(last=source), train).logits
    return logits


def gather_regions(pixels: jax.Array, logits: jax.Array) -> jax.Array:
  """Averages the pixels under each class's soft region: ``f_k = sum_i softmax_i(P_ik) x_i`` (OCRNet, Eq. 2).

  Args:
    pixels: ``x [B,h,w,C]``.
    logits: ``P [B,h,w,N]``; the softmax of each class runs over the pixels of its image.

  Returns:
    ``f [B,N,C]`` in the dtype of ``pixels``; softmax and sums are in float32.
  """
  weights = jax.nn.softmax(logits.astype(jnp.float32), axis=(1, 2)).astype(pixels.dtype)
  regions = jnp.einsum("bhwn,bhwc->bnc", weights, pixels, preferred_element_type=jnp.float32)
  return regions.astype(pixels.dtype)


def attend(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
  """Mixes the values of regions for each pixel: ``y_i = sum_k softmax_k(q_i . k_k / sqrt(K)) v_k`` (OCRNet, Eq. 3).

  The scale ``1 / sqrt(K)`` is the authors' code's; the paper has none.

  Args:
    queries: ``q [B,h,w,K]``.
    keys: ``[B,N,K]``.
    values: ``v [B,N,K]``.

  Returns:
    ``y [B,h,w,K]`` in the dtype of ``values``; softmax and sums are in float32.
  """
  similarity = jnp.einsum("bhwk,bnk->bhwn", queries, keys, preferred_element_type=jnp.float32)
  weights = jax.nn.softmax(similarity * keys.shape[-1] ** -0.5, axis=-1).astype(values.dtype)
  context = jnp.einsum("bhwn,bnk->bhwk", weights, values, preferred_element_type=jnp.float32)
  return context.astype(values.dtype)


def _build(model: Config, num_classes: int) -> nn.Module:
  return OCRHead(
    num_classes,
    model.channels,
    key_channels=model.ocr_key_channels,
    coarse_channels=model.aux_channels,
    align_corners=model.align_corners,
    dropout=model.dropout,
    features_before_relu=model.contrast_features == "linear",
    **numerics(model),
  )


def _fields_from_shapes(shapes: Shapes) -> dict[str, Any]:
  fields = {"ocr_key_channels": shapes.get("head.query0.conv.weight", (0,))[0]}
  coarse = shapes.get("head.coarse.conv0.conv.weight", ())
  # Only the 3x3 on stage 3 has channels to choose; on an HRNet a 1x1 keeps those of the backbone.
  return fields | ({"aux_channels": coarse[0]} if coarse[-1:] == (3,) else {})


HEAD = Head(
  build=_build,
  fields=FIELDS,
  markers=("head.coarse.",),
  fields_from_shapes=_fields_from_shapes,
  published={
    # A cascade: the coarse prediction's head, then the head that refines it.
    "mmsegmentation": PublishedHead(
      key_rules=(
        (r"decode_head\.0\.convs\.(\d+)\.", r"head.coarse.conv\1."),
        (r"decode_head\.0\.conv_seg\.", "head.coarse.classifier."),
        (r"decode_head\.1\.bottleneck\.", "head.pixels."),
        (r"decode_head\.1\.object_context_block\.query_project\.(\d+)\.", r"head.query\1."),
        (r"decode_head\.1\.object_context_block\.key_project\.(\d+)\.", r"head.key\1."),
        (r"decode_head\.1\.object_context_block\.value_project\.", "head.value."),
        (r"decode_head\.1\.object_context_block\.out_project\.", "head.out."),
        (r"decode_head\.1\.object_context_block\.bottleneck\.", "head.fuse."),
        (r"decode_head\.1\.conv_seg\.", "head.classifier."),
      ),
    )
  },
)
