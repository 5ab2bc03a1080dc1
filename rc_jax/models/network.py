"""What backbones hand to heads, and networks to the rest of the project."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from rc_jax.losses.pixel_loss import LossFunction

Tree = dict[str, Any]


class Stages(NamedTuple):
  """The feature maps of a backbone, from fine to coarse, in the compute dtype.

  Attributes:
    stage1: ``[B,h1,w1,C1]`` at a quarter of the image: stage 1 of a ResNet, the finest branch of an HRNet. For
      decoders that restore edges.
    stage3: ``[B,h3,w3,C3]``, stage 3 of a ResNet, which an auxiliary head supervises; None where a backbone has
      no such map, and then there is no auxiliary head.
    last: ``[B,h,w,C4]``, what a head classifies: stage 4 of a ResNet, all branches of an HRNet side by side.
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
    features: ``F [B,h,w,C]`` in the compute dtype: the map that the classifier reads (before dropout). Of a network
      in training with ``model.embedding_channels``, its linear projection.
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
    train: ``(params, batch_stats, images, rng) -> (Outputs, new batch_stats)``: statistics of this batch,
      dropout.
    predict: ``(params, batch_stats, images) -> Outputs``: running statistics, no dropout, logits and features
      alone, the latter without the projection.
    num_classes: ``N``.
    channels: ``C``, of the features in training.
    align_corners: whether the feature grid's corners lie on the image's, for who resamples logits or labels.
  """

  init: Callable[..., Variables]
  train: Callable[[Tree, Tree, jax.Array, jax.Array], tuple[Outputs, Tree]]
  predict: Callable[[Tree, Tree, jax.Array], Outputs]
  num_classes: int
  channels: int
  align_corners: bool
