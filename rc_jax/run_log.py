"""What a run tells: lines on the screen, ``metrics.jsonl``, TensorBoard events."""

import json
import math
import pathlib
import sys
import time
from typing import Any

import jax
import tensorboardX

from rc_jax import whole_file

METRICS = "metrics.jsonl"


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


class RunLog:
  """``metrics.jsonl`` and TensorBoard events of a run; silent on all processes but the first."""

  def __init__(self, workdir: pathlib.Path, resumed_at: int):
    """Opens the log; drops what a killed run logged after the checkpoint that it resumes from.

    Args:
      workdir: the run's folder.
      resumed_at: updates made so far; lines of later steps would otherwise stand there twice.
    """
    self._path = workdir / METRICS
    self._active = jax.process_index() == 0
    if not self._active:
      return
    kept = [line for line in read(workdir) if line["step"] <= resumed_at]
    whole_file.write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
    self._file = self._path.open("a")
    self._events = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=resumed_at + 1)

  def write(self, line: dict[str, Any]) -> None:
    """Appends a line; ``step`` is required, nested dicts become ``outer/inner`` in TensorBoard."""
    if not self._active:
      return
    try:
      self._file.write(json.dumps(line) + "\n")
      self._file.flush()
    except OSError as error:
      raise OSError(f"{self._path}: cannot write ({error.strerror}); make room and start again") from error
    for name, value in line.items():
      values = value.items() if isinstance(value, dict) else [("", value)]
      for inner, number in values:
        if isinstance(number, int | float) and name != "step":
          self._events.add_scalar(f"{name}/{inner}" if inner else name, number, line["step"])

  def close(self) -> None:
    """Writes out what is buffered."""
    if self._active:
      self._file.close()
      self._events.close()


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the lines of a run's ``metrics.jsonl``; a last line cut by a kill is left out."""
  path = workdir / METRICS
  if not path.is_file():
    return []
  lines = []
  for text in path.read_text().splitlines():
    try:
      lines.append(json.loads(text))
    except json.JSONDecodeError:
      continue
  return lines
