"""Prefetching: a thread moves the next batches to the devices while a step runs."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rc_jax import data

PREFETCHED = (
  2  # batches on the devices beside the one in use; a second one covers a batch that takes longer to read
)
THREAD = "prefetch"
_POLL_SECONDS = 0.002  # resolution of `wait_seconds`

Batch = dict[str, jax.Array]


class Prefetcher:
  """Training batches on the devices, moved there ahead of time by a thread.

  Its position is that of the batches that ``next`` has returned, however many more are prefetched. A context manager:
  the thread ends with the ``with`` block.

  Attributes:
    wait_seconds: how long the devices were idle because the next batch was not there yet.
  """

  def __init__(self, batches: data.TrainBatches, put: Callable[[dict[str, np.ndarray]], Batch]):
    """Starts no thread yet; the first ``next`` does.

    Args:
      batches: at the position where training starts. Only the prefetcher may use them from here on.
      put: moves a batch from the host to the devices. Called by the thread.
    """
    self.wait_seconds = 0.0
    self._batches = batches
    self._put = put
    self._state = batches.get_state()
    # (batch, the position behind it), or (None, the error of reading it)
    self._ready: queue.Queue[tuple[Any, Any]] = queue.Queue(PREFETCHED)
    self._stop = threading.Event()
    self._thread: threading.Thread | None = None

  def next(self, devices_idle: Callable[[], bool]) -> Batch:
    """Returns the next batch on the devices.

    Args:
      devices_idle: returns whether the devices have finished all steps started so far.

    Raises:
      ValueError, OSError, RuntimeError: reading this batch failed. All batches before it were returned, and the
        position stays in front of it.
    """
    if self._thread is None:
      self._thread = threading.Thread(target=self._read_ahead, name=THREAD, daemon=True)
      self._thread.start()
    item = None
    while item is None:
      idle, start = devices_idle(), time.monotonic()
      with contextlib.suppress(queue.Empty):
        item = self._ready.get(timeout=_POLL_SECONDS)
      if idle:
        self.wait_seconds += time.monotonic() - start
    batch, state = item
    if isinstance(state, Exception):
      self.close()
      raise state
    self._state = state
    ready: Batch = batch
    return ready

  def get_state(self) -> dict[str, Any]:
    """Returns the position behind the last batch that ``next`` returned, as ``TrainBatches.get_state``."""
    return self._state

  def close(self) -> None:
    """Ends the thread, and those of the batches. Another ``next`` continues at the position."""
    self._stop.set()
    if self._thread is not None:
      while self._thread.is_alive():
        self._drain()  # the thread may be waiting for a free place in the queue
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

  def _read_ahead(self) -> None:
    while not self._stop.is_set():
      try:
        batch = self._put(next(self._batches))
        self._ready.put((batch, self._batches.get_state()))
      except Exception as error:  # `next` raises it at this batch's turn
        self._ready.put((None, error))
        return
