"""PSPNet's head (Zhao et al., *Pyramid Scene Parsing Network*, CVPR 2017)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rc_jax.fields import Config, Field, positive_numbers
from rc_jax.models.layers import CONTRAST_FEATURES, ConvNormRelu, classify, numerics
from rc_jax.models.network import Head, Outputs, PublishedHead, Stages
from rc_jax.ops.resample import upsample

FIELDS = (
  CONTRAST_FEATURES,
  Field(
    "model.psp_bins",
    (1, 2, 3, 6),
    "PSPNet: side lengths of the grids that the feature map is averaged to.",
    positive_numbers("positive sides of pooling grids"),
  ),
)


class PSPHead(nn.Module):
  """The map concatenated with its averages over coarse grids, a 3x3 fusing convolution, and a 1x1 classifier.

  Attributes:
    num_classes: ``N``.
    channels: ``C``, of each grid's 1x1 convolution and of the features.
    bins: sides of the grids that the map is averaged to.
    align_corners: of the upsampling of the averages.
    dropout: share of channels dropped before the classifier in training.
    features_before_relu: whether the features are those before the last ReLU, ``model.contrast_features``.
    dtype: of the computation up to the features; the classifier computes in float32.
  """

  num_classes: int
  channels: int = 512
  bins: tuple[int, ...] = (1, 2, 3, 6)
  align_corners: bool = False
  dropout: float = 0.1
  dtype: jnp.dtype = jnp.float32
  momentum: float = 0.9
  epsilon: float = 1e-5
  features_before_relu: bool = False

  @nn.compact
  def __call__(self, stages: Stages, train: bool) -> Outputs:
    norm = (self.dtype, self.momentum, self.epsilon)
    x = stages.last
    height, width = x.shape[1:3]
    levels = [x]
    for i, pooled in enumerate(average_to_grids(x, self.bins)):
      level = ConvNormRelu(self.channels, 1, 1, *norm, name=f"bin{i}")(pooled, train)
      levels.append(upsample(level, (height, width), self.align_corners))
    before_relu = self.features_before_relu
    fuse = ConvNormRelu(self.channels, 3, 1, *norm, relu=not before_relu, name="fuse")
    features = fuse(jnp.concatenate(levels, axis=-1), train)
    logits = classify(features, self.num_classes, self.dropout, train, features_before_relu=before_relu)
    return Outputs(logits, features)


def average_to_grids(x: jax.Array, bins: tuple[int, ...]) -> list[jax.Array]:
  """Averages a map over square grids of cells, as PyTorch's ``AdaptiveAvgPool2d`` for each.

  Args:
    x: ``[B,h,w,C]``.
    bins: cells along each side of each grid; cells of a side that does not divide the map overlap by a pixel.

  Returns:
    ``[B,b,b,C]`` for each ``b`` of ``bins``, in the dtype of ``x``; sums are in float32.
  """
  height, width = x.shape[1:3]
  options = {"precision": jax.lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}
  # One product for the columns of all grids reads the map once. Its weights are 0 and 1: bfloat16 cannot hold 1/97.
  columns = np.concatenate([cells(width, b) for b in bins]).astype(x.dtype)
  strips = jnp.einsum("bhwc,Ww->bhWc", x, columns, **options)
  averages, start = [], 0
  for b in bins:
    rows = cells(height, b)
    sums = jnp.einsum("bhWc,Hh->bHWc", strips[:, :, start : start + b], rows, **options)
    counts = rows.sum(1)[:, None] * cells(width, b).sum(1)
    averages.append((sums / counts[:, :, None]).astype(x.dtype))
    start += b
  return averages


def cells(length: int, bins: int) -> np.ndarray:
  """Returns the pixels of each cell, ``[bins,length]`` float32 of 0 and 1."""
  cell, pixel = np.arange(bins)[:, None], np.arange(length)
  first, end = cell * length // bins, -(-(cell + 1) * length // bins)
  return ((first <= pixel) & (pixel < end)).astype(np.float32)


def _build(model: Config, num_classes: int) -> nn.Module:
  return PSPHead(
    num_classes,
    model.channels,
    bins=tuple(model.psp_bins),
    align_corners=model.align_corners,
    dropout=model.dropout,
    features_before_relu=model.contrast_features == "linear",
    **numerics(model),
  )


HEAD = Head(
  build=_build,
  fields=FIELDS,
  markers=("head.bin0.",),
  published={
    "mmsegmentation": PublishedHead(
      key_rules=(
        (r"decode_head\.psp_modules\.(\d+)\.1\.", r"head.bin\1."),
        (r"decode_head\.bottleneck\.", "head.fuse."),
        (r"decode_head\.conv_seg\.", "head.classifier."),
      ),
      fields={"psp_bins": (1, 2, 3, 6)},
    )
  },
)
