"""What backbones hand to heads, and networks to the rest of the project."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

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


class Outputs(NamedTuple):
  """What a head, or a whole network, says about a batch, on its feature grid.

  Attributes:
    logits: ``P [B,h,w,N]`` float32.
    features: ``F [B,h,w,C]`` in the compute dtype: the map that the classifier reads (before dropout). Of a network
      in training with ``model.embedding_channels``, its linear projection.
    aux_logits: ``[B,h3,w3,N]`` float32, supervised with ``loss.aux_weight``: the auxiliary head's or, in an OCRNet,
      the soft object regions. None in prediction, and where a network has neither.
    branch_logits: further predictions ``[B,h,w,N]`` float32 in training, supervised with ``loss.branch_weight``
      (DANet's two attentions alone).
    presence_logits: ``[B,N]`` float32 in training, whether a class is in the image, supervised with
      ``loss.presence_weight`` (EncNet).
  """

  logits: jax.Array
  features: jax.Array
  aux_logits: jax.Array | None = None
  branch_logits: tuple[jax.Array, ...] = ()
  presence_logits: jax.Array | None = None


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
