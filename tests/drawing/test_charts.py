"""Charts: where values lie, what is written beside them, and what the script of the page reads."""

import html
import json
import re

import numpy as np
import pytest

from rc_jax.drawing.panels import MANY_CLASSES
from rc_jax.drawing.report.charts import LineChart, Series, line_chart
from rc_jax.drawing.report.class_charts import confusion_chart, dot_pairs, iou_bars

PALETTE = np.random.default_rng(0).integers(0, 256, (200, 3), np.uint8)


def points(text: str, kind: str) -> list[list[tuple[float, float]]]:
  """The pieces of each path of a kind, as lists of points."""
  paths = re.findall(rf'<path class="{kind}" d="([^"]*)"', text)
  pieces = [piece for path in paths for piece in path.split("M") if piece]
  return [[tuple(map(float, point.split())) for point in piece.split("L")] for piece in pieces]


def test_positions_are_linear_in_steps_and_values() -> None:
  steps, values = np.array([10, 20, 40, 50]), np.array([1.0, 3.0, 2.0, 5.0])
  text = line_chart(LineChart("Loss", steps, 50, [Series("loss", values)], smoothed=False))
  (found,) = points(text, "line")
  x, y = np.array(found).T
  np.testing.assert_allclose((x - x[0]) / (x[-1] - x[0]), (steps - 10) / 40, atol=1e-3)
  np.testing.assert_allclose((y[0] - y) / (y[0] - y[-1]), (values - 1) / 4, atol=1e-3)
  assert y[-1] < y[0]  # higher values lie higher


def test_a_logarithmic_axis_has_equal_distances_for_equal_factors() -> None:
  values = np.array([1.0, 10.0, 100.0])
  chart = LineChart(
    "Loss", np.array([1, 2, 3]), 3, [Series("loss", values)], smoothed=False, logarithmic=True
  )
  text = line_chart(chart)
  (found,) = points(text, "line")
  y = [point[1] for point in found]
  assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.11) and "log scale" in text
  narrow = LineChart("Loss", np.array([1, 2]), 2, [Series("loss", values[:2])], logarithmic=True)
  assert "log scale" not in line_chart(narrow)


def test_values_that_are_not_finite_break_the_line() -> None:
  values = np.array([1.0, 2.0, np.nan, 3.0, np.inf, 4.0, 5.0])
  chart = LineChart("Loss", np.arange(1, 8), 7, [Series("loss", values)], smoothed=False)
  text = line_chart(chart)
  assert [len(piece) for piece in points(text, "line")] == [2, 1, 2]
  assert text.count("<circle") == 1  # the value without neighbours
  assert "nan" not in text.lower() and "inf" not in text.lower()
  none = LineChart("Loss", np.array([1, 2]), 2, [Series("loss", np.array([np.nan, np.inf]))])
  assert "No finite value" in line_chart(none) and "<svg" not in line_chart(none)


def test_the_script_gets_every_series_and_strings_are_escaped() -> None:
  steps = np.arange(1, 101)
  name = "</svg><script>'\""
  chart = LineChart(
    name, steps, 100, [Series(name, steps / 3.0), Series("b", np.full(100, np.nan))], note=name
  )
  text = line_chart(chart)
  assert "<script" not in text and text.count("</svg>") == 1
  (data,) = re.findall(r'data-chart="([^"]*)"', text)
  found = json.loads(html.unescape(data))
  assert found["steps"] == steps.tolist() and found["range"][:2] == [0, 100]
  assert [one["name"] for one in found["series"]] == [name, "b"]
  np.testing.assert_allclose(found["series"][0]["values"], steps / 3, rtol=1e-3)
  assert found["series"][1]["values"] == [None] * 100
  assert len(points(text, "raw")) == len(points(text, "line")) == 1


def test_a_single_line_of_the_log_is_a_mark() -> None:
  text = line_chart(LineChart("Loss", np.array([1]), 1, [Series("loss", np.array([2.0]))]))
  assert text.count("<circle") == 1


def test_bars_are_as_long_as_the_iou_and_bear_its_number() -> None:
  names = [f"class {n}" for n in range(MANY_CLASSES + 5)]
  ious = [0.5] * len(names)
  ious[3], ious[4] = 0.876, None
  text = iou_bars(names, PALETTE, ious, 0.5, np.arange(len(names)))
  rows = re.findall(r"<li .*?</li>", text)
  assert len(rows) == len(names) and 'class="rows columns"' in text
  assert "width:87.60%" in rows[3] and ">87.6<" in rows[3] and "3 pixels" in rows[3]
  assert "width" not in rows[4] and "–" in rows[4] and "not in the mean" in rows[4]
  assert f"rgb({','.join(map(str, PALETTE[3].tolist()))})" in rows[3] and "--mean:50.00%" in text


def test_dots_lie_at_their_values_and_absent_ones_are_left_out() -> None:
  first, second = np.array([0.5, np.nan]), np.array([-1.0, 0.25])
  text = dot_pairs(["a", "b<"], PALETTE, ("own", first), ("others", second), (-1.0, 1.0))
  one, other, scale = re.findall(r"<li .*?</li>", text)
  assert re.findall(r'class="dot (\w+)" style="left:([\d.]+)%', one) == [
    ("first", "75.00"),
    ("second", "0.00"),
  ]
  assert re.findall(r'class="dot (\w+)" style="left:([\d.]+)%', other) == [("second", "62.50")]
  assert "0.50 / -1.00" in one and "– / 0.25" in other and "b&lt;" in other and "b<" not in text
  assert 'class="scale"' in scale


def test_a_matrix_of_few_classes_bears_the_percentages() -> None:
  confusion = np.array([[90, 10], [0, 0]])
  text = confusion_chart(confusion, ["road", "sky"])
  assert re.findall(r"<td class=.*?>(\d*)</td>", text) == ["90", "10", "", ""]
  assert "road predicted as sky: 10.00 %, 10 pixels" in text
  many = confusion_chart(np.eye(30, dtype=int), [f"class {n}" for n in range(30)])
  assert "dense" in many and ">100</td>" not in many


def test_of_many_classes_the_most_frequent_confusions_are_listed() -> None:
  names = [f"class {n}" for n in range(MANY_CLASSES + 5)]
  confusion = np.diag(np.full(len(names), 100))
  confusion[7, 3], confusion[1, 44], confusion[44, 1] = 50, 300, 0
  text = confusion_chart(confusion, names)
  shown = re.findall(r'<span class="name">(.*?)</span>', text)
  assert shown == ["class 1 predicted as class 44", "class 7 predicted as class 3"]
  assert re.findall(r'<span class="number">(.*?)</span>', text) == ["75 % of the class", "33 % of the class"]
  assert "No pixel" in confusion_chart(np.diag(np.full(len(names), 100)), names)
