"""How far rounding alone moves a result: the control for comparisons between orders of summation."""

from collections.abc import Callable
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


def tolerances(function: Callable[[Any], Any], variables: Any, results: Any, copies: int = 2) -> Any:
  """Returns how far another order of summation may move each result of ``function(variables)``.

  Args:
    function: of the variables, compiled: it runs ``copies`` times.
    variables: a tree of float arrays.
    results: ``function(variables)``, a tree of arrays.
    copies: how many times the variables are moved, each time in other directions.

  Returns:
    For each result, relative to its largest value: 1e-5, or four times the largest deviation that the last bit of
    each variable makes, whichever is more.
  """
  moved = [function(off_by_ulps(variables, 1, seed)) for seed in range(copies)]

  def tolerance(result: np.ndarray, *others: np.ndarray) -> float:
    result = np.float64(result)
    deviation = max(np.abs(np.float64(other) - result).max() for other in others)
    return max(1e-5, 4 * deviation / np.abs(result).max())

  return jax.tree.map(tolerance, results, *moved)
