"""The state of a training run: all that one step hands to the next."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, Self, runtime_checkable

import jax


@runtime_checkable
class ShardedBank(Protocol):
  """A contrastive method's bank that is spread over devices: a pytree that says how.

  A bank without these methods is any pytree of arrays: every device holds all of it, and checkpoints hold its arrays
  as they are.
  """

  def shardings(self) -> Self:
    """Returns the ``Sharding`` of each array, in the same tree."""

  def as_saved(self, shapes: Mapping[str, tuple[int, ...]]) -> Self:
    """Describes the bank as a checkpoint holds it, which may be that of another number of devices.

    Args:
      shapes: the shapes of the checkpoint's arrays by their names in this tree.

    Returns:
      A ``ShapeDtypeStruct`` with a sharding for each array: how to read it.
    """

  def refit(self, saved: Self) -> Self:
    """Returns the values of ``saved``, which was read by ``as_saved``, in the shapes and shardings of this bank."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """One immutable pytree: the argument and the result of a train step, and the content of a checkpoint.

  Attributes:
    step: int32 scalar, updates made so far.
    params: nested dict of float32 arrays; ``backbone`` at the top, everything else is a head.
    batch_stats: running means and variances of BatchNorm, float32.
    opt_state: the optimizer's state, with buffers shaped as those of ``params`` that are trained.
    bank: the bank of the contrastive method, a pytree of arrays; RegionContrast's is a ``MemoryBank``. None where no
      bank is read (other scopes, the baseline).
    ema: moving averages of ``params`` and ``batch_stats``, a ``models.Variables``. None without ``train.ema_decay``.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  bank: Any
  ema: Any = None

  def scored_weights(self, ema: bool) -> tuple[Any, Any]:
    """Returns parameters and BatchNorm statistics to score: the averages where ``ema`` and the run has them."""
    return (*self.ema,) if ema and self.ema is not None else (self.params, self.batch_stats)
