"""Lines on the screen: messages of the first process, durations, and the one line that a terminal rewrites.

A terminal has at most one line that is rewritten. ``say`` clears it before it prints. In a log file, where nothing can
be rewritten, the same text becomes a new line now and then. Nothing here raises when the screen is gone.
"""

import contextlib
import math
import shutil
import threading
import time
from collections.abc import Iterator

import jax

from rc_jax.streams import is_terminal, write_output

CLEAR_LINE = "\r\x1b[K"  # the cursor to the left margin, and erase to the end of the line
_TERMINAL_SECONDS = 0.5  # between two updates of a line that a terminal rewrites
_FILE_SECONDS = 10  # between two lines in a log file
_WAITING_SECONDS = 1  # between two updates of `waiting`

_lock = threading.RLock()  # `waiting` rewrites the line from a thread
_line_shown = False


def say(message: str) -> None:
  """Prints a line; silent in all processes but the first."""
  if jax.process_index() == 0:
    with _lock:
      clear_line()
      write_output(f"{message}\n")


def clear_line() -> None:
  """Clears the line of a terminal, if one is shown; whoever prints without ``say`` calls this first."""
  global _line_shown
  with _lock:
    if _line_shown:
      write_output(CLEAR_LINE)
      _line_shown = False


def duration(seconds: float) -> str:
  """Formats a duration, in seconds or, from a minute on, in minutes, and from an hour on in hours.

  >>> duration(42), duration(187), duration(7500), duration(float("inf"))
  ('42 s', '3:07 min', '2:05 h', '?')
  """
  if not math.isfinite(seconds):
    return "?"
  rounded = round(seconds)
  if rounded < 60:
    return f"{rounded} s"
  if rounded < 3600:
    return f"{rounded // 60}:{rounded % 60:02d} min"
  return f"{rounded // 3600}:{rounded % 3600 // 60:02d} h"


class UpdatingLine:
  """A line that changes while a task goes on.

  A terminal rewrites it at most every half second. A log file gets a new line at most every ten seconds, or as often as
  the task says.

  Attributes:
    rewrites: whether standard output is a terminal.
  """

  def __init__(self, file_seconds: float = _FILE_SECONDS) -> None:
    self.rewrites = is_terminal()
    self._interval = _TERMINAL_SECONDS if self.rewrites else file_seconds
    self._last = -math.inf
    self._newest = ""  # came too soon after another

  def show(self, *texts: str) -> None:
    """Shows the task's new state, unless another was shown just before.

    Args:
      texts: the same state from the longest to the shortest form. A terminal shows the first that fits its width, or
        the start of the last. A log file gets the first.
    """
    if time.monotonic() - self._last < self._interval:
      self._newest = texts[0]
      return
    self._newest, self._last = "", time.monotonic()
    if self.rewrites:
      _rewrite(texts)
    else:
      say(texts[0])

  def postpone(self) -> None:
    """Starts the interval in which nothing is shown."""
    self._last = time.monotonic()

  def flush(self) -> None:
    """Clears the line of a terminal; prints in a log file the newest state, if it was not shown."""
    if self.rewrites:
      clear_line()
    elif self._newest:
      say(self._newest)
    self._newest = ""


class Progress:
  """A line with the finished share of a task, its rate and the time left."""

  def __init__(self, task: str, total: int, unit: str):
    """Starts the clock.

    Args:
      task: the task's name, ``"scoring"``.
      total: number of units of the task.
      unit: a plural noun, ``"images"``.
    """
    self._task, self._total, self._unit = task, total, unit
    self._done = self._first = 0
    self._start = time.monotonic()
    self._line = UpdatingLine()
    if self._line.rewrites:
      self._line.show(f"{task}: 0/{total} {unit}")
    self._line.postpone()  # a short task needs no line in a log file

  def advance(self, count: int) -> None:
    """Adds ``count`` finished units, and shows the line unless it was shown just before."""
    now = time.monotonic()
    if not self._done:
      # Programs are compiled during the first units, so their rate says nothing about the others.
      self._start, self._first = now, min(self._total, count)
    self._done = min(self._total, self._done + count)
    if self._done == self._first:
      return
    rate = (self._done - self._first) / max(now - self._start, 1e-9)
    left = f"{duration((self._total - self._done) / rate)} left"
    done = f"{self._task}: {self._done}/{self._total}"
    self._line.show(f"{done} {self._unit}, {rate:.2f}/s, {left}", f"{done}, {left}", done)

  def close(self) -> None:
    """Clears the line of a terminal."""
    if self._line.rewrites:
      self._line.flush()


@contextlib.contextmanager
def waiting(task: str) -> Iterator[None]:
  """Shows in a terminal how long a task has taken that has no steps to count, such as compiling a program.

  Args:
    task: ``"compiling the train step"``. A log file gets it once, before the task.
  """
  if not is_terminal():
    say(f"{task} ...")
    yield
    return
  start, finished = time.monotonic(), threading.Event()

  def show() -> None:
    while not finished.is_set():
      _rewrite((f"{task}, {duration(time.monotonic() - start)}",))
      finished.wait(_WAITING_SECONDS)

  # The thread does nothing but print: the task itself, which JAX and signals may want there, stays in the main thread.
  thread = threading.Thread(target=show, name="console", daemon=True)
  thread.start()
  try:
    yield
  finally:
    finished.set()
    thread.join()
    clear_line()


def _rewrite(texts: tuple[str, ...]) -> None:
  """Rewrites the line of a terminal with the first of some texts that fits."""
  global _line_shown
  if jax.process_index() != 0:
    return
  # A character in the last column makes some terminals start a new line.
  columns = max(1, shutil.get_terminal_size().columns - 1)
  text = next((text for text in texts if len(text) <= columns), texts[-1][:columns])
  with _lock:
    write_output(f"{CLEAR_LINE}{text}")
    _line_shown = True
