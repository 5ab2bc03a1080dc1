"""Segmentation networks as plain functions of plain trees: what the rest of the project sees of them."""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from rc_jax.models.deeplabv3 import DeepLabV3Head
from rc_jax.models.fcn import FCNHead
from rc_jax.models.initial import initial_values
from rc_jax.models.resnet import OUTPUT_STRIDES, RESNETS, ResNet

# The statistics of ImageNet's training images, that all published weights expect; here for pixels of 0..255.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

HEADS = {"deeplabv3": DeepLabV3Head}
DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}
STRIDE_PLACES = ("3x3", "1x1")

Tree = dict[str, Any]


class Variables(NamedTuple):
  """Nested dicts of float32 arrays; the top level of each is ``backbone``, ``head``, ``aux_head``."""

  params: Tree
  batch_stats: Tree


class Outputs(NamedTuple):
  """What a network says about a batch, on its feature grid.

  Attributes:
    logits: ``P [B,h,w,N]`` float32.
    features: ``F [B,h,w,C]`` in the compute dtype, the map that the classifier reads (before dropout).
    aux_logits: ``[B,h3,w3,N]`` float32, of the auxiliary head in training; None in prediction.
  """

  logits: jax.Array
  features: jax.Array
  aux_logits: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Network:
  """A segmentation network as pure functions; all may be traced by ``jax.jit`` except ``init``.

  Images are ``[B,H,W,3]`` RGB of 0 to 255, uint8 or float; they are normalised inside.

  Attributes:
    init: ``(rng, image_size=(H,W)) -> Variables``; the same for the same ``rng``.
    train: ``(params, batch_stats, images, rng) -> (Outputs, new batch_stats)``: statistics of this batch,
      dropout.
    predict: ``(params, batch_stats, images) -> Outputs``: running statistics, no dropout, no auxiliary head.
    num_classes: ``N``.
    channels: ``C``.
    output_stride: ``H / h``, rounded up at each halving.
  """

  init: Callable[..., Variables]
  train: Callable[[Tree, Tree, jax.Array, jax.Array], tuple[Outputs, Tree]]
  predict: Callable[[Tree, Tree, jax.Array], Outputs]
  num_classes: int
  channels: int
  output_stride: int


class Segmenter(nn.Module):
  """Normalisation, backbone, head and auxiliary head."""

  backbone: nn.Module
  head: nn.Module
  aux_head: nn.Module
  dtype: jnp.dtype

  def __call__(self, images: jax.Array, train: bool) -> Outputs:
    mean, std = jnp.array(PIXEL_MEAN, jnp.float32), jnp.array(PIXEL_STD, jnp.float32)
    x = ((images.astype(jnp.float32) - mean) / std).astype(self.dtype)
    stage3, stage4 = self.backbone(x, train)
    logits, features = self.head(stage4, train)
    return Outputs(logits, features, self.aux_head(stage3, train) if train else None)


def build(config_model: ml_collections.ConfigDict, num_classes: int) -> Network:
  """Builds the network that ``config.model`` describes.

  Args:
    config_model: fields ``name``, ``backbone``, ``output_stride``, ``multi_grid``, ``aspp_rates``,
      ``channels``, ``deep_stem``, ``stride_on``, ``dropout``, ``dtype``, ``bn_momentum``, ``bn_epsilon``,
      ``aspp_project`` (see ``ASPP``).
    num_classes: ``N``.

  Returns:
    The network. Building is instant: nothing is computed before its functions are called.

  Raises:
    ValueError: a field has no such choice.
  """
  layout = RESNETS[_choose("backbone", config_model.backbone, tuple(RESNETS))]
  _choose("output_stride", config_model.output_stride, OUTPUT_STRIDES)
  _choose("stride_on", config_model.stride_on, STRIDE_PLACES)
  multi_grid = tuple(config_model.multi_grid)
  blocks = layout.blocks[3]
  if len(multi_grid) != blocks or min(multi_grid) < 1:
    raise ValueError(
      f"model.multi_grid is {multi_grid}, but stage 4 of {config_model.backbone} has {blocks} blocks: "
      f"give {blocks} factors of at least 1, for example {(2, 2, 4)[-blocks:]}"
    )
  dtype = DTYPES[_choose("dtype", config_model.dtype, tuple(DTYPES))]
  head = HEADS[_choose("name", config_model.name, tuple(HEADS))]
  norm = {"momentum": config_model.bn_momentum, "epsilon": config_model.bn_epsilon}
  module = Segmenter(
    backbone=ResNet(
      layout=layout,
      output_stride=config_model.output_stride,
      multi_grid=multi_grid,
      deep_stem=config_model.deep_stem,
      stride_on=config_model.stride_on,
      dtype=dtype,
      **norm,
    ),
    head=head(
      num_classes=num_classes,
      channels=config_model.channels,
      rates=tuple(config_model.aspp_rates),
      project=config_model.aspp_project,
      dropout=config_model.dropout,
      dtype=dtype,
      **norm,
    ),
    aux_head=FCNHead(num_classes, config_model.channels, config_model.dropout, dtype=dtype, **norm),
    dtype=dtype,
  )

  def init(rng: jax.Array, image_size: tuple[int, int] = (64, 64)) -> Variables:
    images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.uint8)
    shapes = jax.eval_shape(functools.partial(module.init, train=True), rng, images)
    return Variables(initial_values(rng, shapes["params"]), initial_values(rng, shapes["batch_stats"]))

  def train(params: Tree, batch_stats: Tree, images: jax.Array, rng: jax.Array) -> tuple[Outputs, Tree]:
    outputs, updates = module.apply(
      {"params": params, "batch_stats": batch_stats},
      images,
      train=True,
      rngs={"dropout": rng},
      mutable=["batch_stats"],
    )
    return outputs, updates["batch_stats"]

  def predict(params: Tree, batch_stats: Tree, images: jax.Array) -> Outputs:
    variables = {"params": params, "batch_stats": batch_stats}
    outputs: Outputs = module.apply(variables, images, train=False)  # type: ignore[assignment]
    return outputs

  return Network(init, train, predict, num_classes, config_model.channels, config_model.output_stride)


def _choose(field: str, value: Any, choices: Sequence[Any]) -> Any:
  if value in choices:
    return value
  near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], 1, cutoff=0.0)[0]
  listed = ", ".join(str(choice) for choice in choices)
  raise ValueError(f"model.{field} is {value!r}, expected one of {listed}; the closest is {near}")
