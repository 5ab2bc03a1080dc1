"""Runs the training runs of a study, each as a process of its own, several at a time and on several machines.

A run is a folder below the study's: ``runs/<row>/seed<seed>``. The runner claims a run by the lock of a file in
``claims/``, so that two runners that share the folder never start the same one. A claim ends with its runner, however
that ends. Training resumes from its newest checkpoint. A run is finished when it is scored after its last step on each
of the study's splits, in the way that the study scores.
"""

import contextlib
import dataclasses
import itertools
import json
import pathlib
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rc_jax import files, huge_pages, parent_process
from rc_jax.config import Config, as_dict, different_run
from rc_jax.console import UpdatingLine, duration, say
from rc_jax.evaluation.protocol import protocol_text, scoring_protocol
from rc_jax.evaluation.results import Result, read_result, read_results_json
from rc_jax.folder_lock import FolderInUse, folder_lock
from rc_jax.study.grid import Run, Study

OUTPUT = "output.log"  # of a run's processes, in its folder
STOPPED = 128 + signal.SIGTERM
_POLL_SECONDS = 0.5
_LOG_SECONDS = 60.0  # between two lines of progress in a log file
_BEFORE_SCORING = 0.9  # share of a run that its last step ends
_LEAST_SHARE = 0.2  # of a run, before a time is estimated
_CLAIMED_SECONDS = 30.0  # until a run that another runner has claimed is tried again


@dataclasses.dataclass(frozen=True)
class Outcome:
  """The result of ``StudyRunner.run``.

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
  """A run and its process.

  Attributes:
    run: the run.
    process: its training or scoring.
    scores: the split that the process scores; empty where it trains, which also scores the study's first split.
    share: index of the share of the devices that it uses.
    claim: released when it ends.
  """

  run: Run
  process: subprocess.Popen[bytes]
  scores: str
  share: int
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


def missing_splits(study: Study, run: Run, folder: pathlib.Path, config: Config) -> dict[str, str]:
  """Returns the splits on which a run is not scored as the study scores, with the reasons.

  Args:
    study: the study.
    run: one of its runs.
    folder: of the study.
    config: of the run.

  Returns:
    Split -> what its results lack, ``"is of step 2, not 4"``, in the order of the study.
  """
  missing = {}
  for split in study.splits:
    path = folder / run.path / "eval" / f"{split}.json"
    lacks = _lacks(path, config)
    if lacks:
      missing[split] = f"{path} {lacks}"
  return missing


def _lacks(path: pathlib.Path, config: Config) -> str:
  """Returns why a file of results is not that of a finished run; empty where it is."""
  if not path.is_file():
    return "is missing"
  scores = read_results_json(path)
  if "checkpoint" in scores:
    return f"is of {scores['checkpoint']}, not of this run"
  if scores["step"] != config.train.steps:
    return f"is of step {scores['step']}, not {config.train.steps}"
  if "images" not in scores:
    return ""  # of an earlier version
  wanted = protocol_text(scoring_protocol(config, config.model.align_corners, scores["images"]))
  scored = protocol_text(scores)
  return "" if scored == wanted else f"was scored otherwise ({scored}; the study: {wanted})"


def read_results(study: Study, folder: pathlib.Path) -> dict[tuple[str, int, str], Result]:
  """Reads the scores of all finished runs: (name of the row, seed, split) -> result."""
  results = {}
  for run in study.runs:
    if not missing_splits(study, run, folder, study.config(run)):
      for split in study.splits:
        results[run.row.name, run.seed, split] = read_result(folder / run.path / "eval" / f"{split}.json")
  return results


def other_runs(study: Study, folder: pathlib.Path) -> list[str]:
  """Returns the runs in a folder that the study does not name, such as those of another choice of seeds, sorted."""
  named = {folder / run.path for run in study.runs}
  # A split may lie in a folder, as fold0/val.
  scored = {path for path in (folder / "runs").glob("*/seed*") if any((path / "eval").rglob("*.json"))}
  return sorted(str(path.relative_to(folder)) for path in scored - named)


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
    self._environments = device_shares(parallel, parent_process.environment())
    self._end = None if budget is None else time.monotonic() + budget
    self._configs = {run: study.config(run) for run in study.runs}
    self._finished = [run for run in study.runs if not self._missing(run)]
    self._failed: dict[Run, str] = {}
    self._running: list[_Running] = []
    self._claimed_elsewhere: dict[Run, float] = {}  # run -> when it was found claimed
    self._exit_status = 0
    self._signals_received = 0
    self._out_of_budget = False

  def _missing(self, run: Run) -> dict[str, str]:
    return missing_splits(self._study, run, self._folder, self._configs[run])

  def run(self) -> Outcome:
    """Starts and awaits all runs that are not finished; returns when none is left, or when it is stopped."""
    steps = {run: int(config.train.steps) for run, config in self._configs.items()}
    progress = StudyProgress(self._study, self._folder, steps)
    with self._signals():
      try:
        while not self._exit_status:
          self._start_runs()
          if not self._running and not self._claimed_elsewhere:
            break
          time.sleep(_POLL_SECONDS)
          self._collect()
          at_work = [running.run for running in self._running]
          progress.show(self._finished, at_work, self._failed, len(self._claimed_elsewhere))
          if self._end is not None and time.monotonic() > self._end:
            self._exit_status, self._out_of_budget = STOPPED, True
      finally:
        progress.flush()
        self._stop_runs()
    complete = len(self._finished) == len(self._study.runs)
    return Outcome(
      tuple(self._finished), self._failed, 0 if complete else self._exit_status, self._out_of_budget
    )

  @contextlib.contextmanager
  def _signals(self) -> Iterator[None]:
    def stop(number: int, frame: types.FrameType | None) -> None:
      self._signals_received += number != signal.SIGHUP
      if self._signals_received > 1:
        raise KeyboardInterrupt  # do not wait until the runs have saved
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
    """Starts runs until each share of the devices has one, or none is left to start."""
    at_work = {running.run for running in self._running}
    for run in self._study.runs:
      taken = {running.share for running in self._running}
      share = next((share for share in range(len(self._environments)) if share not in taken), None)
      if share is None:
        return
      if run in at_work or run in self._failed or run in self._finished:
        continue
      if time.monotonic() - self._claimed_elsewhere.get(run, -float("inf")) < _CLAIMED_SECONDS:
        continue
      claim = self._claim(run)
      if claim is None:
        self._claimed_elsewhere[run] = time.monotonic()
        continue
      self._claimed_elsewhere.pop(run, None)
      missing = list(self._missing(run))
      if not missing:  # finished by another runner in the meantime
        claim.close()
        self._finished.append(run)
        continue
      scores = "" if missing[0] == self._study.splits[0] else missing[0]
      self._running.append(_Running(run, self._start(run, scores, share), scores, share, claim))

  def _claim(self, run: Run) -> contextlib.ExitStack | None:
    """Claims a run; None where another runner has it, or a process of a killed runner still saves."""
    claim = contextlib.ExitStack()
    try:
      name = "_".join(run.path.parts[1:])
      claim.enter_context(folder_lock(self._folder / "claims" / name, "wait", quiet=True))
      with folder_lock(self._folder / run.path, "wait", quiet=True):
        pass
    except FolderInUse:
      claim.close()
      return None
    return claim

  def _start(self, run: Run, scores: str, share: int) -> "subprocess.Popen[bytes]":
    """Starts the training of a run, or where ``scores`` names a split, its scoring on that."""
    flags = ["--mode=eval", f"--config.eval.split={scores}"] if scores else []
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
        env=self._environments[share],
        start_new_session=True,
      )

  def _collect(self) -> None:
    """Removes the processes that have ended, and starts the next process of their runs."""
    for running in list(self._running):
      status = running.process.poll()
      if status is None:
        continue
      run, missing = running.run, self._missing(running.run)
      next_split = next(iter(missing), "")
      # Also the first split, where training was finished before and its score is not that of the study.
      if status == 0 and next_split and next_split != running.scores:
        running.scores = next_split
        running.process = self._start(run, next_split, running.share)
        continue
      self._running.remove(running)
      running.claim.close()
      if status == 0 and not missing:
        self._finished.append(run)
      else:
        self._failed[run] = missing[next_split] if status == 0 else self._reason(run, status)
        say(f"FAILED: {run}: {self._failed[run]} ({self._folder / run.path / OUTPUT}); the others go on")

  def _reason(self, run: Run, status: int) -> str:
    """Returns the last line that a failed run has printed, or the signal that ended it."""
    if status == -signal.SIGKILL:
      return "ended by SIGKILL, often because memory ran out: lower train.batch_size or --parallel"
    if status < 0:
      return f"ended by {signal.Signals(-status).name}"
    text = (self._folder / run.path / OUTPUT).read_bytes().decode("utf-8", "replace")
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return files.one_line(lines[-1] if lines else f"exit status {status}", 300)

  def _stop_runs(self) -> None:
    """Sends SIGTERM to the running processes, and waits until they have saved."""
    if self._running:
      say(
        f"stopping {_number(len(self._running), 'run')} after saving; Ctrl-C again stops without saving ..."
      )
    for running in self._running:
      running.process.send_signal(signal.SIGTERM)
    for running in self._running:
      running.process.wait()
      running.claim.close()
      if not self._missing(running.run):
        self._finished.append(running.run)
    self._running.clear()


def device_shares(parallel: int, environment: Mapping[str, str]) -> list[dict[str, str]]:
  """Returns the environment variables of runs at the same time, of which each has an equal share of the GPUs.

  Args:
    parallel: the number of runs.
    environment: of this process.

  Raises:
    ValueError: there are fewer GPUs than runs, or an accelerator of another kind; one line.
  """
  if parallel < 1:
    raise ValueError(f"--parallel={parallel}: expected 1 or more")
  gpus = _visible_gpus(environment)
  on_cpu = environment.get("JAX_PLATFORMS") == "cpu" or "CUDA_VISIBLE_DEVICES" in environment
  if parallel > 1 and not gpus and not on_cpu and huge_pages.has_accelerator():
    raise ValueError(
      f"--parallel={parallel}: this machine has an accelerator that runs cannot share; expected 1, or "
      "JAX_PLATFORMS=cpu in the environment"
    )
  if parallel == 1 or not gpus:
    return [dict(environment)] * parallel
  if len(gpus) < parallel:
    raise ValueError(
      f"--parallel={parallel}: this machine has {_number(len(gpus), 'GPU')}; expected at most that many, or "
      "JAX_PLATFORMS=cpu in the environment"
    )
  size = len(gpus) // parallel
  return [
    {**environment, "CUDA_VISIBLE_DEVICES": ",".join(gpus[share * size : (share + 1) * size])}
    for share in range(parallel)
  ]


def _visible_gpus(environment: Mapping[str, str]) -> list[str]:
  """Returns the names of the GPUs that CUDA shows to this process; none where runs are to use the CPU."""
  if (environment.get("JAX_PLATFORMS") or "cuda").split(",")[0] not in ("cuda", "gpu"):
    return []
  listed = environment.get("CUDA_VISIBLE_DEVICES")
  if listed is not None:
    names = [name.strip() for name in listed.split(",")]
    # CUDA ignores what follows an invalid name, such as -1.
    return list(itertools.takewhile(lambda name: name and not name.startswith("-"), names))
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
    self._first: float | None = None  # runs at the start, with fractions
    self._next = 0.0

  def show(
    self, finished: Sequence[Run], running: Sequence[Run], failed: Mapping[Run, str], claimed: int = 0
  ) -> None:
    """Shows the newest state, at most once a second.

    Args:
      finished: the finished runs.
      running: those of this runner.
      failed: run -> reason.
      claimed: number of runs that other runners have claimed.
    """
    if self._clock() < self._next:
      return
    self._next = self._clock() + 1
    steps = {run: newest_step(self._folder / run.path) for run in self._study.runs}
    shares = {
      run: _BEFORE_SCORING * steps[run] / self._steps[run] for run in self._study.runs if run not in failed
    }
    shares |= dict.fromkeys(finished, 1.0)
    if self._first is None:
      self._first = sum(shares.values())
    states = [
      f"{len(finished)} of {_number(len(self._study.runs), 'run')} finished",
      f"{len(running)} running",
    ]
    if claimed:
      states.append(f"{claimed} claimed by other runners")
    if failed:
      states.append(f"{len(failed)} failed")
    made, seconds = sum(shares.values()) - self._first, self._clock() - self._began
    remaining = sum(1 - share for share in shares.values())
    # A smaller part of a run is mostly its start, which takes longer than its steps.
    estimate = made >= _LEAST_SHARE and remaining > 0
    time_left = f", about {duration(remaining * seconds / made)} left" if estimate else ""
    text = ", ".join(states) + time_left
    at = "; ".join(f"{run} at step {steps[run]}/{self._steps[run]}" for run in running)
    self._line.show(f"{text} ({at})" if at else text, text)

  def flush(self) -> None:
    """Clears the line of a terminal; prints the newest state in a log file, if it was not printed."""
    self._line.flush()


def newest_step(workdir: pathlib.Path) -> int:
  """Returns the step of the last complete line of a run's ``metrics.jsonl``; 0 where there is none."""
  try:
    with (workdir / "metrics.jsonl").open("rb") as file:
      file.seek(max(file.seek(0, 2) - 65536, 0))
      lines = file.read().split(b"\n")[:-1]
    return int(json.loads(lines[-1])["step"]) if lines else 0
  except (OSError, ValueError, KeyError, TypeError):
    return 0


def _number(count: int, noun: str) -> str:
  return f"{count} {noun}{'' if count == 1 else 's'}"
