"""The types between backbones, heads and their users: feature maps, outputs, networks; and ``Head``, ``Backbone``."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import numpy as np

from rc_jax.fields import Config, Field
from rc_jax.losses.pixel_loss import LossFunction

Tree: TypeAlias = dict[str, Any]

# Name of an array in this project -> its shape with PyTorch's axes, ``[out,in,k,k]`` for a convolution. The name is the
# path in the network's trees with PyTorch's leaf name: ``params["head"]["fuse"]["conv"]["kernel"]`` is
# ``head.fuse.conv.weight``.
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
Arrays: TypeAlias = Mapping[str, np.ndarray]

# (pattern, replacement): a regular expression that matches the start of a key, and the start of this project's name.
KeyRules: TypeAlias = tuple[tuple[str, str], ...]


class Stages(NamedTuple):
  """The feature maps of a backbone, from fine to coarse, in the compute dtype.

  Attributes:
    stage1: ``[B,h1,w1,C1]`` at a quarter of the image: stage 1 of a ResNet, the finest branch of an HRNet. Decoders
      that restore edges read it.
    stage3: ``[B,h3,w3,C3]``, stage 3 of a ResNet, which the auxiliary head reads; None: no auxiliary head.
    last: ``[B,h,w,C4]``, which heads read: stage 4 of a ResNet, the concatenated branches of an HRNet.
  """

  stage1: jax.Array
  stage3: jax.Array | None
  last: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExtraOutput:
  """A further prediction of a network in training, and the term that it adds to the training loss.

  The term is ``config.loss.<term>_weight * loss(logits, labels)``, and the metric ``loss_<term>`` is its unweighted
  value. Extra outputs of one term are added up.

  Attributes:
    logits: float32; ``[B,h,w,N]`` over pixels, which are upsampled to the labels' size, or ``[B,N]`` over images.
    term: name of the term. A head with a new term states the field ``loss.<term>_weight`` among its own.
    loss: ``(logits, labels [B,H,W]) -> float32 scalar``; None: the pixel loss of the config, ``loss.pixel``.
  """

  logits: jax.Array
  term: str = dataclasses.field(metadata={"static": True})
  loss: LossFunction | None = dataclasses.field(default=None, metadata={"static": True})


class Outputs(NamedTuple):
  """The predictions of a head, or of a network, on its feature grid.

  Attributes:
    logits: ``P [B,h,w,N]`` float32.
    features: ``F [B,h,w,C]`` in the compute dtype: the map that the classifier reads (before dropout), or the same
      before its ReLU with ``model.contrast_features=linear``. Of a network in training with
      ``model.embedding_channels``, its projection.
    extra: further predictions by name, of networks in training alone. ``aux`` is the auxiliary head's or, in an OCRNet,
      the soft object regions. The terms of the loss are added in the order of the names.
  """

  logits: jax.Array
  features: jax.Array
  extra: dict[str, ExtraOutput] = {}  # noqa: RUF012 (no code writes to it)


class Variables(NamedTuple):
  """Nested dicts of float32 arrays; the top level of each is ``backbone``, ``head`` and, where the network has
  them, ``aux_head`` and ``projection``."""

  params: Tree
  batch_stats: Tree


@dataclasses.dataclass(frozen=True)
class Network:
  """A segmentation network as pure functions; all may be traced by ``jax.jit`` except ``init``.

  Images are ``[B,H,W,3]`` RGB of 0 to 255, uint8 or float; they are normalised inside.

  Attributes:
    init: ``(rng, image_size=(H,W)) -> Variables``; the same for the same ``rng``.
    train: ``(params, batch_stats, images, rng) -> (Outputs, new batch_stats)``, with the batch's statistics and
      dropout.
    predict: ``(params, batch_stats, images) -> Outputs``, with running statistics and without dropout. Holds logits and
      features alone; the features are not projected.
    num_classes: ``N``.
    channels: ``C``, of the features in training.
    align_corners: whether the corners of the feature grid lie on the image's corners, where logits or labels are
      resampled.
    grid_stride: pixels ``s``: where the sides of an image are multiples of ``s``, plus 1, each cell of the grids lies
      on the pixel that aligned corners assign to it; None: unknown.
    bind: ``(params, batch_stats, (H,W)) -> (images -> Outputs)``, as ``predict`` in two parts: what depends on the
      weights alone is computed at the first call. None: nothing does.
    stages: ``Backbone.stages`` of its backbone.
    frozen: keys from the top of ``params`` to the sub-trees that are not trained.
    frozen_statistics: keys from the top of ``batch_stats`` to the sub-trees that ``train`` normalises with and does not
      move.
  """

  init: Callable[..., Variables]
  train: Callable[[Tree, Tree, jax.Array, jax.Array], tuple[Outputs, Tree]]
  predict: Callable[[Tree, Tree, jax.Array], Outputs]
  num_classes: int
  channels: int
  align_corners: bool
  grid_stride: int | None = None
  bind: Callable[[Tree, Tree, tuple[int, int]], Callable[[jax.Array], Outputs]] | None = None
  stages: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  frozen: tuple[tuple[str, ...], ...] = ()
  frozen_statistics: tuple[tuple[str, ...], ...] = ()

  def with_weights(
    self, params: Tree, batch_stats: Tree, image_size: tuple[int, int]
  ) -> Callable[[jax.Array], Outputs]:
    """Returns ``images -> predict(params, batch_stats, images)``, for loops over images of one size.

    Args:
      params: as for ``predict``.
      batch_stats: as for ``predict``.
      image_size: ``(H,W)``.
    """
    if self.bind is None:
      return functools.partial(self.predict, params, batch_stats)
    return self.bind(params, batch_stats, image_size)


def _no_shift(shapes: Shapes) -> dict[str, int]:
  return {}


@dataclasses.dataclass(frozen=True)
class PublishedHead:
  """A head's weights as a family of files holds them; a family is a project whose files share key names.

  Attributes:
    key_rules: from the family's keys to the names of this project. The first rule that matches replaces what it
      matched; the rest of the key follows.
    fields: ``config.model`` fields without the prefix ``model.`` that these networks have and no shape shows, such as
      dilation rates.
    input_shift: from shapes by this project's names to a number of channels for some of the names: the family's network
      concatenates the inputs of these convolutions in another order, ours rolled by so many channels.
    optional: starts of this project's names that some of the family's networks with this head lack.
    ignored_keys: regular expressions of full keys that such files hold beside the network.

  Rules are read both ways, to import and to export. A pattern is therefore plain text, in which dots are escaped, and
  groups without groups in them, each of which the replacement holds once.
  """

  key_rules: KeyRules
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  input_shift: Callable[[Shapes], dict[str, int]] = _no_shift
  optional: tuple[str, ...] = ()
  ignored_keys: tuple[str, ...] = ()


def _no_fields(shapes: Shapes) -> dict[str, Any]:
  return {}


@dataclasses.dataclass(frozen=True)
class Head:
  """A segmentation head: its module, its config fields, and the weights that others publish for it.

  Attributes:
    build: from ``config.model`` and the number of classes ``N`` to a module ``(Stages, train) -> Outputs``.
    fields: the fields that the head reads besides those of every network; None: it may read any field.
    markers: starts of array names that together mark this head in files with this project's names; of several heads
      that fit, the one with the most markers counts.
    fields_from_shapes: infers fields, without the prefix ``model.``, from the shapes of a network with this head.
    published: family -> the head's weights there.
  """

  build: Callable[[Config, int], nn.Module]
  fields: tuple[Field, ...] | None = None
  markers: tuple[str, ...] = ()
  fields_from_shapes: Callable[[Shapes], dict[str, Any]] = _no_fields
  published: Mapping[str, PublishedHead] = dataclasses.field(default_factory=dict)


def _other_network(shapes: Shapes) -> None:
  return None


def _no_family_fields(family: str, fields: Mapping[str, Any], part: str) -> dict[str, Any]:
  return {}


def _no_family(family: str, model: Config) -> None:
  return None


def _unknown_stride(model: Config) -> None:
  return None


def _no_description(shapes: Shapes) -> str:
  return ""


@dataclasses.dataclass(frozen=True)
class Backbone:
  """A backbone: its module, its config fields, and the weights that others publish for it.

  Attributes:
    build: from ``config.model`` to a module ``(images [B,H,W,3], train) -> Stages``.
    fields: the fields that the backbone reads besides those of every network; None: it may read any field.
    fields_from_shapes: infers fields, without the prefix ``model.``, from the shapes of a file or network; None where
      the shapes are not those of this backbone.
    description: a noun phrase for a network of the same kind, built here or not; empty for any other kind.
    key_rules: key that only files with such names hold -> rules from their keys to the names of this project. Both
      without ``backbone.``.
    ignored_layers: regular expressions of layers that published files hold behind the backbone, such as ImageNet's
      classifier ``fc``.
    family_fields: ``(family, fields from shapes, part) -> fields`` that the family's networks have and no shape
      shows. ``part`` is ``"backbone"`` or ``"all"``: some matter only to a network that is imported with its head.
    family_rules: ``(family, config.model) ->`` those of ``key_rules`` whose names the family's networks have; empty
      where they have this project's; None where the family has no such backbone.
    grid_stride: from ``config.model`` to ``Network.grid_stride``, the stride of the coarsest of its grids.
    stages: name -> the modules of the backbone that are the stage, in the order of computation; each module belongs to
      one. ``optimizer.layer_decay`` and ``model.freeze`` name them. Empty: the backbone is not divided.
  """

  build: Callable[[Config], nn.Module]
  fields: tuple[Field, ...] | None = None
  fields_from_shapes: Callable[[Shapes], dict[str, Any] | None] = _other_network
  description: Callable[[Shapes], str] = _no_description
  key_rules: Mapping[str, KeyRules] = dataclasses.field(default_factory=dict)
  ignored_layers: tuple[str, ...] = ()
  family_fields: Callable[[str, Mapping[str, Any], str], dict[str, Any]] = _no_family_fields
  family_rules: Callable[[str, Config], KeyRules | None] = _no_family
  grid_stride: Callable[[Config], int | None] = _unknown_stride
  stages: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
