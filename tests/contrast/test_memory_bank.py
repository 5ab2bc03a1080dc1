"""Memory banks against queues written as loops over centers."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rc_jax import contrast

B, N, C = 5, 3, 4
STEPS = 4


def enqueue_one_by_one(bank, vectors, present):
  """The bank (keys, cursor, count) in NumPy after the centers entered, image after image."""
  keys, cursor, count = (np.array(leaf) for leaf in bank)
  capacity = keys.shape[1]
  for b in range(vectors.shape[0]):
    for n in range(vectors.shape[1]):
      if present[b, n]:
        keys[n, cursor[n]] = vectors[b, n]
        cursor[n] = (cursor[n] + 1) % capacity
        count[n] = min(count[n] + 1, capacity)
  return keys, cursor, count


def random_centers(seed, present):
  vectors = np.random.default_rng(seed).normal(size=(*present.shape, C)).astype(np.float32)
  vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
  # What absent rows hold must not matter.
  vectors[~present] = np.nan
  return contrast.RegionCenters(vectors=jnp.asarray(vectors), present=jnp.asarray(present))


def assert_same(bank, keys, cursor, count):
  np.testing.assert_array_equal(bank.keys, keys)
  np.testing.assert_array_equal(bank.cursor, cursor)
  np.testing.assert_array_equal(bank.count, count)


enqueue = jax.jit(contrast.enqueue)


# 2: more centers of a class in one batch than slots; 5: as many; 7: wrap-around at every second step.
@pytest.mark.parametrize("capacity", [1, 2, 5, 7])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(presents=hnp.arrays(bool, (STEPS, B, N)), seed=st.integers(0, 1000))
def test_queues_fill_and_wrap(capacity, presents, seed):
  bank = contrast.MemoryBank.create(num_classes=N, capacity=capacity, dim=C)
  expected = (bank.keys, bank.cursor, bank.count)
  for step, present in enumerate(presents):
    centers = random_centers(seed + step, present)
    bank = enqueue(bank, centers)
    expected = enqueue_one_by_one(expected, np.asarray(centers.vectors), present)
    assert_same(bank, *expected)
    np.testing.assert_array_equal(bank.valid, np.abs(np.asarray(bank.keys)).sum(-1) > 0)


@pytest.mark.parametrize("capacity", [2, 7])
def test_the_split_of_a_batch_does_not_matter(capacity):
  present = np.random.default_rng(1).random((B, N)) < 0.8
  centers = random_centers(2, present)
  # Start mid-queue, where a wrong order would show.
  start = enqueue(
    contrast.MemoryBank.create(N, capacity, C), random_centers(3, np.eye(B, N, dtype=bool)[:, ::-1])
  )
  whole, parts = enqueue(start, centers), start
  for b in range(B):
    parts = contrast.enqueue(parts, jax.tree.map(lambda leaf, b=b: leaf[b : b + 1], centers))
  assert_same(whole, parts.keys, parts.cursor, parts.count)


def test_jit_equals_eager_and_dtypes_stay():
  centers = random_centers(4, np.random.default_rng(4).random((B, N)) < 0.7)
  bank = contrast.MemoryBank.create(N, 3, C, dtype=jnp.bfloat16)
  eager, jitted = contrast.enqueue(bank, centers), enqueue(bank, centers)
  assert_same(eager, jitted.keys, jitted.cursor, jitted.count)
  assert (jitted.keys.dtype, jitted.cursor.dtype, jitted.count.dtype) == (jnp.bfloat16, jnp.int32, jnp.int32)
  # The last present center of a class lies before the cursor, rounded.
  n = int(np.argmax(np.asarray(centers.present).sum(0)))
  last = np.flatnonzero(np.asarray(centers.present)[:, n])[-1]
  np.testing.assert_array_equal(
    jitted.keys[n, jitted.cursor[n] - 1], centers.vectors[last, n].astype(jnp.bfloat16)
  )


def test_centers_enter_detached():
  centers = random_centers(5, np.ones((B, N), bool))
  bank = contrast.MemoryBank.create(N, 4, C)

  def total(vectors):
    entered = contrast.enqueue(bank, contrast.RegionCenters(vectors=vectors, present=centers.present))
    return jnp.square(entered.keys).sum()

  assert total(centers.vectors) > 1
  np.testing.assert_array_equal(jax.grad(total)(centers.vectors), 0)


def test_a_bank_is_a_pytree_of_arrays_that_can_be_donated():
  bank = contrast.MemoryBank.create(N, 4, C)
  leaves, structure = jax.tree.flatten(bank)
  assert [leaf.shape for leaf in leaves] == [(N, 4, C), (N,), (N,)]
  assert isinstance(jax.tree.unflatten(structure, leaves), contrast.MemoryBank)
  names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(bank)]
  assert names == [".keys", ".cursor", ".count"]
  donated = jax.jit(contrast.enqueue, donate_argnums=0)(bank, random_centers(6, np.ones((B, N), bool)))
  np.testing.assert_array_equal(donated.count, 4)


def test_mistakes_are_named():
  for sizes, name in (((0, 4, 8), "num_classes"), ((3, 0, 8), "capacity"), ((3, 4, -1), "dim")):
    with pytest.raises(ValueError, match=f"{name} of a memory bank"):
      contrast.MemoryBank.create(*sizes)
  with pytest.raises(ValueError, match="floating, got int8"):
    contrast.MemoryBank.create(3, 4, 8, dtype=jnp.int8)
  centers = random_centers(7, np.ones((B, N), bool))
  with pytest.raises(ValueError, match=r"\(5, 3, 4\) and \(4, 6, 4\)"):
    contrast.enqueue(contrast.MemoryBank.create(4, 6, C), centers)
  with pytest.raises(ValueError, match=r"\(5, 3, 4\) and \(3, 6, 8\)"):
    contrast.enqueue(contrast.MemoryBank.create(N, 6, 8), centers)
  with pytest.raises(ValueError, match=r"\(5, 3, 4\) and \(2, 3\)"):
    broken = contrast.RegionCenters(vectors=centers.vectors, present=centers.present[:2])
    contrast.enqueue(contrast.MemoryBank.create(N, 6, C), broken)


@pytest.mark.parametrize("other", [1, 3, 4, 6, 300])
@pytest.mark.parametrize("entered", [0, 2, 4, 5, 11])
@pytest.mark.parametrize("meshed", [False, True])
def test_a_bank_of_another_size_keeps_its_newest_keys(entered, other, meshed):
  """Against queues: a run resumes with more, or with fewer, training images than its banks have slots."""
  mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)) if meshed else None
  saved = contrast.MemoryBank.create(N, 4, C, mesh=mesh)
  queues = [collections.deque(maxlen=4) for _ in range(N)]
  present = np.ones((1, N), bool)
  present[:, 1] = False  # a class without keys

  def enter(bank, queues, seed):
    centers = random_centers(seed, present)
    for label in (0, 2):
      queues[label].append(np.asarray(centers.vectors)[0, label])
    return enqueue(bank, centers)

  for seed in range(entered):
    saved = enter(saved, queues, seed)
  bank = contrast.MemoryBank.create(N, other, C, mesh=mesh).refit(saved)
  queues = [collections.deque(queue, maxlen=other) for queue in queues]
  for seed in range(100, 106):
    assert np.asarray(bank.count).tolist() == [len(queue) for queue in queues]
    for label, queue in enumerate(queues):
      held = np.asarray(bank.keys)[label][np.asarray(bank.valid)[label]]
      np.testing.assert_array_equal(np.sort(held, axis=0), np.sort(np.reshape(queue, (-1, C)), axis=0))
    bank = enter(bank, queues, seed)


def test_a_bank_of_the_same_size_is_refit_to_the_last_bit():
  saved = contrast.MemoryBank.create(N, 4, C)
  for seed in range(6):
    saved = enqueue(saved, random_centers(seed, np.ones((1, N), bool)))
  assert_same(contrast.MemoryBank.create(N, 4, C).refit(saved), saved.keys, saved.cursor, saved.count)
