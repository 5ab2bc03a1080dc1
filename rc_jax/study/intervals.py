"""Intervals over seeds: Student's t on the differences of paired runs, and the seeds that a difference needs."""

import bisect
import math

import numpy as np
from scipy import special

from rc_jax.evaluation.bootstrap import COVERAGE

POWER = 0.8
MANY_SEEDS = 1000  # more are not counted: the difference is too small to be shown


def mean_interval(values: np.ndarray, coverage: float = COVERAGE) -> tuple[np.ndarray, np.ndarray]:
  """Computes the interval of Student's t for a mean; of the differences of paired runs, it is the paired interval.

  With mean ``m`` and standard deviation ``s`` (of ``n - 1``) of ``n`` values, the ends are ``m - t s / sqrt(n)`` and
  ``m + t s / sqrt(n)``, ``t`` the quantile ``(1 + coverage) / 2`` of ``n - 1`` degrees of freedom. Over repeated
  studies it covers the true mean with this probability, if the values are normal.

  Args:
    values: ``[...,n]``, ``n`` of 2 or more.
    coverage: probability, 0..1.

  Returns:
    The lower and the upper end, float64 ``[...]``. Of equal values, both are their value.

  Raises:
    ValueError: there are fewer than two values.

  >>> [round(float(end), 3) for end in mean_interval(np.array([1.0, 2.0, 3.0]))]
  [-0.484, 4.484]
  """
  values = np.asarray(values, np.float64)
  number = values.shape[-1]
  if number < 2:
    raise ValueError(f"values: has {number} values; expected 2 or more for an interval")
  mean = values.mean(axis=-1)
  half = special.stdtrit(number - 1, (1 + coverage) / 2) * values.std(axis=-1, ddof=1) / np.sqrt(number)
  return mean - half, mean + half


def seeds_needed(
  difference: float, deviation: float, power: float = POWER, coverage: float = COVERAGE
) -> int | None:
  """Computes how many pairs of runs show a difference: the interval of the t test lies on its side of 0.

  The power of ``n`` pairs is the probability that noncentral t with ``n - 1`` degrees of freedom and noncentrality
  ``|difference| sqrt(n) / deviation`` exceeds the quantile of ``mean_interval``.

  Args:
    difference: the true mean of the differences.
    deviation: the true standard deviation of the differences, in the same unit.
    power: the probability wanted, 0..1.
    coverage: of the interval, 0..1.

  Returns:
    The smallest number of pairs, at least 2; None if it is above ``MANY_SEEDS`` or if either argument is 0.

  >>> seeds_needed(0.5, 1.0), seeds_needed(-1.0, 1.0), seeds_needed(0.0, 1.0)
  (34, 10, None)
  """
  if difference == 0 or deviation == 0:
    return None

  def is_enough(pairs: int) -> bool:
    quantile = special.stdtrit(pairs - 1, (1 + coverage) / 2)
    # Above 30 the power is 0.98 or more for any number of pairs, and the distribution is slow or fails.
    noncentrality = min(abs(difference) / deviation * math.sqrt(pairs), 30.0)
    return bool(1 - special.nctdtr(pairs - 1, noncentrality, quantile) >= power)

  numbers = range(2, MANY_SEEDS + 1)
  place = bisect.bisect_left(numbers, True, key=is_enough)  # the power grows with the number
  return numbers[place] if place < len(numbers) else None
