"""DANet (Fu et al., *Dual Attention Network for Scene Segmentation*, CVPR 2019)."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rc_jax.fields import Config, Field, at_least
from rc_jax.models.layers import Conv, ConvNormRelu, classify, numerics
from rc_jax.models.network import ExtraOutput, Head, Outputs, PublishedHead, Shapes, Stages

FIELDS = (
  Field(
    "model.danet_key_channels",
    64,
    "DANet: channels of the position attention's queries and keys.",
    at_least(1),
  ),
  Field(
    "loss.branch_weight",
    1.0,
    "Weight of the pixel loss on each of DANet's two attention branches, as its authors.",
    at_least(0),
  ),
)


# The backward pass recomputes the similarities, one product over the few key channels. Kept, they would be the largest
# arrays of a training step: 354 MB for each image at a crop of 769 in float32.
@jax.checkpoint
def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """Averages all values for each position, weighted by ``softmax over k of query_q . key_k``.

  Args:
    query: ``[B,Q,D]``.
    key: ``[B,K,D]``.
    value: ``[B,K,C]``.

  Returns:
    ``[B,Q,C]`` float32; softmax and sums are in float32 for any dtype of the inputs.
  """
  similarity = jnp.einsum("bqd,bkd->bqk", query, key, preferred_element_type=jnp.float32)
  weights = jax.nn.softmax(similarity, axis=-1).astype(value.dtype)
  return jnp.einsum("bqk,bkc->bqc", weights, value, preferred_element_type=jnp.float32)


def attend_channels(x: jax.Array) -> jax.Array:
  """Averages all channels for each channel, weighted by ``softmax over d of -x_c . x_d``.

  The product of two channels is over all positions. The sign is that of the authors' code, whose softmax reads each
  row's maximum minus the product; Eq. 3 of the paper has none.

  Args:
    x: ``[B,n,C]``, the features of ``n`` positions.

  Returns:
    ``[B,n,C]`` float32.
  """
  # Sums over thousands of positions are in the thousands. Accelerators multiply float32 in bfloat16 or TF32 by default:
  # so rounded, the differences of the sums would be noise in the exponent.
  exact = {"precision": jax.lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}
  product = jnp.einsum("bnc,bnd->bcd", x, x, **exact)
  weights = jax.nn.softmax(-product, axis=-1).astype(x.dtype)
  return jnp.einsum("bcd,bnd->bnc", weights, x, preferred_element_type=jnp.float32)


class PositionAttention(nn.Module):
  """``x + gamma attend(query(x), key(x), value(x))`` with 1x1 convolutions: ``[B,h,w,C]``, like ``x``.

  ``gamma`` starts at 0: initially the network has no attention. Source: section 3.2.

  Attributes:
    key_channels: channels of queries and keys.
  """

  key_channels: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    def flat(name: str, channels: int) -> jax.Array:
      y = Conv(channels, 1, use_bias=True, dtype=self.dtype, name=name)(x)
      return y.reshape(y.shape[0], -1, channels)  # [B,h,w,D] -> [B,hw,D]

    query, key = flat("query", self.key_channels), flat("key", self.key_channels)
    gamma = self.param("gamma", nn.initializers.zeros, (), jnp.float32)
    attended = attend(query, key, flat("value", x.shape[-1])).reshape(x.shape)
    return (x + gamma * attended).astype(self.dtype)


class ChannelAttention(nn.Module):
  """``x + gamma attend_channels(x)``: ``[B,h,w,C]``, like ``x``; ``gamma`` starts at 0. Source: section 3.3."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    gamma = self.param("gamma", nn.initializers.zeros, (), jnp.float32)
    attended = attend_channels(x.reshape(x.shape[0], -1, x.shape[-1])).reshape(x.shape)
    return (x + gamma * attended).astype(self.dtype)


class Branch(nn.Module):
  """An attention between two 3x3 convolutions, and in training a classifier.

  Attributes:
    num_classes: ``N``.
    channels: ``C``.
    attention: from a name to the attention module.
    dropout: see ``DANetHead``.
  """

  num_classes: int
  channels: int
  attention: Callable[..., nn.Module]
  dropout: float
  dtype: jnp.dtype
  momentum: float
  epsilon: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array | None]:
    """Computes features ``[B,h,w,C]`` and, in training, logits ``[B,h,w,N]`` float32."""
    options = (self.channels, 3, 1, self.dtype, self.momentum, self.epsilon)
    x = ConvNormRelu(*options, name="before")(x, train)
    x = self.attention(name="attention")(x)
    x = ConvNormRelu(*options, name="after")(x, train)
    return x, classify(x, self.num_classes, self.dropout, train) if train else None


class DANetHead(nn.Module):
  """Position attention and channel attention side by side; the classifier reads their sum.

  In training, the extra outputs ``branch0`` and ``branch1`` are the position branch's and the channel branch's logits.

  Attributes:
    num_classes: ``N``.
    channels: ``C``, of both branches and of the features; 512 in mmsegmentation.
    key_channels: of the position attention's queries and keys.
    dropout: share of channels dropped before each classifier in training.
    dtype: of the computation up to the features; attention weights and classifiers are computed in float32.
  """

  num_classes: int
  channels: int = 512
  key_channels: int = 64
  dropout: float = 0.1
  dtype: jnp.dtype = jnp.float32
  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, stages: Stages, train: bool) -> Outputs:
    def branch(name: str, attention: Callable[..., nn.Module]) -> Branch:
      options = (self.dropout, self.dtype, self.momentum, self.epsilon)
      return Branch(self.num_classes, self.channels, attention, *options, name=name)

    position = functools.partial(PositionAttention, self.key_channels, self.dtype)
    channel = functools.partial(ChannelAttention, self.dtype)
    position_features, position_logits = branch("position", position)(stages.last, train)
    channel_features, channel_logits = branch("channel", channel)(stages.last, train)
    features = position_features + channel_features
    logits = classify(features, self.num_classes, self.dropout, train)
    if position_logits is None or channel_logits is None:
      return Outputs(logits, features)
    branches = {"branch0": position_logits, "branch1": channel_logits}
    extra = {name: ExtraOutput(branch_logits, term="branch") for name, branch_logits in branches.items()}
    return Outputs(logits, features, extra)


def _build(model: Config, num_classes: int) -> nn.Module:
  return DANetHead(
    num_classes,
    model.channels,
    key_channels=model.danet_key_channels,
    dropout=model.dropout,
    **numerics(model),
  )


def _fields_from_shapes(shapes: Shapes) -> dict[str, Any]:
  return {"danet_key_channels": shapes.get("head.position.attention.query.weight", (0,))[0]}


HEAD = Head(
  build=_build,
  fields=FIELDS,
  markers=("head.position.",),
  fields_from_shapes=_fields_from_shapes,
  published={
    "mmsegmentation": PublishedHead(
      key_rules=(
        (r"decode_head\.pam_in_conv\.", "head.position.before."),
        (r"decode_head\.pam_out_conv\.", "head.position.after."),
        (r"decode_head\.pam_conv_seg\.", "head.position.classifier."),
        (r"decode_head\.pam\.gamma\.scale", "head.position.attention.gamma"),
        (r"decode_head\.cam_in_conv\.", "head.channel.before."),
        (r"decode_head\.cam_out_conv\.", "head.channel.after."),
        (r"decode_head\.cam_conv_seg\.", "head.channel.classifier."),
        (r"decode_head\.cam\.gamma\.scale", "head.channel.attention.gamma"),
        (r"decode_head\.pam\.(query|key|value)_project\.", r"head.position.attention.\1."),
        (r"decode_head\.conv_seg\.", "head.classifier."),
      ),
    )
  },
)
