"""Stopping a run on SIGTERM, SIGINT or SIGHUP, after the running step and in all processes at the same step."""

import contextlib
import os
import signal
import types
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils

from rc_jax import parent_process
from rc_jax.console import CLEAR_LINE

PREEMPTED = (
  128 + signal.SIGTERM
)  # 143: a scheduler reads from it that the run was stopped, and starts it again


class StopRequested(Exception):
  """Raised by ``PreemptionWatch.raise_if_requested``: leave the evaluation, save and exit."""


class PreemptionWatch:
  """Notices that the run is to stop. A context manager: signal handlers are installed inside the ``with`` block.

  A second SIGTERM or SIGINT ends the process at once. Two are ignored until the process has ended: a second SIGHUP, and
  a second SIGTERM of a run that a study's runner started. SIGHUP, which a terminal sends when it is closed, stays
  ignored where the run was started with ``nohup``.

  Attributes:
    exit_status: of the process: 0 until a stop is requested, then 128 + the signal's number (143, 130 or 129).
  """

  def __init__(self) -> None:
    self.exit_status = 0
    self._previous: dict[int, Callable[[int, types.FrameType | None], Any] | int | None] = {}
    # The shell sends SIGHUP when its terminal is closed, and the kernel sends it once more when the shell ends.
    self._sent_twice: set[int] = {signal.SIGHUP}
    if parent_process.started_by_runner():
      # A scheduler sends SIGTERM to all processes of a job, and the runner then sends it to its runs.
      self._sent_twice.add(signal.SIGTERM)

  def __enter__(self) -> "PreemptionWatch":
    handlers: dict[int, Callable[[int, types.FrameType | None], Any]] = {}
    # With several processes, JAX's own SIGTERM handler notifies all hosts, and must not be replaced.
    if jax.process_count() == 1:
      handlers |= {signal.SIGTERM: self._on_signal, signal.SIGINT: self._on_signal}
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
      handlers[signal.SIGHUP] = self._on_signal if jax.process_count() == 1 else _terminate
    for number, handler in handlers.items():
      self._previous[number] = signal.signal(number, handler)
    return self

  def __exit__(self, *unused: object) -> None:
    for number, handler in self._previous.items():
      # A second signal would end the process before its exit status says that it has saved.
      if number not in self._sent_twice or not self.exit_status:
        signal.signal(number, handler)

  def _on_signal(self, number: int, frame: types.FrameType | None) -> None:
    self.exit_status = 128 + number
    name = signal.Signals(number).name
    if number in self._sent_twice:
      signal.signal(number, signal.SIG_IGN)
      again = ""
    else:
      signal.signal(number, signal.SIG_DFL)
      again = f"; a second {name} stops at once"
    # Not `streams`: the signal may have interrupted a write, and its buffer does not allow a second. The terminal may
    # be gone: an error here would be raised in the middle of the step.
    with contextlib.suppress(OSError):
      start = CLEAR_LINE if os.isatty(1) else ""
      os.write(1, f"{start}{name}: finishing this step and saving{again}\n".encode())

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


def _terminate(number: int, frame: types.FrameType | None) -> None:
  """Passes a signal on to JAX, whose handler notifies the other processes of a SIGTERM alone."""
  os.kill(os.getpid(), signal.SIGTERM)
