"""How far rounding alone moves a result: the control for comparisons between orders of summation."""

from typing import Any

import jax
import numpy as np


def off_by_ulps(tree: Any, ulps: int, seed: int) -> Any:
  """Returns the float arrays of a tree, every element moved by ``ulps`` units in its last place, up or down."""
  rng = np.random.default_rng(seed)

  def moved(leaf: np.ndarray) -> np.ndarray:
    leaf = np.asarray(leaf)
    sign = rng.choice(np.asarray([-1, 1], leaf.dtype), leaf.shape)
    return leaf + sign * ulps * np.spacing(leaf)

  return jax.tree.map(moved, tree)


def relative_deviation(value: np.ndarray, reference: np.ndarray) -> float:
  """Returns ``|value - reference| / |reference|`` in the Euclidean norm, computed in float64."""
  value, reference = np.float64(value), np.float64(reference)
  return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))
