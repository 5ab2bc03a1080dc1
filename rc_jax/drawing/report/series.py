"""Series of numbers from the lines of ``metrics.jsonl``: extracted, smoothed, and thinned to what a chart can show."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Lines = Sequence[Mapping[str, Any]]

_LARGEST = 1e300
SHOWN_POINTS = 400  # of a line in a chart, about one for each pixel of its width
SMOOTHED_SHARE = 1 / 20  # of the logged lines, the width of the moving mean


def has(lines: Lines, name: str) -> bool:
  """Returns whether any line holds a value ``name``."""
  return any(name in line for line in lines)


def column(lines: Lines, name: str) -> np.ndarray:
  """Returns the values ``name`` of the lines, float64 ``[L]``; NaN where one is absent or not finite."""
  return np.array([_number(line.get(name)) for line in lines])


def columns(lines: Lines, name: str, keys: Sequence[str]) -> np.ndarray:
  """Returns the values ``name`` by key (by class), float64 ``[L,K]``; NaN where one is absent or not finite."""
  logged = (line.get(name) for line in lines)
  rows = [row if isinstance(row, dict) else {} for row in logged]
  return np.array([[_number(row.get(key)) for key in keys] for row in rows]).reshape(len(rows), len(keys))


def _number(value: Any) -> float:
  # A larger integer, which only a damaged line holds, is no float.
  is_known = isinstance(value, int | float) and -_LARGEST < value < _LARGEST
  return float(value) if is_known else math.nan


def smoothing_window(length: int) -> int:
  """Returns the width of the moving mean over ``length`` lines, an odd number; 1 where the series is short."""
  return 2 * round(length * SMOOTHED_SHARE / 2) + 1


def smooth(values: np.ndarray, window: int) -> np.ndarray:
  """Returns the moving mean of ``values [L]`` over a centered window, cut at the ends; NaN values are left out.

  >>> smooth(np.array([0.0, 3.0, np.nan, 6.0]), 3).tolist()
  [1.5, 1.5, 4.5, 6.0]
  """
  kernel = np.ones(window)
  known = np.isfinite(values)
  # mode="full", cut by hand: "same" has the length of the kernel where that is longer.
  half = window // 2
  total = np.convolve(np.where(known, values, 0), kernel)[half : half + len(values)]
  number = np.convolve(known, kernel)[half : half + len(values)]
  return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def thinned(values: np.ndarray, points: int = SHOWN_POINTS) -> np.ndarray:
  """Returns the indices of at most ``points`` values that keep the peaks: lowest and highest of each of equal parts.

  Args:
    values: ``[L]``.
    points: an even number.
  """
  if len(values) <= points:
    return np.arange(len(values))
  kept = {0, len(values) - 1}
  for part in np.array_split(np.arange(len(values)), points // 2 - 1):
    if np.isfinite(values[part]).any():
      kept |= {int(part[np.nanargmin(values[part])]), int(part[np.nanargmax(values[part])])}
  return np.array(sorted(kept))


def ticks(low: float, high: float, number: int = 4) -> list[float]:
  """Returns about ``number`` round values in ``low..high``.

  >>> ticks(0, 1), ticks(3, 1040)
  ([0.0, 0.25, 0.5, 0.75, 1.0], [250.0, 500.0, 750.0, 1000.0])
  """
  rough = (high - low) / number
  power = 10.0 ** math.floor(math.log10(rough))
  step = min((factor * power for factor in (1, 2, 2.5, 5, 10)), key=lambda step: abs(step - rough))
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [round(index * step, 12) for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
  """Returns powers of ten in ``low..high``, or 1, 2 and 5 times them where there are few.

  >>> log_ticks(0.5, 300), log_ticks(0.5, 4)
  ([1.0, 10.0, 100.0], [0.5, 1.0, 2.0])
  """
  powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  for factors in ((1,), (1, 2, 5)):
    found = [factor * 10.0**power for power in powers for factor in factors]
    found = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
    if len(found) >= 3:
      break
  return found


def short(value: float) -> str:
  """Formats a number with up to four digits for an axis or a caption.

  >>> short(0.25), short(1500), short(1_250_000), short(2e-5), short(0)
  ('0.25', '1.5k', '1.25M', '2e-05', '0')
  """
  for size, suffix in ((1e6, "M"), (1e3, "k")):
    if abs(value) >= size:
      return f"{value / size:.4g}{suffix}"
  return f"{value:.4g}"
