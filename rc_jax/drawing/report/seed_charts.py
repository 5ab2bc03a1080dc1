"""Charts of several runs of each setting as SVG: a row for each setting, a dot for each seed, means with intervals."""

import dataclasses
import html
import math
from collections.abc import Sequence

import numpy as np

from rc_jax.drawing.report.charts import ACCENTS
from rc_jax.drawing.report.series import short, ticks

# The picture in its own units, which are pixels where the chart is this wide.
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 420, 12, 12, 4, 24
_NAME, _DOTS, _INTERVAL = 13, 27, 10  # from the top of a row: name, dots; from there to each interval
_GAP = 8  # below a row
_LONGEST_NAME = 56  # letters that fit beside each other
_ARROW = 5

_INTERVAL_COLORS = ACCENTS[1:]


@dataclasses.dataclass(frozen=True, eq=False)
class SeedRow:
  """One row of a chart.

  Attributes:
    name: above the row.
    values: ``[S]``, one for each seed; NaN where there is none.
    mean: of them; None without values.
    intervals: lower and upper end around the mean, one for each of the chart's ``intervals``; None: there is none.
    mark: another value to compare with; None: there is none.
  """

  name: str
  values: np.ndarray
  mean: float | None
  intervals: Sequence[tuple[float, float] | None]
  mark: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class SeedChart:
  """Rows of dots on one axis.

  Attributes:
    title: of the chart, with the unit.
    seeds: their ``S`` names.
    rows: from top to bottom.
    intervals: what each interval of a row is, at most two.
    mark: what the mark of a row is.
    note: below the chart, on how to read it.
    joined: joins the dots of each seed by a line.
    zero: the axis includes 0, where a line lies.
    digits: after the decimal point.
    signed: numbers bear a sign.
  """

  title: str
  seeds: Sequence[str]
  rows: Sequence[SeedRow]
  intervals: Sequence[str]
  mark: str = ""
  note: str = ""
  joined: bool = False
  zero: bool = False
  digits: int = 2
  signed: bool = False


def seed_chart(chart: SeedChart) -> str:
  """Returns the ``<figure>`` of a chart; without values, a sentence in its place."""
  title = f"<figcaption>{html.escape(chart.title)}</figcaption>"
  if not any(np.isfinite(row.values).any() for row in chart.rows):
    return f'<figure class="chart seeds">{title}<p class="note">No value yet.</p></figure>'
  limits = axis_limits(chart)
  row_height = _DOTS + _INTERVAL * len(chart.intervals) + _GAP
  base = _TOP + row_height * len(chart.rows)
  tops = [_TOP + index * row_height for index in range(len(chart.rows))]
  body = [_grid(limits, base), _zero_line(limits, base) if chart.zero else ""]
  if chart.joined:
    body.append(_joins(chart, tops, limits))
  body += [_row(chart, row, top, row_height, limits) for row, top in zip(chart.rows, tops, strict=True)]
  label = html.escape(f"{chart.title}, {len(chart.rows)} rows, {len(chart.seeds)} seeds", quote=True)
  notes = chart.note
  if any(
    ends and (ends[0] < limits[0] or ends[1] > limits[1]) for row in chart.rows for ends in row.intervals
  ):
    notes += " An arrow: the interval goes on beyond the axis."
  note = f'<p class="note">{html.escape(notes.strip())}</p>' if notes else ""
  return (
    f'<figure class="chart seeds">{title}{_legend(chart)}<svg viewBox="0 0 {_WIDTH} {base + _BOTTOM}" role="group" '
    f'aria-label="{label}" tabindex="0" data-rove="1">{"".join(body)}</svg>{note}</figure>'
  )


def axis_limits(chart: SeedChart) -> tuple[float, float]:
  """Returns the ends of the axis.

  The axis shows all dots and marks. An interval widens it to each side by no more than the dots and marks take, because
  that of two seeds is so wide that nothing else would be visible.
  """
  shown = [value for row in chart.rows for value in (*row.values, row.mean, row.mark) if _is_known(value)]
  shown += [0.0] if chart.zero else []
  ends = [end for row in chart.rows for pair in row.intervals if pair for end in pair]
  low, high = float(min(shown)), float(max(shown))
  extent = high - low or 0.02 * abs(high) or 1.0
  low, high = max(low - extent, min([low, *ends])), min(high + extent, max([high, *ends]))
  margin = 0.05 * (high - low) or extent
  return low - margin, high + margin


def _is_known(value: float | None) -> bool:
  return value is not None and math.isfinite(value)


def _x(value: float, limits: tuple[float, float]) -> float:
  """Returns the horizontal position of a value; one beyond the limits lies at the edge."""
  low, high = limits
  return _LEFT + (min(max(value, low), high) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)


def _grid(limits: tuple[float, float], base: float) -> str:
  parts = []
  for value in ticks(*limits):
    x = _x(value, limits)
    parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{base}"/>')
    parts.append(f'<text x="{x:.1f}" y="{base + 15}" text-anchor="middle">{short(value)}</text>')
  parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>')
  return "".join(parts)


def _zero_line(limits: tuple[float, float], base: float) -> str:
  x = _x(0.0, limits)
  return f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{base}"/>'


def _joins(chart: SeedChart, tops: Sequence[int], limits: tuple[float, float]) -> str:
  """Returns a line for each seed through its dots, broken where a row has none."""
  paths = []
  for seed in range(len(chart.seeds)):
    commands, command = [], "M"
    for row, top in zip(chart.rows, tops, strict=True):
      value = float(row.values[seed])
      if not math.isfinite(value):
        command = "M"
        continue
      commands.append(f"{command}{_x(value, limits):.1f} {top + _DOTS}")
      command = "L"
    paths.append(f'<path class="join" d="{"".join(commands)}"/>')
  return f'<g class="joins">{"".join(paths)}</g>'


def _row(chart: SeedChart, row: SeedRow, top: int, height: int, limits: tuple[float, float]) -> str:
  name = row.name if len(row.name) <= _LONGEST_NAME else f"{row.name[: _LONGEST_NAME - 1]}…"
  parts = [
    f'<rect x="0" y="{top}" width="{_WIDTH}" height="{height}" fill="none" pointer-events="all"/>',
    f'<text class="row-name" x="{_LEFT}" y="{top + _NAME}">{html.escape(name)}</text>',
  ]
  y = top + _DOTS
  for index, ends in enumerate(row.intervals):
    if ends is not None and row.mean is not None:
      parts.append(_interval(ends, row.mean, y + _INTERVAL * (index + 1), _INTERVAL_COLORS[index], limits))
  for seed, value in zip(chart.seeds, row.values.tolist(), strict=True):
    if math.isfinite(value):
      tip = html.escape(f"{row.name}, seed {seed}: {_number(chart, value)}", quote=True)
      parts.append(f'<circle data-tip="{tip}" cx="{_x(value, limits):.1f}" cy="{y}" r="3.6"/>')
  if row.mark is not None:
    x = _x(row.mark, limits)
    parts.append(f'<path class="mark" d="M{x:.1f} {y - 6}l5 6l-5 6l-5 -6z"/>')
  return f'<g data-tip="{html.escape(_tip(chart, row), quote=True)}">{"".join(parts)}</g>'


def _interval(
  ends: tuple[float, float], mean: float, y: float, color: str, limits: tuple[float, float]
) -> str:
  """Returns the line of an interval, its mean, and an arrow where it goes on beyond the axis."""
  low, high = (_x(end, limits) for end in ends)
  commands = f"M{low:.1f} {y}L{high:.1f} {y}"
  for x, is_beyond, direction in ((low, ends[0] < limits[0], 1), (high, ends[1] > limits[1], -1)):
    if is_beyond:
      commands += (
        f"M{x + direction * _ARROW:.1f} {y - _ARROW}L{x:.1f} {y}L{x + direction * _ARROW:.1f} {y + _ARROW}"
      )
    else:
      commands += f"M{x:.1f} {y - 3}L{x:.1f} {y + 3}"
  center = _x(mean, limits)
  return (
    f'<g style="color:{color}"><path d="{commands}"/>'
    f'<rect x="{center - 1.5:.1f}" y="{y - 5}" width="3" height="10" fill="currentColor"/></g>'
  )


def _tip(chart: SeedChart, row: SeedRow) -> str:
  if row.mean is None:
    return f"{row.name}: no value yet"
  text = f"{row.name}: mean {_number(chart, row.mean)} of {int(np.isfinite(row.values).sum())} seeds"
  for name, ends in zip(chart.intervals, row.intervals, strict=True):
    text += f"; {name}: " + (f"{_number(chart, ends[0])} to {_number(chart, ends[1])}" if ends else "none")
  if row.mark is not None:
    text += f"; {chart.mark}: {_number(chart, row.mark)}"
  return text


def _number(chart: SeedChart, value: float) -> str:
  rounded = round(value, chart.digits) + 0.0  # -0.0 + 0.0 is 0.0
  return f"{rounded:+.{chart.digits}f}" if chart.signed else f"{rounded:.{chart.digits}f}"


def _legend(chart: SeedChart) -> str:
  entries = [f'<li class="dots" style="color:{ACCENTS[0]}"><span>a seed</span></li>']
  for name, color in zip(chart.intervals, _INTERVAL_COLORS, strict=False):
    entries.append(f'<li style="color:{color}"><span>{html.escape(name)}</span></li>')
  if any(row.mark is not None for row in chart.rows):
    entries.append(f'<li class="diamond"><span>{html.escape(chart.mark)}</span></li>')
  return f'<ul class="lines">{"".join(entries)}</ul>'
