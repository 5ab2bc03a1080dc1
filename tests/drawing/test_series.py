"""Series of a log: what is not a number is left out, smoothing is a moving mean, thinning keeps the peaks."""

import numpy as np
import pytest

from rc_jax.drawing.report import series


def test_columns_hold_nan_where_a_line_has_no_finite_value() -> None:
  lines = [{"a": 1.5, "b": {"x": 2}}, {"a": None, "b": {"x": None}}, {"a": float("inf")}, {"b": {"y": 3.0}}]
  np.testing.assert_array_equal(series.column(lines, "a"), [1.5, np.nan, np.nan, np.nan])
  expected = [[2, np.nan], [np.nan, np.nan], [np.nan, np.nan], [np.nan, 3]]
  np.testing.assert_array_equal(series.columns(lines, "b", ["x", "y"]), expected)
  assert series.columns([], "b", ["x", "y"]).shape == (0, 2)


@pytest.mark.parametrize("length", [1, 2, 7, 100])
@pytest.mark.parametrize("window", [1, 3, 11])
def test_smoothing_is_the_mean_of_the_known_values_around(length: int, window: int) -> None:
  rng = np.random.default_rng(length)
  values = np.where(rng.random(length) < 0.2, np.nan, rng.normal(size=length))
  expected = []
  for at in range(length):
    near = [v for v in values[max(0, at - window // 2) : at + window // 2 + 1] if not np.isnan(v)]
    expected.append(sum(near) / len(near) if near else np.nan)
  np.testing.assert_allclose(series.smooth(values, window), expected, atol=1e-12)


def test_the_window_is_odd_and_a_twentieth_of_the_lines() -> None:
  assert [series.smoothing_window(length) for length in (1, 10, 100, 3000)] == [1, 1, 5, 151]


def test_thinning_keeps_the_ends_and_the_peaks() -> None:
  values = np.random.default_rng(0).normal(size=5000)
  values[1234], values[3210], values[:10] = 50, -50, np.nan
  kept = series.thinned(values, 100)
  assert len(kept) <= 100 and {0, 1234, 3210, 4999} <= set(kept.tolist()) and (np.diff(kept) > 0).all()
  np.testing.assert_array_equal(series.thinned(values[:100], 100), np.arange(100))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.25, 0.07), (1, 600_000), (3.3, 3.4), (1e-7, 2e-7)])
def test_ticks_are_few_evenly_spaced_and_within_the_limits(low: float, high: float) -> None:
  values = np.array(series.ticks(low, high))
  assert 2 <= len(values) <= 7
  assert (values >= low - 1e-9 * (high - low)).all() and (values <= high + 1e-9 * (high - low)).all()
  np.testing.assert_allclose(np.diff(values), values[1] - values[0], rtol=1e-6)
