"""A cache of decoded examples with a memory budget, which a process shares with its workers."""

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
_COLUMNS = 3  # of the table: offset + 1 (0: absent), height, width


class DecodedCache:
  """Images and labels of a split, each kept when it is first read as long as it fits the budget. None is evicted.

  The examples that are kept depend on the order of reading, their pixels do not. Evicting the least recently used would
  keep nothing: in an epoch that does not fit, every image is evicted before it is read again.

  On Linux the memory is anonymous (memfd), and worker processes map it too: it exists once for any number of processes,
  ``/dev/shm`` does not bound it, and it is freed when the last process ends.
  """

  def __init__(self, examples: int, budget: int):
    """Reserves addresses; memory is used when examples are added.

    Args:
      examples: the number of examples in the split.
      budget: bytes in total, including the table of contents.
    """
    self._examples = examples
    self._size = max(budget, self._table_bytes)
    self._file = -1
    self._path = ""
    if sys.platform == "linux":
      self._file = os.memfd_create("rc_jax_decoded_cache")
      os.ftruncate(self._file, self._size)
      self._path = f"/proc/{os.getpid()}/fd/{self._file}"
    self._map()

  def get(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns image uint8 ``[H,W,3]`` and label uint8 ``[H,W]`` of an example, read-only, or None."""
    with self._locked():
      offset, height, width = self._table[index].tolist()
    if not offset:
      return None
    pixels = height * width
    image = self._array(offset - 1, (height, width, 3))
    return image, self._array(offset - 1 + 3 * pixels, (height, width))

  def put(self, index: int, image: np.ndarray, label: np.ndarray) -> bool:
    """Keeps an example if it fits the budget; returns whether it is kept."""
    height, width = label.shape
    with self._locked():
      used = int(self._table[-1, 0])
      if self._table[index, 0] or used + 4 * height * width > self._size:
        return bool(self._table[index, 0])
      self._table[-1, 0] += 4 * height * width
    # Outside of the lock, so that others can read and keep examples in the meantime.
    for offset, array in ((used, image), (used + 3 * height * width, label)):
      target = self._array(offset, array.shape)
      target.flags.writeable = True
      target[...] = array
    with self._locked():
      if self._table[index, 0]:
        return True  # another process added it at the same time: these bytes stay unused
      self._table[index] = used + 1, height, width
    return True

  def kept(self) -> tuple[int, int]:
    """Returns the number of kept examples and the bytes in use."""
    with self._locked():
      return int(np.count_nonzero(self._table[:-1, 0])), int(self._table[-1, 0])

  @property
  def _table_bytes(self) -> int:
    return (self._examples + 1) * _COLUMNS * 8

  def _map(self) -> None:
    self._thread_lock = threading.Lock()
    self._memory = mmap.mmap(self._file, self._size)
    entries = (self._examples + 1) * _COLUMNS
    # The last row holds the end of the memory in use.
    self._table = np.frombuffer(self._memory, np.int64, entries).reshape(-1, _COLUMNS)
    self._table[-1, 0] = max(int(self._table[-1, 0]), self._table_bytes)

  def _array(self, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    array = np.frombuffer(self._memory, np.uint8, int(np.prod(shape)), offset).reshape(shape)
    array.flags.writeable = False
    return array

  @contextlib.contextmanager
  def _locked(self) -> Iterator[None]:
    with self._thread_lock:
      if sys.platform != "linux":
        yield
        return
      # The lock belongs to this process's file descriptor: it excludes other processes and ends with this one.
      fcntl.flock(self._file, fcntl.LOCK_EX)
      try:
        yield
      finally:
        fcntl.flock(self._file, fcntl.LOCK_UN)

  def __getstate__(self) -> dict[str, Any]:
    if not self._path:
      raise ValueError(
        "data.cache_gb: worker processes share the cache on Linux alone: set data.workers=0 or data.cache_gb=0"
      )
    return {"examples": self._examples, "size": self._size, "path": self._path}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self._examples, self._size, self._path = state["examples"], state["size"], state["path"]
    self._file = os.open(self._path, os.O_RDWR)
    self._map()

  def __del__(self) -> None:
    # The memory is freed with the last array that refers to it.
    if getattr(self, "_file", -1) >= 0:
      os.close(self._file)


class CachedSource:
  """A split whose examples are decoded once, as far as they fit the cache.

  Args:
    source: a split with labels.
    cache: for the same number of examples.
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
    """Returns example ``index`` without its name; arrays from the cache are read-only."""
    kept = self.cache.get(index)
    if kept is not None:
      return {"image": kept[0], "label": kept[1]}
    example = self._source[index]
    self.cache.put(index, example["image"], example["label"])
    return {"image": example["image"], "label": example["label"]}


def budget_bytes(gigabytes: float) -> int:
  """Returns the budget in bytes.

  Raises:
    ValueError: this machine has less memory.
  """
  budget = int(gigabytes * GIB)
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
  if memory is not None and budget > memory:
    raise ValueError(
      f"data.cache_gb is {gigabytes:g}, but this machine has {memory / GIB:.1f} GiB of memory: choose less"
    )
  return budget
