"""The process that reads damaged files: one line of JSON for each file asked for. A crash ends this process alone.

python -m benchmarks.fuzz.worker UNDAMAGED FOLDER FD
"""

import json
import os
import pathlib
import random
import resource
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

from benchmarks.fuzz import checks, mutations
from benchmarks.fuzz.kinds import KINDS, Kind

SPARE = 1 << 30  # bytes of address space beyond the bound, in which threads of libraries place their arenas


def targets(kind: Kind, folder: pathlib.Path) -> list[str]:
  """Lists the files of an undamaged folder that are damaged."""
  paths = {path for pattern in kind.targets for path in folder.glob(pattern)}
  return sorted(path.relative_to(folder).as_posix() for path in paths if path.is_file())


def damage(name: str, undamaged: pathlib.Path, seed: int, number: int) -> tuple[str, bytes]:
  """Returns a file's name and its damaged content, equal for equal arguments and undamaged files.

  Args:
    name: of the kind.
    undamaged: folder of the kind's undamaged files.
    seed: of all files.
    number: of this file.
  """
  kind = KINDS[name]
  rng = random.Random(f"{name} {seed} {number}")
  files = targets(kind, undamaged)
  target = rng.choice(files)
  contents = [(undamaged / file).read_bytes() for file in files]
  content = (undamaged / target).read_bytes()
  return target, mutations.damaged(content, rng, contents, kind.mutations)


class Reader:
  """Reads the files of one kind."""

  def __init__(
    self, name: str, undamaged: pathlib.Path, folder: pathlib.Path, watch: checks.Watch, memory: int
  ):
    """Reads the undamaged files, which also imports the libraries.

    Args:
      name: of the kind.
      undamaged: folder of the kind's undamaged files.
      folder: for their copies.
      watch: of this process.
      memory: bound in bytes.
    """
    self._kind, self._undamaged, self._folder, self._watch, self._memory = (
      KINDS[name],
      undamaged,
      folder,
      watch,
      memory,
    )
    self._readings: dict[str, Any] = {}
    for target in targets(self._kind, undamaged):
      self._restore()
      try:
        self._readings[target] = self._kind.read(folder, target)
      except ValueError as error:
        # Such as a pickled module: refused in any case.
        if checks.unclear(error, folder):
          raise
        self._readings[target] = None
    self._restore()

  def _restore(self) -> None:
    if self._folder.exists():
      shutil.rmtree(self._folder)
    shutil.copytree(self._undamaged, self._folder)

  def read(self, target: str, content: bytes) -> dict[str, Any]:
    """Reads a damaged file; returns ``result`` (right, error, or the fault), ``seconds`` and ``bytes``."""
    if target not in self._readings:
      unknown = f"{target!r} is no file of this kind, expected one of {', '.join(self._readings)}"
      return {"result": unknown, "failed": True, "class": "", "seconds": 0.0, "bytes": 0, "target": target}
    if self._kind.writes:
      self._restore()
    path = self._folder / target
    path.write_bytes(content)
    marker = pathlib.Path(mutations.MARKER)
    marker.unlink(missing_ok=True)
    checks.reset_peak()
    before = checks.memory("VmRSS")
    resource.setrlimit(
      resource.RLIMIT_AS, (checks.memory("VmSize") + self._memory + SPARE, resource.RLIM_INFINITY)
    )
    start = time.process_time()
    fault, error_class = "", ""
    reading = None
    with self._watch.watching() as events:
      try:
        reading = self._kind.read(self._folder, target)
      except Exception as error:
        fault, error_class = checks.unclear(error, self._folder), checks.error_class(error)
    seconds = time.process_time() - start
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    used = max(0, checks.memory("VmHWM") - before)
    if not fault and not error_class and not self._is_right(reading, target):
      fault = f"a wrong reading, {_shown(reading)}"
    if used > self._memory:
      fault = f"{used >> 20} MiB of memory, expected at most {self._memory >> 20}"
    if events or marker.exists():
      fault = f"ran what the file says: {events or marker}"
    if not self._kind.writes:
      shutil.copyfile(self._undamaged / target, path)
    return {
      **{
        "result": fault or ("error" if error_class else "right"),
        "failed": bool(fault),
        "class": error_class,
      },
      **{"seconds": seconds, "bytes": used, "target": target},
    }

  def _is_right(self, reading: Any, target: str) -> bool:
    undamaged = self._readings[target]
    if checks.same(reading, undamaged, self._kind.tolerance):
      return True
    try:
      readings = self._kind.other_readings(self._folder, target, undamaged)
      return any(checks.same(reading, other, self._kind.tolerance) for other in readings)
    except Exception:  # the other reader finds the file damaged, and the product does not
      return False


def _shown(reading: Any) -> str:
  shape = getattr(reading, "shape", None)
  text = f"an array {list(shape)}" if shape is not None else repr(reading)
  return text if len(text) < 200 else text[:200] + "..."


def main(arguments: Sequence[str]) -> None:
  undamaged, folder, answers = pathlib.Path(arguments[0]), pathlib.Path(arguments[1]), int(arguments[2])
  warnings.simplefilter("ignore")
  folder.mkdir(parents=True, exist_ok=True)
  os.chdir(folder)
  watch = checks.Watch()
  readers: dict[str, Reader] = {}
  with os.fdopen(answers, "w") as output:
    for line in sys.stdin:
      task = json.loads(line)
      name = task["kind"]
      if name not in readers:
        readers[name] = Reader(name, undamaged / name, folder / name, watch, task["memory"])
        answer: dict[str, Any] = {"ready": True}
      elif "file" in task:
        answer = readers[name].read(task["target"], pathlib.Path(task["file"]).read_bytes())
      else:
        answer = readers[name].read(*damage(name, undamaged / name, task["seed"], task["number"]))
      output.write(json.dumps(answer) + "\n")
      output.flush()


if __name__ == "__main__":
  main(sys.argv[1:])
