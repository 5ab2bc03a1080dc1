"""What a reading of a damaged file may be, and what it must not do."""

import contextlib
import math
import pathlib
import re
import sys
import traceback
from typing import Any

import numpy as np

from benchmarks.fuzz.mutations import MARKER

LONGEST_MESSAGE = 900  # letters
_PACKAGE = str(pathlib.Path(__file__).resolve().parents[2] / "rc_jax")
# Events of sys.addaudithook that a reading must not cause.
_FORBIDDEN = (
  *("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn", "subprocess.Popen"),
  *("socket.connect", "pickle.find_class", "shutil.rmtree"),
)


def unclear(error: BaseException, folder: pathlib.Path) -> str:
  """Returns why an error is none that helps its reader; empty where it is one line of the product that names a file.

  Args:
    error: caught.
    folder: of the damaged file.
  """
  name = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
  frames = traceback.extract_tb(error.__traceback__)
  place = f" in {pathlib.Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
  ours = [frame for frame in frames if frame.filename.startswith(_PACKAGE)]
  caller = f", called by {pathlib.Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
  is_own_type = type(error) in (ValueError, OSError, FileNotFoundError) or type(error).__module__.startswith(
    "rc_jax"
  )
  if not is_own_type or not frames or not frames[-1].filename.startswith(_PACKAGE):
    return f"an error of a library, {name}{place}{caller}"
  text = str(error)
  if str(folder) not in text:
    return f"an error without the name of the file, {name}{place}"
  if not text.isprintable():
    return f"an error with control characters, {ascii(text)[-200:]}{place}"
  if len(text) > LONGEST_MESSAGE:
    return f"an error of {len(text)} letters, {name}{place}"
  return ""


def error_class(error: BaseException) -> str:
  """Returns the place of a clear error, for the table of errors by kind."""
  frame = traceback.extract_tb(error.__traceback__)[-1]
  return f"{pathlib.Path(frame.filename).stem}.{frame.name}"


def same(one: Any, other: Any, tolerance: int = 0) -> bool:
  """Returns whether two readings are equal: NaN equals NaN, and numbers of images may differ by ``tolerance``."""
  pairs = [(one, other)]
  while pairs:  # no recursion: a file may hold lists in lists, hundreds deep
    a, b = pairs.pop()
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
      if not _same_arrays(a, b, tolerance):
        return False
    elif isinstance(a, dict) and isinstance(b, dict):
      if a.keys() != b.keys():
        return False
      pairs += [(a[key], b[key]) for key in a]
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple):
      if len(a) != len(b):
        return False
      pairs += zip(a, b, strict=True)
    elif isinstance(a, float) and isinstance(b, float) and math.isnan(a):
      if not math.isnan(b):
        return False
    elif type(a) is not type(b) or a != b:
      return False
  return True


def _same_arrays(one: np.ndarray, other: np.ndarray, tolerance: int) -> bool:
  if one.shape != other.shape:
    return False
  if tolerance and one.size:
    return int(np.abs(one.astype(int) - other.astype(int)).max()) <= tolerance
  return one.dtype.kind == other.dtype.kind and np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")


class Watch:
  """Records what a reading asks the system to run. Python has no way to remove the hook."""

  def __init__(self) -> None:
    self._events: list[str] = []
    self._active = False
    sys.addaudithook(self._record)

  def _record(self, event: str, arguments: tuple[Any, ...]) -> None:
    if self._active and (event in _FORBIDDEN or (event == "open" and MARKER in str(arguments[0]))):
      self._events.append(f"{event} {str(arguments)[:100]}")

  @contextlib.contextmanager
  def watching(self) -> Any:
    self._events.clear()
    self._active = True
    try:
      yield self._events
    finally:
      self._active = False


def memory(field: str) -> int:
  """Returns a size of this process in bytes: ``VmHWM``, the peak in memory, ``VmRSS`` or ``VmSize``; 0 if unknown."""
  try:
    status = pathlib.Path("/proc/self/status").read_text()
  except OSError:
    return 0
  found = re.search(rf"{field}:\s+(\d+) kB", status)
  return int(found[1]) * 1024 if found else 0


def reset_peak() -> None:
  """Makes ``VmHWM`` the present size."""
  with contextlib.suppress(OSError):
    pathlib.Path("/proc/self/clear_refs").write_text("5")
