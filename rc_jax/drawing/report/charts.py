"""Line charts as SVG, which a page contains and its script makes interactive."""

import dataclasses
import html
import json
from collections.abc import Sequence

import numpy as np

from rc_jax.drawing.report.series import log_ticks, short, smooth, smoothing_window, thinned, ticks

# The picture in its own units, which are pixels where the chart is this wide.
_WIDTH, _HEIGHT = 420, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 10, 26

LEGEND_ENTRIES = 24  # more series than this have no legend
LOG_RATIO = 30  # of the largest to the smallest value, from which a loss has a logarithmic axis
ACCENTS = ("var(--accent)", "var(--second)", "var(--third)")


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
  """One line of a chart.

  Attributes:
    name: in the legend, and where the pointer is.
    values: float ``[L]``; NaN where there is none.
    color: a CSS colour.
  """

  name: str
  values: np.ndarray
  color: str = ACCENTS[0]


@dataclasses.dataclass(frozen=True, eq=False)
class LineChart:
  """Series over the steps of a run.

  Attributes:
    title: of the chart, with the unit.
    steps: ``[L]``, increasing.
    last: the step at which the horizontal axis ends; it starts at 0, so that all charts of a run have one axis.
    series: of the same length.
    note: one sentence below the chart, on how to read it.
    smoothed: draws the moving mean over a thin line of the values.
    limits: of the vertical axis; None: from the values.
    logarithmic: the vertical axis is logarithmic where the values span a factor of ``LOG_RATIO``.
    points: marks each value.
  """

  title: str
  steps: np.ndarray
  last: int
  series: Sequence[Series]
  note: str = ""
  smoothed: bool = True
  limits: tuple[float | None, float | None] = (None, None)
  logarithmic: bool = False
  points: bool = False


def line_chart(chart: LineChart) -> str:
  """Returns the ``<figure>`` of a chart; of values that are not finite, a sentence in its place."""
  values = np.stack([series.values for series in chart.series])  # [K,L]
  finite = values[np.isfinite(values)]
  title = f"<figcaption>{html.escape(chart.title)}</figcaption>"
  if not finite.size:
    return f'<figure class="chart">{title}<p class="note">No finite value was logged.</p></figure>'
  logarithmic = bool(chart.logarithmic and finite.min() > 0 and finite.max() >= LOG_RATIO * finite.min())
  axes = _Axes.around(chart, finite, logarithmic)
  body = [axes.grid(), *(_paths(chart, series, axes) for series in chart.series)]
  label = html.escape(f"{chart.title}, {len(chart.steps)} logged steps", quote=True)
  if logarithmic:
    title = title.replace("</figcaption>", " <small>log scale</small></figcaption>")
  note = f'<p class="note">{html.escape(chart.note)}</p>' if chart.note else ""
  return (
    f'<figure class="chart">{title}{_legend(chart.series)}'
    f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}" tabindex="0" '
    f'data-chart="{html.escape(_hover_data(chart, axes), quote=True)}">{"".join(body)}'
    f'<line class="cursor" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/></svg>{note}</figure>'
  )


@dataclasses.dataclass(frozen=True)
class _Axes:
  x_limits: tuple[float, float]
  y_limits: tuple[float, float]
  logarithmic: bool

  @classmethod
  def around(cls, chart: LineChart, finite: np.ndarray, logarithmic: bool) -> "_Axes":
    """Returns axes around the values, with a margin where no limit is given."""
    low, high = float(finite.min()), float(finite.max())
    if logarithmic:
      low, high = low / 1.1, high * 1.1
    else:
      margin = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
      low, high = low - margin, high + margin
    low = low if chart.limits[0] is None else chart.limits[0]
    high = high if chart.limits[1] is None else chart.limits[1]
    return cls((0.0, float(max(chart.last, 1))), (low, high if high > low else low + 1), logarithmic)

  def x(self, steps: np.ndarray) -> np.ndarray:
    """Returns the horizontal positions of steps."""
    first, last = self.x_limits
    return _LEFT + (np.asarray(steps) - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)

  def y(self, values: np.ndarray) -> np.ndarray:
    """Returns the vertical positions of values; those beyond the limits lie on the edge."""
    limits, values = np.array(self.y_limits), np.clip(values, *self.y_limits)
    if self.logarithmic:
      limits, values = np.log(limits), np.log(values)
    share = (values - limits[0]) / (limits[1] - limits[0])
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

  def grid(self) -> str:
    """Returns the lines and numbers of both axes."""
    parts = []
    for value in (log_ticks if self.logarithmic else ticks)(*self.y_limits):
      y = float(self.y(np.array(value)))
      parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
      parts.append(f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{short(value)}</text>')
    for step in ticks(*self.x_limits):
      if step == int(step):  # of a short run, some lie between two steps
        x = float(self.x(np.array(step)))
        anchor = "end" if x > _WIDTH - 24 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{short(step)}</text>')
    base = _HEIGHT - _BOTTOM
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>')
    return "".join(parts)


def _paths(chart: LineChart, series: Series, axes: _Axes) -> str:
  """Returns the thin line of all values and the line on top, or marks where lines would not show the values."""
  style = f'style="color:{html.escape(series.color, quote=True)}"'
  window = smoothing_window(len(chart.steps)) if chart.smoothed else 1
  top = smooth(series.values, window) if window > 1 else series.values
  parts = []
  if window > 1:
    parts.append(f'<path class="raw" d="{_path(chart.steps, series.values, axes)}"/>')
  parts.append(f'<path class="line" d="{_path(chart.steps, top, axes)}"/>')
  known = np.isfinite(series.values)
  alone = known & ~np.r_[False, known[:-1]] & ~np.r_[known[1:], False]  # no neighbour to draw a line to
  for index in np.flatnonzero(known if chart.points else alone):
    x, y = float(axes.x(chart.steps[index])), float(axes.y(top[index]))
    parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
  return f"<g {style}>{''.join(parts)}</g>"


def _path(steps: np.ndarray, values: np.ndarray, axes: _Axes) -> str:
  """Returns the commands of a path through the finite values."""
  parts, command = [], "M"
  for index in thinned(values):
    if not np.isfinite(values[index]):
      command = "M"
      continue
    parts.append(f"{command}{float(axes.x(steps[index])):.1f} {float(axes.y(values[index])):.1f}")
    command = "L"
  return "".join(parts)


def _legend(series: Sequence[Series]) -> str:
  if not 1 < len(series) <= LEGEND_ENTRIES:
    return ""
  entries = "".join(
    f'<li style="color:{html.escape(one.color, quote=True)}"><span>{html.escape(one.name)}</span></li>'
    for one in series
  )
  return f'<ul class="lines">{entries}</ul>'


def _hover_data(chart: LineChart, axes: _Axes) -> str:
  """Returns JSON: the steps that the pointer can reach, their values, and where the first and last step lie."""
  kept = thinned(chart.series[0].values)

  def rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None

  first, last = (float(x) for x in axes.x(np.array(axes.x_limits)))
  return json.dumps(
    {
      "range": [*axes.x_limits, first, last],
      "steps": [int(chart.steps[index]) for index in kept],
      "series": [
        {"name": one.name, "color": one.color, "values": [rounded(one.values[index]) for index in kept]}
        for one in chart.series
      ],
    },
    separators=(",", ":"),
  )
