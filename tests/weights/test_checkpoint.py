"""States and models are restored to the last bit; the newest few checkpoints and the best are kept."""

import dataclasses
import errno
import pathlib
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax import contrast, files
from rc_jax.train_state import TrainState
from rc_jax.weights import checkpoint
from tests.support import processes
from tests.support.train_states import small_state as state


def steps_on_disk(workdir: pathlib.Path) -> set[int]:
  return {int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()}


def assert_same(one: TrainState, other: TrainState) -> None:
  assert jax.tree.structure(one) == jax.tree.structure(other)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("with_bank", [True, False])
def test_a_state_is_restored_to_the_last_bit(tmp_path: pathlib.Path, dtype: str, with_bank: bool) -> None:
  saved = state(7, seed=1, dtype=dtype, with_bank=with_bank)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(saved, {"next_batch": 7})
  checkpoints.close()

  again = checkpoint.Checkpoints(tmp_path)
  restored, position = again.restore(state(0, seed=2, dtype=dtype, with_bank=with_bank))
  again.close()
  assert_same(restored, saved)
  assert position == {"next_batch": 7}


@pytest.mark.parametrize("slots, order", [(7, [3, 4, 0, 1, 2]), (2, [1, 2])])
def test_banks_of_another_number_of_training_images_keep_their_newest_keys(
  tmp_path: pathlib.Path, slots: int, order: list[int]
) -> None:
  saved = state(7, seed=1)  # class 0: a full ring of 5, whose oldest key is in slot 3; class 1: one key
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(saved, {"next_batch": 7})
    checkpoints.wait()
    template = dataclasses.replace(state(0), bank=contrast.MemoryBank.create(2, slots, 4))
    bank = checkpoints.restore(template)[0].bank
  kept = len(order)
  assert bank.keys.shape == (2, slots, 4)
  assert bank.count.tolist() == [kept, 1] and bank.cursor.tolist() == [kept % slots, 1]
  np.testing.assert_array_equal(bank.keys[0, :kept], saved.bank.keys[0, np.array(order)])
  np.testing.assert_array_equal(bank.keys[1, 0], saved.bank.keys[1, 0])
  assert bank.valid.sum() == kept + 1


def test_a_bank_of_another_shape_that_cannot_be_refit_is_refused(tmp_path: pathlib.Path) -> None:
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(dataclasses.replace(state(1), bank={"queue": jnp.ones((2, 5))}), {"next_batch": 1})
    checkpoints.wait()
    for bank in ({"queue": jnp.ones((2, 6))}, {"queue": jnp.ones((2, 4))}):
      with pytest.raises(ValueError, match="does not fit this configuration"):
        checkpoints.restore(dataclasses.replace(state(0), bank=bank))
    for bank in (contrast.MemoryBank.create(3, 5, 4), contrast.MemoryBank.create(2, 5, 8)):
      with pytest.raises(ValueError, match="does not fit this configuration"):
        checkpoints.restore(dataclasses.replace(state(0), bank=bank))


def test_the_newest_and_the_best_are_kept(tmp_path: pathlib.Path) -> None:
  checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
  for step, miou in [(1, 0.2), (2, 0.6), (3, None), (4, 0.5), (5, None), (6, None)]:
    checkpoints.save(state(step), {"next_batch": step})
    if miou is not None:
      checkpoints.scored(step, miou)
  checkpoints.wait()
  assert checkpoints.latest_step() == 6 and checkpoints.best_step() == 2
  checkpoints.close()
  assert steps_on_disk(tmp_path) == {2, 5, 6}

  # A later session knows the scores from the run's log.
  again = checkpoint.Checkpoints(tmp_path, keep=1, scores={2: 0.6, 4: 0.5, 6: 0.7})
  assert again.best_step() == 6
  again.save(state(7), {"next_batch": 7})
  again.save(state(8), {"next_batch": 8})
  again.close()
  assert steps_on_disk(tmp_path) == {6, 8}


def test_checkpoints_that_a_kill_left_undeleted_are_deleted_at_the_end(tmp_path: pathlib.Path) -> None:
  """Orbax deletes the old ones after the new one is complete. A kill between the two at the last step left them."""
  with checkpoint.Checkpoints(tmp_path, keep=1) as checkpoints:
    for step, miou in [(1, 0.2), (2, 0.6), (3, 0.4), (4, 0.7)]:
      checkpoints.save(state(step), {"next_batch": step})
      checkpoints.wait()
      shutil.copytree(tmp_path / "checkpoints" / str(step), tmp_path / "copies" / str(step))
      checkpoints.scored(step, miou)
  assert steps_on_disk(tmp_path) == {2, 4}
  for step in (1, 3):
    shutil.copytree(tmp_path / "copies" / str(step), tmp_path / "checkpoints" / str(step))
  shutil.rmtree(tmp_path / "checkpoints" / "3" / "trainer")  # in the middle of deleting it
  with checkpoint.Checkpoints(tmp_path, keep=1, scores={1: 0.2, 2: 0.6, 3: 0.4, 4: 0.7}) as checkpoints:
    assert checkpoints.latest_step() == 4
  assert steps_on_disk(tmp_path) == {2, 4}


def test_the_model_is_restored_without_the_trainer(tmp_path: pathlib.Path) -> None:
  saved = state(3, seed=4)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(state(2), {"next_batch": 2})
  checkpoints.save(saved, {"next_batch": 3})
  checkpoints.close()
  template = state(0, seed=5)
  for place in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "3"):
    model = checkpoint.restore_model(place, template.params, template.batch_stats)
    assert model.step == 3
    np.testing.assert_array_equal(model.params["head"]["bias"], saved.params["head"]["bias"])
    np.testing.assert_array_equal(model.batch_stats["mean"], saved.batch_stats["mean"])


def test_another_network_is_refused_in_one_line(tmp_path: pathlib.Path) -> None:
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(state(1), {"next_batch": 1})
  checkpoints.close()
  other = {"backbone": {"kernel": jnp.zeros((3, 9))}, "head": {"bias": jnp.zeros(4)}}
  with pytest.raises(ValueError, match="another network") as refusal:
    checkpoint.restore_model(tmp_path, other, {"mean": jnp.zeros(4)})
  assert "\n" not in str(refusal.value)
  missing = {"head": {"bias": jnp.zeros(4)}}
  with pytest.raises(ValueError, match="another network"):
    checkpoint.restore_model(tmp_path, missing, {"mean": jnp.zeros(4)})


def test_a_half_written_checkpoint_is_not_seen(tmp_path: pathlib.Path) -> None:
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(state(1), {"next_batch": 1})
  checkpoints.close()
  half = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp-123"
  (half / "model").mkdir(parents=True)
  again = checkpoint.Checkpoints(tmp_path)
  assert again.latest_step() == 1
  again.close()
  assert checkpoint.find(tmp_path).name == "1"


def test_no_checkpoint_says_where_it_looked(tmp_path: pathlib.Path) -> None:
  with pytest.raises(FileNotFoundError, match=str(tmp_path)):
    checkpoint.find(tmp_path)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
    checkpoints.restore(state(0))
  checkpoints.close()


def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path: pathlib.Path, monkeypatch) -> None:
  checkpoints = checkpoint.Checkpoints(tmp_path)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=99))
    with pytest.raises(OSError, match=r"0 MB free.*no checkpoint was saved yet"):
      checkpoints.save(state(4), {"next_batch": 4})
  checkpoints.save(state(4), {"next_batch": 4})
  checkpoints.wait()
  monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=99))
  with pytest.raises(OSError, match=r"0 MB free.*last good checkpoint is step 4; free space"):
    checkpoints.save(state(5), {"next_batch": 5})
  checkpoints.close()
  assert steps_on_disk(tmp_path) == {4}


def move_between_devices(workdir: pathlib.Path) -> None:
  """Saves on some devices, restores on others, and back; runs in another process, which has eight devices."""
  M = 5  # of `state`: padded to 256 slots on a power of two of devices, to 768 on three

  def on(devices: int, step: int, seed: int) -> TrainState:
    mesh = jax.make_mesh(
      (devices,), ("data",), devices=jax.devices()[:devices], axis_types=(jax.sharding.AxisType.Auto,)
    )
    plain = state(step, seed=seed)
    bank = contrast.MemoryBank.create(2, M, 4, mesh=mesh)
    keys = jax.device_put(bank.keys.at[:, :M].set(plain.bank.keys), bank.keys.sharding)
    bank = dataclasses.replace(bank, keys=keys, cursor=plain.bank.cursor, count=plain.bank.count)
    return dataclasses.replace(plain, bank=bank)

  source = state(1, seed=1)
  checkpoints = checkpoint.Checkpoints(workdir)
  checkpoints.save(source, {"next_batch": 1})  # of a bank without a mesh
  for step, devices in enumerate((8, 3, 2, 8), start=2):
    checkpoints.wait()
    template = on(devices, 0, seed=9)
    restored, _ = checkpoints.restore(template)
    assert jax.tree.structure(restored) == jax.tree.structure(template)
    assert restored.bank.keys.sharding == template.bank.keys.sharding
    assert restored.bank.keys.shape[1] == (768 if devices == 3 else 256)
    np.testing.assert_array_equal(restored.bank.keys[:, :M], source.bank.keys)
    np.testing.assert_array_equal(restored.bank.keys[:, M:], 0)
    np.testing.assert_array_equal(restored.bank.cursor, source.bank.cursor)
    np.testing.assert_array_equal(restored.params["head"]["bias"], source.params["head"]["bias"])
    # Orbax saves arrays of one device and of several together only where all are on the same devices.
    replicated = jax.sharding.NamedSharding(restored.bank.mesh, jax.sharding.PartitionSpec())
    rest = jax.device_put(dataclasses.replace(restored, bank=None, step=jnp.int32(step)), replicated)
    checkpoints.save(dataclasses.replace(rest, bank=restored.bank), {"next_batch": step})
  checkpoints.close()
  print("the same keys everywhere")


@pytest.mark.long
@pytest.mark.run
def test_banks_move_to_any_number_of_devices(tmp_path: pathlib.Path) -> None:
  code = f"import tests.weights.test_checkpoint as t, pathlib; t.move_between_devices(pathlib.Path({str(tmp_path)!r}))"
  (printed,) = processes.run("-c", code, devices=8)
  assert "the same keys everywhere" in printed


@pytest.mark.parametrize(
  ("error", "raised", "words"),
  [
    (TypeError("save() takes one argument"), TypeError, "takes one argument"),
    (RuntimeError("several lines\nNo space left on device"), files.WriteError, "No space left on device"),
    (OSError(errno.EROFS, "Read-only file system"), files.WriteError, "Read-only file system"),
  ],
)
def test_only_errors_of_the_disk_are_called_so(tmp_path, monkeypatch, error, raised, words) -> None:
  checkpoints = checkpoint.Checkpoints(tmp_path)

  def fail(*arguments: object, **options: object) -> None:
    raise error

  monkeypatch.setattr(checkpoints._manager, "save", fail)
  with pytest.raises(raised, match=words) as refusal:
    checkpoints.save(state(2), {})
  assert ("free space" in str(refusal.value)) == (raised is files.WriteError)
