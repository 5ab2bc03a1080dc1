"""Files of a run that are empty, cut or changed are named with the newest undamaged step, and the remedy works."""

import json
import pathlib
import shlex

import jax
import numpy as np
import pytest

from rc_jax.config import as_dict
from rc_jax.files import read_json_object
from rc_jax.modes import train
from rc_jax.train_state import TrainState
from rc_jax.training import run_log
from rc_jax.weights import checkpoint, checksums
from tests.support import run_tiny
from tests.support.train_states import small_state as state
from tests.weights.test_checkpoint import assert_same


def save(workdir: pathlib.Path, steps: tuple[int, ...]) -> dict[int, TrainState]:
  """Saves random states as the checkpoints of a run."""
  states = {step: state(step, seed=step) for step in steps}
  with checkpoint.Checkpoints(workdir, keep=len(steps)) as checkpoints:
    for each in states.values():
      checkpoints.save(each, {"next_batch": int(each.step)})
  return states


def restore(workdir: pathlib.Path) -> TrainState:
  with checkpoint.Checkpoints(workdir) as checkpoints:
    restored, _ = checkpoints.restore(state(0, seed=99))
  return restored


def array_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The files of an item that hold more than names."""
  return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]


def remove(path: pathlib.Path) -> None:
  for file in sorted(path.rglob("*"), reverse=True):
    file.rmdir() if file.is_dir() else file.unlink()
  path.rmdir()


def empty(path: pathlib.Path) -> None:
  path.write_bytes(b"")


def cut(path: pathlib.Path) -> None:
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: pathlib.Path) -> None:
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 0x10
  path.write_bytes(content)


@pytest.mark.long
@pytest.mark.parametrize("item", checkpoint.ITEMS)
@pytest.mark.parametrize("damage", [remove, empty, cut, flip])
def test_a_damaged_checkpoint_is_named_and_the_remedy_continues(tmp_path, item, damage) -> None:
  states = save(tmp_path, (4, 8))
  folder = tmp_path / "checkpoints" / "8"
  if damage is remove:
    remove(folder / item)
  else:
    largest = max(array_files(folder / item), key=lambda path: path.stat().st_size)
    damage(largest)
  with pytest.raises(ValueError, match="the newest undamaged one is step 4") as error:
    restore(tmp_path)
  message = str(error.value)
  assert "\n" not in message and message.startswith(f"{folder}: this checkpoint is damaged ({item}")
  command = message.partition("start again: ")[2]
  source, target = map(pathlib.Path, shlex.split(command)[1:])
  source.rename(target)
  assert_same(restore(tmp_path), states[4])
  # The run goes on as if the damaged checkpoint had never been.
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(states[8], {"next_batch": 8})
  assert_same(restore(tmp_path), states[8])


def test_every_flipped_bit_of_a_checkpoint_is_noticed(tmp_path) -> None:
  save(tmp_path, (4,))
  folder = tmp_path / "checkpoints" / "4"
  rng = np.random.default_rng(0)
  assert checksums.damage(folder, checkpoint.ITEMS) is None
  for item in checkpoint.ITEMS:
    for path in array_files(folder / item):
      content = path.read_bytes()
      changed = bytearray(content)
      changed[rng.integers(len(content))] ^= 1 << rng.integers(8)
      path.write_bytes(changed)
      expected = f"{path.relative_to(folder)} does not fit its checksum"
      assert checksums.damage(folder, checkpoint.ITEMS) == expected
      path.write_bytes(content)
  assert checksums.damage(folder, checkpoint.ITEMS) is None


def test_without_another_undamaged_checkpoint_the_message_says_so(tmp_path) -> None:
  save(tmp_path, (4, 8))
  for step in ("4", "8"):
    remove(tmp_path / "checkpoints" / step / "trainer")
  with pytest.raises(
    ValueError, match=r"8: .*trainer is missing.*no other checkpoint is undamaged; train anew"
  ):
    restore(tmp_path)


def test_a_model_is_scored_while_the_trainer_is_damaged(tmp_path) -> None:
  states = save(tmp_path, (4, 8))
  remove(tmp_path / "checkpoints" / "8" / "trainer")
  model = checkpoint.restore_model(tmp_path, states[4].params, states[4].batch_stats)
  assert model.step == 8


@pytest.mark.parametrize("damage", [remove, empty, cut, flip])
def test_a_damaged_model_is_not_scored_nor_another_in_its_place(tmp_path, damage) -> None:
  states = save(tmp_path, (4, 8))
  folder = tmp_path / "checkpoints" / "8"
  if damage is remove:
    remove(folder / "model")
  else:
    damage(max(array_files(folder / "model"), key=lambda path: path.stat().st_size))
  for path in (tmp_path, folder):
    with pytest.raises(
      ValueError, match=r"8: is damaged \(model.*undamaged one is step 4: --checkpoint=(\S+)$"
    ) as error:
      checkpoint.restore_model(path, states[4].params, states[4].batch_stats)
  other = pathlib.Path(str(error.value).rpartition("--checkpoint=")[2])
  model = checkpoint.restore_model(other, states[4].params, states[4].batch_stats)
  np.testing.assert_array_equal(model.params["head"]["bias"], states[4].params["head"]["bias"])


def test_a_checkpoint_of_an_earlier_version_has_no_checksums(tmp_path) -> None:
  states = save(tmp_path, (4,))
  (tmp_path / "checkpoints" / "4" / checksums.FILE).unlink()
  assert_same(restore(tmp_path), states[4])


def test_a_checkpoint_has_its_checksums_when_it_becomes_visible(tmp_path) -> None:
  save(tmp_path, (4, 8))
  for step in ("4", "8"):
    listed = json.loads((tmp_path / "checkpoints" / step / checksums.FILE).read_text())["crc32"]
    folder = tmp_path / "checkpoints" / step
    held = [
      path.relative_to(folder).as_posix() for item in checkpoint.ITEMS for path in (folder / item).rglob("*")
    ]
    assert set(listed) == {name for name in held if (folder / name).is_file()}
  assert jax.tree.leaves(listed)


DAMAGED_JSON = [
  (b"", r"is empty \(0 bytes\)"),
  (b"\0" * 300, r"is empty \(300 bytes\)"),
  (b'{"seed": 0, "tra', "is not JSON"),
  (b"\xff\xfe\xfa", "is not JSON"),
  (b"[" * 100_000, "is not JSON"),
  (b"3", "holds a int, expected a JSON object"),
]


@pytest.mark.parametrize(("content", "words"), DAMAGED_JSON)
def test_a_damaged_config_names_the_newest_undamaged_step(tmp_path, content, words) -> None:
  config = run_tiny.get_config()
  save(tmp_path, (4, 8))
  remove(tmp_path / "checkpoints" / "8" / "data")
  path = tmp_path / "config.json"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=words) as error:
    train.refuse_other_run(config, tmp_path)
  message = str(error.value)
  assert message.startswith(f"{path}: ") and "\n" not in message
  assert (
    "the newest undamaged checkpoint is step 4; if this configuration trained it, delete the file" in message
  )
  path.unlink()
  train.refuse_other_run(config, tmp_path)
  path.write_text(json.dumps(as_dict(config)))
  with pytest.MonkeyPatch.context() as patch:  # checkpoints are read for the message alone
    patch.setattr(train, "newest_undamaged", pytest.fail)
    train.refuse_other_run(config, tmp_path)
  with pytest.raises(ValueError, match="score again"):
    path.write_bytes(content)
    read_json_object(path, lambda: "score again")


@pytest.mark.parametrize(
  "line", ["3", "[]", '"text"', "null", "{", "{}", '{"step": "4"}', "\0\0\0", "", "\xff"]
)
def test_a_line_of_the_log_that_is_no_object_is_named(tmp_path, line) -> None:
  path = tmp_path / run_log.METRICS
  good = ['{"step": 1, "loss": 2.0}', '{"step": 2, "loss": 1.0}', '{"step": 2, "split": "val", "miou": 0.5}']
  content = "\n".join([good[0], line, *good[1:], ""])
  path.write_bytes(content.encode("latin-1"))
  for read in (run_log.read_metrics, lambda folder: run_log.read_scores(folder, "val", "full images")):
    with pytest.raises(
      ValueError, match=r"metrics.jsonl: line 2 is .*delete that line and start again$"
    ) as error:
      read(tmp_path)
    assert "\n" not in str(error.value)
  lines = path.read_bytes().split(b"\n")
  path.write_bytes(b"\n".join(lines[:1] + lines[2:]))
  assert run_log.read_scores(tmp_path, "val", "full images") == {2: 0.5}


@pytest.mark.parametrize("line", ["3", '{"step": 3, "lo', "\0\0\0\0"])
def test_a_last_line_without_its_end_is_left_out(tmp_path, line) -> None:
  (tmp_path / run_log.METRICS).write_text('{"step": 2, "loss": 1.0}\n' + line)
  assert run_log.read_metrics(tmp_path) == [{"step": 2, "loss": 1.0}]


@pytest.mark.parametrize("content", [b"[]", b'{"step": 2}\r{"step": 4}\r', b'\xff\xfe{\0"\0s\0t\0e\0p\0'])
def test_a_log_that_no_kill_has_cut_is_refused(tmp_path, content) -> None:
  """A resumed run would write it anew, without its lines."""
  (tmp_path / run_log.METRICS).write_bytes(content)
  with pytest.raises(ValueError, match=r"metrics\.jsonl: line 1 is .*expected a JSON object with a step"):
    run_log.read_metrics(tmp_path)
