"""The compiled programs of the train step: with the norms of gradient and parameters, and on GPUs also without."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from rc_jax.console import duration, say, waiting
from rc_jax.train_state import TrainState
from rc_jax.training.objective import Metrics
from rc_jax.training.prefetch import Batch


@contextlib.contextmanager
def no_implicit_transfers() -> Iterator[None]:
  """Refuses implicit transfers between host and devices within the block.

  Those of ``jax.device_put`` and ``jax.device_get`` are explicit. An implicit one in each step makes the devices wait
  for the host. JAX refuses those to the devices on all platforms, and those from the devices on GPUs and TPUs: a CPU's
  arrays lie in the host's memory.

  Raises:
    jax.errors.JaxRuntimeError: there was one; a note says what to do.
  """
  with jax.transfer_guard("disallow"):
    try:
      yield
    except jax.errors.JaxRuntimeError as error:
      if "Disallowed" in str(error):
        error.add_note(
          "A training step moved an array between host and devices implicitly, as NumPy arrays, Python numbers "
          "and float() do. Use jax.device_put or jax.device_get, or compute it within the step."
        )
      raise


class StepPrograms:
  """Runs the program that a step needs, and compiles each program before its first step.

  Which program a step runs depends on its number alone: a resumed run repeats the arithmetic of an undisturbed one.
  """

  def __init__(self, jitted: Callable[[bool], Any], norms_due: Callable[[int], bool]):
    """Compiles nothing yet.

    Args:
      jitted: from whether the metrics have the norms to the step under ``jax.jit``, as of `jitted_step`.
      norms_due: whether a step, by its number, needs the norms.
    """
    self._jitted = jitted
    self._norms_due = norms_due
    self._compiled: dict[bool, Any] = {}

  def compile(self, step: int, state: TrainState, batch: Batch) -> bool:
    """Compiles the program of a step, unless that was done before.

    Args:
      step: its number, from 1.
      state: arrays or shapes, with the shardings and layouts of those that the step will get.
      batch: likewise.

    Returns:
      Whether it compiled.
    """
    norms = self._norms_due(step)
    if norms in self._compiled:
      return False
    start = time.monotonic()
    with waiting("compiling the train step"):
      self._compiled[norms] = self._jitted(norms).lower(state, batch).compile()
    without = "" if norms else " without the norms of gradient and parameters"
    say(f"compiled the train step{without} in {duration(time.monotonic() - start)}")
    return True

  def __call__(self, step: int, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """Runs a step.

    Args:
      step: its number, for which `compile` was called.
      state: before the step; its buffers are donated.
      batch: images and labels of the step.

    Returns:
      The state after the step, and its metrics.
    """
    with jax.profiler.StepTraceAnnotation("train", step_num=step):
      state, metrics = self._compiled[self._norms_due(step)](state, batch)
    return state, metrics
