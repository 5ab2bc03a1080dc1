"""EncNet (Zhang et al., *Context Encoding for Semantic Segmentation*, CVPR 2018)."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rc_jax.fields import Config, Field, at_least
from rc_jax.losses.presence import presence_loss
from rc_jax.models.layers import BatchNorm, ConvNormRelu, Linear, classify, numerics
from rc_jax.models.network import ExtraOutput, Head, Outputs, PublishedHead, Shapes, Stages

FIELDS = (
  Field("model.encnet_codes", 32, "EncNet: number of codewords.", at_least(1)),
  Field(
    "loss.presence_weight",
    0.2,
    "Weight of EncNet's loss on which classes an image shows, as its authors.",
    at_least(0),
  ),
)


def encode(x: jax.Array, codewords: jax.Array, smoothing: jax.Array) -> jax.Array:
  """Sums the residuals of all positions to each codeword, weighted by a soft assignment.

  ``E_k = sum over i of a_ik (x_i - c_k)`` with ``a_ik = softmax over k of s_k |x_i - c_k|^2``.

  Args:
    x: ``[B,n,C]``, the features of ``n`` positions.
    codewords: ``c [K,C]`` float32.
    smoothing: ``s [K]`` float32, negative.

  Returns:
    ``E [B,K,C]`` float32. No array has ``[B,n,K,C]``: squares and sums are expanded into matrix products.

  Source: section 3.1; the sign of ``s`` is that of the authors' code.
  """
  # Distances and residuals do not depend on the origin. From an origin amid the codewords, the terms of the expanded
  # square have the size of the distance; from a far one, most digits would cancel.
  origin = jax.lax.stop_gradient(jnp.mean(codewords, axis=0))
  x, codewords = x.astype(jnp.float32) - origin, codewords - origin
  # Accelerators multiply float32 in fewer bits by default, too few for differences in an exponent.
  exact = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
  squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True) + jnp.sum(jnp.square(codewords), axis=-1)
  distances = squares - 2 * exact("bnc,kc->bnk", x, codewords)
  assigned = jax.nn.softmax(smoothing * distances, axis=-1)
  return exact("bnk,bnc->bkc", assigned, x) - jnp.sum(assigned, axis=1)[..., None] * codewords


class Encoding(nn.Module):
  """Encodes a map by ``encode``, BatchNorm of each codeword, ReLU, mean over codewords: ``[B,h,w,C] -> [B,C]`` float32.

  Attributes:
    codes: ``K``.
  """

  codes: int
  momentum: float
  epsilon: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    channels = x.shape[-1]
    bound = 1 / math.sqrt(self.codes * channels)
    around_zero = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
    below_zero = functools.partial(jax.random.uniform, minval=-1.0, maxval=0.0)
    codewords = self.param("codewords", around_zero, (self.codes, channels), jnp.float32)
    smoothing = self.param("smoothing", below_zero, (self.codes,), jnp.float32)
    encoded = encode(x.reshape(x.shape[0], -1, channels), codewords, smoothing)
    encoded = jnp.swapaxes(encoded, 1, 2)  # [B,K,C] -> [B,C,K]: BatchNorm's statistics are of the last axis
    return jnp.mean(nn.relu(BatchNorm(self.momentum, self.epsilon, name="bn")(encoded, train)), axis=-1)


class EncNetHead(nn.Module):
  """A 3x3 convolution, and gates on its channels that read an encoding of the image.

  In training, the extra output ``presence`` predicts from the encoding which classes the image shows.

  Attributes:
    num_classes: ``N``.
    channels: ``C``, of the convolutions and of the features; 512 in mmsegmentation.
    codes: ``K``, codewords.
    dropout: share of channels dropped before the classifier in training.
    dtype: of the maps; the encoding, its gates and the classifier are computed in float32.
  """

  num_classes: int
  channels: int = 512
  codes: int = 32
  dropout: float = 0.1
  dtype: jnp.dtype = jnp.float32
  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, stages: Stages, train: bool) -> Outputs:
    norm = (self.momentum, self.epsilon)
    x = ConvNormRelu(self.channels, 3, 1, self.dtype, *norm, name="reduce")(stages.last, train)
    projected = ConvNormRelu(self.channels, 1, 1, self.dtype, *norm, name="project")(x, train)
    encoding = Encoding(self.codes, *norm, name="encoding")(projected, train)  # [B,C]
    gates = nn.sigmoid(Linear(self.channels, name="gate")(encoding))
    # The authors' ReLU over this product would change nothing: neither factor is negative.
    features = (x * (1 + gates[:, None, None, :])).astype(self.dtype)
    logits = classify(features, self.num_classes, self.dropout, train)
    if not train:
      return Outputs(logits, features)
    presence_logits = Linear(self.num_classes, name="presence")(encoding)  # [B,N]
    return Outputs(logits, features, {"presence": ExtraOutput(presence_logits, "presence", presence_loss)})


def _build(model: Config, num_classes: int) -> nn.Module:
  return EncNetHead(
    num_classes,
    model.channels,
    codes=model.encnet_codes,
    dropout=model.dropout,
    **numerics(model),
  )


def _fields_from_shapes(shapes: Shapes) -> dict[str, Any]:
  return {"encnet_codes": shapes.get("head.encoding.codewords", (0,))[0]}


HEAD = Head(
  build=_build,
  fields=FIELDS,
  markers=("head.encoding.",),
  fields_from_shapes=_fields_from_shapes,
  published={
    "mmsegmentation": PublishedHead(
      key_rules=(
        (r"decode_head\.bottleneck\.", "head.reduce."),
        (r"decode_head\.enc_module\.encoding_project\.", "head.project."),
        (r"decode_head\.enc_module\.encoding\.0\.codewords", "head.encoding.codewords"),
        (r"decode_head\.enc_module\.encoding\.0\.scale", "head.encoding.smoothing"),
        (r"decode_head\.enc_module\.encoding\.1\.", "head.encoding.bn."),
        (r"decode_head\.enc_module\.fc\.0\.", "head.gate."),
        (r"decode_head\.se_layer\.", "head.presence."),
        (r"decode_head\.conv_seg\.", "head.classifier."),
      ),
    )
  },
)
