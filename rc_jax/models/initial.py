"""Values of fresh parameters and statistics, those of PyTorch's ResNet.

They are drawn leaf by leaf from the shapes that the modules declare, in NumPy: initialising inside the
compiled network takes ten seconds for a ResNet-50 on a CPU, this takes one.
"""

import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


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
    The same nested dicts with float32 arrays.
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
        deviation = math.sqrt(2 / (shape[0] * shape[1] * shape[3]))
        value = deviation * generator.standard_normal(shape, np.float32)
      else:
        value = np.full(shape, {"scale": 1, "bias": 0, "mean": 0, "var": 1}[name], np.float32)
      values[name] = jnp.asarray(value.astype(np.float32))
    return values

  return fill(shapes, "")
