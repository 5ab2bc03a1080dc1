"""The cache of decoded examples returns the pixels of the split and stays within its budget."""

import multiprocessing
import pickle
import sys
import threading

import numpy as np
import pytest

from rc_jax.data.pipeline.decoded_cache import GIB, CachedSource, DecodedCache, budget_bytes

TABLE = 24  # bytes an example


class Counted:
  """Random examples of several sizes; counts the decodings of each."""

  info = None
  labelled = True

  def __init__(self, count):
    self.times = [0] * count

  def __len__(self):
    return len(self.times)

  def __getitem__(self, index):
    self.times[index] += 1
    return dict(zip(("image", "label"), _example(index), strict=True), name=str(index))


def _example(index):
  rng = np.random.default_rng(index)
  height, width = rng.integers(3, 30, 2).tolist()
  return rng.integers(0, 256, (height, width, 3), np.uint8), rng.integers(0, 256, (height, width), np.uint8)


def _assert_example(found, index):
  image, label = _example(index)
  np.testing.assert_array_equal(found["image"], image)
  np.testing.assert_array_equal(found["label"], label)


def test_examples_are_decoded_once():
  source = Counted(20)
  cached = CachedSource(source, DecodedCache(20, 10**6))
  for _ in range(3):
    for index in np.random.default_rng(1).permutation(20).tolist():
      _assert_example(cached[index], index)
  assert source.times == [1] * 20 and len(cached) == 20
  assert cached.cache.kept() == (20, 21 * TABLE + sum(4 * _example(i)[1].size for i in range(20)))
  with pytest.raises(ValueError, match="read-only"):
    cached[3]["image"][0] = 0


@pytest.mark.parametrize("budget", [0, 600, 3000, 9000])
def test_the_first_examples_that_fit_the_budget_are_kept(budget):
  source = Counted(20)
  cached = CachedSource(source, DecodedCache(20, budget))
  order = np.random.default_rng(budget).permutation(20).tolist()
  used, fit = 21 * TABLE, set()
  for index in order:
    _assert_example(cached[index], index)
    if used + 4 * _example(index)[1].size <= budget:
      used += 4 * _example(index)[1].size
      fit.add(index)
  assert cached.cache.kept() == (len(fit), used) and used <= max(budget, 21 * TABLE)
  for index in order[::-1]:
    _assert_example(cached[index], index)
  # No example is evicted, and none is added later.
  assert source.times == [1 if index in fit else 2 for index in range(20)]


def test_an_unreadable_example_is_not_kept():
  class Broken(Counted):
    def __getitem__(self, index):
      if super().__getitem__(index) and self.times[index] == 1:
        raise ValueError("a.png: cannot be decoded")
      return super().__getitem__(index)

  cached = CachedSource(Broken(3), DecodedCache(3, 10**6))
  with pytest.raises(ValueError, match="cannot be decoded"):
    cached[1]
  assert cached.cache.kept()[0] == 0
  _assert_example(cached[1], 1)


def _fill(cached, first, result):
  for index in [*range(first, 60), *range(first)]:
    _assert_example(cached[index], index)
  result.put((first, cached.cache.kept()))


@pytest.mark.run
@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux do processes share the cache")
def test_processes_and_threads_share_one_memory():
  budget = 60_000
  cached = CachedSource(Counted(60), DecodedCache(60, budget))
  context = multiprocessing.get_context("spawn")
  result = context.Queue()
  # Pickled outside of the start of a process, as Grain sends a data set.
  sent = pickle.loads(pickle.dumps(cached))
  processes = [context.Process(target=_fill, args=(cached, first, result)) for first in (0, 20)]
  threads = [threading.Thread(target=_fill, args=(one, 40, result)) for one in (cached, sent)]
  for worker in [*processes, *threads]:
    worker.start()
  kept = [result.get(timeout=60)[1] for _ in range(4)]
  for worker in [*processes, *threads]:
    worker.join()
  assert max(used for _, used in kept) <= budget
  source = Counted(60)
  again = CachedSource(source, cached.cache)
  for index in range(60):
    _assert_example(again[index], index)
  count, used = cached.cache.kept()
  # Examples from the other processes are kept here too, and the budget has no space for another example.
  assert source.times.count(0) == count > 30 and budget - used < 4 * 30 * 30


def test_a_budget_above_the_memory_is_refused():
  assert budget_bytes(0.5) == GIB // 2
  with pytest.raises(ValueError, match=r"data.cache_gb is 1e\+07, but this machine has .* GiB"):
    budget_bytes(1e7)
