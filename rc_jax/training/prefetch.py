"""Puts the next batches on the devices while a step runs, and says for how long the devices waited for them."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from rc_jax import data

AHEAD = 2  # batches on the devices beside the one in use: one would do if every batch took equally long
_POLL = 0.002  # seconds: how finely waiting is measured


class Prefetcher:
  """Batches on the devices, read by a thread of its own; it is at the position of what was handed out, not read.

  Attributes:
    waited: seconds in which devices had finished all their steps and the next batch was not there.
  """

  def __init__(self, batches: data.TrainBatches, put: Callable[[dict[str, np.ndarray]], Any]):
    """Starts nothing yet.

    Args:
      batches: at the position where training begins; the feed's from here on.
      put: from a batch on the host to one on the devices. Called by another thread than the steps are.
    """
    self.waited = 0.0
    self._batches = batches
    self._put = put
    self._state = batches.get_state()
    self._ready: queue.Queue[tuple[Any, Any]] = queue.Queue(AHEAD)
    self._stop = threading.Event()
    self._thread: threading.Thread | None = None

  def next(self, devices_idle: Callable[[], bool]) -> Any:
    """Returns the next batch on the devices.

    Args:
      devices_idle: whether all steps started so far are finished.

    Raises:
      ValueError, OSError, RuntimeError: what reading that batch raised, in its turn: after all batches before it. The
        position stays.
    """
    if self._thread is None:
      self._thread = threading.Thread(target=self._read, name="feed", daemon=True)
      self._thread.start()
    item = None
    while item is None:
      idle, start = devices_idle(), time.monotonic()
      with contextlib.suppress(queue.Empty):
        item = self._ready.get(timeout=_POLL)
      if idle:
        self.waited += time.monotonic() - start
    batch, state = item
    if isinstance(state, Exception):
      self.close()
      raise state
    self._state = state
    return batch

  def get_state(self) -> dict[str, Any]:
    """Returns the position behind the last batch that ``next`` returned; as of ``TrainBatches``."""
    return self._state

  def close(self) -> None:
    """Ends the thread, and those of the batches. A further ``next`` goes on at the position."""
    self._stop.set()
    if self._thread is not None:
      while self._thread.is_alive():
        # It may be waiting for room.
        self._drain()
        self._thread.join(timeout=0.05)
      self._drain()
    self._thread = None
    self._stop.clear()
    self._batches.set_state(self._state)

  def __enter__(self) -> "Prefetcher":
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def _drain(self) -> None:
    while not self._ready.empty():
      self._ready.get_nowait()

  def _read(self) -> None:
    while not self._stop.is_set():
      try:
        batch = self._put(next(self._batches))
        self._ready.put((batch, self._batches.get_state()))
      except Exception as error:  # for the loop to raise, at this batch's turn
        self._ready.put((None, error))
        return
