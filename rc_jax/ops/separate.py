"""Computations that XLA compiles apart from their surroundings on CPUs."""

from collections.abc import Callable

import jax
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata


def separate(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Returns ``function`` as a computation whose operands and results a CPU keeps in memory.

  XLA's fusion for CPUs computes a chain of elementwise operations again in every operation that reads its end; an
  ``optimization_barrier`` is gone by then. In a stage of residual blocks the last block would read the convolutions of
  all blocks before it. Other platforms compile ``function`` in its place. It must not be differentiated.

  Args:
    function: of arrays, some of which may be None; pure, and of each image alone. A sum over the batch is a collective
      operation on several devices, and processes run those of separate computations in different orders.
  """
  compiled = jax.jit(function)

  def called(*arrays: jax.Array) -> jax.Array:
    with set_xla_metadata(inlineable="false"):
      result: jax.Array = compiled(*arrays)
    return result

  def computed(*arrays: jax.Array) -> jax.Array:
    result: jax.Array = lax.platform_dependent(*arrays, cpu=called, default=function)
    return result

  return computed
