"""ResNet backbones (He et al., CVPR 2016) with dilation, multi-grid and PyTorch's arithmetic.

Names follow torchvision's keys part by part: ``layer3.0.downsample.1.running_var`` is
``batch_stats["layer3"]["0"]["downsample"]["1"]["var"]``; see ``rc_jax/weights/key_names.py``.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rc_jax.fields import Config, Field, one_of, positive_numbers, require
from rc_jax.models.layers import BatchNorm, Conv, numerics
from rc_jax.models.network import Backbone, KeyRules, Shapes, Stages
from rc_jax.ops.max_pool import max_pool


@dataclasses.dataclass(frozen=True)
class ResNetSpec:
  """Depth, kind of block and width of a ResNet.

  Attributes:
    blocks: blocks in each of the four stages.
    bottleneck: 1x1, 3x3, 1x1 blocks with 4 x the channels at their end; otherwise two 3x3.
    width: channels of the first stage; each later stage doubles them.
  """

  blocks: tuple[int, int, int, int]
  bottleneck: bool
  width: int = 64


RESNETS = {
  "resnet18": ResNetSpec((2, 2, 2, 2), bottleneck=False),
  "resnet34": ResNetSpec((3, 4, 6, 3), bottleneck=False),
  "resnet50": ResNetSpec((3, 4, 6, 3), bottleneck=True),
  "resnet101": ResNetSpec((3, 4, 23, 3), bottleneck=True),
  "resnet152": ResNetSpec((3, 8, 36, 3), bottleneck=True),
  # Not from the literature: a quarter of ResNet-18's channels, to train in minutes on a laptop.
  "resnet_tiny": ResNetSpec((2, 2, 2, 2), bottleneck=False, width=16),
}

OUTPUT_STRIDES = (8, 16, 32)

STAGES = {"stem": ("conv1", "bn1"), **{f"stage{i}": (f"layer{i}",) for i in (1, 2, 3, 4)}}

# Channels of the convolutions before the pooling, at width 64, which all published ResNets have.
STEMS = ("7x7", "32-32-64", "64-64-128")
STRIDE_PLACES = ("3x3", "1x1")

FIELDS = (
  Field(
    "model.multi_grid",
    (2, 2, 4),
    "Factors on the dilation of the blocks of stage 4. The default is that of the authors' code; the paper is silent.",
    positive_numbers("positive factors, one for each block of the last stage"),
  ),
  Field(
    "model.stem",
    "64-64-128",
    "First convolutions: three 3x3 of 64, 64 and 128 channels (the authors' code), 32-32-64 (ResNetV1c of "
    "mmsegmentation) or one 7x7 (torchvision).",
    one_of(*STEMS),
  ),
  Field(
    "model.stride_on",
    "3x3",
    "The convolution of a bottleneck block that has the stride: 3x3 (torchvision) or 1x1 (Caffe).",
    one_of(*STRIDE_PLACES),
  ),
  Field(
    "model.ceil_pool",
    True,
    "Rounds the size of the max pooling's output up, as the authors' code; torchvision and mmsegmentation round down.",
  ),
)


def stage_steps(output_stride: int) -> tuple[tuple[int, int, int], ...]:
  """Plans the stages of a dilated network.

  A stage whose stride would exceed ``output_stride`` keeps its input's grid and doubles the dilation. A dilated network
  thus computes the strided network's values at more positions. The convolution that loses its stride reads the old
  grid: it keeps the previous dilation, as in torchvision.

  Args:
    output_stride: image pixels for each cell of the last map.

  Returns:
    (stride, dilation before the stride, dilation after it) of each stage.
  """
  steps = []
  current, dilation = 4, 1
  for wanted in (1, 2, 2, 2):
    previous, stride = dilation, wanted
    if current * wanted > output_stride:
      dilation, stride = dilation * wanted, 1
    current *= stride
    steps.append((stride, previous, dilation))
  return tuple(steps)


class Shortcut(nn.Module):
  """The 1x1 convolution and BatchNorm that give a block's input the shape of its output."""

  features: int
  stride: int
  dtype: jnp.dtype
  momentum: float
  epsilon: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = Conv(self.features, 1, self.stride, dtype=self.dtype, name="0")(x)
    return BatchNorm(self.momentum, self.epsilon, name="1")(x, train)


class Block(nn.Module):
  """One residual block, basic or bottleneck.

  Attributes:
    features: channels of the 3x3 convolutions.
    bottleneck: whether the block is a bottleneck; otherwise basic.
    stride: of the block.
    dilation: of the 3x3 (bottleneck) or the first 3x3 (basic).
    dilation_after: of the second 3x3 of a basic block, which is always behind the stride.
    stride_on: the bottleneck's convolution that has the stride, ``"3x3"`` or the first ``"1x1"``.
  """

  features: int
  bottleneck: bool
  stride: int
  dilation: int
  dilation_after: int
  stride_on: str
  dtype: jnp.dtype
  momentum: float
  epsilon: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    conv = functools.partial(Conv, dtype=self.dtype)
    norm = functools.partial(BatchNorm, self.momentum, self.epsilon)
    out_features = self.features * (4 if self.bottleneck else 1)
    shortcut = x
    if self.stride != 1 or x.shape[-1] != out_features:
      options = (self.dtype, self.momentum, self.epsilon)
      shortcut = Shortcut(out_features, self.stride, *options, name="downsample")(x, train)
    if self.bottleneck:
      first, second = (self.stride, 1) if self.stride_on == "1x1" else (1, self.stride)
      x = conv(self.features, 1, first, name="conv1")(x)
      x = norm(name="bn1")(x, train, relu=True)
      x = conv(self.features, 3, second, self.dilation, name="conv2")(x)
      x = norm(name="bn2")(x, train, relu=True)
      x = conv(out_features, 1, name="conv3")(x)
      return norm(name="bn3")(x, train, shortcut, relu=True)
    x = conv(self.features, 3, self.stride, self.dilation, name="conv1")(x)
    x = norm(name="bn1")(x, train, relu=True)
    x = conv(self.features, 3, 1, self.dilation_after, name="conv2")(x)
    return norm(name="bn2")(x, train, shortcut, relu=True)


class Stage(nn.Module):
  """The blocks of one stage, named ``"0"``, ``"1"``, ...

  Attributes:
    grid: a factor on each block's dilation (multi-grid).
    steps: stride, previous dilation and dilation, of ``stage_steps``.
  """

  features: int
  bottleneck: bool
  grid: tuple[int, ...]
  steps: tuple[int, int, int]
  stride_on: str
  dtype: jnp.dtype
  momentum: float
  epsilon: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    stride, previous, dilation = self.steps
    # A stride on the first 1x1 comes before the 3x3, which then reads the new grid.
    first = dilation if self.bottleneck and self.stride_on == "1x1" else previous
    for i, factor in enumerate(self.grid):
      x = Block(
        features=self.features,
        bottleneck=self.bottleneck,
        stride=stride if i == 0 else 1,
        dilation=factor * (first if i == 0 else dilation),
        dilation_after=factor * dilation,
        stride_on=self.stride_on,
        dtype=self.dtype,
        momentum=self.momentum,
        epsilon=self.epsilon,
        name=str(i),
      )(x, train)
    return x


class DeepStem(nn.Module):
  """Three 3x3 convolutions, the first with stride 2; the BatchNorm after the last is the backbone's ``bn1``.

  Names are those of the ``nn.Sequential`` in PyTorch: convolutions 0, 3, 6 and BatchNorms 1, 4.

  Attributes:
    width: channels of the first two; the last has twice as many.
  """

  width: int
  dtype: jnp.dtype
  momentum: float
  epsilon: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = Conv(self.width, 3, 2, dtype=self.dtype, name="0")(x)
    x = BatchNorm(self.momentum, self.epsilon, name="1")(x, train, relu=True)
    x = Conv(self.width, 3, dtype=self.dtype, name="3")(x)
    x = BatchNorm(self.momentum, self.epsilon, name="4")(x, train, relu=True)
    return Conv(2 * self.width, 3, dtype=self.dtype, name="6")(x)


class ResNet(nn.Module):
  """ResNet without its classifier.

  Attributes:
    spec: depth, kind of block and width.
    output_stride: 8, 16 or 32.
    multi_grid: factors on the dilations of stage 4's blocks.
    stem: one ``"7x7"`` convolution as in torchvision, or three 3x3 with these channels: ``"64-64-128"`` as in the
      authors' code, ``"32-32-64"`` as in ResNetV1c.
    stride_on: the convolution of a bottleneck that has the stride: ``"3x3"`` as in torchvision, or the first
      ``"1x1"`` as in the original. In a basic block it is always the first 3x3.
    ceil_pool: whether the max pooling keeps a last window that lies half outside, as in the authors' code. From 240
      rows it then makes 121, not 120. Odd numbers, such as the 385 of a crop of 769, give the same result either way.
    dtype: of the computation.
    momentum: fraction of BatchNorm's running statistics kept at each step.
    epsilon: of BatchNorm.
  """

  spec: ResNetSpec
  output_stride: int = 8
  multi_grid: tuple[int, ...] = (2, 2, 4)
  stem: str = "64-64-128"
  stride_on: str = "3x3"
  ceil_pool: bool = True
  dtype: jnp.dtype = jnp.float32
  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> Stages:
    """Computes the features of stages 1, 3 and 4.

    Args:
      x: normalised images ``[B,H,W,3]``.
      train: normalise with the batch's statistics and update the running ones.

    Returns:
      The stages; 256, 1024 and 2048 channels for a ResNet-50.
    """
    width = self.spec.width
    if self.stem == "7x7":
      x = Conv(width, 7, 2, dtype=self.dtype, name="conv1")(x)
    else:
      first = width if self.stem == "64-64-128" else width // 2
      x = DeepStem(first, self.dtype, self.momentum, self.epsilon, name="conv1")(x, train)
    x = BatchNorm(self.momentum, self.epsilon, name="bn1")(x, train, relu=True)
    x = max_pool(x, self.ceil_pool)
    stages = []
    for i, (blocks, steps) in enumerate(zip(self.spec.blocks, stage_steps(self.output_stride), strict=True)):
      x = Stage(
        features=width * 2**i,
        bottleneck=self.spec.bottleneck,
        grid=tuple(self.multi_grid) if i == 3 else (1,) * blocks,
        steps=steps,
        stride_on=self.stride_on,
        dtype=self.dtype,
        momentum=self.momentum,
        epsilon=self.epsilon,
        name=f"layer{i + 1}",
      )(x, train)
      stages.append(x)
    return Stages(stage1=stages[0], stage3=stages[2], last=stages[3])


def backbone(spec: ResNetSpec) -> Backbone:
  """Returns the backbone of a ResNet, for a line of ``rc_jax.models.BACKBONES``."""
  return Backbone(
    build=functools.partial(_build, spec),
    fields=FIELDS,
    fields_from_shapes=functools.partial(_fields_from_shapes, spec),
    description=_description,
    key_rules=KEY_RULES,
    ignored_layers=("fc",),  # ImageNet's classifier
    family_fields=functools.partial(_family_fields, spec),
    family_rules=functools.partial(_family_rules, spec),
    grid_stride=lambda model: int(model.output_stride),
    stages=STAGES,
  )


def _build(spec: ResNetSpec, model: Config) -> nn.Module:
  stride = model.output_stride
  require(stride in OUTPUT_STRIDES, "model.output_stride", stride, f"8, 16 or 32 with {model.backbone}")
  blocks, multi_grid = spec.blocks[3], tuple(model.multi_grid)
  require(
    len(multi_grid) == blocks and min(multi_grid) >= 1,
    "model.multi_grid",
    multi_grid,
    f"{blocks} factors of 1 or more, for the {blocks} blocks of stage 4 of {model.backbone}, such as "
    f"{(2, 2, 4)[-blocks:]}",
  )
  return ResNet(
    spec=spec,
    output_stride=stride,
    multi_grid=multi_grid,
    stem=model.stem,
    stride_on=model.stride_on,
    ceil_pool=model.ceil_pool,
    **numerics(model),
  )


def _spec_from_shapes(shapes: Shapes) -> ResNetSpec | None:
  """Infers the spec of a ResNet, built here or not; None where the shapes are not a ResNet's."""
  first = shapes.get("backbone.layer1.0.conv1.weight")
  blocks = [0, 0, 0, 0]
  for name in shapes:
    if match := re.match(r"backbone\.layer([1-4])\.(\d+)\.conv1\.weight$", name):
      stage = int(match[1]) - 1
      blocks[stage] = max(blocks[stage], int(match[2]) + 1)
  # An HRNet has a layer1, too, and no other.
  if first is None or not all(blocks):
    return None
  bottleneck = "backbone.layer1.0.conv3.weight" in shapes
  return ResNetSpec((blocks[0], blocks[1], blocks[2], blocks[3]), bottleneck, first[0])


def _fields_from_shapes(spec: ResNetSpec, shapes: Shapes) -> dict[str, Any] | None:
  if _spec_from_shapes(shapes) != spec:
    return None
  channels = [shapes.get(f"backbone.conv1.{i}.weight", (0,))[0] for i in (0, 3, 6)]
  if not any(channels):
    return {"stem": "7x7"}
  # ``model.stem`` states channels at the width 64 of all published ResNets.
  return {"stem": "-".join(str(64 * number // spec.width) for number in channels)}


def _description(shapes: Shapes) -> str:
  spec = _spec_from_shapes(shapes)
  if spec is None:
    return ""
  kind = "bottleneck" if spec.bottleneck else "basic"
  return f"a ResNet of {'-'.join(map(str, spec.blocks))} {kind} blocks, {spec.width} channels wide"


def _family_fields(spec: ResNetSpec, family: str, fields: Mapping[str, Any], part: str) -> dict[str, Any]:
  if family not in ("imagenet", "timm", "torchvision", "mmsegmentation", "regioncontrast"):
    return {}
  authors = family == "regioncontrast"
  family_fields: dict[str, Any] = {"stride_on": "3x3"} if spec.bottleneck else {}
  # ImageNet's weights of deep stems come with either pooling.
  if family != "imagenet" or fields["stem"] == "7x7":
    family_fields["ceil_pool"] = authors
  if part == "all" and family != "imagenet":
    family_fields["output_stride"] = 8
    family_fields["multi_grid"] = (2, 2, 4) if authors else (1,) * spec.blocks[3]
  return family_fields


def _family_rules(spec: ResNetSpec, family: str, model: Config) -> KeyRules | None:
  if family == "mmsegmentation":
    return () if model.stem == "7x7" else _STEM_IN_ONE
  # The basic blocks of torchvision refuse dilation, and so do those of RegionContrast's authors.
  is_buildable = spec.bottleneck or model.output_stride == 32
  is_known = {
    "timm": True,
    "torchvision": model.stem == "7x7" and is_buildable,
    "regioncontrast": model.stem == "64-64-128" and is_buildable,
  }
  return () if is_known.get(family) else None


_STEM_IN_ONE = (
  (r"stem\.([01346])\.", r"conv1.\1."),
  (r"stem\.7\.", "bn1."),
)

# The deep stem under the names that other releases give it.
KEY_RULES = {
  "stem.0.weight": _STEM_IN_ONE,
  "conv3.weight": (
    (r"conv1\.", "conv1.0."),
    (r"bn1\.", "conv1.1."),
    (r"conv2\.", "conv1.3."),
    (r"bn2\.", "conv1.4."),
    (r"conv3\.", "conv1.6."),
    (r"bn3\.", "bn1."),
  ),
}

BACKBONES = {name: backbone(spec) for name, spec in RESNETS.items()}
