"""The type of a pixel loss that a config can choose."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias

from jax import Array

from rc_jax.fields import Config, Field

# (logits [B,H,W,N], labels [B,H,W]) -> float32 scalar
LossFunction: TypeAlias = Callable[[Array, Array], Array]


class Reduction(Protocol):
  """Reduces the cross entropy of each pixel to a scalar."""

  def __call__(self, losses: Array, counted: Array, /, *, weights: Array | None) -> Array:
    """Returns the loss, a float32 scalar.

    Args:
      losses: cross entropy of each pixel, ``[B,H,W]`` float32, 0 where a pixel does not count.
      counted: whether it counts, ``[B,H,W]`` bool.
      weights: of the pixels, those of their classes, ``[B,H,W]`` float32; None: all weigh the same.
    """


class PixelLoss(NamedTuple):
  """A pixel loss and its config fields.

  Attributes:
    build: from the fields of ``config.loss`` to the loss ``(logits [B,H,W,N], labels [B,H,W]) -> float32 scalar``.
    fields: the config fields that this loss alone reads; each states ``read_when=("loss.pixel", (NAME,))``, so that a
      run with another loss refuses them.
    reduction: where the loss depends on the cross entropy of each pixel alone, from the fields to the function that
      reduces these to a scalar, or to None where other fields prevent it. Training then needs no logits of the image's
      size on GPUs (``upsampled.py``).
    weighted: whether the loss reads ``loss.class_weights``: ``build`` those of the config, the reduction its argument.
    mean_over_pixels: whether the loss is a mean over the pixels that count, weighted or not. With
      ``train.microbatches``, each part of a batch then counts by its pixels; otherwise all parts count the same.
    title: the name in the paragraph that announces a run; empty: the key in ``PIXEL_LOSSES``.
  """

  build: Callable[[Config], LossFunction]
  fields: tuple[Field, ...] = ()
  reduction: Callable[[Config], Reduction | None] | None = None
  weighted: bool = False
  mean_over_pixels: bool = False
  title: str = ""
