"""Runs the training runs of a study, each as a process of its own, several at a time and on several machines.

A run is a folder below the study's: ``runs/<row>/seed<seed>``. The runner claims a run by the lock of a file in
``claims/``, so that two runners that share the folder never start the same one. A claim ends with its runner, however
that ends. Training resumes from its newest checkpoint; a run is finished when it is scored after its last step on each
of the study's splits.
"""

import contextlib
import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rc_jax import files, parent_process
from rc_jax.config import as_dict, different_run
from rc_jax.console import UpdatingLine, duration, say
from rc_jax.evaluation.results import Result, read_result, read_results_json
from rc_jax.folder_lock import folder_lock
from rc_jax.study.grid import Run, Study

OUTPUT = "output.log"  # of a run's processes, in its folder
STOPPED = 128 + signal.SIGTERM
_POLL_SECONDS = 0.5
_LOG_SECONDS = 60.0  # between two lines of progress in a log file
_CLAIMED_SECONDS = 30.0  # until a run that another runner has claimed is tried again


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a call of the runner has left.

  Attributes:
    finished: the runs of which all splits are scored.
    failed: run -> the last line that it printed.
    exit_status: 0, or 128 + the number of the signal that stopped the study; 143 also at the end of its budget.
    out_of_budget: whether the budget ended it.
  """

  finished: tuple[Run, ...]
  failed: Mapping[Run, str]
  exit_status: int = 0
  out_of_budget: bool = False


@dataclasses.dataclass
class _Running:
  """A run whose process is at work.

  Attributes:
    run: the run.
    process: its training or scoring.
    splits: to score after this process.
    slot: number of the share of the devices that it uses.
    claim: released when it ends.
  """

  run: Run
  process: subprocess.Popen[bytes]
  splits: list[str]
  slot: int
  claim: contextlib.ExitStack


def command(study: Study, run: Run, folder: pathlib.Path, *flags: str) -> list[str]:
  """Returns the command line of a run's training, or with flags of another mode on it."""
  overrides = [f"--config.{path}={_argument(value)}" for path, value in study.overrides(run).items()]
  program = [sys.executable, "-m", "rc_jax.main"]
  return [*program, f"--config={study.recipe}", f"--workdir={folder / run.path}", *overrides, *flags]


def _argument(value: Any) -> str:
  if isinstance(value, bool):
    return str(value).lower()
  return repr(tuple(value)) if isinstance(value, tuple | list) else str(value)


def check_folder(study: Study, folder: pathlib.Path) -> None:
  """Checks that the runs that a folder holds are runs of this study.

  Raises:
    ValueError: a run was started with other values of its fields; one line.
  """
  for run in study.runs:
    path = folder / run.path / "config.json"
    if path.is_file():
      ours = as_dict(study.config(run))
      found = different_run(ours, files.read_json_object(path, lambda: "delete the folder of that run"))
      if found:
        raise ValueError(
          f"{path.parent}: holds a run of another study ({'; '.join(found)}); choose another --workdir, or delete it"
        )


def missing_splits(study: Study, run: Run, folder: pathlib.Path, steps: int) -> list[str]:
  """Returns the splits on which a run is not scored after its last step.

  Args:
    study: the study.
    run: one of its runs.
    folder: of the study.
    steps: ``train.steps`` of the run.
  """
  return [
    split for split in study.splits if not _is_scored(folder / run.path / "eval" / f"{split}.json", steps)
  ]


def _is_scored(path: pathlib.Path, steps: int) -> bool:
  return path.is_file() and read_results_json(path)["step"] == steps


def read_results(study: Study, folder: pathlib.Path) -> dict[tuple[str, int, str], Result]:
  """Reads the scores of all finished runs: (name of the row, seed, split) -> result."""
  results = {}
  for run in study.runs:
    steps = study.config(run).train.steps
    if not missing_splits(study, run, folder, steps):
      for split in study.splits:
        results[run.row.name, run.seed, split] = read_result(folder / run.path / "eval" / f"{split}.json")
  return results


class StudyRunner:
  """Runs a study in a folder; see the module."""

  def __init__(
    self,
    study: Study,
    folder: pathlib.Path,
    parallel: int = 1,
    budget: float | None = None,
    command_of: Callable[..., list[str]] = command,
  ):
    """Checks the folder.

    Args:
      study: the study.
      folder: of the study; created where absent.
      parallel: how many runs at a time; each gets an equal share of the GPUs.
      budget: seconds after which the running processes are stopped, saved; None: no limit.
      command_of: returns the command line of a run, as ``command`` does.

    Raises:
      ValueError: the folder holds runs of another study, or fewer GPUs than parallel runs are visible; one line.
    """
    check_folder(study, folder)
    self._study, self._folder, self._command_of = study, folder, command_of
    self._environments = slot_environments(parallel, parent_process.environment())
    self._end = None if budget is None else time.monotonic() + budget
    self._steps = {run: int(study.config(run).train.steps) for run in study.runs}
    self._finished = [run for run in study.runs if not self._missing(run)]
    self._failed: dict[Run, str] = {}
    self._running: list[_Running] = []
    self._claimed_elsewhere: dict[Run, float] = {}  # run -> when it was found claimed
    self._exit_status = 0
    self._out_of_budget = False

  def _missing(self, run: Run) -> list[str]:
    return missing_splits(self._study, run, self._folder, self._steps[run])

  def run(self) -> Outcome:
    """Starts and awaits all runs that are not finished; returns when none is left, or when it is stopped."""
    progress = StudyProgress(self._study, self._folder, self._steps)
    with self._signals():
      try:
        while not self._exit_status:
          self._start_runs()
          if not self._running and not self._claimed_elsewhere:
            break
          time.sleep(_POLL_SECONDS)
          self._collect()
          progress.show(self._finished, [running.run for running in self._running], self._failed)
          if self._end is not None and time.monotonic() > self._end:
            self._exit_status, self._out_of_budget = STOPPED, True
      finally:
        progress.flush()
        self._stop_runs()
    return Outcome(tuple(self._finished), self._failed, self._exit_status, self._out_of_budget)

  @contextlib.contextmanager
  def _signals(self) -> Iterator[None]:
    def stop(number: int, frame: types.FrameType | None) -> None:
      if self._exit_status and number != signal.SIGHUP:
        raise KeyboardInterrupt  # the second time: do not wait until the runs have saved
      self._exit_status = 128 + number

    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
      numbers.remove(signal.SIGHUP)  # started with nohup
    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
      yield
    finally:
      for number, handler in previous.items():
        signal.signal(number, handler)

  def _start_runs(self) -> None:
    """Starts runs until each slot has one or none is left to start."""
    at_work = {running.run for running in self._running}
    for run in self._study.runs:
      free = [slot for slot in range(len(self._environments)) if slot not in {r.slot for r in self._running}]
      if not free:
        return
      if run in at_work or run in self._failed or run in self._finished:
        continue
      if time.monotonic() - self._claimed_elsewhere.get(run, -float("inf")) < _CLAIMED_SECONDS:
        continue
      claim = contextlib.ExitStack()
      try:
        claim.enter_context(folder_lock(self._folder / "claims" / "_".join(run.path.parts[1:]), "wait"))
        # A process of a runner that was killed may still be saving.
        with folder_lock(self._folder / run.path, "wait"):
          pass
      except ValueError:
        claim.close()
        self._claimed_elsewhere[run] = time.monotonic()
        continue
      self._claimed_elsewhere.pop(run, None)
      splits = self._missing(run)
      if not splits:  # finished by another runner in the meantime
        claim.close()
        self._finished.append(run)
        continue
      running = _Running(run, self._start(run, splits, free[0]), splits, free[0], claim)
      self._running.append(running)

  def _start(self, run: Run, splits: list[str], slot: int) -> "subprocess.Popen[bytes]":
    """Starts the training of a run, or the scoring of the first split that a finished training has not scored.

    Removes from ``splits`` what the process scores.
    """
    flags = []
    trained = splits[0] != self._study.splits[0]
    split = splits.pop(0)
    if trained:
      flags = ["--mode=eval", f"--config.eval.split={split}"]
    line = self._command_of(self._study, run, self._folder, *flags)
    path = self._folder / run.path / OUTPUT
    files.make_folder(path.parent)
    with path.open("ab") as output:
      # In a session of its own: a terminal's Ctrl-C reaches the runner alone, which stops its runs one by one.
      return subprocess.Popen(
        line,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=self._environments[slot],
        start_new_session=True,
      )

  def _collect(self) -> None:
    """Takes the processes that have ended off the list, and starts what a run needs next."""
    for running in list(self._running):
      status = running.process.poll()
      if status is None:
        continue
      run = running.run
      if status == 0 and running.splits:
        running.process = self._start(run, running.splits, running.slot)
        continue
      self._running.remove(running)
      running.claim.close()
      if status == 0 and not self._missing(run):
        self._finished.append(run)
      else:
        self._failed[run] = self._reason(run, status)
        say(f"FAILED: {run}: {self._failed[run]} ({self._folder / run.path / OUTPUT}); the others go on")

  def _reason(self, run: Run, status: int) -> str:
    """Returns the last line that a failed run has printed, or the signal that ended it."""
    if status < 0:
      return f"ended by {signal.Signals(-status).name}"
    text = (self._folder / run.path / OUTPUT).read_bytes().decode("utf-8", "replace")
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return files.one_line(lines[-1] if lines else f"exit status {status}", 300)

  def _stop_runs(self) -> None:
    """Sends SIGTERM to the running processes, and waits until they have saved."""
    if self._running:
      say(f"stopping {_number(len(self._running), 'run')}, which save their state ...")
    for running in self._running:
      running.process.send_signal(signal.SIGTERM)
    for running in self._running:
      running.process.wait()
      running.claim.close()
      if not self._missing(running.run):
        self._finished.append(running.run)
    self._running.clear()


def slot_environments(parallel: int, environment: Mapping[str, str]) -> list[dict[str, str]]:
  """Returns the environment variables of the runs that go on at the same time: each has its share of the GPUs.

  Args:
    parallel: the number of runs.
    environment: of this process.

  Raises:
    ValueError: there are GPUs, but fewer than runs; one line.
  """
  if parallel < 1:
    raise ValueError(f"--parallel={parallel}: expected 1 or more")
  gpus = _visible_gpus(environment)
  if parallel == 1 or not gpus:
    return [dict(environment)] * parallel
  if len(gpus) < parallel:
    raise ValueError(
      f"--parallel={parallel}: this machine has {_number(len(gpus), 'GPU')}; expected at most that many"
    )
  share = len(gpus) // parallel
  return [
    {**environment, "CUDA_VISIBLE_DEVICES": ",".join(gpus[slot * share : (slot + 1) * share])}
    for slot in range(parallel)
  ]


def _visible_gpus(environment: Mapping[str, str]) -> list[str]:
  """Returns the names of the GPUs that CUDA shows to this process; none where runs are to use the CPU."""
  if environment.get("JAX_PLATFORMS", "cuda").split(",")[0] not in ("cuda", "gpu"):
    return []
  listed = environment.get("CUDA_VISIBLE_DEVICES")
  if listed is not None:
    return [name.strip() for name in listed.split(",") if name.strip()]
  return [str(place) for place, _ in enumerate(sorted(pathlib.Path("/proc/driver/nvidia/gpus").glob("*")))]


class StudyProgress:
  """One line on all runs of a study: how many are finished, running and failed, and the time left."""

  def __init__(
    self,
    study: Study,
    folder: pathlib.Path,
    steps: Mapping[Run, int],
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts the clock.

    Args:
      study: the study.
      folder: of the study.
      steps: of each run, ``train.steps``.
      clock: seconds.
    """
    self._study, self._folder, self._steps, self._clock = study, folder, steps, clock
    self._line = UpdatingLine(file_seconds=_LOG_SECONDS)
    self._began = clock()
    self._first: int | None = None
    self._next = 0.0

  def show(self, finished: Sequence[Run], running: Sequence[Run], failed: Mapping[Run, str]) -> None:
    """Shows the newest state, at most once a second."""
    if self._clock() < self._next:
      return
    self._next = self._clock() + 1
    steps = {run: self._steps[run] for run in finished}
    steps |= {run: newest_step(self._folder / run.path) for run in self._study.runs if run not in steps}
    counted = sum(steps.values())
    if self._first is None:
      self._first = counted
    number = len(self._study.runs)
    states = [f"{len(finished)} of {_number(number, 'run')} finished", f"{len(running)} running"]
    if failed:
      states.append(f"{len(failed)} failed")
    left = sum(self._steps[run] - steps[run] for run in self._study.runs if run not in failed)
    made, seconds = counted - self._first, self._clock() - self._began
    time_left = f", about {duration(left * seconds / made)} left" if made > 0 else ""
    text = ", ".join(states) + time_left
    at = "; ".join(f"{run} at step {steps[run]}/{self._steps[run]}" for run in running)
    self._line.show(f"{text} ({at})" if at else text, text)

  def flush(self) -> None:
    """Clears the line of a terminal; prints the newest state in a log file, if it was not printed."""
    self._line.flush()


def newest_step(workdir: pathlib.Path) -> int:
  """Returns the step of the last whole line of a run's ``metrics.jsonl``; 0 where there is none."""
  try:
    with (workdir / "metrics.jsonl").open("rb") as file:
      file.seek(max(file.seek(0, 2) - 65536, 0))
      lines = file.read().split(b"\n")[:-1]
    return int(json.loads(lines[-1])["step"]) if lines else 0
  except (OSError, ValueError, KeyError, TypeError):
    return 0


def _number(count: int, noun: str) -> str:
  return f"{count} {noun}{'' if count == 1 else 's'}"
