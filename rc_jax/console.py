"""Lines on the screen: messages of the first process, lengths of time, progress."""

import math
import sys
import time

import jax


def say(message: str) -> None:
  """Prints a line on the first process alone."""
  if jax.process_index() == 0:
    print(message, flush=True)


def duration(seconds: float) -> str:
  """Returns a length of time for people: ``42 s``, ``3:07 min``, ``2:05 h``."""
  if not math.isfinite(seconds):
    return "?"
  whole = round(seconds)
  if whole < 60:
    return f"{whole} s"
  if whole < 3600:
    return f"{whole // 60}:{whole % 60:02d} min"
  return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


class Progress:
  """One line that says how far a piece of work is, how fast it goes and what is left."""

  def __init__(self, what: str, total: int, unit: str):
    self._what, self._total, self._unit = what, total, unit
    self._done = self._first = 0
    self._start = self._last = time.monotonic()
    # Only a terminal can rewrite its line; a log file gets a line every ten seconds.
    self._rewrites = sys.stdout.isatty()
    self._shown = False

  def advance(self, count: int) -> None:
    """Adds finished units, and shows them now and then."""
    now = time.monotonic()
    if not self._done:
      # Programs are compiled for the first units: they tell nothing of the time that is left.
      self._start, self._first = now, min(self._total, count)
    self._done = min(self._total, self._done + count)
    if self._done == self._first or now - self._last < (0.5 if self._rewrites else 10):
      return
    self._last = now
    rate = (self._done - self._first) / max(now - self._start, 1e-9)
    left = duration((self._total - self._done) / rate)
    line = f"{self._what}: {self._done}/{self._total} {self._unit}, {rate:.2f}/s, {left} left"
    if jax.process_index() == 0:
      print(f"\r{line:<70}" if self._rewrites else line, end="" if self._rewrites else "\n", flush=True)
    self._shown = True

  def close(self) -> None:
    """Ends the line."""
    if self._shown and self._rewrites and jax.process_index() == 0:
      print(f"\r{'':<70}\r", end="", flush=True)
