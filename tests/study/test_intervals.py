"""The interval over seeds against scipy's paired t test and by simulation; the number of seeds against its power."""

import numpy as np
import pytest
from scipy import stats

from rc_jax.study.intervals import MANY_SEEDS, mean_interval, seeds_needed


@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_the_interval_is_that_of_the_paired_t_test(seeds: int, coverage: float) -> None:
  rng = np.random.default_rng(seeds)
  worse = rng.normal(70, 2, seeds)
  better = worse + rng.normal(1, 0.5, seeds)
  expected = stats.ttest_rel(better, worse).confidence_interval(coverage)
  np.testing.assert_allclose(mean_interval(better - worse, coverage), expected, rtol=1e-12)


def test_many_studies_are_computed_at_once() -> None:
  values = np.random.default_rng(0).normal(size=(4, 3, 5))
  low, high = mean_interval(values)
  assert low.shape == high.shape == (4, 3)
  assert (low[2, 1], high[2, 1]) == mean_interval(values[2, 1])


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_of_100_studies_95_intervals_cover_the_true_difference(seeds: int) -> None:
  studies, true = 40_000, 0.7
  rng = np.random.default_rng(seeds)
  # Rows of one seed have much in common, and the contrast changes how much seeds differ.
  common = rng.normal(70, 3, (studies, seeds))
  baseline = common + rng.normal(0, 0.4, (studies, seeds))
  other = common + true + rng.normal(0, 0.9, (studies, seeds))
  low, high = mean_interval(other - baseline)
  # Of 40,000 studies, the standard error of the share is 0.0011.
  assert 0.945 < np.mean((low < true) & (true < high)) < 0.955


def test_equal_differences_have_an_interval_without_width() -> None:
  low, high = mean_interval(np.full(4, 0.25))
  assert low == high == 0.25


@pytest.mark.parametrize("number", [0, 1])
def test_one_seed_has_no_interval(number: int) -> None:
  with pytest.raises(ValueError, match=rf"^values: has {number} values; expected 2 or more for an interval$"):
    mean_interval(np.ones(number))


# Sample sizes of the two-sided paired t test at 5 % for a power of 80 %, as tables and G*Power give them.
@pytest.mark.parametrize(("effect", "expected"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_numbers_of_seeds_are_those_of_published_tables(effect: float, expected: int) -> None:
  assert seeds_needed(effect, 1.0) == seeds_needed(-2 * effect, 2.0) == expected


@pytest.mark.parametrize("effect", [0.6, 1.3, 3.0])
def test_this_number_of_seeds_has_the_power_and_one_less_has_not(effect: float) -> None:
  needed = seeds_needed(effect, 1.0)
  assert needed is not None and needed > 2
  studies = 40_000
  powers = []
  for seeds in (needed - 1, needed):
    low, _ = mean_interval(np.random.default_rng(7).normal(effect, 1, (studies, seeds)))
    powers.append(np.mean(low > 0))
  margin = 3 * np.sqrt(0.8 * 0.2 / studies)
  assert powers[0] < 0.8 + margin and powers[1] > 0.8 - margin


def test_a_number_is_given_only_where_there_is_one() -> None:
  assert seeds_needed(0.0, 1.0) is None  # no number of seeds shows a difference of 0
  assert seeds_needed(1.0, 0.0) is None  # seeds that do not differ at all
  assert seeds_needed(1e-3, 1.0) is None and seeds_needed(0.1, 1.0) < MANY_SEEDS
  assert seeds_needed(1000.0, 1.0) == 2
