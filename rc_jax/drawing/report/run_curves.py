"""Charts over the steps of a run: losses, schedule, scores, speed, and the similarities and banks of the contrast."""

import html
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rc_jax.data import DatasetInfo
from rc_jax.drawing.report.charts import ACCENTS, LEGEND_ENTRIES, LineChart, Series, line_chart
from rc_jax.drawing.report.class_charts import css_color, dot_pairs
from rc_jax.drawing.report.page import Section
from rc_jax.drawing.report.series import Lines, column, columns, has, smoothing_window

_POSITIVE, _NEGATIVE = "contrast_positive_similarity", "contrast_negative_similarity"
_END_SHARE = 1 / 10  # of the logged lines, whose mean stands for the end of the run

# Names of loss terms in titles; another term has its name.
_TERMS = {
  "loss": "Loss",
  "loss_pixel": "Pixel loss",
  "loss_aux": "Auxiliary loss",
  "loss_contrast": "Contrastive loss",
}


class Ages(NamedTuple):
  """How many steps ago the keys of each bank entered it.

  Attributes:
    steps: ``[L]``, updates at each line.
    mean: float ``[L,N]``; NaN where a bank is empty.
    oldest: likewise.
  """

  steps: np.ndarray
  mean: np.ndarray
  oldest: np.ndarray


def curves_section(steps: Lines, evaluations: Lines, split: str) -> Section:
  """Returns the charts of every run.

  Args:
    steps: the lines of training steps.
    evaluations: the lines of evaluations.
    split: the evaluated split.
  """
  x = np.array([line["step"] for line in steps])
  last = _last_step([*steps, *evaluations])
  charts = []
  for name in _loss_names(steps):
    values = column(steps, name)
    if name == "loss" or np.nanmax(np.abs(values), initial=0) > 0:  # 0 throughout: a term that the run lacks
      title = _TERMS.get(name, name.removeprefix("loss_").replace("_", " ").capitalize() + " loss")
      charts.append(LineChart(title, x, last, [Series(title, values)], logarithmic=True))
  if evaluations:
    scored = np.array([line["step"] for line in evaluations])
    series = [Series("mIoU", 100 * column(evaluations, "miou"))]
    title = f"mIoU on {split}, %"
    charts.append(LineChart(title, scored, last, series, smoothed=False, limits=(0, None), points=True))
    losses = column(evaluations, "cross_entropy")
    if np.isfinite(losses).any():  # logs of earlier versions lack it
      title = f"Validation loss: cross entropy on {split}"
      series = [Series("cross entropy", losses)]
      charts.append(LineChart(title, scored, last, series, smoothed=False, points=True, logarithmic=True))
  for name, title, smoothed in (
    ("learning_rate", "Learning rate", False),
    ("images_per_second", "Images per second", True),
    ("gradient_norm", "Norm of the gradient", True),
  ):
    if has(steps, name):
      logarithmic = name == "gradient_norm"
      charts.append(
        LineChart(
          title, x, last, [Series(title, column(steps, name))], smoothed=smoothed, logarithmic=logarithmic
        )
      )
  body = f'<p class="lead">{_smoothing(len(steps))}</p>{_grid(charts)}'
  return Section("curves", "Curves over the steps", body)


def _last_step(lines: Lines) -> int:
  return max(line["step"] for line in lines)


def _loss_names(steps: Lines) -> list[str]:
  names = {name: None for line in steps for name in line if name.startswith("loss")}
  known = [name for name in _TERMS if name in names]
  return known + sorted(name for name in names if name not in _TERMS and not name.endswith("_scaled"))


def _smoothing(length: int) -> str:
  window = smoothing_window(length)
  if window == 1:
    return "Each line joins the logged values."
  return f"Thin: the logged values. Thick: their mean over {window} neighbouring lines of the log, a twentieth of all."


def _grid(charts: Sequence[LineChart | str]) -> str:
  figures = (chart if isinstance(chart, str) else line_chart(chart) for chart in charts)
  return f'<div class="charts">{"".join(figures)}</div>'


def contrast_section(steps: Lines, info: DatasetInfo, ages: Ages | None) -> list[Section]:
  """Returns the section of the contrast; none where the log has nothing on it.

  Args:
    steps: the lines of training steps.
    info: names and colours of the classes.
    ages: of the keys in the banks; None: unknown.
  """
  charts: list[LineChart | str] = [*_similarities(steps, info), *_banks(steps, info, ages)]
  x = np.array([line["step"] for line in steps])
  if has(steps, "contrast_queries"):
    note = "A query is the center of a class in an image, compared with the keys. More queries: more classes per image."
    queries = Series("queries", column(steps, "contrast_queries"))
    charts.append(LineChart("Queries in a step", x, _last_step(steps), [queries], note, limits=(0, None)))
  if not charts:
    return []
  return [Section("contrast", "What the contrast did", _grid(charts))]


def _similarities(steps: Lines, info: DatasetInfo) -> list[LineChart | str]:
  charts: list[LineChart | str] = []
  x = np.array([line["step"] for line in steps])
  if has(steps, _POSITIVE):
    # A step without queries logs 0, which is no similarity.
    queries = column(steps, "contrast_queries")
    own, others = (np.where(queries == 0, np.nan, column(steps, name)) for name in (_POSITIVE, _NEGATIVE))
    series = [Series("own class", own, ACCENTS[0]), Series("other classes", others, ACCENTS[1])]
    note = (
      "The mean cosine similarity of region centers with the keys of their own class and of other classes. "
      "The contrast works where the lines move apart."
    )
    charts.append(LineChart("Similarity of centers with keys", x, _last_step(steps), series, note))
  if has(steps, f"{_POSITIVE}_by_class"):
    charts.append(_similarities_at_the_end(steps, info))
  return charts


def _similarities_at_the_end(steps: Lines, info: DatasetInfo) -> str:
  last = steps[-max(1, round(len(steps) * _END_SHARE)) :]
  own, others = (
    _mean_of_known(columns(last, f"{name}_by_class", info.class_names)) for name in (_POSITIVE, _NEGATIVE)
  )
  lowest = np.nanmin([*own, *others, 0.0])
  limits = (float(np.floor(4 * lowest) / 4), 1.0)
  pairs = dot_pairs(info.class_names, info.palette, ("own class", own), ("other classes", others), limits)
  when = "in the last logged step" if len(last) == 1 else f"mean of the last {len(last)} logged steps"
  title = f"Similarity by class, {when}"
  note = (
    "A long bar between the dots: the centers of the class are close to their class and far from the others."
  )
  return _figure(title, pairs, note, wide=info.num_classes > LEGEND_ENTRIES)


def _mean_of_known(values: np.ndarray) -> np.ndarray:
  """Returns the mean over the first axis without NaN; NaN where there is no other value."""
  known = np.isfinite(values)
  number = known.sum(axis=0)
  return np.where(number > 0, np.where(known, values, 0).sum(axis=0) / np.maximum(number, 1), np.nan)


def _banks(steps: Lines, info: DatasetInfo, ages: Ages | None) -> list[LineChart | str]:
  charts: list[LineChart | str] = []
  if has(steps, "bank_fill"):
    fill = 100 * columns(steps, "bank_fill", info.class_names)
    x = np.array([line["step"] for line in steps])
    if has(steps, "bank_cursor"):
      note = "A full bank holds the newest centers of as many images as it has slots; a rare class fills it slowly."
    else:  # a slot for each image
      note = "The share of the training images whose latest crop shows the class."
    series = _by_class(fill, info)
    charts.append(
      LineChart(
        "Fill of the memory banks, %", x, _last_step(steps), series, note, smoothed=False, limits=(0, 102)
      )
    )
  if ages is not None:
    note = "The mean number of steps since the keys of a bank entered it. The network has changed since then."
    series = _by_class(ages.mean, info)
    charts.append(
      LineChart(
        "Mean age of the keys, steps",
        ages.steps,
        _last_step(steps),
        series,
        note,
        smoothed=False,
        limits=(0, None),
      )
    )
    mean, oldest = ages.mean[-1], ages.oldest[-1]
    limit = float(np.nanmax(oldest, initial=1.0)) * 1.05
    pairs = dot_pairs(
      info.class_names, info.palette, ("mean age", mean), ("oldest key", oldest), (0.0, limit)
    )
    note = "A class that few images show replaces its keys slowly, so they grow old."
    title = f"Age of the keys at step {int(ages.steps[-1]):,}, steps"
    charts.append(_figure(title, pairs, note, wide=info.num_classes > LEGEND_ENTRIES))
  return charts


def _by_class(values: np.ndarray, info: DatasetInfo) -> list[Series]:
  """Returns a series for each class in its colour; of many classes their lowest, middle and highest value."""
  if info.num_classes <= LEGEND_ENTRIES:
    # Mixed with the text's colour, dark colours stay visible on a dark page, and light ones on a light page.
    return [
      Series(name, values[:, label], f"color-mix(in srgb, {css_color(info.palette[label])} 72%, var(--ink))")
      for label, name in enumerate(info.class_names)
    ]
  known = np.isfinite(values).any(axis=1)  # [L]
  summaries = {
    "lowest class": np.nanmin(values[known], axis=1),
    "median class": np.nanmedian(values[known], axis=1),
    "highest class": np.nanmax(values[known], axis=1),
  }
  lines = []
  for (name, summary), color in zip(summaries.items(), ACCENTS, strict=True):
    line = np.full(len(values), np.nan)
    line[known] = summary
    lines.append(Series(name, line, color))
  return lines


def _figure(title: str, body: str, note: str, wide: bool) -> str:
  """Returns a figure; a wide one takes the width of the page."""
  return (
    f'<figure class="chart{" wide" if wide else ""}"><figcaption>{html.escape(title)}</figcaption>{body}'
    f'<p class="note">{html.escape(note)}</p></figure>'
  )
