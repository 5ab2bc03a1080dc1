"""The runner of a study: each run once and to its end, whatever is killed, stopped, claimed elsewhere or failing.

Most tests replace training by a small program that counts its own starts.
"""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from rc_jax.config import as_dict
from rc_jax.folder_lock import folder_lock
from rc_jax.study import Row, Study
from rc_jax.study import runner as runner_module
from rc_jax.study.runner import (
  StudyProgress,
  StudyRunner,
  command,
  device_shares,
  missing_splits,
  newest_step,
  other_runs,
)
from tests.support.paths import ROOT

pytestmark = pytest.mark.run

STEPS = 4
STUDY = Study(
  title="two rows",
  recipe="demo",
  rows=(Row("CE", {"contrast.scope": "none"}), Row("RC", {"contrast.scope": "bank"})),
  baseline="CE",
  seeds=(0, 1),
  fields={"train.steps": STEPS},
)
# Trains for argv[2] seconds: notes its start, saves half-way, resumes from there, and scores the split argv[3].
TRAINING = f"""
import json, pathlib, signal, sys, time
workdir, seconds, split = pathlib.Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
stopped = []
signal.signal(signal.SIGTERM, lambda *unused: stopped.append(143))
with open(workdir.parents[2] / "starts", "a") as file:
  file.write(f"{{workdir.parent.name}}/{{workdir.name}}/{{split}}\\n")
saved = workdir / "saved"
for step in range(int(saved.read_text()) if saved.exists() else 0, {STEPS}):
  end = time.monotonic() + seconds / {STEPS}
  while not stopped and time.monotonic() < end:
    time.sleep(0.01)  # in one piece, a signal would not end it
  if stopped:
    print("saved")
    sys.exit(143)
  saved.write_text(str(step + 1))
  with open(workdir / "metrics.jsonl", "a") as file:
    file.write(json.dumps({{"step": step + 1}}) + "\\n")
if workdir.parent.name == "unscored" and split == "val":
  sys.exit(0)
if workdir.parent.name == "fails":
  print("error: no such weights")
  sys.exit(2)
(workdir / "eval").mkdir(exist_ok=True)
scores = {{"miou": 0.5, "iou": {{"road": 0.5}}, "step": {STEPS}, "absent_class": "not_in_truth"}}
(workdir / "eval" / f"{{split}}.json").write_text(json.dumps(scores))
"""


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(runner_module, "_POLL_SECONDS", 0.05)


def training(seconds: float):
  """Returns the command lines of a training that takes so long."""

  def command_of(study: Study, run, folder: pathlib.Path, *flags: str) -> list[str]:
    split = next((flag.partition("=")[2] for flag in flags if "eval.split" in flag), study.splits[0])
    return [sys.executable, "-c", TRAINING, str(folder / run.path), str(seconds), split]

  return command_of


def starts(folder: pathlib.Path) -> list[str]:
  """The runs that were started, in order."""
  return (folder / "starts").read_text().split()


def test_all_runs_are_started_once_seed_by_seed(tmp_path: pathlib.Path) -> None:
  outcome = StudyRunner(STUDY, tmp_path, command_of=training(0.05)).run()
  assert outcome.exit_status == 0 and set(outcome.finished) == set(STUDY.runs) and not outcome.failed
  assert starts(tmp_path) == ["ce/seed0/val", "rc/seed0/val", "ce/seed1/val", "rc/seed1/val"]
  again = StudyRunner(STUDY, tmp_path, command_of=training(0.05)).run()
  assert again.finished == STUDY.runs and len(starts(tmp_path)) == 4


def test_parallel_runs_overlap(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  at_work = []
  show = StudyProgress.show

  def count(self, finished, running, failed, claimed=0):
    at_work.append(len(running))
    show(self, finished, running, failed, claimed)

  monkeypatch.setattr(StudyProgress, "show", count)
  assert StudyRunner(STUDY, tmp_path, parallel=2, command_of=training(0.5)).run().exit_status == 0
  assert max(at_work) == 2 and len(starts(tmp_path)) == 4


@pytest.mark.long
def test_further_splits_are_scored_after_the_training(tmp_path: pathlib.Path) -> None:
  study = dataclasses.replace(STUDY, splits=("val", "train"), seeds=(0,))
  outcome = StudyRunner(study, tmp_path, command_of=training(0.01)).run()
  assert len(outcome.finished) == 2
  assert sorted(starts(tmp_path)) == ["ce/seed0/train", "ce/seed0/val", "rc/seed0/train", "rc/seed0/val"]
  (tmp_path / "runs/rc/seed0/eval/train.json").unlink()
  StudyRunner(study, tmp_path, command_of=training(0.01)).run()
  assert starts(tmp_path)[4:] == ["rc/seed0/train"]


@pytest.mark.long
def test_a_failed_run_is_named_and_does_not_stop_the_others(tmp_path: pathlib.Path, capsys) -> None:
  study = dataclasses.replace(STUDY, rows=(Row("fails"), *STUDY.rows))
  outcome = StudyRunner(study, tmp_path, command_of=training(0.01)).run()
  assert [str(run) for run in outcome.failed] == ["fails, seed 0", "fails, seed 1"]
  assert set(outcome.failed.values()) == {"error: no such weights"}
  assert len(outcome.finished) == 4 and outcome.exit_status == 0
  assert "FAILED: fails, seed 0: error: no such weights" in capsys.readouterr().out


@pytest.mark.long
def test_the_budget_stops_and_saves(tmp_path: pathlib.Path) -> None:
  outcome = StudyRunner(STUDY, tmp_path, budget=0.8, command_of=training(4)).run()
  assert outcome.out_of_budget and outcome.exit_status == 143 and not outcome.finished
  output = (tmp_path / "runs/ce/seed0/output.log").read_text()
  assert output == "saved\n"
  assert StudyRunner(STUDY, tmp_path, command_of=training(0.01)).run().finished
  assert starts(tmp_path)[:2] == ["ce/seed0/val"] * 2  # continued


RUNNER = """
import pathlib, sys
import jax
jax.config.update("jax_platforms", "cpu")
from rc_jax import parent_process
from tests.study.test_runner import STUDY, StudyRunner, training
sys.exit(StudyRunner(STUDY, pathlib.Path(sys.argv[1]), command_of=training(float(sys.argv[2]))).run().exit_status)
"""


def start_runner(folder: pathlib.Path, seconds: float) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, "-c", RUNNER, str(folder), str(seconds)], cwd=ROOT, stdout=subprocess.PIPE, text=True
  )


def wait_for(condition, process: subprocess.Popen) -> None:
  end = time.monotonic() + 60
  while not condition():
    assert process.poll() is None and time.monotonic() < end
    time.sleep(0.02)


@pytest.mark.slow
def test_two_runners_share_the_runs_of_a_folder(tmp_path: pathlib.Path) -> None:
  both = [start_runner(tmp_path, 1.0) for _ in range(2)]
  for process in both:
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
  assert sorted(starts(tmp_path)) == ["ce/seed0/val", "ce/seed1/val", "rc/seed0/val", "rc/seed1/val"]


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_runs_which_save(tmp_path: pathlib.Path, number: int) -> None:
  process = start_runner(tmp_path, 30)
  wait_for(lambda: newest_step(tmp_path / "runs/ce/seed0") == 0 and (tmp_path / "starts").exists(), process)
  time.sleep(0.2)  # its handler
  process.send_signal(number)
  printed, _ = process.communicate(timeout=60)
  assert process.returncode == 128 + number and "stopping 1 run after saving" in printed
  assert (tmp_path / "runs/ce/seed0/output.log").read_text() == "saved\n"


@pytest.mark.long
def test_claims_of_a_killed_runner_are_free(tmp_path: pathlib.Path) -> None:
  process = start_runner(tmp_path, 1.0)
  wait_for(lambda: (tmp_path / "starts").exists(), process)
  process.kill()
  process.communicate()
  process = start_runner(tmp_path, 0.2)
  printed, _ = process.communicate(timeout=120)
  assert process.returncode == 0, printed
  assert sorted(set(starts(tmp_path))) == ["ce/seed0/val", "ce/seed1/val", "rc/seed0/val", "rc/seed1/val"]


def test_a_run_that_is_claimed_elsewhere_waits(tmp_path: pathlib.Path, monkeypatch, capsys) -> None:
  monkeypatch.setattr(runner_module, "_CLAIMED_SECONDS", 0.2)
  with folder_lock(tmp_path / "claims" / "ce_seed0", "wait"):
    outcome = StudyRunner(STUDY, tmp_path, budget=4, command_of=training(0.01)).run()
    assert len(outcome.finished) == 3 and outcome.out_of_budget
    assert "3 of 4 runs finished, 0 running, 1 claimed by other runners" in capsys.readouterr().out
  outcome = StudyRunner(STUDY, tmp_path, command_of=training(0.01)).run()
  assert set(outcome.finished) == set(STUDY.runs) and outcome.exit_status == 0


def test_a_run_without_a_score_is_scored_or_named(tmp_path: pathlib.Path) -> None:
  """A finished training does not score again after somebody scored another checkpoint."""
  study = dataclasses.replace(STUDY, rows=(Row("unscored"), STUDY.rows[0]), baseline="CE", seeds=(0,))
  outcome = StudyRunner(study, tmp_path, command_of=training(0.01)).run()
  assert starts(tmp_path)[:2] == ["unscored/seed0/val"] * 2  # trained, then --mode=eval
  assert [str(run) for run in outcome.finished] == ["CE, seed 0"]
  assert list(outcome.failed.values()) == [f"{tmp_path}/runs/unscored/seed0/eval/val.json is missing"]


def test_runs_scored_in_another_way_are_scored_again(tmp_path: pathlib.Path) -> None:
  run = STUDY.runs[0]
  path = tmp_path / run.path / "eval" / "val.json"
  path.parent.mkdir(parents=True)
  scores = {"miou": 0.5, "iou": {"road": 0.5}, "step": STEPS, "absent_class": "not_in_truth", "images": 60}
  scores |= {"scales": [1.0], "flip": False, "pad_to_grid": True, "crop_size": [], "stride": []}
  path.write_text(json.dumps(scores))
  assert not missing_splits(STUDY, run, tmp_path, STUDY.config(run))
  flipped = dataclasses.replace(STUDY, fields={**STUDY.fields, "eval.flip": True})
  (missing,) = missing_splits(flipped, run, tmp_path, flipped.config(run)).values()
  assert "was scored otherwise (60 images, scales 1, no flip" in missing


def test_runs_that_the_study_does_not_name_are_listed(tmp_path: pathlib.Path) -> None:
  StudyRunner(STUDY, tmp_path, command_of=training(0.01)).run()
  assert other_runs(STUDY, tmp_path) == []
  assert other_runs(dataclasses.replace(STUDY, seeds=(1,)), tmp_path) == ["runs/ce/seed0", "runs/rc/seed0"]


def test_runs_are_listed_that_are_scored_on_a_split_in_a_folder(tmp_path: pathlib.Path) -> None:
  for seed in (0, 5):
    scores = tmp_path / "runs" / "ce" / f"seed{seed}" / "eval" / "fold0" / "val.json"
    scores.parent.mkdir(parents=True)
    scores.write_text("{}")
  (tmp_path / "runs" / "ce" / "seed6" / "eval").mkdir(parents=True)  # not scored yet
  assert other_runs(STUDY, tmp_path) == ["runs/ce/seed5"]


def test_another_study_in_the_folder_is_refused(tmp_path: pathlib.Path) -> None:
  path = tmp_path / "runs/ce/seed0/config.json"
  path.parent.mkdir(parents=True)
  path.write_text(json.dumps(as_dict(STUDY.config(STUDY.runs[0]))))
  StudyRunner(STUDY, tmp_path)
  other = dataclasses.replace(STUDY, fields={"train.steps": 5})
  with pytest.raises(ValueError, match=r"ce/seed0: holds a run of another study \(train.steps: 5, there 4\)"):
    StudyRunner(other, tmp_path)


def test_a_score_of_an_earlier_step_does_not_finish_a_run(tmp_path: pathlib.Path) -> None:
  run = STUDY.runs[0]
  path = tmp_path / run.path / "eval" / "val.json"
  path.parent.mkdir(parents=True)
  scores = {"miou": 0.5, "iou": {"road": 0.5}, "step": 2, "absent_class": "not_in_truth"}
  path.write_text(json.dumps(scores))
  config = STUDY.config(run)
  assert missing_splits(STUDY, run, tmp_path, config) == {"val": f"{path} is of step 2, not {STEPS}"}
  path.write_text(json.dumps(scores | {"step": STEPS}))
  assert missing_splits(STUDY, run, tmp_path, config) == {}
  path.write_text(json.dumps(scores | {"step": STEPS, "checkpoint": "/net.pth"}))
  assert missing_splits(STUDY, run, tmp_path, config) == {"val": f"{path} is of /net.pth, not of this run"}


def test_the_command_of_a_run_sets_its_fields(tmp_path: pathlib.Path) -> None:
  study = dataclasses.replace(STUDY, fields={"eval.scales": (0.5, 1.0), "eval.flip": True})
  line = command(study, study.runs[3], tmp_path, "--mode=eval")
  assert line[1:4] == ["-m", "rc_jax.main", "--config=demo"]
  assert line[4:] == [
    f"--workdir={tmp_path}/runs/rc/seed1",
    "--config.eval.split=val",
    "--config.eval.scales=(0.5, 1.0)",
    "--config.eval.flip=true",
    "--config.contrast.scope=bank",
    "--config.seed=1",
    "--mode=eval",
  ]


@pytest.mark.parametrize(
  ("visible", "parallel", "expected"),
  [
    ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 2, ["0,1", "2,3"]),
    ({"CUDA_VISIBLE_DEVICES": "4,7"}, 2, ["4", "7"]),
    ({"CUDA_VISIBLE_DEVICES": "0,1,2"}, 1, ["0,1,2"]),
    ({"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "0"}, 3, ["0"] * 3),
    ({"CUDA_VISIBLE_DEVICES": ""}, 2, ["", ""]),
    ({"JAX_PLATFORMS": "", "CUDA_VISIBLE_DEVICES": "0,1"}, 2, ["0", "1"]),
    ({"CUDA_VISIBLE_DEVICES": "1,3,-1,2"}, 2, ["1", "3"]),
  ],
)
def test_parallel_runs_share_the_gpus(visible: dict, parallel: int, expected: list[str]) -> None:
  environments = device_shares(parallel, visible)
  assert [environment["CUDA_VISIBLE_DEVICES"] for environment in environments] == expected


def test_more_runs_than_gpus_are_refused() -> None:
  with pytest.raises(ValueError, match="--parallel=3: this machine has 2 GPUs"):
    device_shares(3, {"CUDA_VISIBLE_DEVICES": "0,1"})
  with pytest.raises(ValueError, match="--parallel=0: expected 1 or more"):
    device_shares(0, {})


def test_runs_do_not_share_an_accelerator_that_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(runner_module.huge_pages, "has_accelerator", lambda: True)
  with pytest.raises(ValueError, match=r"--parallel=2: this machine has an accelerator.*JAX_PLATFORMS=cpu"):
    device_shares(2, {})
  assert len(device_shares(2, {"JAX_PLATFORMS": "cpu"})) == 2


def test_progress_shows_runs_steps_and_time_left(tmp_path: pathlib.Path, capsys) -> None:
  now = [0.0]
  steps = dict.fromkeys(STUDY.runs, STEPS)
  progress = StudyProgress(STUDY, tmp_path, steps, clock=lambda: now[0])
  first = STUDY.runs[0]
  progress.show([], [first], {})
  folder = tmp_path / first.path
  folder.mkdir(parents=True)
  (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3')  # the last is being written
  now[0] = 10.0
  progress.show([], [first], {})
  progress.flush()
  shown = capsys.readouterr().out.splitlines()
  assert shown[0] == "0 of 4 runs finished, 1 running (CE, seed 0 at step 0/4)"
  # 0.9 x 2/4 runs of 4 in 10 s.
  assert shown[1] == "0 of 4 runs finished, 1 running, about 1:19 min left (CE, seed 0 at step 2/4)"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel of Linux sends the signal")
def test_a_command_stops_when_its_parent_is_killed(tmp_path: pathlib.Path) -> None:
  child = (
    "import os, pathlib, signal, sys, time; from rc_jax import parent_process; parent_process.stop_with_parent(); "
    f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(tmp_path / 'stopped')!r}).touch(), os._exit(0))); "
    f"pathlib.Path({str(tmp_path / 'ready')!r}).touch(); time.sleep(60)"
  )
  parent = (
    "import subprocess, sys; from rc_jax import parent_process; "
    f"subprocess.run([sys.executable, '-c', {child!r}], env=parent_process.environment())"
  )
  process = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT, env={**os.environ})
  wait_for((tmp_path / "ready").exists, process)
  process.kill()
  process.wait()
  end = time.monotonic() + 30
  while not (tmp_path / "stopped").exists():
    assert time.monotonic() < end
    time.sleep(0.02)
