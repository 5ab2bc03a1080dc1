"""Charts of seeds: where dots, intervals and marks lie, which dots are joined, and what is left out."""

import html
import re

import numpy as np
import pytest

from rc_jax.drawing.report.class_charts import difference_matrix
from rc_jax.drawing.report.seed_charts import SeedChart, SeedRow, axis_limits, seed_chart


def make_chart(*rows: SeedRow, **fields) -> SeedChart:
  seeds = [str(seed) for seed in range(len(rows[0].values))]
  return SeedChart("mIoU", seeds, rows, ["over seeds", "over images"], "the paper's", **fields)


def row(
  name: str, values: list[float], *intervals: tuple[float, float] | None, mark: float | None = None
) -> SeedRow:
  known = np.array(values)[np.isfinite(values)]
  mean = float(known.mean()) if known.size else None
  return SeedRow(name, np.array(values), mean, [*intervals, None, None][:2], mark)


def circles(text: str) -> np.ndarray:
  return np.array([[float(x), float(y)] for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', text)])


def test_dots_lie_at_their_values_and_lines_join_the_dots_of_a_seed() -> None:
  values = [[40.0, 41.0, 43.0], [41.0, np.nan, 44.0], [42.0, 40.5, 45.0]]
  chart = make_chart(*(row(f"row {n}", numbers) for n, numbers in enumerate(values)), joined=True)
  text = seed_chart(chart)
  found = circles(text)
  flat = np.array(values).ravel()
  flat = flat[np.isfinite(flat)]
  low, high = axis_limits(chart)
  np.testing.assert_allclose(found[:, 0], 12 + (flat - low) / (high - low) * 396, atol=0.06)
  assert len(set(found[:, 1])) == 3
  joins = re.findall(r'<path class="join" d="([^"]*)"', text)
  ends = [[tuple(map(float, point.split())) for point in re.split("[ML]", join)[1:]] for join in joins]
  dots = [tuple(dot) for dot in found.tolist()]
  assert ends[0] == [dots[0], dots[3], dots[5]] and ends[2] == [dots[2], dots[4], dots[7]]
  assert [join.count("M") for join in joins] == [1, 2, 1]  # the second seed has no run of the second row


def test_intervals_and_marks_lie_at_their_values() -> None:
  chart = make_chart(row("a", [1.0, 2.0], (0.5, 2.5), (1.25, 1.75), mark=3.0), zero=True, signed=True)
  text = seed_chart(chart)
  low, high = axis_limits(chart)
  assert low < 0 and high > 3
  ends = [(float(a), float(b)) for a, b in re.findall(r'<path d="M([\d.]+) \S+L([\d.]+) ', text)]
  expected = 12 + (np.array([[0.5, 2.5], [1.25, 1.75]]) - low) / (high - low) * 396
  np.testing.assert_allclose(ends, expected, atol=0.06)
  (mark,) = re.findall(r'<path class="mark" d="M([\d.]+)', text)
  assert float(mark) == pytest.approx(12 + (3 - low) / (high - low) * 396, abs=0.06)
  tips = [html.unescape(tip) for tip in re.findall(r'data-tip="([^"]*)"', text)]
  assert tips[0] == (
    "a: mean +1.50 of 2 seeds; over seeds: +0.50 to +2.50; over images: +1.25 to +1.75; the paper's: +3.00"
  )
  assert tips[1:] == ["a, seed 0: +1.00", "a, seed 1: +2.00"] and "beyond the axis" not in text


def test_a_wide_interval_ends_in_arrows_and_leaves_the_dots_visible() -> None:
  chart = make_chart(row("a", [1.0, 2.0], (-40.0, 43.0)))
  low, high = axis_limits(chart)
  assert low == pytest.approx(-0.15) and high == pytest.approx(3.15)
  text = seed_chart(chart)
  assert "An arrow: the interval goes on beyond the axis." in text
  assert np.ptp(circles(text)[:, 0]) > 100


@pytest.mark.parametrize("values", [[0.0], [70.0], [70.0, 70.0], [np.nan, 3.0]])
def test_a_single_value_has_an_axis_around_it(values: list[float]) -> None:
  low, high = axis_limits(make_chart(row("a", values)))
  assert low < np.nanmax(values) < high
  assert "nan" not in seed_chart(make_chart(row("a", values)))


def test_rows_without_values_stay_and_a_chart_without_values_says_so() -> None:
  text = seed_chart(make_chart(row("a", [1.0, 2.0]), row("b", [np.nan, np.nan])))
  assert "b: no value yet" in text and text.count("<circle") == 2 and "nan" not in text
  assert "No value yet." in seed_chart(make_chart(row("a", [np.nan])))
  assert "No value yet." in seed_chart(SeedChart("mIoU", ["0"], [], []))


def test_names_are_escaped_and_long_ones_cut() -> None:
  text = seed_chart(make_chart(row("<b>" + "x" * 100, [1.0])))
  assert "<b>" not in text and "…" in text and html.escape("<b>") + "x" * 100 in text


def test_a_matrix_of_differences_is_coloured_by_sign_and_size() -> None:
  differences = np.array([[4.0, -2.0], [np.nan, -0.01]])
  text = difference_matrix(["road", "s<y"], ["a", "b"], differences, ("CE", np.array([50.0, np.nan])), 4.0)
  cells = re.findall(
    r"<td(?: class=\"([a-z ]+)\" style=\"--share:([\d.]+)%\")? data-tip=\"([^\"]*)\">(.*?)</td>", text
  )
  assert [(kind, share, shown) for kind, share, _, shown in cells] == [
    ("", "", "50.0"),
    ("same strong", "100.0", "+4.0"),
    ("other", "50.0", "-2.0"),
    ("", "", "–"),
    ("other", "0.0", "–"),
    ("other", "0.2", "+0.0"),
  ]
  assert cells[1][2] == "road, a: +4.0 points of IoU against CE" and "s<y" not in text
  assert "<td" in difference_matrix(["road"], [], np.zeros((1, 0)), ("CE", np.array([50.0])), 0.0)
