"""CCNet (Huang et al., *Criss-Cross Attention for Semantic Segmentation*, ICCV 2019)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from rc_jax.fields import Config, Field, at_least
from rc_jax.models.layers import CONTRAST_FEATURES, Conv, ConvNormRelu, classify, numerics
from rc_jax.models.network import Head, Outputs, PublishedHead, Stages

FIELDS = (
  CONTRAST_FEATURES,
  Field("model.ccnet_recurrence", 2, "CCNet: rounds of criss-cross attention.", at_least(1)),
)


def attend_criss_cross(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """Averages, for each pixel, the values in its row and its column, itself counted once.

  The weights are one softmax of ``query . key`` over these ``h + w - 1`` pixels.

  Args:
    query: ``[B,h,w,D]``.
    key: ``[B,h,w,D]``.
    value: ``[B,h,w,C]``.

  Returns:
    ``[B,h,w,C]`` float32; softmax and sums are in float32 for any dtype of the inputs. The largest array is
    ``[B,h,w,h+w]``.
  """
  height = query.shape[1]
  in_float32 = {"preferred_element_type": jnp.float32}
  column = jnp.einsum("bhwd,biwd->bhwi", query, key, **in_float32)
  row = jnp.einsum("bhwd,bhjd->bhwj", query, key, **in_float32)
  # A pixel lies in both its row and its column: the column leaves it out.
  column = jnp.where(jnp.eye(height, dtype=bool)[:, None, :], -jnp.inf, column)
  weights = jax.nn.softmax(jnp.concatenate([column, row], axis=-1), axis=-1).astype(value.dtype)
  from_column = jnp.einsum("bhwi,biwc->bhwc", weights[..., :height], value, **in_float32)
  from_row = jnp.einsum("bhwj,bhjc->bhwc", weights[..., height:], value, **in_float32)
  return from_column + from_row


class CrissCrossAttention(nn.Module):
  """``x + gamma attend_criss_cross(query(x), key(x), value(x))`` with 1x1 convolutions: ``[B,h,w,C]``, like ``x``.

  Queries and keys have an eighth of the channels. ``gamma`` starts at 0. Source: section 3.2.
  """

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    def pointwise(name: str, channels: int) -> jax.Array:
      y: jax.Array = Conv(channels, 1, use_bias=True, dtype=self.dtype, name=name)(x)
      return y

    channels = x.shape[-1]
    key_channels = max(channels // 8, 1)
    query, key = pointwise("query", key_channels), pointwise("key", key_channels)
    gamma = self.param("gamma", nn.initializers.zeros, (), jnp.float32)
    attended = attend_criss_cross(query, key, pointwise("value", channels))
    return (x + gamma * attended).astype(self.dtype)


class CCNetHead(nn.Module):
  """Rounds of criss-cross attention between two 3x3 convolutions; a third fuses the result with the backbone's map.

  After two rounds each pixel depends on every other.

  Attributes:
    num_classes: ``N``.
    channels: ``C``, of each convolution and of the features; 512 in mmsegmentation.
    recurrence: rounds of attention, with the same weights in each.
    dropout: share of channels dropped before the classifier in training.
    features_before_relu: whether the features are those before the last ReLU, ``model.contrast_features``.
    dtype: of the computation up to the features; attention weights and the classifier are computed in float32.
  """

  num_classes: int
  channels: int = 512
  recurrence: int = 2
  dropout: float = 0.1
  dtype: jnp.dtype = jnp.float32
  momentum: float = 0.9
  epsilon: float = 1e-5
  features_before_relu: bool = False

  @nn.compact
  def __call__(self, stages: Stages, train: bool) -> Outputs:
    options = (self.channels, 3, 1, self.dtype, self.momentum, self.epsilon)
    x = ConvNormRelu(*options, name="before")(stages.last, train)
    attention = CrissCrossAttention(self.dtype, name="attention")
    for _ in range(self.recurrence):
      x = attention(x)
    x = ConvNormRelu(*options, name="after")(x, train)
    both = jnp.concatenate([stages.last, x], axis=-1)
    before_relu = self.features_before_relu
    features = ConvNormRelu(*options, relu=not before_relu, name="fuse")(both, train)
    logits = classify(features, self.num_classes, self.dropout, train, features_before_relu=before_relu)
    return Outputs(logits, features)


def _build(model: Config, num_classes: int) -> nn.Module:
  return CCNetHead(
    num_classes,
    model.channels,
    recurrence=model.ccnet_recurrence,
    dropout=model.dropout,
    features_before_relu=model.contrast_features == "linear",
    **numerics(model),
  )


HEAD = Head(
  build=_build,
  fields=FIELDS,
  markers=("head.attention.",),
  published={
    "mmsegmentation": PublishedHead(
      key_rules=(
        (r"decode_head\.convs\.0\.", "head.before."),
        (r"decode_head\.convs\.1\.", "head.after."),
        (r"decode_head\.cca\.(query|key|value)_conv\.", r"head.attention.\1."),
        (r"decode_head\.cca\.gamma\.scale", "head.attention.gamma"),
        (r"decode_head\.conv_cat\.", "head.fuse."),
        (r"decode_head\.conv_seg\.", "head.classifier."),
      ),
      fields={"ccnet_recurrence": 2},
    )
  },
)
