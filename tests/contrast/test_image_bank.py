"""Banks with a slot for each image: contents and loss of each step against a loop in float64, over three epochs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax import contrast
from tests.support import processes
from tests.support.contrast_oracle import contrast_oracle, unit_vectors
from tests.support.tile_sizes import FORMS, tile_sizes

IMAGES, N, C = 10, 4, 6
BATCH = 4  # does not divide the images
STEPS = 8  # three epochs and a part


def batches(seed=0, images=IMAGES, batch=BATCH, steps=STEPS):
  """Yields indices ``[B]`` and centers of each step: epochs follow each other without a gap, in random orders."""
  rng = np.random.default_rng(seed)
  order = np.concatenate([rng.permutation(images) for _ in range(batch * steps // images + 1)])
  for step in range(steps):
    indices = order[step * batch : (step + 1) * batch]
    present = rng.random((batch, N)) < 0.6
    present[:, N - 1] = step == 5  # one class is nearly never there
    vectors = unit_vectors(rng, batch, N, C)
    vectors[~present] = np.nan  # absent rows must not matter
    yield indices, contrast.RegionCenters(jnp.asarray(vectors), jnp.asarray(present))


def write_one_by_one(keys, indices, centers):
  """Writes centers into ``keys``, (class, image) -> vector, image after image."""
  for b, image in enumerate(indices):
    for n in range(N):
      keys.pop((n, image), None)
      if centers.present[b, n]:
        keys[n, image] = np.asarray(centers.vectors[b, n])


def keys_of_class(keys, n):
  return [key for (label, _), key in sorted(keys.items(), key=lambda item: item[0]) if label == n]


def update(centers, bank, indices, temperature):
  def loss(vectors):
    return contrast.region_contrast_loss(contrast.RegionCenters(vectors, centers.present), bank, temperature)

  found, gradient = jax.value_and_grad(loss, has_aux=True)(centers.vectors)
  return found, gradient, contrast.write_images(bank, centers, indices)


def check_epochs(form, mesh=None, temperature=0.2, **sizes):
  """Compares each step of three epochs with the loop; returns the number of batches that hold an image twice."""
  images = sizes.get("images", IMAGES)
  bank = contrast.ImageMemoryBank.create(N, images, C, mesh=mesh)
  keys, batches_with_repeats, emptied = {}, 0, 0
  with tile_sizes(**FORMS[form]):
    step = jax.jit(update, static_argnums=3)
    for indices, centers in batches(**sizes):
      batches_with_repeats += len(set(indices)) < len(indices)
      absent = np.where(np.asarray(centers.present)[..., None], centers.vectors, 0)
      loss, gradient, stats = contrast_oracle(
        absent, np.asarray(centers.present), lambda _, n: keys_of_class(keys, n), temperature
      )
      (value, found), slope, bank = step(centers, bank, jnp.asarray(indices, jnp.int32), temperature)
      np.testing.assert_allclose(value, loss, rtol=1e-5, atol=1e-5)
      np.testing.assert_allclose(slope, gradient, rtol=1e-5, atol=1e-5 * max(1, np.abs(gradient).max()))
      for name, stat in stats.items():
        np.testing.assert_allclose(found[name], stat, atol=1e-5, err_msg=name)
      before = len(keys)
      write_one_by_one(keys, indices, centers)
      emptied += len(keys) < before + int(centers.present.sum())
      expected = np.zeros(bank.keys.shape, np.float32)
      for (n, image), key in keys.items():
        expected[n, image] = key
      np.testing.assert_array_equal(bank.keys, expected)
      np.testing.assert_array_equal(bank.valid, np.abs(expected).sum(-1) > 0)
      np.testing.assert_array_equal(bank.count, [len(keys_of_class(keys, n)) for n in range(N)])
  assert emptied and stats["queries"] > 0
  return batches_with_repeats


@pytest.mark.parametrize("temperature", [0.01, 0.2])
@pytest.mark.parametrize("form", FORMS)
def test_three_epochs_follow_a_loop_over_images(form, temperature):
  check_epochs(form, temperature=temperature)


def test_the_later_of_two_crops_of_an_image_counts():
  assert check_epochs("one tile", images=3, batch=4, steps=4) == 4


def run_checks() -> None:
  """Runs in another process, which has eight devices."""
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  bank = contrast.ImageMemoryBank.create(N, 40, C, mesh=mesh)
  assert bank.keys.shape == (N, 256, C) and bank.capacity == 40
  assert {shard.data.shape for shard in bank.keys.addressable_shards} == {(N, 32, C)}
  for form in ("one tile", "three classes", "three slots, on a GPU"):
    # Images in the slots of two devices, and twice in one batch.
    check_epochs(form, mesh, images=40, batch=30, steps=4)
    assert check_epochs(form, mesh, images=3, batch=4, steps=4)
  written = jax.jit(contrast.write_images)(bank, *reversed(next(batches())))
  assert written.keys.sharding.spec == written.valid.sharding.spec == jax.sharding.PartitionSpec(None, "data")
  print("equal on eight devices")


@pytest.mark.long
@pytest.mark.run
def test_three_epochs_on_eight_devices():
  code = "from tests.contrast.test_image_bank import run_checks; run_checks()"
  (printed,) = processes.run("-c", code, devices=8)
  assert "equal on eight devices" in printed


@pytest.mark.parametrize("form", FORMS)
def test_where_all_slots_are_full_the_loss_is_that_of_a_queue(form):
  rng = np.random.default_rng(1)
  keys = jnp.asarray(unit_vectors(rng, N, 5, C))
  bank = contrast.ImageMemoryBank(keys, jnp.ones((N, 5), bool))
  queue = contrast.MemoryBank(keys, jnp.zeros(N, jnp.int32), jnp.full(N, 5, jnp.int32))
  centers = contrast.RegionCenters(
    jnp.asarray(unit_vectors(rng, 3, N, C)), jnp.asarray(rng.random((3, N)) < 0.7)
  )
  with tile_sizes(**FORMS[form]):
    found, expected = (contrast.region_contrast_loss(centers, each) for each in (bank, queue))
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_bank_of_other_slots_keeps_the_places_of_keys():
  indices, centers = next(batches())
  saved = contrast.write_images(contrast.ImageMemoryBank.create(N, IMAGES, C), centers, indices)
  larger, smaller = (contrast.ImageMemoryBank.create(N, slots, C).refit(saved) for slots in (13, 6))
  np.testing.assert_array_equal(larger.keys[:, :IMAGES], saved.keys)
  np.testing.assert_array_equal(larger.valid[:, IMAGES:], False)
  np.testing.assert_array_equal(smaller.valid, saved.valid[:, :6])
  shapes = {"keys": saved.keys.shape, "valid": saved.valid.shape}
  described = larger.as_saved(shapes)
  assert (described.keys.shape, described.valid.shape) == (shapes["keys"], shapes["valid"])
  assert described.valid.dtype == bool
  assert larger.as_saved({"keys": (N, 8, C + 1)}).keys.shape == larger.keys.shape


def test_indices_outside_the_bank_are_not_written_and_mistakes_are_named():
  indices, centers = next(batches())
  bank = contrast.ImageMemoryBank.create(N, IMAGES, C, dtype=jnp.bfloat16)
  outside = contrast.write_images(bank, centers, np.array([-1, IMAGES, 2, 1000]))
  assert not outside.valid[:, np.arange(IMAGES) != 2].any() and outside.keys.dtype == jnp.bfloat16
  for wrong in (indices[:2], indices.astype(np.float32)):
    with pytest.raises(ValueError, match=r"images must be integers \[B\] = \[4\], got"):
      contrast.write_images(bank, centers, wrong)
  with pytest.raises(ValueError, match="capacity of a memory bank must be at least 1, got 0"):
    contrast.ImageMemoryBank.create(N, 0, C)


def test_keys_are_written_without_gradient():
  indices, centers = next(batches())
  bank = contrast.ImageMemoryBank.create(N, IMAGES, C)

  def total(vectors):
    written = contrast.write_images(bank, contrast.RegionCenters(vectors, centers.present), indices)
    return jnp.square(written.keys).sum()

  vectors = jnp.nan_to_num(centers.vectors)
  assert total(vectors) > 1
  np.testing.assert_array_equal(jax.grad(total)(vectors), 0)
