"""All that a training run carries from one step to the next."""

import dataclasses
from typing import Any

import jax

from rc_jax import contrast


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """One immutable pytree: what a step reads and returns, and what a checkpoint holds.

  Attributes:
    step: int32 scalar, updates made so far.
    params: nested dict of float32 arrays; ``backbone`` at the top, everything else is a head.
    batch_stats: running means and variances of BatchNorm, float32.
    opt_state: the optimizer's state, momentum buffers shaped as ``params``.
    bank: keys ``[N,M,C]``, cursor ``[N]``, count ``[N]``; None where no bank is read (other scopes, the baseline).
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  bank: contrast.MemoryBank | None
