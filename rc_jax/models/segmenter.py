"""Builds segmentation networks as pure functions of plain trees: any head on any backbone."""

import difflib
import functools
from collections.abc import Callable, Mapping
from typing import TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from rc_jax.fields import Config, Field, above, at_least, below_one, one_of, require
from rc_jax.losses.cross_entropy import cross_entropy
from rc_jax.models.backbones import hrnet, resnet
from rc_jax.models.folding import folded_convs, folding
from rc_jax.models.heads import ccnet, danet, deeplabv3, deeplabv3plus, encnet, fcn, ocrnet, pspnet
from rc_jax.models.heads.fcn import FCNHead
from rc_jax.models.initial_values import initial_variables
from rc_jax.models.layers import DTYPES, Conv, ConvNormRelu, numerics
from rc_jax.models.network import Backbone, ExtraOutput, Head, Network, Outputs, Tree, Variables
from rc_jax.models.parts import frozen_statistics, part_paths, rematerialised

Entry = TypeVar("Entry", Backbone, Head)

# Mean and deviation of ImageNet's training images, for pixels of 0..255; all published weights expect them.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

# The fields that every network reads.
FIELDS = (
  Field("model.name", "deeplabv3", "The segmentation head, a key of ``rc_jax.models.HEADS``."),
  Field("model.backbone", "resnet50", "The backbone, a key of ``rc_jax.models.BACKBONES``."),
  Field("model.channels", 256, "Channels of the head's features, which the classifier reads.", at_least(1)),
  Field(
    "model.embedding_channels",
    0,
    "Channels of a projection that the contrastive loss reads in place of the features; 0: none.",
    at_least(0),
  ),
  Field(
    "model.embedding_layers",
    1,
    "Layers of that projection: 1: a linear 1x1 convolution; 2: a 1x1 convolution with BatchNorm and ReLU before it.",
    one_of(1, 2),
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
  Field(
    "model.freeze",
    "",
    "Parts whose parameters are not trained, separated by commas: stages of the backbone (``stem``, ``stage1`` to "
    "``stage4``), ``backbone``, ``head``. They get no gradient, no weight decay and no optimizer state. Their "
    "BatchNorm's statistics move, unless ``model.freeze_batch_stats`` names the part too.",
    training_only=True,
  ),
  Field(
    "model.freeze_batch_stats",
    "",
    "Parts, as in ``model.freeze``, whose BatchNorm normalises with its running statistics in training too, and leaves "
    "them as they are.",
    training_only=True,
  ),
  Field(
    "model.remat",
    "",
    "Parts, as in ``model.freeze`` but the stem, whose activations are computed again for the gradient, by blocks, to "
    "save memory. Results are the same up to rounding; a step takes longer.",
    training_only=True,
  ),
)

# Fields of ``model`` that name parts of the network.
PART_FIELDS = ("freeze", "freeze_batch_stats", "remat")

# ``model.backbone`` -> the backbone; a plain function stands for ``Backbone(build=function)``.
BACKBONES: dict[str, Backbone | Callable[[Config], nn.Module]] = {
  **resnet.BACKBONES,
  **hrnet.BACKBONES,
}

# ``model.name`` -> the head; a plain function stands for ``Head(build=function)``.
HEADS: dict[str, Head | Callable[[Config, int], nn.Module]] = {
  "ccnet": ccnet.HEAD,
  "danet": danet.HEAD,
  "deeplabv3": deeplabv3.HEAD,
  "deeplabv3plus": deeplabv3plus.HEAD,
  "encnet": encnet.HEAD,
  "fcn": fcn.HEAD,
  "ocrnet": ocrnet.HEAD,
  "pspnet": pspnet.HEAD,
}


def backbones() -> dict[str, Backbone]:
  """Returns ``BACKBONES`` with plain functions made backbones."""
  return {
    name: entry if isinstance(entry, Backbone) else Backbone(build=entry) for name, entry in BACKBONES.items()
  }


def heads() -> dict[str, Head]:
  """Returns ``HEADS`` with plain functions made heads."""
  return {name: entry if isinstance(entry, Head) else Head(build=entry) for name, entry in HEADS.items()}


def fields() -> tuple[Field, ...]:
  """Returns the fields that networks read, each once: those of all networks, of backbones, of heads."""
  entries: list[Backbone | Head] = [*backbones().values(), *heads().values()]
  groups = [FIELDS, *(entry.fields or () for entry in entries)]
  return tuple(dict.fromkeys(field for group in groups for field in group))


def readers(path: str) -> tuple[str, ...]:
  """Names the heads and backbones that alone read a field; empty where every network reads it.

  Args:
    path: such as ``"model.stem"``.
  """
  named: dict[str, Backbone | Head] = {**backbones(), **heads()}
  return tuple(
    name for name, entry in named.items() if any(field.path == path for field in entry.fields or ())
  )


def reads(path: str, head: str, backbone: str) -> bool:
  """Whether a network reads a field.

  Args:
    path: such as ``"model.stem"``.
    head: a key of ``HEADS``.
    backbone: a key of ``BACKBONES``. A head or backbone that is not in the dict, or states no fields, may read any.
  """
  chosen = (backbones().get(backbone), heads().get(head))
  if any(entry is None or entry.fields is None for entry in chosen):
    return True
  owners = readers(path)
  return not owners or head in owners or backbone in owners


class Segmenter(nn.Module):
  """Normalisation, backbone and head; in training, the auxiliary head and the projection where the network has them."""

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


class TwoLayerProjection(nn.Module):
  """A 1x1 convolution with BatchNorm and ReLU, which keeps the channels, and a linear 1x1 convolution.

  ``[B,h,w,C] -> [B,h,w,features]`` in ``dtype``. It exists in training only.

  Attributes:
    features: output channels.
  """

  features: int
  dtype: jnp.dtype = jnp.float32
  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    options = (x.shape[-1], 1, 1, self.dtype, self.momentum, self.epsilon)
    x = ConvNormRelu(*options, name="hidden")(x, train=True)
    projected: jax.Array = Conv(self.features, 1, use_bias=True, dtype=self.dtype, name="out")(x)
    return projected


def check_projection(model: Config) -> None:
  """Refuses a number of layers for a projection that ``model.embedding_channels`` leaves out.

  Raises:
    ValueError: one line with both fields.
  """
  layers = model.embedding_layers
  require(
    layers == 1 or bool(model.embedding_channels),
    "model.embedding_layers",
    layers,
    "1 unless model.embedding_channels is set",
  )


def check_parts(model: Config) -> None:
  """Refuses names in the fields of ``PART_FIELDS`` that the chosen backbone does not have.

  Raises:
    ValueError: one line with the field and the valid names.
  """
  backbone = backbones().get(model.backbone)
  if backbone is not None:  # ``build`` refuses an unknown one
    for name in PART_FIELDS:
      part_paths(f"model.{name}", model[name], model.backbone, _stages_of_field(name, backbone))


def _stages_of_field(name: str, backbone: Backbone) -> Mapping[str, tuple[str, ...]]:
  """Returns the stages that a field of ``PART_FIELDS`` may name."""
  # The stem has layers and no blocks: an argument of each would be kept.
  return {stage: modules for stage, modules in backbone.stages.items() if name != "remat" or stage != "stem"}


def _projection(model: Config) -> nn.Module | None:
  if not model.embedding_channels:
    return None
  if model.embedding_layers == 2:
    return TwoLayerProjection(model.embedding_channels, **numerics(model))
  return Conv(model.embedding_channels, 1, use_bias=True, dtype=DTYPES[model.dtype])


def build(config_model: Config, num_classes: int) -> Network:
  """Builds the network that ``config.model`` describes.

  Args:
    config_model: the fields of ``rc_jax.config.defaults().model``.
    num_classes: ``N``.

  Returns:
    The network. Nothing is computed before its functions are called.

  Raises:
    ValueError: a field has an invalid value.
  """
  model = config_model
  backbone = _named(backbones(), "model.backbone", model.backbone)
  head = _named(heads(), "model.name", model.name)
  for field in (*FIELDS, *(backbone.fields or ()), *(head.fields or ())):
    group, _, name = field.path.partition(".")
    if group == "model":  # a head may state the weight of its term of the loss, too
      require(field.check.holds(model[name]), field.path, model[name], field.expects)
  check_projection(model)
  frozen, statistics, remat = (
    part_paths(f"model.{name}", model[name], model.backbone, _stages_of_field(name, backbone))
    for name in PART_FIELDS
  )
  # The backbone by its stages: kept is the argument of each block, not of each stage.
  stages = tuple(
    ("backbone", module) for modules in _stages_of_field("remat", backbone).values() for module in modules
  )
  remat = tuple(path for part in remat for path in (stages if stages and part == ("backbone",) else (part,)))
  dtype = DTYPES[model.dtype]
  module = Segmenter(
    backbone=backbone.build(model),
    head=head.build(model, num_classes),
    aux_head=FCNHead(num_classes, model.aux_channels, dropout=model.dropout, **numerics(model)),
    projection=_projection(model),
    dtype=dtype,
  )

  def init(rng: jax.Array, image_size: tuple[int, int] = (64, 64)) -> Variables:
    images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.uint8)
    init_with_output = functools.partial(module.init_with_output, train=True)
    outputs, params, batch_stats = initial_variables(init_with_output, rng, images)
    _check_outputs(outputs, model, num_classes)
    return Variables(params, batch_stats)

  def train(params: Tree, batch_stats: Tree, images: jax.Array, rng: jax.Array) -> tuple[Outputs, Tree]:
    with frozen_statistics(statistics), rematerialised(remat):
      outputs, updates = module.apply(
        {"params": params, "batch_stats": batch_stats},
        images,
        train=True,
        rngs={"dropout": rng},
        mutable=["batch_stats"],
      )
    return outputs, updates["batch_stats"]

  def run(params: Tree, batch_stats: Tree, images: jax.Array) -> Outputs:
    variables = {"params": params, "batch_stats": batch_stats}
    outputs: Outputs = module.apply(variables, images, train=False)  # type: ignore[assignment]
    return outputs

  def bind(params: Tree, batch_stats: Tree, image_size: tuple[int, int]) -> Callable[[jax.Array], Outputs]:
    def trace() -> Outputs:
      return run(params, batch_stats, jnp.zeros((1, *image_size, 3), jnp.uint8))

    folded = folded_convs(trace, (params, batch_stats))

    def predict(images: jax.Array) -> Outputs:
      with folding(folded):
        return run(params, batch_stats, images)

    return predict

  def predict(params: Tree, batch_stats: Tree, images: jax.Array) -> Outputs:
    with folding({}):
      return run(params, batch_stats, images)

  return Network(
    init=init,
    train=train,
    predict=predict,
    num_classes=num_classes,
    channels=model.embedding_channels or model.channels,
    align_corners=bool(model.align_corners),
    grid_stride=backbone.grid_stride(model),
    bind=bind,
    stages=backbone.stages,
    frozen=frozen,
    frozen_statistics=statistics,
  )


def _check_outputs(outputs: Outputs, model: Config, num_classes: int) -> None:
  """Checks shapes and dtypes on which losses, scoring and the contrastive loss rely; a user's head may break them."""
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


def _named(entries: Mapping[str, Entry], path: str, name: str) -> Entry:
  if name in entries:
    return entries[name]
  closest = difflib.get_close_matches(str(name), list(entries), 1, cutoff=0.0)[0]
  raise ValueError(
    f"config.{path}: is {name!r}; expected one of {', '.join(entries)}; the closest is {closest}"
  )
