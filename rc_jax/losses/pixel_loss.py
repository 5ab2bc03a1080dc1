"""The type of a pixel loss that a config can choose."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from jax import Array

from rc_jax.fields import Config, Field

# (logits [B,H,W,N], labels [B,H,W]) -> float32 scalar
LossFunction: TypeAlias = Callable[[Array, Array], Array]
# (cross entropy of each pixel [B,H,W] float32, whether it counts [B,H,W] bool) -> float32 scalar
Reduction: TypeAlias = Callable[[Array, Array], Array]


class PixelLoss(NamedTuple):
  """A pixel loss and its config fields.

  Attributes:
    build: from the fields of ``config.loss`` to the loss ``(logits [B,H,W,N], labels [B,H,W]) -> float32 scalar``.
    fields: the config fields that this loss alone reads; each states ``read_when=("loss.pixel", (NAME,))``, so that a
      run with another loss refuses them.
    reduction: where the loss depends on the cross entropy of each pixel alone, from the fields to the function that
      reduces these to a scalar. Training then needs no logits of the image's size on GPUs (``upsampled.py``).
  """

  build: Callable[[Config], LossFunction]
  fields: tuple[Field, ...] = ()
  reduction: Callable[[Config], Reduction] | None = None
