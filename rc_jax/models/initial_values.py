"""Values of fresh parameters and statistics, those of PyTorch's ResNet.

They are drawn leaf by leaf from the shapes that the modules declare, in NumPy: initialising inside the
compiled network takes ten seconds for a ResNet-50 on a CPU, this takes one.
"""

import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CONSTANTS = {"scale": 1, "bias": 0, "mean": 0, "var": 1}


def initial_values(rng: jax.Array, shapes: dict[str, Any]) -> dict[str, Any]:
  """Draws parameters or statistics.

  | leaf | value |
  |---|---|
  | ``kernel`` before a BatchNorm | He normal, fan out: deviation ``sqrt(2 / (k k out))`` |
  | ``kernel`` and ``bias`` of a classifier | PyTorch's default: uniform within ``1 / sqrt(k k in)`` |
  | ``scale``, ``bias``, ``mean``, ``var`` of BatchNorm | 1, 0, 0, 1 |

  Args:
    rng: a PRNG key; each leaf's values depend on it and on the leaf's path alone, on any platform.
    shapes: nested dicts whose leaves have a ``shape``.

  Returns:
    The same nested dicts with float32 arrays; leaves of any other name are as they were.
  """
  seed = np.asarray(jax.random.key_data(rng)).ravel().tolist()

  def fill(tree: dict[str, Any], path: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, leaf in tree.items():
      if isinstance(leaf, dict):
        values[name] = fill(leaf, f"{path}/{name}")
        continue
      shape = leaf.shape
      generator = np.random.default_rng([*seed, zlib.crc32(f"{path}/{name}".encode())])
      if "kernel" in tree and "bias" in tree:
        bound = 1 / math.sqrt(math.prod(tree["kernel"].shape[:-1]))
        value = bound * (2 * generator.random(shape, np.float32) - 1)
      elif name == "kernel":
        deviation = math.sqrt(2 / (math.prod(shape[:-2]) * shape[-1]))
        value = deviation * generator.standard_normal(shape, np.float32)
      elif name in CONSTANTS:
        value = np.full(shape, CONSTANTS[name], np.float32)
      else:
        values[name] = leaf
        continue
      values[name] = jnp.asarray(value.astype(np.float32))
    return values

  return fill(shapes, "")


def initial_variables(
  init: Callable[..., Any], rng: jax.Array, images: jax.ShapeDtypeStruct
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Draws the parameters and the statistics of a module.

  Leaves that ``initial_values`` has no rule for get the values of their own Flax initialisers.

  Args:
    init: the module's ``(rng, images) -> {"params": ..., "batch_stats": ...}``.
    rng: a PRNG key.
    images: shape and dtype of the images.

  Returns:
    Parameters and statistics, nested dicts with float32 arrays.
  """
  variables = {"batch_stats": {}} | jax.eval_shape(init, rng, images)
  values = {name: initial_values(rng, tree) for name, tree in variables.items()}

  def is_missing(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)

  if any(map(is_missing, jax.tree.leaves(values))):

    def rest(rng: jax.Array) -> Any:
      # XLA drops whatever these few leaves do not need, which is the network.
      drawn = {"batch_stats": {}} | init(rng, jnp.zeros(images.shape, images.dtype))
      return jax.tree.map(lambda value, leaf: leaf if is_missing(value) else (), values, drawn)

    values = jax.tree.map(
      lambda value, leaf: leaf if is_missing(value) else value, values, jax.jit(rest)(rng)
    )
  return values["params"], values["batch_stats"]
