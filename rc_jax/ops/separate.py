"""Computations that XLA compiles apart from their surroundings on CPUs."""

from collections.abc import Callable
from typing import TypeVar

import jax
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

Arrays = TypeVar("Arrays", jax.Array, tuple[jax.Array, jax.Array])


def separate(function: Callable[..., Arrays]) -> Callable[..., Arrays]:
  """Returns ``function`` as a computation whose operands and results a CPU keeps in memory.

  XLA's fusion for CPUs computes a chain of elementwise operations again in every operation that reads its end; an
  ``optimization_barrier`` is gone by then. In a stage of residual blocks the last block would read the convolutions of
  all blocks before it. Other platforms compile ``function`` in its place. It must not be differentiated.

  Args:
    function: of arrays alone; pure.
  """
  compiled = jax.jit(function)

  def called(*arrays: jax.Array) -> Arrays:
    with set_xla_metadata(inlineable="false"):
      result: Arrays = compiled(*arrays)
    return result

  def computed(*arrays: jax.Array) -> Arrays:
    result: Arrays = lax.platform_dependent(*arrays, cpu=called, default=function)
    return result

  return computed
