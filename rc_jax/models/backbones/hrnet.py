"""HRNetV2 backbones (Wang et al., *Deep High-Resolution Representation Learning*, TPAMI 2020).

Branches at strides 4, 8, 16 and 32 run in parallel and are fused repeatedly; the finest map is never upsampled from a
coarse one. Names follow the authors' keys part by part, which timm and mmsegmentation share:
``stage3.1.branches.0.2.conv1.weight`` is ``params["stage3"]["1"]["branches"]["0"]["2"]["conv1"]["kernel"]``.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rc_jax.fields import Config, Field, one_of, require
from rc_jax.models.backbones.resnet import Stage
from rc_jax.models.layers import BatchNorm, Conv, numerics
from rc_jax.models.network import Backbone, Shapes, Stages
from rc_jax.ops.resample import apply_separable, interpolation, upsample

OUTPUT_STRIDE = 4
COARSEST_STRIDE = 32  # of the fourth branch, which is interpolated to the finest

# How a coarser branch is upsampled to a finer grid; see HRNet.upsampling.
UPSAMPLINGS = ("bilinear", "bilinear-twice", "nearest")

STAGES = {
  "stem": ("conv1", "bn1", "conv2", "bn2"),
  "stage1": ("layer1",),
  **{f"stage{i}": (f"transition{i - 1}", f"stage{i}") for i in (2, 3, 4)},
}

FIELDS = (
  Field(
    "model.hrnet_upsample",
    "bilinear",
    "How branches are upsampled where they are fused: bilinear as in the authors' segmentation code, bilinear-twice as "
    "in mmsegmentation, nearest as in timm's classifiers.",
    one_of(*UPSAMPLINGS),
  ),
)


@dataclasses.dataclass(frozen=True)
class HRNetSpec:
  """Width and depth of an HRNet.

  Attributes:
    width: channels of the finest branch; each coarser one has twice as many.
    modules: exchanges between the branches in stages 2, 3 and 4, which have 2, 3 and 4 branches.
    blocks: number of bottlenecks in stage 1, and of basic blocks of each branch before an exchange.
    stem: channels of the first two convolutions and of stage 1's 3x3s.
  """

  width: int
  modules: tuple[int, int, int] = (1, 4, 3)
  blocks: int = 4
  stem: int = 64


HRNETS = {
  "hrnetv2_w18": HRNetSpec(18),
  "hrnetv2_w32": HRNetSpec(32),
  "hrnetv2_w48": HRNetSpec(48),
  # Not from the literature: to train in minutes on a laptop.
  "hrnetv2_tiny": HRNetSpec(8, modules=(1, 1, 1), blocks=2, stem=16),
}


class ConvNorm(nn.Module):
  """Convolution ``"0"`` and BatchNorm ``"1"``: ``[B,h,w,C] -> [B,ceil(h/stride),ceil(w/stride),features]``."""

  features: int
  kernel_size: int
  stride: int
  dtype: jnp.dtype
  momentum: float
  epsilon: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool, relu: bool = False) -> jax.Array:
    x = Conv(self.features, self.kernel_size, self.stride, dtype=self.dtype, name="0")(x)
    return BatchNorm(self.momentum, self.epsilon, name="1")(x, train, relu=relu)


class Descent(nn.Module):
  """3x3 convolutions with stride 2, ``"0"``, ``"1"``, ..., each with its BatchNorm, and ReLUs between them.

  Attributes:
    features: channels of each; each halves the map.
  """

  features: tuple[int, ...]
  dtype: jnp.dtype
  momentum: float
  epsilon: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool, relu: bool = False) -> jax.Array:
    last = len(self.features) - 1
    for i, features in enumerate(self.features):
      convolution = ConvNorm(features, 3, 2, self.dtype, self.momentum, self.epsilon, name=str(i))
      x = convolution(x, train, relu=relu or i < last)
    return x


class Transition(nn.Module):
  """Starts a stage: passes the branches on, widened where needed, and adds a branch at half the coarsest grid.

  Attributes:
    features: channels of each branch afterwards, one branch more than before.
  """

  features: tuple[int, ...]
  dtype: jnp.dtype
  momentum: float
  epsilon: float

  @nn.compact
  def __call__(self, maps: list[jax.Array], train: bool) -> list[jax.Array]:
    norm = (self.dtype, self.momentum, self.epsilon)
    passed = []
    for i, (x, features) in enumerate(zip(maps, self.features, strict=False)):
      if x.shape[-1] != features:
        x = ConvNorm(features, 3, 1, *norm, name=str(i))(x, train, relu=True)
      passed.append(x)
    added = Descent(self.features[-1:], *norm, name=str(len(maps)))(maps[-1], train, relu=True)
    return [*passed, added]


class Branches(nn.Module):
  """Basic blocks on each branch.

  Attributes:
    blocks: their number on each branch.
  """

  blocks: int
  dtype: jnp.dtype
  momentum: float
  epsilon: float

  @nn.compact
  def __call__(self, maps: list[jax.Array], train: bool) -> list[jax.Array]:
    return [
      Stage(
        features=x.shape[-1],
        bottleneck=False,
        grid=(1,) * self.blocks,
        steps=(1, 1, 1),
        stride_on="3x3",
        dtype=self.dtype,
        momentum=self.momentum,
        epsilon=self.epsilon,
        name=str(i),
      )(x, train)
      for i, x in enumerate(maps)
    ]


class FuseLayer(nn.Module):
  """Sums all branches on the grid of one: coarser branches by a 1x1 and interpolation, finer ones by strided 3x3s.

  Attributes:
    target: the branch whose grid and channels the sum has.
    upsampling: one of ``UPSAMPLINGS``.
    align_corners: of ``"bilinear"``.
  """

  target: int
  upsampling: str
  align_corners: bool
  dtype: jnp.dtype
  momentum: float
  epsilon: float

  @nn.compact
  def __call__(self, maps: list[jax.Array], train: bool) -> jax.Array:
    norm = (self.dtype, self.momentum, self.epsilon)
    _, height, width, features = maps[self.target].shape
    parts = []
    for i, x in enumerate(maps):
      if i > self.target:
        x = ConvNorm(features, 1, 1, *norm, name=str(i))(x, train)
        x = _upsample(x, (height, width), 2 ** (i - self.target), self.upsampling, self.align_corners)
      elif i < self.target:
        steps = (x.shape[-1],) * (self.target - i - 1) + (features,)
        x = Descent(steps, *norm, name=str(i))(x, train)
      parts.append(x)
    return nn.relu(functools.reduce(jnp.add, parts))


class FuseLayers(nn.Module):
  """The exchange: a ``FuseLayer`` for each branch, named ``"0"``, ``"1"``, ..."""

  upsampling: str
  align_corners: bool
  dtype: jnp.dtype
  momentum: float
  epsilon: float

  @nn.compact
  def __call__(self, maps: list[jax.Array], train: bool) -> list[jax.Array]:
    options = (self.upsampling, self.align_corners, self.dtype, self.momentum, self.epsilon)
    return [FuseLayer(i, *options, name=str(i))(maps, train) for i in range(len(maps))]


class Exchange(nn.Module):
  """A high-resolution module: blocks on each branch, then a sum over all branches on each branch's grid.

  ``maps[i]`` is ``[B,h/2^i,w/2^i,2^i width]``, before and after.
  """

  blocks: int
  upsampling: str
  align_corners: bool
  dtype: jnp.dtype
  momentum: float
  epsilon: float

  @nn.compact
  def __call__(self, maps: list[jax.Array], train: bool) -> list[jax.Array]:
    norm = (self.dtype, self.momentum, self.epsilon)
    maps = Branches(self.blocks, *norm, name="branches")(maps, train)
    fused: list[jax.Array] = FuseLayers(self.upsampling, self.align_corners, *norm, name="fuse_layers")(
      maps, train
    )
    return fused


class Exchanges(nn.Module):
  """The exchanges of one stage, one after another, named ``"0"``, ``"1"``, ..."""

  modules: int
  blocks: int
  upsampling: str
  align_corners: bool
  dtype: jnp.dtype
  momentum: float
  epsilon: float

  @nn.compact
  def __call__(self, maps: list[jax.Array], train: bool) -> list[jax.Array]:
    options = (self.blocks, self.upsampling, self.align_corners, self.dtype, self.momentum, self.epsilon)
    for i in range(self.modules):
      maps = Exchange(*options, name=str(i))(maps, train)
    return maps


class HRNet(nn.Module):
  """HRNetV2 without its classifier.

  Attributes:
    spec: width and depth.
    upsampling: how an exchange upsamples a coarser branch to a finer grid. ``"bilinear"``: in one step, as in the
      authors' segmentation code. ``"bilinear-twice"``: by a power of two and then to the finer grid, which may be
      smaller by some pixels, both with unaligned corners, as in mmsegmentation. ``"nearest"``: as in the authors' and
      timm's classifiers, where each branch has exactly half the sides of the finer one.
    align_corners: of ``"bilinear"`` exchanges, and of the interpolation before the concatenation.
    dtype: of the computation.
    momentum: fraction of BatchNorm's running statistics kept at each step.
    epsilon: of BatchNorm.
  """

  spec: HRNetSpec
  upsampling: str = "bilinear"
  align_corners: bool = True
  dtype: jnp.dtype = jnp.float32
  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> Stages:
    """Computes the four branches.

    Args:
      x: normalised images ``[B,H,W,3]``.
      train: normalise with the batch's statistics and update the running ones.

    Returns:
      ``stage1`` is the finest branch ``[B,ceil(H/4),ceil(W/4),width]``, ``stage3`` None, ``last`` all four branches
      on the finest grid, concatenated: ``15 width`` channels, 270 for W18 and 720 for W48.

    Raises:
      ValueError: ``"nearest"`` with images that do not halve evenly.
    """
    if self.upsampling == "nearest" and any(-(-side // OUTPUT_STRIDE) % 8 for side in x.shape[1:3]):
      raise ValueError(
        f"model.hrnet_upsample is 'nearest', which needs images of sides that are multiples of 32, found "
        f"{x.shape[1]} x {x.shape[2]}: resize them, or choose 'bilinear', which takes any"
      )
    norm: tuple[Any, ...] = (self.dtype, self.momentum, self.epsilon)
    for i in (1, 2):
      x = Conv(self.spec.stem, 3, 2, dtype=self.dtype, name=f"conv{i}")(x)
      x = BatchNorm(self.momentum, self.epsilon, name=f"bn{i}")(x, train, relu=True)
    grid = (1,) * self.spec.blocks
    maps = [Stage(self.spec.stem, True, grid, (1, 1, 1), "3x3", *norm, name="layer1")(x, train)]
    for i, modules in enumerate(self.spec.modules, start=1):
      widths = tuple(self.spec.width * 2**branch for branch in range(i + 1))
      maps = Transition(widths, *norm, name=f"transition{i}")(maps, train)
      options = (modules, self.spec.blocks, self.upsampling, self.align_corners, *norm)
      maps = Exchanges(*options, name=f"stage{i + 1}")(maps, train)
    finest, *coarser = maps
    size = (finest.shape[1], finest.shape[2])
    resized = [upsample(x, size, self.align_corners) for x in coarser]
    return Stages(stage1=finest, stage3=None, last=jnp.concatenate([finest, *resized], axis=-1))


def _upsample(
  x: jax.Array, size: tuple[int, int], factor: int, upsampling: str, align_corners: bool
) -> jax.Array:
  """Upsamples ``x [B,h,w,C]`` to ``size``, which is about ``factor`` times ``(h,w)``."""
  if upsampling == "bilinear":
    return upsample(x, size, align_corners)
  if upsampling == "nearest":
    # In float32, so that the gradient's sum over the copies of a pixel is.
    return x.astype(jnp.float32).repeat(factor, axis=1).repeat(factor, axis=2).astype(x.dtype)
  # Both steps are matrices. Their product is computed while tracing, and costs as much as one of them.
  rows, columns = (
    interpolation(factor * source, target, False) @ interpolation(source, factor * source, False)
    for source, target in zip(x.shape[1:3], size, strict=True)
  )
  return apply_separable(x, rows, columns)


def backbone(spec: HRNetSpec) -> Backbone:
  """Returns the backbone of an HRNet, for a line of ``rc_jax.models.BACKBONES``."""
  return Backbone(
    build=functools.partial(_build, spec),
    fields=FIELDS,
    fields_from_shapes=functools.partial(_fields_from_shapes, spec),
    description=_description,
    # What timm's and the authors' classifiers hold behind the branches.
    ignored_layers=("classifier", r"incre_modules\..*", r"downsamp_modules\..*", r"final_layer\..*"),
    family_fields=_family_fields,
    family_rules=lambda family, model: () if family in ("mmsegmentation", "timm") else None,
    grid_stride=lambda model: COARSEST_STRIDE,
    stages=STAGES,
  )


def _build(spec: HRNetSpec, model: Config) -> nn.Module:
  stride = model.output_stride
  require(stride == OUTPUT_STRIDE, "model.output_stride", stride, f"{OUTPUT_STRIDE} with {model.backbone}")
  return HRNet(
    spec=spec,
    upsampling=model.hrnet_upsample,
    align_corners=bool(model.align_corners),
    **numerics(model),
  )


def _spec_from_shapes(shapes: Shapes) -> HRNetSpec | None:
  """Infers the spec of an HRNet, built here or not; None where the shapes are not an HRNet's."""
  first = shapes.get("backbone.stage2.0.branches.0.0.conv1.weight")
  if first is None:
    return None

  def count(pattern: str) -> int:
    matches = [re.match(rf"backbone\.{pattern}", name) for name in shapes]
    return max((int(match[1]) + 1 for match in matches if match), default=0)

  return HRNetSpec(
    width=first[0],
    modules=(count(r"stage2\.(\d+)\."), count(r"stage3\.(\d+)\."), count(r"stage4\.(\d+)\.")),
    blocks=count(r"stage2\.0\.branches\.0\.(\d+)\."),
    stem=shapes.get("backbone.conv1.weight", (0,))[0],
  )


def _fields_from_shapes(spec: HRNetSpec, shapes: Shapes) -> dict[str, Any] | None:
  return {} if _spec_from_shapes(shapes) == spec else None


def _description(shapes: Shapes) -> str:
  spec = _spec_from_shapes(shapes)
  if spec is None:
    return ""
  return f"an HRNet of {'-'.join(map(str, spec.modules))} modules, {spec.width} channels wide"


def _family_fields(family: str, fields: Mapping[str, Any], part: str) -> dict[str, Any]:
  if family == "timm":
    return {"hrnet_upsample": "nearest"}
  return {"hrnet_upsample": "bilinear-twice"} if (family, part) == ("mmsegmentation", "all") else {}


BACKBONES = {name: backbone(spec) for name, spec in HRNETS.items()}
