"""The comparison of runs that ``benchmarks.kills`` rests on notices each difference; so does its choice of stages."""

import json
import pathlib
import random
import re
import shutil
import signal
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import kills
from benchmarks.run_comparison import differences
from rc_jax import contrast
from rc_jax.train_state import TrainState
from rc_jax.weights.checkpoint import Checkpoints


def state(step: int, changed: str = "") -> TrainState:
  """A state of random arrays; ``changed`` names the part in which one value is the next larger number."""
  rng = np.random.default_rng(step)
  params = {"head": {"kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)}}
  tree = {
    "params": params,
    "batch_stats": {"mean": jnp.asarray(rng.normal(size=4), jnp.float32)},
    "opt_state": jax.tree.map(
      lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype),
      optax.sgd(0.1, momentum=0.9).init(params),
    ),
    "keys": jnp.asarray(rng.normal(size=(2, 5, 4)), jnp.float32),
    "cursor": jnp.asarray([3, 1], jnp.int32),
  }
  if changed:
    tree[changed] = jax.tree.map(_changed, tree[changed])
  bank = contrast.MemoryBank(keys=tree["keys"], cursor=tree["cursor"], count=jnp.asarray([5, 1], jnp.int32))
  return TrainState(jnp.int32(step), tree["params"], tree["batch_stats"], tree["opt_state"], bank)


def _changed(leaf: jax.Array) -> jax.Array:
  array = np.array(leaf)
  array.view(np.uint8).flat[0] ^= 1  # the last bit of the first value
  return jnp.asarray(array)


def write_run(workdir: pathlib.Path, changed: str = "", next_batch: int = 4) -> pathlib.Path:
  """A folder as a run of 4 steps leaves it; ``changed`` and ``next_batch`` are those of its last checkpoint."""
  with Checkpoints(workdir) as checkpoints:
    checkpoints.save(state(2), {"next_batch": 2})
    checkpoints.save(state(4, changed), {"next_batch": next_batch})
  lines = [{"step": step, "loss": 1 / step, "images_per_second": random.random()} for step in (1, 2, 3, 4)]
  lines.insert(2, {"step": 2, "split": "val", "miou": 0.25})
  write_lines(workdir, lines)
  (workdir / "eval").mkdir()
  (workdir / "eval" / "val.json").write_text(json.dumps({"step": 4, "miou": 0.5}))
  np.savez(workdir / "eval" / "val_images.npz", names=np.array(["a", "b"]), tp=np.arange(6).reshape(2, 3))
  (workdir / "report").mkdir()
  for name in ("config.json", "classes.json", "report/index.html"):
    (workdir / name).write_text("{}")
  return workdir


def write_lines(workdir: pathlib.Path, lines: list[dict]) -> None:
  (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_lines(workdir: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  return write_run(tmp_path_factory.mktemp("reference"))


def test_runs_that_differ_in_times_alone_are_equal(reference, tmp_path) -> None:
  assert differences(reference, write_run(tmp_path)) == []


@pytest.mark.parametrize(
  ("changed", "array"),
  [
    ("params", "model/params/head/kernel"),
    ("batch_stats", "model/batch_stats/mean"),
    ("opt_state", "trainer/opt_state/0/trace/head/kernel"),
    ("keys", "trainer/bank/keys"),
    ("cursor", "trainer/bank/cursor"),
  ],
)
def test_one_bit_of_any_array_is_noticed(reference, tmp_path, changed: str, array: str) -> None:
  (text,) = differences(reference, write_run(tmp_path, changed))
  assert re.fullmatch(rf"step 4, {array}: 1 of \d+ values differ", text), text


def test_another_position_in_the_training_data_is_noticed(reference, tmp_path) -> None:
  assert differences(reference, write_run(tmp_path, next_batch=5)) == [
    "step 4, data: {'next_batch': 5}, expected {'next_batch': 4}"
  ]


def _without_line(workdir: pathlib.Path) -> None:
  write_lines(workdir, [line for line in read_lines(workdir) if line["step"] != 3])


def _line_twice(workdir: pathlib.Path) -> None:
  lines = read_lines(workdir)
  write_lines(workdir, [*lines[:4], lines[3], *lines[4:]])


def _score_twice(workdir: pathlib.Path) -> None:
  lines = read_lines(workdir)
  write_lines(workdir, [*lines[:3], lines[2], *lines[3:]])


def _other_value(workdir: pathlib.Path) -> None:
  lines = read_lines(workdir)
  lines[-1]["loss"] = float(np.nextafter(lines[-1]["loss"], 1))
  write_lines(workdir, lines)


def _other_counts(workdir: pathlib.Path) -> None:
  np.savez(workdir / "eval" / "val_images.npz", names=np.array(["a", "b"]), tp=np.ones((2, 3), int))


@pytest.mark.parametrize(
  ("change", "expected"),
  [
    (_without_line, "metrics.jsonl: 0 lines of step 3, expected 1"),
    (_line_twice, "metrics.jsonl: 2 lines of step 3, expected 1"),
    (_score_twice, "metrics.jsonl: 2 lines of score 2, expected 1"),
    (_other_value, "metrics.jsonl: line 5 (step 4) differs in loss"),
    (_other_counts, "eval/val_images.npz: arrays differ"),
    (lambda workdir: (workdir / "eval" / "val.json").write_text("{}"), "eval/val.json: differs"),
    (lambda workdir: (workdir / "classes.json").write_text("[]"), "classes.json: differs"),
    (lambda workdir: (workdir / "report" / "index.html").unlink(), "report/index.html: is missing"),
    (lambda workdir: (workdir / ".lock").touch(), ".lock: is left over"),
    (lambda workdir: shutil.rmtree(workdir / "checkpoints" / "2"), "checkpoints: steps [4], expected [2, 4]"),
  ],
)
def test_a_difference_of_files_is_noticed(
  reference, tmp_path, change: Callable[[pathlib.Path], object], expected: str
) -> None:
  other = tmp_path / "other"
  shutil.copytree(reference, other)
  change(other)
  assert differences(reference, other) == [expected]


def test_stages_follow_from_output_and_folder(tmp_path) -> None:
  printed, stages = "", []

  def note(text: str = "") -> None:
    nonlocal printed
    printed += text
    stages.append(kills.stage_of(printed, tmp_path))

  saved = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp"
  saved.mkdir(parents=True)
  note("1 x cpu in 1 process(es)\n")  # the folder that a kill left incomplete is not being saved now
  saved.rmdir()
  note("data: synthetic\nnetwork: deeplabv3\n")
  note("compiling the train step ...\n")
  note("compiled the train step in 2 s\n")
  saved.mkdir()
  note()
  saved.rmdir()
  note()
  for line in ({"step": 7, "loss": 1.0}, {"step": 7, "miou": 0.5}, {"step": 14, "loss": 1.0}):
    with (tmp_path / "metrics.jsonl").open("a") as file:
      file.write(json.dumps(line) + "\n")
    note()
  note("drawing the report ...\n")
  assert stages == [
    *("start-up", "start-up", "compiling", "steps", "saving", "steps"),
    *("scoring", "steps", "scoring", "report"),
  ]


@pytest.mark.parametrize("runs", [1, 3, 7, 100])
def test_kills_are_divided_among_the_variants(runs: int) -> None:
  counts = kills.kills_of_variants(runs, tuple(kills.VARIANTS))
  assert sum(counts.values()) == runs and counts["plain"] == max(counts.values())
  assert kills.kills_of_variants(runs, ("8 devices",)) == {"8 devices": runs}
  if runs == 100:
    assert tuple(counts.values()) == (60, 10, 10, 10, 10)


def test_the_table_counts_kills_by_stage_and_deviations() -> None:
  rows = [
    {"variant": "plain", "kills": [{"stage": "saving"}, {"stage": "steps"}], "deviations": []},
    {"variant": "plain", "kills": [{"stage": "saving"}], "deviations": ["step 4: differs"]},
    {"variant": "2 processes", "kills": [{"stage": "report", "others_ended": 1.5}], "deviations": []},
  ]
  assert kills.table(rows).splitlines()[2:] == [
    "| plain | 3 | 0 | 0 | 1 | 2 | 0 | 0 | 2 | 1 |  |",
    "| 2 processes | 1 | 0 | 0 | 0 | 0 | 0 | 1 | 1 | 0 | 1.5 to 1.5 s |",
    "| all | 4 | 0 | 0 | 1 | 2 | 0 | 1 | 3 | 1 | 1.5 to 1.5 s |",
  ]


class Ended:
  """A session of one process that ends by itself after the moment was chosen, with a status."""

  def __init__(self, status: int):
    self.processes = [self]
    self.status, self.clock = status, 0.0

  def poll(self) -> int | None:
    return None

  def kill(self) -> None:
    pass

  def wait(self) -> int:
    return self.status

  def seconds(self) -> float:
    self.clock += 1
    return self.clock

  def stage(self) -> str:
    return kills.STAGES[int(self.clock) % len(kills.STAGES)]


def test_a_process_that_ended_by_itself_is_no_kill(monkeypatch) -> None:
  monkeypatch.setattr(kills, "POLL", 0)
  timing = kills.Timing(dict.fromkeys(kills.STAGES, 1.0), 5.0)
  for status, counts in ((-signal.SIGKILL, True), (0, False), (1, False)):
    session: Any = Ended(status)
    assert (kills.kill_once(session, random.Random(0), timing) is not None) == counts
