"""Stopping a run on SIGTERM or SIGINT, after the running step and in all processes at the same step."""

import os
import signal
import types
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils

from rc_jax.console import CLEAR_LINE

PREEMPTED = (
  128 + signal.SIGTERM
)  # 143: a scheduler reads from it that the run was stopped, and starts it again


class StopRequested(Exception):
  """Raised by ``PreemptionWatch.raise_if_requested``: leave the evaluation, save and exit."""


class PreemptionWatch:
  """Notices that the run is to stop. A context manager: signal handlers are installed inside the ``with`` block.

  Attributes:
    exit_status: of the process: 0 until a stop is requested, then 128 + the signal's number (143 or 130).
  """

  def __init__(self) -> None:
    self.exit_status = 0
    self._previous: dict[int, Callable[[int, types.FrameType | None], Any] | int | None] = {}

  def __enter__(self) -> "PreemptionWatch":
    # With several processes, JAX's own SIGTERM handler notifies all hosts, and must not be replaced.
    if jax.process_count() == 1:
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._on_signal)
    return self

  def __exit__(self, *unused: object) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _on_signal(self, number: int, frame: types.FrameType | None) -> None:
    self.exit_status = 128 + number
    # Not `print`: the signal may have interrupted one, and its buffer does not allow a second.
    name = signal.Signals(number).name
    start = CLEAR_LINE if os.isatty(1) else ""
    os.write(1, f"{start}{name}: finishing this step and saving; a second {name} stops at once\n".encode())
    signal.signal(number, signal.SIG_DFL)

  def stop_requested(self, step: int) -> bool:
    """Returns whether the run is to stop after ``step`` updates; all processes get the same answer for a step.

    With several processes, each must call this with the same steps in the same order.
    """
    if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
      # Hosts receive their signals at different moments. One that stopped alone would leave the others waiting.
      self.exit_status = PREEMPTED
    return bool(self.exit_status)

  def raise_if_requested(self) -> None:
    """Raises ``StopRequested`` after a signal. Never with several processes, where the others would continue."""
    if self.exit_status:
      raise StopRequested
