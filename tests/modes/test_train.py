"""Runs from the command line: to the end, killed, stopped, resumed, refused."""

import json
import os
import pathlib
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from rc_jax import parent_process
from rc_jax.config import defaults
from rc_jax.evaluation.protocol import protocol_text
from rc_jax.modes import train
from tests.support import disks, processes, run_tiny, small_datasets

pytestmark = pytest.mark.run


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, cache) -> tuple[pathlib.Path, str]:
  """The folder and the output of a run without interruption."""
  workdir = tmp_path_factory.mktemp("run")
  process = run_tiny.start(workdir, cache=cache)
  printed = run_tiny.finish(process)
  assert process.returncode == 0, printed
  return workdir, printed


def test_a_run_writes_its_metrics_scores_report_and_checkpoints(uninterrupted) -> None:
  workdir, printed = uninterrupted
  lines = run_tiny.lines(workdir)
  steps = [line for line in lines if "loss" in line]
  assert [line["step"] for line in steps] == list(range(1, run_tiny.STEPS + 1))
  wanted = {"loss", "loss_pixel", "loss_aux", "loss_contrast", "learning_rate", "gradient_norm", "bank_fill"}
  assert wanted <= steps[-1].keys()
  scaled = steps[-1]["loss_pixel"] + steps[-1]["loss_aux_scaled"] + steps[-1]["loss_contrast_scaled"]
  assert steps[-1]["loss"] == pytest.approx(scaled, rel=1e-5)
  assert steps[-1]["loss_contrast"] > 0 and steps[-1]["bank_fill"]["road"] == 1.0
  scores = [line for line in lines if "miou" in line]
  assert [line["step"] for line in scores] == [6, 12] and scores[0]["split"] == "val"
  for name in ("config.json", "eval/val.json", "report/index.html", "report/panels.png", "checkpoints/12"):
    assert (workdir / name).exists(), name
  assert list((workdir / "tensorboard").glob("events*"))
  written = json.loads((workdir / "eval" / "val.json").read_text())
  assert written["miou"] == scores[-1]["miou"] and written["cross_entropy"] == scores[-1]["cross_entropy"] > 0
  scored = [name for name, iou in scores[-1]["iou"].items() if iou is not None]
  for line in [line for line in printed.splitlines() if "mIoU" in line and "%" not in line]:
    assert re.search(r"mIoU [\d.]+ over \d+ of 11 classes", line), line
  assert f"over {len(scored)} of 11 classes on val" in printed
  never = json.loads((workdir / "eval" / "val.json").read_text())["never"]
  for name in never:
    assert f" {name}" in next(line for line in printed.splitlines() if "never occur" in line)
  assert "step 6/12: mIoU" in printed and "banks of 20 keys for each of 11 classes" in printed
  assert "Finished: mIoU" in printed and str(workdir / "report" / "index.html") in printed


def test_the_end_names_classes_that_never_occurred(tmp_path: pathlib.Path) -> None:
  """Masks of 0 and 255, where the table ignores 255: the score of the only class is 100."""
  config = defaults()
  config.dataset.name = "folder"
  ious = {"background": 1.0, "crack": None}
  (tmp_path / "metrics.jsonl").write_text(
    json.dumps({"step": 4, "split": "val", "miou": 1.0, "iou": ious}) + "\n"
  )
  text = train.closing(config, tmp_path, tmp_path / "index.html", None, "full images")
  assert "Finished: mIoU 100.00 over 1 of 2 classes on folder/val" in text and "never" not in text
  (tmp_path / "eval").mkdir()
  results = {"miou": 1.0, "iou": ious, "absent_class": "not_in_truth", "step": 4}
  results |= {"split": "val", "never": ["crack"]}
  (tmp_path / "eval/val.json").write_text(json.dumps(results))
  text = train.closing(config, tmp_path, tmp_path / "index.html", None, "full images")
  assert "1 of 2 classes never occur in the labels of val: crack (--mode=inspect" in text
  assert "background alone occurs" in text and "masks of 0 and 255" in text and "in place of 255" in text


def test_the_end_names_the_best_checkpoint_where_it_is_kept(tmp_path: pathlib.Path) -> None:
  config = defaults()
  config.dataset.name = "folder"
  scores = ({"step": step, "split": "val", "miou": miou} for step, miou in ((4, 0.5), (8, 0.25)))
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in scores))
  page = tmp_path / "index.html"
  text = train.closing(config, tmp_path, page, None, "full images")
  assert "(the best was 50.00, step 4, not kept)" in text and "--checkpoint" not in text
  (tmp_path / "checkpoints/4").mkdir(parents=True)
  text = train.closing(config, tmp_path, page, None, "full images")
  assert "(the best was 50.00, --checkpoint=4)" in text
  # Of equal scores, the checkpoint of the later step is kept as the best.
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write(json.dumps({"step": 12, "split": "val", "miou": 0.5}) + "\n")
  assert "the best was" not in train.closing(config, tmp_path, page, None, "full images")


@pytest.mark.long
def test_killed_anywhere_it_resumes_to_the_last_bit(uninterrupted, cache, tmp_path) -> None:
  for step in (2, 7):
    process = run_tiny.start(tmp_path, cache=cache)
    run_tiny.signal_at(process, tmp_path, step, signal.SIGKILL)
    run_tiny.finish(process)
    assert process.returncode == -signal.SIGKILL
  # Compiled anew, as after a reboot: the other sessions shared their programs.
  process = run_tiny.start(tmp_path, cache=tmp_path / "empty cache")
  printed = run_tiny.finish(process)
  assert process.returncode == 0 and "resuming at step" in printed, printed
  assert run_tiny.lines(tmp_path) == run_tiny.lines(uninterrupted[0])


@pytest.mark.slow
def test_killed_with_all_training_options_it_resumes_to_the_last_bit(cache, tmp_path) -> None:
  flags = (
    "--config.model.freeze=stem,stage1",
    "--config.model.freeze_batch_stats=stem",
    "--config.optimizer.name=adamw",
    "--config.optimizer.learning_rate=0.001",
    "--config.optimizer.schedule=cosine",
    "--config.optimizer.warmup_steps=6",
    "--config.optimizer.clip_norm=1.0",
    "--config.optimizer.layer_decay=0.8",
    "--config.train.microbatches=2",
    "--config.train.ema_decay=0.9",
    "--config.model.remat=stage2,head",
  )
  process = run_tiny.start(tmp_path / "uninterrupted", *flags, cache=cache)
  printed = run_tiny.finish(process)
  assert process.returncode == 0, printed
  plan = " ".join(printed.split())
  assert "; frozen parameters: stem,stage1; frozen BatchNorm statistics: stem" in plan
  assert "in 2 parts, rematerialising stage2,head" in plan and "average of the weights (decay 0.9)" in plan
  process = run_tiny.start(tmp_path / "killed", *flags, cache=cache)
  run_tiny.signal_at(process, tmp_path / "killed", 7, signal.SIGKILL)
  run_tiny.finish(process)
  process = run_tiny.start(tmp_path / "killed", *flags, cache=cache)
  printed = run_tiny.finish(process)
  assert process.returncode == 0 and "resuming at step" in printed, printed
  lines = run_tiny.lines(tmp_path / "uninterrupted")
  assert run_tiny.lines(tmp_path / "killed") == lines
  assert lines[0]["learning_rate"] == pytest.approx(0.001 / 6)


@pytest.mark.slow
def test_killed_with_data_workers_it_resumes_to_the_last_bit(uninterrupted, cache, tmp_path) -> None:
  flags = ("--config.data.workers=2",)
  process = run_tiny.start(tmp_path, *flags, cache=cache)
  run_tiny.signal_at(process, tmp_path, 7, signal.SIGKILL)
  run_tiny.finish(process)
  process = run_tiny.start(tmp_path, *flags, cache=cache)
  printed = run_tiny.finish(process)
  assert process.returncode == 0 and "resuming at step" in printed, printed
  assert run_tiny.lines(tmp_path) == run_tiny.lines(uninterrupted[0])


@pytest.mark.slow
def test_counted_class_weights_and_a_sum_of_losses_resume_to_the_last_bit(cache, tmp_path) -> None:
  flags = (
    *("--config.loss.class_weighting=median_frequency", "--config.loss.pixel=ce+0.5*dice+0.1*lovasz"),
    *("--config.train.steps=3", "--config.train.checkpoint_every=1", "--config.train.eval_every=0"),
  )
  alone, resumed = tmp_path / "alone", tmp_path / "resumed"
  process = run_tiny.start(alone, *flags, cache=cache)
  printed = run_tiny.finish(process)
  assert process.returncode == 0, printed
  text = " ".join(printed.split())
  assert "loss: cross entropy + 0.5 x Dice loss + 0.1 x Lovász-softmax with class weights of" in text
  assert "(median frequency) + 0.4 x auxiliary loss" in text
  record = json.loads((alone / "class_weights.json").read_text())
  weights = [entry["weight"] for entry in record["classes"]]
  assert (
    len(set(weights)) > 5 and json.loads((alone / "config.json").read_text())["loss"]["class_weights"] == []
  )
  # As after a kill between the checkpoint of step 2 and that of step 3.
  shutil.copytree(alone, resumed)
  shutil.rmtree(resumed / "checkpoints/3")
  process = run_tiny.start(resumed, *flags, cache=cache)
  printed = run_tiny.finish(process)
  assert process.returncode == 0 and "resuming at step 2 of 3" in printed, printed
  assert "counting the classes" not in printed
  assert run_tiny.lines(resumed) == run_tiny.lines(alone)


@pytest.mark.slow
def test_slots_of_images_resume_to_the_last_bit(cache, tmp_path) -> None:
  """Ten epochs of five images: each slot is written again and again, in some batches twice."""
  root = tmp_path / "set"
  small_datasets.folder(root)
  for number in (2, 3, 4):
    small_datasets.save_image(root / "images" / "train" / f"{number}.png", f"train{number}")
    ids = small_datasets.random_ids(f"{number}", (0, 1, 2) if number == 3 else (0, 1))
    small_datasets.save_label(root / "labels" / "train" / f"{number}.png", ids)
  flags = (
    *("--config.dataset.name=folder", f"--config.dataset.root={root}", "--config.train.crop_size=33"),
    *("--config.contrast.slots=image", "--config.contrast.bank_size=0", "--config.train.eval_every=0"),
    "--config.train.checkpoint_every=2",
  )
  process = run_tiny.start(tmp_path / "alone", *flags, cache=cache)
  printed = run_tiny.finish(process)
  assert process.returncode == 0, printed
  process = run_tiny.start(tmp_path / "run", *flags, cache=cache)
  run_tiny.signal_at(process, tmp_path / "run", 7, signal.SIGKILL)
  run_tiny.finish(process)
  process = run_tiny.start(tmp_path / "run", *flags, cache=cache)
  printed = run_tiny.finish(process)
  assert process.returncode == 0 and "resuming at step" in printed, printed
  lines = run_tiny.lines(tmp_path / "run")
  assert lines == run_tiny.lines(tmp_path / "alone")
  steps = [line for line in lines if "loss" in line]
  assert steps[-1]["loss_contrast"] > 0 and "bank_cursor" not in steps[-1]
  assert 0 < min(steps[-1]["bank_fill"].values()) < 1


@pytest.mark.long
def test_a_full_disk_costs_no_step_that_was_saved(uninterrupted, cache, tmp_path) -> None:
  """Two checkpoints fit; the saves of steps 8 and 12 do not."""
  disk = tmp_path / "disk"
  with disks.small_disk(disk, "size=9m"):
    process = run_tiny.start(disk / "run", cache=cache)
    printed = run_tiny.finish(process)
    assert process.returncode == 2, printed
    assert (
      printed.count("WARNING: ") == 1 and "the last good checkpoint is step 6; training goes on" in printed
    )
    assert printed.splitlines()[-1].startswith(f"error: {disk}/run/checkpoints: cannot save a checkpoint (")
    assert printed.splitlines()[-1].endswith("step 6; free space and start again")
    disks.resize(disk, "100m")
    process = run_tiny.start(disk / "run", cache=cache)
    printed = run_tiny.finish(process)
    assert process.returncode == 0 and "resuming at step 6 of" in printed, printed
    assert run_tiny.lines(disk / "run") == run_tiny.lines(uninterrupted[0])


@pytest.mark.slow
def test_files_beside_the_checkpoints_end_no_training(uninterrupted, cache, tmp_path) -> None:
  """Files take the places of folders: TensorBoard's, the report's, and the scores' until the last scoring."""
  for name in ("tensorboard", "report"):
    (tmp_path / name).touch()
  process = run_tiny.start(tmp_path, cache=cache)
  printed = run_tiny.finish(process)
  assert process.returncode == 0, printed
  assert printed.count("WARNING: ") == 1 and f"WARNING: {tmp_path}/tensorboard: cannot be" in printed
  assert f"pictures and curves: none ({tmp_path}/report: cannot be" in printed and "Finished: mIoU" in printed
  assert run_tiny.lines(tmp_path) == run_tiny.lines(uninterrupted[0])


@pytest.mark.slow
def test_scores_that_cannot_be_written_are_computed_again(uninterrupted, cache, tmp_path) -> None:
  (tmp_path / "eval").touch()
  process = run_tiny.start(tmp_path, cache=cache)
  printed = run_tiny.finish(process)
  assert process.returncode == 2, printed
  assert (
    f"WARNING: {tmp_path}/eval: cannot be" in printed and "the next scoring writes these files" in printed
  )
  assert printed.splitlines()[-1].startswith(f"error: {tmp_path}/eval: cannot be"), printed
  (tmp_path / "eval").unlink()
  process = run_tiny.start(tmp_path, cache=cache)
  printed = run_tiny.finish(process)
  assert process.returncode == 0 and "step 12/12: mIoU" in printed, printed
  assert run_tiny.lines(tmp_path) == run_tiny.lines(uninterrupted[0])
  assert json.loads((tmp_path / "eval" / "val.json").read_text())["step"] == run_tiny.STEPS


@pytest.mark.long
def test_sigterm_saves_that_step_and_exits_with_143(uninterrupted, cache, tmp_path) -> None:
  """A run of a study gets it twice: from a scheduler, as all processes of a job, and then from the study's runner.

  ``tests/training/test_preemption.py`` sends it to runs that no study started.
  """
  by_runner = {parent_process.VARIABLE: str(os.getpid())}
  process = run_tiny.start(tmp_path, "--config.train.checkpoint_every=1000", cache=cache, **by_runner)
  run_tiny.signal_at(process, tmp_path, 3, signal.SIGTERM)
  time.sleep(0.3)
  process.send_signal(signal.SIGTERM)
  printed = run_tiny.finish(process)
  assert process.returncode == 143 and "saved; the same command continues" in printed, printed
  (saved,) = [int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
  assert saved >= 3
  process = run_tiny.start(tmp_path, cache=cache)
  assert f"resuming at step {saved} of" in run_tiny.finish(process)
  assert process.returncode == 0
  assert run_tiny.lines(tmp_path) == run_tiny.lines(uninterrupted[0])


@pytest.mark.slow
def test_a_pipe_whose_reader_leaves_ends_no_training(uninterrupted, cache, tmp_path) -> None:
  process = run_tiny.start(tmp_path, cache=cache)
  process.stdout.readline()
  process.stdout.close()
  assert process.wait(timeout=240) == 0
  assert run_tiny.lines(tmp_path) == run_tiny.lines(uninterrupted[0])
  assert (tmp_path / "report" / "index.html").is_file()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("setsid") is None, reason="nothing to start a session with")
def test_a_closed_terminal_saves_that_step(uninterrupted, cache, tmp_path) -> None:
  """The kernel sends SIGHUP, and every later write to the terminal fails."""
  terminal, screen = os.openpty()
  environment = {**os.environ, **processes.with_devices(1), "JAX_COMPILATION_CACHE_DIR": str(cache)}
  # Where the tests run under nohup, processes start with the signal ignored.
  code = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"
  command = run_tiny.command(tmp_path, "--config.train.checkpoint_every=1000")
  process = subprocess.Popen(
    [sys.executable, "-c", code, "setsid", "--ctty", *command],
    cwd=run_tiny.ROOT,
    env={**environment, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
    stdin=screen,
    stdout=screen,
    stderr=screen,
  )
  os.close(screen)
  deadline = time.monotonic() + 200
  while len(run_tiny.lines(tmp_path)) < 3 and time.monotonic() < deadline:
    if select.select([terminal], [], [], 0.02)[0]:
      os.read(terminal, 65536)
  os.close(terminal)
  assert process.wait(timeout=120) == 129
  saved = [int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
  assert len(saved) == 1 and saved[0] >= 3
  process = run_tiny.start(tmp_path, cache=cache)
  assert f"resuming at step {saved[0]} of" in run_tiny.finish(process)
  assert run_tiny.lines(tmp_path) == run_tiny.lines(uninterrupted[0])


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_refused(uninterrupted, cache, tmp_path) -> None:
  first = run_tiny.start(tmp_path, cache=cache)
  while not run_tiny.lines(tmp_path) and first.poll() is None:
    time.sleep(0.02)
  second = run_tiny.start(tmp_path, cache=cache)
  printed = run_tiny.finish(second)
  assert second.returncode == 2 and f"process {first.pid} on {socket.gethostname()}" in printed, printed
  assert "choose another --workdir" in printed and "Traceback" not in printed
  run_tiny.finish(first)
  assert first.returncode == 0
  assert run_tiny.lines(tmp_path) == run_tiny.lines(uninterrupted[0])
  assert not (tmp_path / ".lock").exists()


@pytest.mark.long
def test_a_finished_run_exits_0_and_changes_nothing(uninterrupted, cache) -> None:
  workdir, _ = uninterrupted
  before = (workdir / "metrics.jsonl").read_text()
  process = run_tiny.start(workdir, cache=cache)
  assert "nothing is left to train" in run_tiny.finish(process)
  assert process.returncode == 0
  assert (workdir / "metrics.jsonl").read_text() == before


def test_another_configurations_folder_is_refused(uninterrupted, cache) -> None:
  workdir, _ = uninterrupted
  process = run_tiny.start(workdir, "--config.optimizer.learning_rate=0.5", cache=cache)
  printed = run_tiny.finish(process)
  assert process.returncode == 2
  assert "optimizer.learning_rate: 0.5, there 0.01" in printed and "Traceback" not in printed


def test_eval_of_a_checkpoint_gives_the_scores_that_the_run_logged(uninterrupted, cache, tmp_path) -> None:
  workdir, _ = uninterrupted
  process = run_tiny.start(
    tmp_path, "--mode=eval", f"--checkpoint={workdir / 'checkpoints' / '12'}", cache=cache
  )
  printed = run_tiny.finish(process)
  assert process.returncode == 0, printed
  alone = json.loads((tmp_path / "eval" / "val.json").read_text())
  logged = run_tiny.lines(workdir)[-1]
  protocol = logged.pop("protocol")
  assert protocol == protocol_text(alone)
  assert {name: alone[name] for name in logged} == logged and alone["step"] == 12
  assert alone.pop("checkpoint") == str((workdir / "checkpoints" / "12").resolve())  # of another folder's run
  assert alone == json.loads((workdir / "eval" / "val.json").read_text())
  assert "mIoU" in printed and "road" in printed


@pytest.mark.long
def test_two_processes_train_the_run_of_one(uninterrupted, cache, tmp_path) -> None:
  """``launch/local.sh`` with a device each: stopped by SIGTERM together, resumed, and the run is the same."""
  flags = run_tiny.command(tmp_path, "--config.train.checkpoint_every=1000")[3:]
  environment = {"PYTHON": sys.executable, "JAX_COMPILATION_CACHE_DIR": str(cache)}

  def start() -> subprocess.Popen:
    return subprocess.Popen(
      ["launch/local.sh", "2", *flags],
      cwd=run_tiny.ROOT,
      env={**os.environ, **processes.with_devices(1), **environment},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  process = start()
  run_tiny.signal_at(process, tmp_path, 2, signal.SIGTERM)
  printed = run_tiny.finish(process)
  assert process.returncode == 143 and "saved" in printed, printed
  process = start()
  printed = run_tiny.finish(process)
  assert process.returncode == 0 and "2 x cpu in 2 process(es)" in printed and "resuming at" in printed, (
    printed
  )

  one, two = run_tiny.lines(uninterrupted[0]), run_tiny.lines(tmp_path)
  assert [line["step"] for line in one] == [line["step"] for line in two]
  np.testing.assert_allclose(two[0]["loss"], one[0]["loss"], rtol=1e-5)
  assert two[0]["bank_fill"] == one[0]["bank_fill"]
  # Rounding moves some values across a ReLU's corner, and the runs diverge from step to step. The control is the change
  # of the loss from one batch to the next: a run on other batches would be as far away.
  ours, theirs = (np.array([line["loss"] for line in lines if "loss" in line]) for lines in (one, two))
  control = np.abs(np.diff(ours)).mean()
  assert np.abs(theirs - ours).mean() < 0.3 * control, (theirs, ours)


@pytest.mark.slow
def test_killed_on_eight_devices_it_resumes_on_two(cache, tmp_path) -> None:
  flags = ("--config.train.batch_size=8", "--config.train.eval_every=0", "--config.train.checkpoint_every=2")
  process = run_tiny.start(tmp_path, *flags, cache=cache, devices=8)
  run_tiny.signal_at(process, tmp_path, 7, signal.SIGKILL)
  run_tiny.finish(process)
  before = {line["step"]: line for line in run_tiny.lines(tmp_path)}
  process = run_tiny.start(tmp_path, *flags, cache=cache, devices=2)
  printed = run_tiny.finish(process)
  assert process.returncode == 0 and "2 x cpu" in printed, printed
  (resumed_at,) = map(int, re.findall(r"resuming at step (\d+) of", printed))
  lines = {line["step"]: line for line in run_tiny.lines(tmp_path) if "loss" in line}
  assert list(lines) == list(range(1, run_tiny.STEPS + 1))
  again = resumed_at + 1
  if again not in before:  # killed between a save and the next step's line: no step was made twice
    pytest.skip("no step was made on both")
  # The same batch against the same banks: as on eight devices, up to rounding.
  np.testing.assert_allclose(lines[again]["loss_contrast"], before[again]["loss_contrast"], rtol=1e-4)
  np.testing.assert_allclose(lines[again]["loss"], before[again]["loss"], rtol=1e-4)
  assert lines[again]["bank_fill"] == before[again]["bank_fill"]


@pytest.mark.long
def test_a_loss_that_is_not_finite_stops_the_run(cache, tmp_path) -> None:
  process = run_tiny.start(tmp_path, "--config.optimizer.learning_rate=1e30", cache=cache)
  printed = run_tiny.finish(process)
  assert process.returncode == 2, printed
  last = printed.strip().splitlines()[-1]
  assert last.startswith("error: step ") and "not finite" in last and "loss_pixel" in last
  assert "Traceback" not in printed


def test_another_networks_weights_are_not_scored(uninterrupted, cache) -> None:
  workdir, _ = uninterrupted
  before = (workdir / "eval" / "val.json").read_text()
  process = run_tiny.start(workdir, "--mode=eval", "--config.model.output_stride=16", cache=cache)
  printed = run_tiny.finish(process)
  assert process.returncode == 2 and "model.output_stride: 16, there 8" in printed, printed
  assert (workdir / "eval" / "val.json").read_text() == before


def test_predict_labels_a_folder(uninterrupted, cache, tmp_path) -> None:
  rng = np.random.default_rng(0)
  for name, size in (("wide", (60, 40)), ("tall", (40, 60))):
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(tmp_path / f"{name}.png")
  process = run_tiny.start(
    uninterrupted[0], "--mode=predict", f"--images={tmp_path}", "--config.eval.batch_size=1", cache=cache
  )
  printed = run_tiny.finish(process)
  assert process.returncode == 0, printed
  for name, size in (("wide", (60, 40)), ("tall", (40, 60))):
    label = Image.open(uninterrupted[0] / "predictions" / "labels" / f"{name}.png")
    assert label.size == size and label.mode == "P" and np.asarray(label).max() < 11
    assert (uninterrupted[0] / "predictions" / "overlays" / f"{name}.jpg").is_file()


@pytest.mark.long
def test_the_commands_to_try_next_work_as_printed(uninterrupted, cache) -> None:
  """Pasted into a shell in the same folder: predict, the baseline, the comparison with it, export."""
  workdir, printed = uninterrupted
  shutil.rmtree(workdir / "predictions", ignore_errors=True)  # another test's, with other settings
  commands = [line for line in printed.partition("\nNext:\n")[2].splitlines() if not line.startswith("#")]
  modes = [re.findall(r"--mode=(\w+)", line) for line in commands]
  assert modes == [["predict"], [], ["compare"], ["export"]], printed
  finished = subprocess.run(
    ["bash", "-ec", "\n".join(commands)],
    cwd=run_tiny.ROOT,
    env={**os.environ, **processes.with_devices(1), "JAX_COMPILATION_CACHE_DIR": str(cache)},
    capture_output=True,
    text=True,
    timeout=240,
  )
  assert finished.returncode == 0, finished.stdout + finished.stderr
  assert len(list((workdir / "predictions" / "labels").iterdir())) == 60
  assert (workdir / "export" / "program.jaxexport").is_file()
  assert "without contrast: the baseline" in finished.stdout and "95 % interval" in finished.stdout
  # The baseline knows that its counterpart is scored.
  suggested = finished.stdout.partition("\nNext:\n")[2]
  assert f"--mode=compare --results={workdir}_baseline,{workdir}" in suggested
  assert "contrast_weight=0 --config.loss" not in suggested and "train the baseline" not in suggested
