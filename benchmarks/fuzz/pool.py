"""Shares the damaged files among processes, ends those that hang, replaces those that crash, and counts."""

import collections
import dataclasses
import json
import os
import pathlib
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

# Seconds of computing in which a process imports its libraries and reads the undamaged files of a kind.
_START_S = 180
_ROOT = pathlib.Path(__file__).resolve().parents[2]


class Limits(NamedTuple):
  """What reading a file may take.

  Attributes:
    seconds: of computing.
    memory: bytes beyond what the process has.
    waiting: seconds of the clock; more by far, because a busy machine gives a process little time.
  """

  seconds: float
  memory: int
  waiting: float = 300


class Failure(NamedTuple):
  """A damaged file that was neither refused clearly nor read right.

  Attributes:
    kind: of the file.
    number: of the file.
    fault: what happened.
  """

  kind: str
  number: int
  fault: str


class Process:
  """A process that reads files. ``ask`` starts it again after a crash.

  Args:
    undamaged: folder with a folder of each kind's undamaged files.
    folder: where the process copies and damages them.
    limits: of each file.
    module: that the process runs.
  """

  def __init__(
    self,
    undamaged: pathlib.Path,
    folder: pathlib.Path,
    limits: Limits,
    module: str = "benchmarks.fuzz.worker",
  ):
    self._undamaged, self._folder, self._limits, self._module = undamaged, folder, limits, module
    self._process: subprocess.Popen[str] | None = None
    self._answers = -1
    self._ready: set[str] = set()

  def __enter__(self) -> "Process":
    return self

  def __exit__(self, *of_exception: object) -> None:
    self._end()

  def ask(self, task: dict[str, Any]) -> dict[str, Any]:
    """Returns the answer on a file; one with a fault where the process crashes or takes too long.

    Raises:
      RuntimeError: the undamaged files cannot be read.
    """
    task = {**task, "memory": self._limits.memory}
    if task["kind"] not in self._ready:
      ready = self._answer(task, _START_S, 10 * _START_S)
      if not ready.get("ready"):
        raise RuntimeError(f"{task['kind']}: the undamaged files cannot be read: {ready['result']}")
      self._ready.add(task["kind"])
    return self._answer(task, self._limits.seconds, self._limits.waiting)

  def _answer(self, task: dict[str, Any], seconds: float, waiting: float) -> dict[str, Any]:
    process = self._process or self._start()
    assert process.stdin is not None
    start = time.monotonic()
    fault = ""
    try:
      process.stdin.write(json.dumps(task) + "\n")
      process.stdin.flush()
    except BrokenPipeError:
      fault = "crashed"
    text, computed = b"", _cpu_seconds(process.pid)
    while not fault and not text.endswith(b"\n"):
      readable, _, _ = select.select([self._answers], [], [], 0.25)
      if readable:
        part = os.read(self._answers, 1 << 16)
        fault = "" if part else "crashed"
        text += part
      elif _cpu_seconds(process.pid) - computed > seconds or time.monotonic() - start > waiting:
        fault = f"no result after {seconds:g} s"
    if not fault:
      answer: dict[str, Any] = json.loads(text)
      return answer
    if fault == "crashed":
      status = process.wait()
      fault = f"the process ended with status {status}" + (f" (signal {-status})" if status < 0 else "")
    self._end()
    taken = time.monotonic() - start
    return {"result": fault, "failed": True, "class": "", "seconds": taken, "bytes": 0, "target": ""}

  def _start(self) -> "subprocess.Popen[str]":
    self._answers, written = os.pipe()
    # Libraries print about damaged files to both standard streams.
    quiet = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", "OPENCV_LOG_LEVEL": "SILENT"}
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    self._folder.mkdir(parents=True, exist_ok=True)
    with (self._folder / "messages.txt").open("w") as messages:
      self._process = subprocess.Popen(
        [sys.executable, "-m", self._module, str(self._undamaged), str(self._folder), str(written)],
        stdin=subprocess.PIPE,
        stdout=messages,
        stderr=messages,
        pass_fds=(written,),
        cwd=_ROOT,
        env={**os.environ, **quiet, "PYTHONPATH": path},
        text=True,
        start_new_session=True,  # Ctrl-C in a terminal would end it in the middle of a file
      )
    os.close(written)
    return self._process

  def _end(self) -> None:
    if self._process is None:
      return
    self._process.kill()
    self._process.communicate()
    os.close(self._answers)
    self._process = None
    self._ready.clear()


def _cpu_seconds(process: int) -> float:
  """Returns the seconds that a process has computed; where the system does not say, those of the clock."""
  try:
    fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
  except OSError:
    return time.monotonic()
  return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass
class _Counts:
  files: int = 0
  errors: int = 0
  right: int = 0
  spent: float = 0.0
  slowest: float = 0.0
  peak: int = 0
  classes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


class Tally:
  """The results of all files by kind; several threads add to it."""

  def __init__(self, kinds: Sequence[str]):
    self.failures: list[Failure] = []
    self._counts = {kind: _Counts() for kind in kinds}
    self._next = dict.fromkeys(kinds, 0)
    self._lock = threading.Lock()

  def next_file(self, files: int) -> tuple[str, int] | None:
    """Returns kind and number of a file of the kind that had the least time; None after ``files`` of each kind."""
    with self._lock:
      kinds = [kind for kind, number in self._next.items() if not files or number < files]
      if not kinds:
        return None
      kind = min(kinds, key=lambda kind: self._counts[kind].spent)
      number = self._next[kind]
      self._next[kind] += 1
      # Counted at once, so that another thread takes another kind; the measured time takes its place.
      self._counts[kind].spent += 0.001
      return kind, number

  def add(self, kind: str, number: int, answer: dict[str, Any], spent: float) -> None:
    """Counts the answer on a file, which took ``spent`` seconds in all."""
    with self._lock:
      counts = self._counts[kind]
      counts.files += 1
      counts.spent += spent
      counts.slowest = max(counts.slowest, answer["seconds"])
      counts.peak = max(counts.peak, answer["bytes"])
      if answer["failed"]:
        self.failures.append(Failure(kind, number, answer["result"]))
      elif answer["result"] == "right":
        counts.right += 1
      else:
        counts.errors += 1
        counts.classes[answer["class"]] += 1

  def table(self) -> str:
    """Returns the results as a table in Markdown."""
    lines = [
      "| kind | files | clear errors | right | failures | slowest, s | peak memory, MiB | errors by function |",
      "|---|---|---|---|---|---|---|---|",
    ]
    for kind, counts in self._counts.items():
      failures = sum(failure.kind == kind for failure in self.failures)
      classes = ", ".join(f"{name} {count}" for name, count in counts.classes.most_common(4))
      lines.append(
        f"| {kind} | {counts.files:,} | {counts.errors:,} | {counts.right:,} | {failures:,} | {counts.slowest:.2f} | "
        f"{counts.peak >> 20} | {classes} |"
      )
    total = sum(counts.files for counts in self._counts.values())
    return "\n".join([*lines, "", f"{total:,} damaged files, {len(self.failures):,} failures"])


def run(
  folder: pathlib.Path,
  kinds: Sequence[str],
  seed: int,
  seconds: float,
  files: int,
  processes: int,
  limits: Limits,
  module: str = "benchmarks.fuzz.worker",
) -> Tally:
  """Reads damaged files in several processes, until an interrupt at the latest.

  Args:
    folder: holds ``undamaged`` with a folder for each kind.
    kinds: names.
    seed: of all files.
    seconds: in which files are read, with imports.
    files: of each kind, in place of ``seconds``; 0: none.
    processes: their number.
    limits: of each file.
    module: that the processes run.
  """
  tally = Tally(kinds)
  end = time.monotonic() + seconds
  errors: list[BaseException] = []
  stop = threading.Event()

  def work(index: int) -> None:
    try:
      with Process(folder / "undamaged", folder / str(index), limits, module) as process:
        while not stop.is_set() and (files or time.monotonic() < end):
          following = tally.next_file(files)
          if following is None:
            return
          kind, number = following
          start = time.monotonic()
          answer = process.ask({"kind": kind, "number": number, "seed": seed})
          tally.add(kind, number, answer, time.monotonic() - start)
    except BaseException as error:
      errors.append(error)
      stop.set()

  threads = [threading.Thread(target=work, args=(index,)) for index in range(processes)]
  for thread in threads:
    thread.start()
  try:
    for thread in threads:
      thread.join()
  except KeyboardInterrupt:  # the files that were read count
    stop.set()
    for thread in threads:
      thread.join()
  if errors:
    raise errors[0]
  return tally
