"""Segmentation networks as plain functions of plain trees: any head on any backbone."""

import difflib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rc_jax.fields import Config, Field, above, at_least, below_one, one_of
from rc_jax.losses.cross_entropy import cross_entropy
from rc_jax.models.backbones import hrnet, resnet
from rc_jax.models.backbones.hrnet import HRNETS, OUTPUT_STRIDE, UPSAMPLINGS, HRNet
from rc_jax.models.backbones.resnet import OUTPUT_STRIDES, RESNETS, STEMS, STRIDE_PLACES, ResNet
from rc_jax.models.heads import aspp, ccnet, danet, deeplabv3plus, encnet, fcn, ocrnet, pspnet
from rc_jax.models.heads.ccnet import CCNetHead
from rc_jax.models.heads.danet import DANetHead
from rc_jax.models.heads.deeplabv3 import DeepLabV3Head
from rc_jax.models.heads.deeplabv3plus import DeepLabV3PlusHead
from rc_jax.models.heads.encnet import EncNetHead
from rc_jax.models.heads.fcn import FCNHead
from rc_jax.models.heads.ocrnet import OCRHead
from rc_jax.models.heads.pspnet import PSPHead
from rc_jax.models.initial_values import initial_variables
from rc_jax.models.layers import Conv
from rc_jax.models.network import ExtraOutput, Network, Outputs, Tree, Variables

# The statistics of ImageNet's training images, that all published weights expect; here for pixels of 0..255.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}

# The fields that every network reads.
FIELDS = (
  Field("model.name", "deeplabv3", "The segmentation head, a key of ``rc_jax.models.HEADS``."),
  Field("model.backbone", "resnet50", "The backbone, a key of ``rc_jax.models.BACKBONES``."),
  Field("model.channels", 256, "Channels of the head's features, which the classifier reads.", at_least(1)),
  Field(
    "model.embedding_channels",
    0,
    "Channels of a linear projection that the contrastive loss reads in place of the features; 0: none.",
    at_least(0),
  ),
  Field("model.aux_channels", 256, "Channels of the auxiliary head on stage 3.", at_least(1)),
  Field(
    "model.align_corners",
    True,
    "Aligns corners wherever maps are resampled; mmsegmentation's and torchvision's networks do not.",
  ),
  Field(
    "model.output_stride",
    8,
    "Image pixels for each cell of the feature grid: 8, 16 or 32 for ResNets, 4 for HRNets.",
    at_least(1),
  ),
  Field(
    "model.dropout",
    0.1,
    "Share of channels dropped before the classifiers in training, as in the authors' code.",
    below_one("a probability in 0..1, below 1"),
    training_only=True,
  ),
  Field(
    "model.dtype",
    "bfloat16",
    "Dtype of the activations; parameters, statistics and losses are float32.",
    one_of(*DTYPES),
  ),
  Field(
    "model.bn_momentum",
    0.9,
    "BatchNorm: share of the old running statistics that each step keeps; 0.9 is PyTorch's momentum 0.1.",
    below_one("a share in 0..1, below 1"),
    training_only=True,
  ),
  Field("model.bn_epsilon", 1e-5, "BatchNorm: added to the variance.", above(0)),
)


def numerics(model: Config) -> dict[str, Any]:
  """Returns the fields that most modules share: ``dtype``, and BatchNorm's ``momentum`` and ``epsilon``."""
  return {"dtype": DTYPES[model.dtype], "momentum": model.bn_momentum, "epsilon": model.bn_epsilon}


def _resnet(model: Config) -> nn.Module:
  layout = RESNETS[model.backbone]
  _choose("output_stride", model.output_stride, OUTPUT_STRIDES)
  _choose("stride_on", model.stride_on, STRIDE_PLACES)
  _choose("stem", model.stem, STEMS)
  multi_grid = tuple(model.multi_grid)
  blocks = layout.blocks[3]
  if len(multi_grid) != blocks or min(multi_grid) < 1:
    raise ValueError(
      f"model.multi_grid is {multi_grid}, but stage 4 of {model.backbone} has {blocks} blocks: "
      f"give {blocks} factors of at least 1, for example {(2, 2, 4)[-blocks:]}"
    )
  return ResNet(
    layout=layout,
    output_stride=model.output_stride,
    multi_grid=multi_grid,
    stem=model.stem,
    stride_on=model.stride_on,
    ceil_pool=model.ceil_pool,
    **numerics(model),
  )


def _hrnet(model: Config) -> nn.Module:
  _choose("output_stride", model.output_stride, (OUTPUT_STRIDE,))
  _choose("hrnet_upsample", model.hrnet_upsample, UPSAMPLINGS)
  return HRNet(
    layout=HRNETS[model.backbone],
    upsampling=model.hrnet_upsample,
    align_corners=bool(model.align_corners),
    **numerics(model),
  )


# A name of ``model.backbone`` -> from ``config.model`` to a module ``(x [B,H,W,3], train) -> Stages``.
BACKBONES: dict[str, Callable[[Config], nn.Module]] = {
  "resnet18": _resnet,
  "resnet34": _resnet,
  "resnet50": _resnet,
  "resnet101": _resnet,
  "resnet152": _resnet,
  "resnet_tiny": _resnet,
  "hrnetv2_w18": _hrnet,
  "hrnetv2_w32": _hrnet,
  "hrnetv2_w48": _hrnet,
  "hrnetv2_tiny": _hrnet,
}

# A name of ``model.name`` -> from ``config.model`` and ``N`` to a module ``(Stages, train) -> Outputs``.
HEADS: dict[str, Callable[[Config, int], nn.Module]] = {
  "ccnet": lambda model, classes: CCNetHead(
    classes,
    model.channels,
    recurrence=model.ccnet_recurrence,
    dropout=model.dropout,
    **numerics(model),
  ),
  "danet": lambda model, classes: DANetHead(
    classes,
    model.channels,
    key_channels=model.danet_key_channels,
    dropout=model.dropout,
    **numerics(model),
  ),
  "deeplabv3": lambda model, classes: DeepLabV3Head(
    classes,
    model.channels,
    rates=tuple(model.aspp_rates),
    project=model.aspp_project,
    dropout=model.dropout,
    **numerics(model),
  ),
  "deeplabv3plus": lambda model, classes: DeepLabV3PlusHead(
    classes,
    model.channels,
    rates=tuple(model.aspp_rates),
    project=model.aspp_project,
    early_channels=model.early_channels,
    separable=model.separable,
    align_corners=model.align_corners,
    dropout=model.dropout,
    **numerics(model),
  ),
  "encnet": lambda model, classes: EncNetHead(
    classes,
    model.channels,
    codes=model.encnet_codes,
    dropout=model.dropout,
    **numerics(model),
  ),
  "fcn": lambda model, classes: FCNHead(
    classes,
    model.channels,
    convs=model.fcn_convs,
    kernel_size=model.fcn_kernel_size,
    concat_input=model.fcn_concat_input,
    dropout=model.dropout,
    **numerics(model),
  ),
  "ocrnet": lambda model, classes: OCRHead(
    classes,
    model.channels,
    key_channels=model.ocr_key_channels,
    coarse_channels=model.aux_channels,
    align_corners=model.align_corners,
    dropout=model.dropout,
    **numerics(model),
  ),
  "pspnet": lambda model, classes: PSPHead(
    classes,
    model.channels,
    bins=tuple(model.psp_bins),
    align_corners=model.align_corners,
    dropout=model.dropout,
    **numerics(model),
  ),
}


# The fields that a head or a backbone reads besides; one that is not listed here may read any.
HEAD_FIELDS: dict[str, tuple[Field, ...]] = {
  "ccnet": ccnet.FIELDS,
  "danet": danet.FIELDS,
  "deeplabv3": aspp.FIELDS,
  "deeplabv3plus": deeplabv3plus.FIELDS,
  "encnet": encnet.FIELDS,
  "fcn": fcn.FIELDS,
  "ocrnet": ocrnet.FIELDS,
  "pspnet": pspnet.FIELDS,
}
BACKBONE_FIELDS: dict[str, tuple[Field, ...]] = {
  name: resnet.FIELDS if builder is _resnet else hrnet.FIELDS for name, builder in BACKBONES.items()
}


def fields() -> tuple[Field, ...]:
  """Returns the fields of ``config.model`` that networks read, each once: those of all, of backbones, of heads."""
  groups = (FIELDS, *BACKBONE_FIELDS.values(), *HEAD_FIELDS.values())
  return tuple(dict.fromkeys(field for group in groups for field in group))


def readers(path: str) -> tuple[str, ...]:
  """Names the heads and backbones that alone read a field; empty where every network reads it."""
  owners = {**BACKBONE_FIELDS, **HEAD_FIELDS}
  return tuple(name for name, owned in owners.items() if any(field.path == path for field in owned))


def reads(path: str, head: str, backbone: str) -> bool:
  """Whether a network of a head and a backbone reads a field; one that lists no fields of its own may read any."""
  listed = head in HEAD_FIELDS and backbone in BACKBONE_FIELDS
  owners = readers(path)
  return not (listed and owners) or head in owners or backbone in owners


class Segmenter(nn.Module):
  """Normalisation, backbone and head; in training an auxiliary head and the projection, where they are of use."""

  backbone: nn.Module
  head: nn.Module
  aux_head: nn.Module
  projection: nn.Module | None
  dtype: jnp.dtype

  def __call__(self, images: jax.Array, train: bool) -> Outputs:
    mean, std = jnp.array(PIXEL_MEAN, jnp.float32), jnp.array(PIXEL_STD, jnp.float32)
    x = ((images.astype(jnp.float32) - mean) / std).astype(self.dtype)
    stages = self.backbone(x, train)
    outputs: Outputs = self.head(stages, train)
    if not train:
      return Outputs(outputs.logits, outputs.features)
    if "aux" not in outputs.extra and stages.stage3 is not None:
      logits = self.aux_head(stages._replace(last=stages.stage3), train).logits
      aux = ExtraOutput(logits, term="aux", loss=cross_entropy)
      outputs = outputs._replace(extra={**outputs.extra, "aux": aux})
    if self.projection is not None:
      outputs = outputs._replace(features=self.projection(outputs.features))
    return outputs


def build(config_model: Config, num_classes: int) -> Network:
  """Builds the network that ``config.model`` describes.

  Args:
    config_model: the fields of ``rc_jax.config.defaults().model``; a head or a backbone reads those that concern it.
    num_classes: ``N``.

  Returns:
    The network. Building is instant: nothing is computed before its functions are called.

  Raises:
    ValueError: a field has no such choice.
  """
  model = config_model
  dtype = DTYPES[_choose("dtype", model.dtype, tuple(DTYPES))]
  backbone = BACKBONES[_choose("backbone", model.backbone, tuple(BACKBONES))](model)
  head = HEADS[_choose("name", model.name, tuple(HEADS))](model, num_classes)
  module = Segmenter(
    backbone=backbone,
    head=head,
    aux_head=FCNHead(num_classes, model.aux_channels, dropout=model.dropout, **numerics(model)),
    projection=Conv(model.embedding_channels, 1, use_bias=True, dtype=dtype)
    if model.embedding_channels
    else None,
    dtype=dtype,
  )

  def init(rng: jax.Array, image_size: tuple[int, int] = (64, 64)) -> Variables:
    images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.uint8)
    init_with_output = functools.partial(module.init_with_output, train=True)
    outputs, params, batch_stats = initial_variables(init_with_output, rng, images)
    _check_outputs(outputs, model, num_classes)
    return Variables(params, batch_stats)

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

  channels = model.embedding_channels or model.channels
  return Network(init, train, predict, num_classes, channels, bool(model.align_corners))


def _check_outputs(outputs: Outputs, model: Config, num_classes: int) -> None:
  """Holds heads, those from elsewhere above all, to what the rest of the project relies on."""
  classes, channels = outputs.logits.shape[-1], outputs.features.shape[-1]
  if classes != num_classes or outputs.logits.dtype != jnp.float32:
    raise ValueError(
      f"model.name: the head {model.name} gives {outputs.logits.dtype} logits of {classes} classes; "
      f"expected float32 and {num_classes}"
    )
  expected = model.embedding_channels or model.channels
  if channels != expected:
    raise ValueError(
      f"model.channels is {expected}, but the features of the head {model.name} have {channels} channels: "
      f"set model.channels={channels}, or model.embedding_channels to project them"
    )
  if outputs.features.shape[:-1] != outputs.logits.shape[:-1]:
    raise ValueError(
      f"model.name: the head {model.name} gives features {outputs.features.shape} and logits {outputs.logits.shape}; "
      "expected one grid"
    )


def _choose(field: str, value: Any, choices: Sequence[Any]) -> Any:
  if value in choices:
    return value
  near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], 1, cutoff=0.0)[0]
  listed = ", ".join(str(choice) for choice in choices)
  raise ValueError(f"model.{field} is {value!r}, expected one of {listed}; the closest is {near}")
