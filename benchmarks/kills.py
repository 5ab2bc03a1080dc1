"""Kills runs at random moments, resumes them, and compares their ends with an undisturbed run bit for bit.

  python -m benchmarks.kills --runs=100 [--variant=plain] [--rows=kills.jsonl]

A run of the first 14 steps of ``configs/demo.py`` on small crops logs each step, saves every 4 and scores every 7. Each
series starts such a run, sends SIGKILL at up to 5 moments, starts the same command again after each, and lets it
finish. ``benchmarks.run_comparison`` then compares the folder with that of an undisturbed run. A moment is a random
time after the first or second start of a random stage, or after the start of the process. Every fourth series starts
without compiled programs; the others find those of JAX's persistent cache.

Of two processes one is killed, and the time is measured until the other ends by itself. An interrupted call continues,
because complete series are kept in ``--rows``. The exit status is 1 if anything differs.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from benchmarks.run_comparison import differences
from rc_jax import data
from rc_jax.console import say

STEPS, SCORED_EVERY, SAVED_EVERY = 14, 7, 4
SETTINGS = (
  *("--config=configs/demo.py", f"--config.train.steps={STEPS}", f"--config.train.eval_every={SCORED_EVERY}"),
  *(f"--config.train.checkpoint_every={SAVED_EVERY}", "--config.train.log_every=1"),
  *("--config.train.crop_size=49,65", "--config.train.batch_size=8", "--config.contrast.bank_size=20"),
  *("--config.model.channels=16", "--config.model.aux_channels=16", "--config.eval.batch_size=20"),
)
COMMAND = (sys.executable, "-m", "rc_jax.main")
STAGES = ("start-up", "compiling", "steps", "saving", "scoring", "report")
ANY = "any"  # a moment counted from the start of the process
SERIES = 5  # kills at most, before the run is left to finish
COLD_EVERY = 4  # series
POLL = 0.008  # seconds
LIMIT = 1800.0  # seconds after which a process counts as stuck; a start takes minutes on a machine with much other work


@dataclasses.dataclass(frozen=True)
class Variant:
  """A way to run.

  Attributes:
    share: of the kills, where all variants are measured.
    flags: of the command line, besides ``SETTINGS``.
    processes: number of processes.
    devices: of each process.
    prepared: whether the data were written by ``--mode=prepare``.
  """

  share: float
  flags: tuple[str, ...] = ()
  processes: int = 1
  devices: int = 1
  prepared: bool = False


VARIANTS = {
  "plain": Variant(0.6),
  "data workers": Variant(0.1, flags=("--config.data.workers=2",)),
  "prepared data": Variant(0.1, prepared=True),
  "8 devices": Variant(0.1, devices=8),
  "2 processes": Variant(0.1, processes=2),
}


class Session:
  """The processes of one start of a run, their output, and the stage in which the run is."""

  def __init__(self, workdir: pathlib.Path, variant: Variant, dataset: Sequence[str], cache: pathlib.Path):
    """Starts the processes.

    Args:
      workdir: the run's folder.
      variant: how to run.
      dataset: flags that name the data.
      cache: folder of compiled programs.
    """
    self._workdir = workdir
    self._start = time.monotonic()
    self._outputs = [workdir.with_name(f"{workdir.name}_{index}.log") for index in range(variant.processes)]
    self.processes = []
    port = _free_port()
    for index, path in enumerate(self._outputs):
      environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={variant.devices}",
      }
      if variant.processes > 1:
        environment["RC_JAX_COORDINATOR"] = f"127.0.0.1:{port}"
        environment["RC_JAX_PROCESSES"] = str(variant.processes)
        environment["RC_JAX_PROCESS_ID"] = str(index)
      with path.open("wb") as output:
        self.processes.append(
          subprocess.Popen(
            [*COMMAND, *SETTINGS, *dataset, *variant.flags, f"--workdir={workdir}"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
          )
        )

  def stage(self) -> str:
    """Returns one of ``STAGES``."""
    return stage_of(self._outputs[0].read_text(errors="replace"), self._workdir)

  def seconds(self) -> float:
    """Returns the time since the start."""
    return time.monotonic() - self._start

  def wait(self, seconds: float) -> bool:
    """Waits until all processes have ended; ends them and returns False where they take too long."""
    deadline = time.monotonic() + seconds
    for process in self.processes:
      try:
        process.wait(max(0.1, deadline - time.monotonic()))
      except subprocess.TimeoutExpired:
        self.kill_all()
        return False
    return True

  def end(self, seconds: float) -> str:
    """Waits as ``wait``; returns the problem of a session that should finish: it takes longer, or fails; else ""."""
    if not self.wait(seconds):
      return f"did not end in {seconds:.0f} s"
    statuses = [process.returncode for process in self.processes]
    if not any(statuses):
      return ""
    tails = [" / ".join(path.read_text(errors="replace").splitlines()[-3:]) for path in self._outputs]
    return f"exit status {statuses}: {' // '.join(tails)}"

  def kill_all(self) -> None:
    for process in self.processes:
      process.kill()
      process.wait()

  def __enter__(self) -> "Session":
    return self

  def __exit__(self, *error: object) -> None:
    self.kill_all()


def stage_of(printed: str, workdir: pathlib.Path) -> str:
  """Returns the stage of a run, one of ``STAGES``.

  Args:
    printed: what its first process has printed since it was started.
    workdir: its folder.
  """
  if "drawing the report" in printed:
    return "report"
  if "network: " not in printed:
    return "start-up"
  if next((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"), None):
    return "saving"
  if _score_is_due(workdir / "metrics.jsonl"):
    return "scoring"
  if "compiled the train step" in printed:
    return "steps"
  return "compiling" if "compiling the train step" in printed else "start-up"


def _score_is_due(log: pathlib.Path) -> bool:
  """Returns whether the last line of a log is that of a step which the run scores."""
  try:
    line = json.loads(log.read_text().splitlines()[-1])
  except (OSError, ValueError, IndexError):
    return False
  return "loss" in line and (line["step"] % SCORED_EVERY == 0 or line["step"] == STEPS)


@dataclasses.dataclass
class Timing:
  """How long a run takes on this machine now.

  Attributes:
    stages: seconds of one occurrence of each stage in an undisturbed run.
    total: seconds of that run.
    pace: seconds of start-up in the newest session, over those of the undisturbed run: other work on the machine may
      have slowed it down.
  """

  stages: dict[str, float]
  total: float
  pace: float = 1.0


def undisturbed(workdir: pathlib.Path, start: Callable[[pathlib.Path], Session]) -> Timing:
  """Runs to the end; returns how long that took.

  Raises:
    RuntimeError: it failed.
  """
  seconds, occurrences, last = Counter[str](), Counter[str](), ""
  with start(workdir) as session:
    while session.processes[0].poll() is None and session.seconds() < LIMIT:
      stage, before = session.stage(), session.seconds()
      time.sleep(POLL)
      seconds[stage] += session.seconds() - before
      occurrences[stage] += stage != last
      last = stage
    problem = session.end(LIMIT)
    if problem:
      raise RuntimeError(f"the undisturbed run: {problem}")
    return Timing({stage: seconds[stage] / max(1, occurrences[stage]) for stage in STAGES}, session.seconds())


def kill_once(session: Session, rng: random.Random, timing: Timing) -> dict[str, Any] | None:
  """Kills one process of a session at a random moment, and waits until the others have ended.

  Args:
    session: just started.
    rng: chooses process and moment.
    timing: of such sessions; its pace is updated.

  Returns:
    The kill: stage, seconds since the start, number of the process, and the seconds after which the others had ended
    (-1 where they did not). None where the process ended first, or did not come to the moment in ``LIMIT`` seconds.
  """
  target, occurrence, share = rng.choice((*STAGES, ANY)), rng.randint(1, 2), rng.random()
  if target not in ("steps", "saving", "scoring"):
    occurrence = 1  # the others come once in a session
  victim = rng.randrange(len(session.processes))
  moment = share * timing.total * timing.pace if target == ANY else math.inf
  seen, stage = 0, ""
  while session.seconds() < moment:
    if session.processes[victim].poll() is not None or session.seconds() > LIMIT:
      return None
    last, stage = stage, session.stage()
    if last == "start-up" != stage:
      timing.pace = session.seconds() / timing.stages["start-up"]
    if stage == target != last:
      seen += 1
      if seen == occurrence:
        moment = session.seconds() + share * timing.stages[target] * timing.pace
    time.sleep(POLL)
  after = session.seconds()
  session.processes[victim].kill()
  if session.processes[victim].wait() != -signal.SIGKILL:
    return None  # it ended by itself since the last look
  kill = {"target": target, "stage": session.stage(), "after": round(after, 3), "process": victim}
  if len(session.processes) > 1:
    ended = session.wait(LIMIT)
    kill["others_ended"] = round(session.seconds() - after, 1) if ended else -1
  return kill


def run_series(
  workdir: pathlib.Path,
  reference: pathlib.Path,
  kills: int,
  rng: random.Random,
  start: Callable[[pathlib.Path], Session],
  timing: Timing,
) -> dict[str, Any]:
  """Kills and resumes one run, lets it finish, and compares it.

  Args:
    workdir: its folder, which does not exist.
    reference: folder of the undisturbed run.
    kills: how many at most; fewer where the run ends before one.
    rng: chooses the moments.
    start: starts a session in a folder.
    timing: of such sessions.

  Returns:
    A row of the result: the kills, the deviations, the seconds that it took.
  """
  made: list[dict[str, Any]] = []
  problems: list[str] = []
  begin = time.monotonic()
  while len(made) < kills and not problems:
    with start(workdir) as session:
      kill = kill_once(session, rng, timing)
      if kill is None:
        problems.append(session.end(LIMIT))
        break
    made.append(kill)
    if kill.get("others_ended") == -1:
      problems.append(f"the other process did not end in {LIMIT:.0f} s")
  # A run that ended before its next kill is started again too: that must change nothing.
  with start(workdir) as session:
    problems.append(session.end(LIMIT))
  if not problems[-1]:
    problems += differences(reference, workdir)
  deviations = [problem for problem in problems if problem]
  return {"kills": made, "deviations": deviations, "seconds": round(time.monotonic() - begin, 1)}


def kills_of_variants(runs: int, names: Sequence[str]) -> dict[str, int]:
  """Divides a number of kills among variants by their shares, largest remainder first."""
  shares = {name: VARIANTS[name].share for name in names}
  exact = {name: runs * share / sum(shares.values()) for name, share in shares.items()}
  counts = {name: math.floor(value + 1e-9) for name, value in exact.items()}
  by_remainder = sorted(names, key=lambda name: counts[name] - exact[name])
  for name in by_remainder[: runs - sum(counts.values())]:
    counts[name] += 1
  return counts


def table(rows: Sequence[dict[str, Any]]) -> str:
  """Returns the Markdown table of rows: kills by variant and stage, deviations, longest wait for other processes."""
  lines = [
    f"| variant | kills | {' | '.join(STAGES)} | runs compared | deviations | others ended after |",
    f"|{'---|' * (len(STAGES) + 5)}",
  ]
  for name in (*VARIANTS, "all"):
    chosen = [row for row in rows if name in (row["variant"], "all")]
    if not chosen:
      continue
    kills = [kill for row in chosen for kill in row["kills"]]
    stages = Counter(kill["stage"] for kill in kills)
    waits = [kill["others_ended"] for kill in kills if "others_ended" in kill]
    by_stage = " | ".join(str(stages[stage]) for stage in STAGES)
    deviations = sum(len(row["deviations"]) for row in chosen)
    waited = f"{min(waits):g} to {max(waits):g} s" if waits else ""
    lines.append(f"| {name} | {len(kills)} | {by_stage} | {len(chosen)} | {deviations} | {waited} |")
  return "\n".join(lines)


def measure(
  name: str, kills: int, rows: list[dict[str, Any]], path: pathlib.Path, folder: pathlib.Path, seed: int
) -> None:
  """Runs series of one variant until ``rows`` hold so many kills of it and of the seed; appends each to both."""
  variant = VARIANTS[name]
  mine = [row for row in rows if (row["variant"], row["seed"]) == (name, seed)]
  left = kills - sum(len(row["kills"]) for row in mine)
  if left <= 0:
    return
  folder.mkdir(parents=True)
  dataset = prepared_data(folder / "data") if variant.prepared else ()
  warm = folder / "cache"

  def start(workdir: pathlib.Path, cache: pathlib.Path = warm) -> Session:
    return Session(workdir, variant, dataset, cache)

  undisturbed(folder / "control", start)
  reference = folder / "reference"
  # The control compiled its programs, and this run reads them: two undisturbed runs must not differ either.
  timing = undisturbed(reference, start)
  control = differences(reference, folder / "control")
  if control:
    raise RuntimeError(f"{name}: two undisturbed runs differ: {control}")
  stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in timing.stages.items())
  say(f"{name}: an undisturbed run takes {timing.total:.1f} s; once {stages}")
  index = len(mine)
  while left > 0:
    cold = folder / f"cache{index}"
    cache = cold if index % COLD_EVERY == COLD_EVERY - 1 else warm
    workdir = folder / f"series{index}"
    rng = random.Random(f"{seed} {name} {index}")
    row = run_series(
      workdir, reference, min(SERIES, left), rng, lambda path, cache=cache: start(path, cache), timing
    )
    row = {"variant": name, "seed": seed, "series": index, "cold": cache == cold, **row}
    rows.append(row)
    with path.open("a") as file:
      file.write(json.dumps(row) + "\n")
    left -= len(row["kills"])
    stages = ", ".join(f"{kill['stage']} at {kill['after']:.1f} s" for kill in row["kills"])
    say(
      f"{name} {index}: killed in {stages or 'no stage'}; {row['deviations'] or 'no deviation'}; {left} kills left"
    )
    shutil.rmtree(cold, ignore_errors=True)
    if not row["deviations"]:
      shutil.rmtree(workdir)
    index += 1


def prepared_data(root: pathlib.Path) -> tuple[str, ...]:
  """Writes synthetic scenes as a folder of images and packs it; returns the flags that name it."""
  raw = root / "raw"
  for split, count in (("train", 40), ("val", 20)):
    source = data.load("synthetic", "", split)
    for kind in ("images", "labels"):
      (raw / kind / split).mkdir(parents=True)
    for index in range(count):
      example = source[index]
      Image.fromarray(example["image"]).save(raw / "images" / split / f"{index:03}.png")
      Image.fromarray(np.asarray(example["label"], np.uint8)).save(raw / "labels" / split / f"{index:03}.png")
  names = data.info("synthetic", "").class_names
  lines = ["id,name", *(f"{index},{name}" for index, name in enumerate(names)), "255,ignore", ""]
  (raw / "classes.csv").write_text("\n".join(lines))
  flags = ("--config.dataset.name=folder", f"--config.dataset.root={raw}")
  command = (*COMMAND, "--mode=prepare", *SETTINGS[:1], *flags, f"--output={root / 'packed'}")
  subprocess.run(command, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
  return ("--config.dataset.name=folder", f"--config.dataset.root={root / 'packed'}")


def _free_port() -> int:
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return int(free.getsockname()[1])


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
    "--runs", type=int, default=100, help="kills, each of which is followed by a resumed run"
  )
  parser.add_argument(
    "--variant", choices=tuple(VARIANTS), help="default: all, with their shares of the kills"
  )
  parser.add_argument(
    "--rows", type=pathlib.Path, default=pathlib.Path("kills.jsonl"), help="JSON lines of the series"
  )
  parser.add_argument("--folder", type=pathlib.Path, help="for the runs; default: a temporary folder")
  parser.add_argument("--seed", type=int, default=0, help="of the moments")
  options = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the running session too
  names = (options.variant,) if options.variant else tuple(VARIANTS)
  rows = (
    [json.loads(line) for line in options.rows.read_text().splitlines()] if options.rows.is_file() else []
  )
  folder = pathlib.Path(tempfile.mkdtemp(prefix="kills_", dir=options.folder))
  for index, (name, kills) in enumerate(kills_of_variants(options.runs, names).items()):
    measure(name, kills, rows, options.rows, folder / str(index), options.seed)
  print(table(rows))
  deviations = [f"{row['variant']} {row['series']}: {text}" for row in rows for text in row["deviations"]]
  print("\n".join(deviations) or "no deviation")
  if deviations:
    print(f"the folders of the runs that deviate are kept in {folder}")
    return 1
  shutil.rmtree(folder)
  return 0


if __name__ == "__main__":
  sys.exit(main())
