"""Lines on the screen: messages of the first process, durations, progress."""

import math
import sys
import time

import jax

_TERMINAL_SECONDS = 0.5  # between two updates of a line that a terminal rewrites
_FILE_SECONDS = 10  # between two lines in a log file


def say(message: str) -> None:
  """Prints a line; silent in all processes but the first."""
  if jax.process_index() == 0:
    print(message, flush=True)


def duration(seconds: float) -> str:
  """Formats a duration, in seconds or, from an hour on, in minutes.

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
    self._start = self._last = time.monotonic()
    # Only a terminal can rewrite its line; in a log file each update is a new line.
    self._rewrites = sys.stdout.isatty()
    self._shown = False

  def advance(self, count: int) -> None:
    """Adds ``count`` finished units, and prints the line unless it was printed just before."""
    now = time.monotonic()
    if not self._done:
      # Programs are compiled during the first units, so their rate says nothing about the others.
      self._start, self._first = now, min(self._total, count)
    self._done = min(self._total, self._done + count)
    if self._done == self._first or now - self._last < (
      _TERMINAL_SECONDS if self._rewrites else _FILE_SECONDS
    ):
      return
    self._last = now
    rate = (self._done - self._first) / max(now - self._start, 1e-9)
    time_left = duration((self._total - self._done) / rate)
    line = f"{self._task}: {self._done}/{self._total} {self._unit}, {rate:.2f}/s, {time_left} left"
    if jax.process_index() == 0:
      print(f"\r{line:<70}" if self._rewrites else line, end="" if self._rewrites else "\n", flush=True)
    self._shown = True

  def close(self) -> None:
    """Clears the line of a terminal."""
    if self._shown and self._rewrites and jax.process_index() == 0:
      print(f"\r{'':<70}\r", end="", flush=True)
