"""Decoded examples kept in memory up to a budget: one memory for a process and all that read for it."""

import contextlib
import mmap
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from rc_jax.data.reading.dataset_info import DatasetInfo
from rc_jax.data.reading.source import Example, Source

if sys.platform == "linux":
  import fcntl

GIB = 2**30
_COLUMNS = 3  # of the table: place + 1 (0: absent), height, width


class DecodedCache:
  """Images and labels of a split, each kept when first seen as long as the budget has room for it; none ever leaves.

  Which are kept depends on who comes first, what they hold does not. Dropping the longest unused would keep nothing:
  an epoch that does not fit drops every image before its next turn.

  On Linux the memory is anonymous (memfd) and worker processes map the same: it exists once, whatever their number,
  is bounded by no ``/dev/shm``, and is gone with the last process, however that ends.
  """

  def __init__(self, examples: int, budget: int):
    """Reserves addresses; memory is used as examples come.

    Args:
      examples: of the split.
      budget: bytes in all, the table of contents included.
    """
    self._examples = examples
    self._size = max(budget, self._table_bytes)
    self._file = -1
    self._where = ""
    if sys.platform == "linux":
      self._file = os.memfd_create("rc_jax_decoded_cache")
      os.ftruncate(self._file, self._size)
      self._where = f"/proc/{os.getpid()}/fd/{self._file}"
    self._map()

  def get(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns image uint8 ``[H,W,3]`` and label uint8 ``[H,W]`` of an example, read-only, or None."""
    with self._locked():
      place, height, width = self._table[index].tolist()
    if not place:
      return None
    pixels = height * width
    image = self._array(place - 1, (height, width, 3))
    return image, self._array(place - 1 + 3 * pixels, (height, width))

  def put(self, index: int, image: np.ndarray, label: np.ndarray) -> bool:
    """Keeps an example if the budget has room; returns whether it is kept."""
    height, width = label.shape
    with self._locked():
      used = int(self._table[-1, 0])
      if self._table[index, 0] or used + 4 * height * width > self._size:
        return bool(self._table[index, 0])
      self._table[-1, 0] += 4 * height * width
    # Outside the lock: others may read and keep other examples meanwhile.
    for place, array in ((used, image), (used + 3 * height * width, label)):
      into = self._array(place, array.shape)
      into.flags.writeable = True
      into[...] = array
    with self._locked():
      if self._table[index, 0]:
        return True  # two came with the same: the bytes of one are lost
      self._table[index] = used + 1, height, width
    return True

  def kept(self) -> tuple[int, int]:
    """Returns the number of examples that are kept, and the bytes in use."""
    with self._locked():
      return int(np.count_nonzero(self._table[:-1, 0])), int(self._table[-1, 0])

  @property
  def _table_bytes(self) -> int:
    return (self._examples + 1) * _COLUMNS * 8

  def _map(self) -> None:
    self._thread_lock = threading.Lock()
    self._memory = mmap.mmap(self._file, self._size)
    entries = (self._examples + 1) * _COLUMNS
    # The last row's place is the end of what is in use.
    self._table = np.frombuffer(self._memory, np.int64, entries).reshape(-1, _COLUMNS)
    self._table[-1, 0] = max(int(self._table[-1, 0]), self._table_bytes)

  def _array(self, place: int, shape: tuple[int, ...]) -> np.ndarray:
    array = np.frombuffer(self._memory, np.uint8, int(np.prod(shape)), place).reshape(shape)
    array.flags.writeable = False
    return array

  @contextlib.contextmanager
  def _locked(self) -> Iterator[None]:
    with self._thread_lock:
      if sys.platform != "linux":
        yield
        return
      # Of this process's own opening of the file: it keeps other processes out, and falls with the process.
      fcntl.flock(self._file, fcntl.LOCK_EX)
      try:
        yield
      finally:
        fcntl.flock(self._file, fcntl.LOCK_UN)

  def __getstate__(self) -> dict[str, Any]:
    if not self._where:
      raise ValueError(
        "data.cache_gb: only on Linux do worker processes share the cache; set data.workers=0 or data.cache_gb=0"
      )
    return {"examples": self._examples, "size": self._size, "where": self._where}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self._examples, self._size, self._where = state["examples"], state["size"], state["where"]
    self._file = os.open(self._where, os.O_RDWR)
    self._map()

  def __del__(self) -> None:
    # The memory itself goes when the last array that shows it does.
    if getattr(self, "_file", -1) >= 0:
      os.close(self._file)


class Cached:
  """A split whose examples are decoded once, as far as the cache has room.

  Args:
    source: a split with labels.
    cache: for as many examples.
  """

  labelled = True

  def __init__(self, source: Source, cache: DecodedCache):
    self._source = source
    self.cache = cache

  @property
  def info(self) -> DatasetInfo:
    return self._source.info

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Example:
    """Returns example ``index`` without its name; what is kept is read-only."""
    kept = self.cache.get(index)
    if kept is not None:
      return {"image": kept[0], "label": kept[1]}
    example = self._source[index]
    self.cache.put(index, example["image"], example["label"])
    return {"image": example["image"], "label": example["label"]}


def budget_bytes(gigabytes: float) -> int:
  """Returns the budget in bytes.

  Raises:
    ValueError: when this machine has not so much memory.
  """
  budget = int(gigabytes * GIB)
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
  if memory is not None and budget > memory:
    raise ValueError(
      f"data.cache_gb is {gigabytes:g}, but this machine has {memory / GIB:.1f} GiB of memory: choose less"
    )
  return budget
