"""A trace of some training steps, which shows what devices and host do in them: ``--profile=10:15``."""

import pathlib
import re
from typing import Any

import jax

from rc_jax import files
from rc_jax.console import say

FOLDER = "profile"  # in the run's folder
NO_STEPS = range(0)


def traced_steps(text: str, steps: int) -> range:
  """Returns the steps that ``--profile`` names; empty where it is not given.

  >>> traced_steps("10:15", 100), traced_steps("7", 100)
  (range(10, 16), range(7, 8))

  Args:
    text: of the flag: the first and the last step, or one step.
    steps: of the run.

  Raises:
    ValueError: it names no steps of the run; one line.
  """
  if not text:
    return NO_STEPS
  numbers = re.fullmatch(r"(\d{1,18})(?::(\d{1,18}))?", text.strip())
  if not numbers:
    raise ValueError(f"--profile={text}: expected the first and the last step to trace, such as 10:15")
  first, last = int(numbers[1]), int(numbers[2] or numbers[1])
  if not 1 <= first <= last <= steps:
    raise ValueError(f"--profile={text}: expected first and last step in this order, of 1 to {steps}")
  return range(first, last + 1)


class StepTrace:
  """Writes the trace of some steps below the run's folder; each process writes its own.

  A context manager: a trace that the end of the ``with`` block interrupts is written as far as it is. A trace that
  cannot be written ends no training.
  """

  def __init__(self, steps: range, workdir: pathlib.Path, resumed_at: int):
    """Starts no trace yet.

    Args:
      steps: to trace, of ``traced_steps``.
      workdir: the run's folder.
      resumed_at: updates made so far. Steps before are left out: the same command must resume a run.
    """
    self._steps = range(max(steps.start, resumed_at + 1), steps.stop)
    self._first: int | None = None  # of the trace that is being recorded
    self._step = 0
    folder = workdir / FOLDER
    several = jax.process_count() > 1
    self._folder = folder / f"process{jax.process_index()}" if several else folder
    if steps and not self._steps:
      say(
        f"no trace: --profile={steps.start}:{steps.stop - 1}, and the run continues at step {resumed_at + 1}"
      )

  def start(self, step: int, state: Any) -> None:
    """Starts the trace where a step is the first of it.

    Args:
      step: that begins now; its program is compiled.
      state: before the step. The trace waits for it, so that it holds no earlier step.
    """
    if not self._steps or step != self._steps.start:
      return
    jax.block_until_ready(state)
    try:
      files.make_folder(self._folder)
      jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
    except Exception as error:
      self._warn(error)
    else:
      self._first = self._step = step

  def stop(self, step: int, metrics: Any) -> bool:
    """Writes the trace where a step is the last of it; waits for the step's metrics then.

    Returns:
      Whether it wrote, which takes seconds.
    """
    self._step = step
    if self._first is None or step + 1 < self._steps.stop:
      return False
    jax.block_until_ready(metrics)
    self._write()
    return True

  def __enter__(self) -> "StepTrace":
    return self

  def __exit__(self, *error: object) -> None:
    if self._first is not None:
      self._write()

  def _write(self) -> None:
    first, self._first = self._first, None
    try:
      jax.profiler.stop_trace()
    except Exception as error:
      self._warn(error)
    else:
      say(
        f"trace of steps {first} to {self._step}: {self._folder}; to open it: pip install xprof, then "
        f"xprof --port 8791 {self._folder}; or load its perfetto_trace.json.gz at https://ui.perfetto.dev"
      )

  def _warn(self, error: Exception) -> None:
    say(f"WARNING: --profile: {self._folder}: no trace ({files.one_line(error)}); training goes on")
