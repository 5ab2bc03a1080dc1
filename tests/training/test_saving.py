"""A run goes on after one checkpoint that cannot be saved, and ends after two, with nothing lost before them."""

import dataclasses
import pathlib
import shutil
import types

import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax import files
from rc_jax.train_state import TrainState
from rc_jax.training import run_log, saving
from rc_jax.training.saving import Saving
from rc_jax.weights import checkpoint
from tests.support import disks
from tests.support.train_states import small_state as state
from tests.weights.test_checkpoint import assert_same, steps_on_disk


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
  """What the system says of the disk: set ``free``."""
  usage = types.SimpleNamespace(free=10**9)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
  return usage


class Run:
  """Checkpoints, log and saving of a run, without training."""

  def __init__(self, workdir: pathlib.Path):
    self.checkpoints = checkpoint.Checkpoints(workdir)
    self.log = run_log.RunLog(workdir, resumed_at=0)
    self.saving = Saving(self.checkpoints, self.log)

  def save(self, step: int, *, required: bool = False) -> None:
    self.saving.save(state(step, seed=step), {"next_batch": step}, required=required)


def test_one_failed_save_is_said_and_two_end_the_run(tmp_path: pathlib.Path, disk, capsys) -> None:
  run = Run(tmp_path)
  run.save(2)
  for free, step in ((0, 4), (10**9, 6), (0, 8)):
    disk.free = free
    run.save(step)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (free == 0)
    for line in lines:
      assert (
        f"cannot save a checkpoint (0 MB needed, 0 MB free); the last good checkpoint is step {step - 2}"
        in line
      )
      assert line.startswith("WARNING: ") and "training goes on, and ends if the next one" in line
  with pytest.raises(files.WriteError, match="last good checkpoint is step 6; free space and start again"):
    run.save(10)
  run.checkpoints.close()
  assert steps_on_disk(tmp_path) == {2, 6}
  assert_same(checkpoint.Checkpoints(tmp_path).restore(state(0))[0], state(6, seed=6))


def test_the_last_save_of_a_run_is_required(tmp_path: pathlib.Path, disk) -> None:
  run = Run(tmp_path)
  disk.free = 0
  with pytest.raises(files.WriteError, match="no checkpoint was saved yet; free space and start again"):
    run.save(2, required=True)
  disk.free = 10**9
  run.save(2, required=True)
  run.checkpoints.close()
  assert steps_on_disk(tmp_path) == {2}


def test_a_checkpoint_waits_for_the_lines_of_its_steps(tmp_path: pathlib.Path, monkeypatch, capsys) -> None:
  """A resumed run does not write them again."""
  run = Run(tmp_path)
  append = files.AppendedFile.flush

  def full(self: files.AppendedFile) -> None:
    raise files.WriteError(f"{self.path}: cannot be written (No space left on device)", "free space there")

  monkeypatch.setattr(files.AppendedFile, "flush", full)
  run.log.write({"step": 2, "loss": 1.0})
  run.save(2)
  assert "cannot save a checkpoint" in capsys.readouterr().out and steps_on_disk(tmp_path) == set()
  with pytest.raises(
    files.WriteError, match=r"metrics.jsonl: cannot be written \(No space.*\); no checkpoint"
  ):
    run.save(4)
  monkeypatch.setattr(files.AppendedFile, "flush", append)
  run.save(4)
  run.checkpoints.close()
  assert steps_on_disk(tmp_path) == {4}
  assert run_log.read_metrics(tmp_path) == [{"step": 2, "loss": 1.0}]


def large_state(step: int) -> TrainState:
  """A state whose arrays take 1.2 MB on the disk: noise cannot be compressed."""
  small = state(step, seed=step)
  noise = np.random.default_rng(step).integers(0, 2**31, 300_000, np.int32)
  return dataclasses.replace(small, params={**small.params, "noise": jnp.asarray(noise)})


@pytest.mark.run
# Threads of Orbax go on for a moment after a save has failed, and find their event loop closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_fills_while_a_checkpoint_is_written(tmp_path: pathlib.Path, disk, monkeypatch) -> None:
  """Orbax notices it in the background: before, the space looked sufficient."""
  mounted, printed = tmp_path / "disk", []

  def free_space(line: str) -> None:
    printed.append(line)
    disks.resize(mounted, "20m")

  monkeypatch.setattr(saving, "say", free_space)
  with disks.small_disk(mounted, "size=2m"):
    run = Run(mounted)
    for step in (2, 4, 6, 8):
      run.saving.save(large_state(step), {"next_batch": step}, required=False)
    run.checkpoints.close()
    assert [line.partition(" cannot save ")[2] for line in printed] == [
      "a checkpoint (No space left on device); the last good checkpoint is step 2; training goes on, and ends if the "
      "next one cannot be saved either: free space"
    ]
    assert {path.name for path in (mounted / "checkpoints").iterdir()} == {"6", "8"}
    with checkpoint.Checkpoints(mounted) as again:
      assert_same(again.restore(large_state(0))[0], large_state(8))


def test_the_newest_checkpoint_is_that_of_the_last_step_at_any_time_of_the_clock(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  import time

  now = [2_000_000_000.0]

  def backwards() -> float:
    now[0] -= 1000
    return now[0]

  monkeypatch.setattr(time, "time", backwards)
  monkeypatch.setattr(time, "time_ns", lambda: int(backwards() * 1e9))
  for steps in ((2, 4), (6, 8)):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
      for step in steps:
        checkpoints.save(state(step, seed=step), {"next_batch": step})
      assert checkpoints.latest_step() == step
    assert steps_on_disk(tmp_path) == set(steps)
  assert_same(checkpoint.Checkpoints(tmp_path).restore(state(0))[0], state(8, seed=8))
