"""Charts with a row for each class: bars, pairs of dots, differences, and confusion as a table or as a list."""

import html
from collections.abc import Sequence

import numpy as np

from rc_jax.drawing.panels import MANY_CLASSES
from rc_jax.drawing.report.series import short, ticks

CONFUSIONS = 40  # pairs of classes listed instead of a matrix, if there are many classes
NUMBERED_CLASSES = 20  # a matrix of more has no space for numbers
_COLUMNS_FROM = 21  # number of classes from which rows stand in columns


def css_color(color: np.ndarray) -> str:
  """Returns the CSS colour of uint8 ``[3]``."""
  return f"rgb({','.join(str(int(channel)) for channel in color)})"


def swatch(color: np.ndarray | None) -> str:
  """Returns a small square in a colour."""
  style = "" if color is None else f' style="background:{css_color(color)}"'
  return f'<i class="swatch"{style}></i>'


def iou_bars(
  names: Sequence[str],
  palette: np.ndarray,
  ious: Sequence[float | None],
  miou: float,
  pixels: np.ndarray | None,
) -> str:
  """Returns a bar for each class, with its IoU in percent at the end and a mark at the mean.

  Args:
    names: of the ``N`` classes.
    palette: uint8 ``[N,3]``.
    ious: in 0..1; None for a class that the mean leaves out.
    miou: their mean.
    pixels: ``[N]``, the pixels of each class in the ground truth; None: unknown.
  """
  rows = []
  for label, (name, iou) in enumerate(zip(names, ious, strict=True)):
    tip = f"{name}: " + ("not in the mean" if iou is None else f"IoU {100 * iou:.2f} %")
    if pixels is not None:
      share = pixels[label] / max(pixels.sum(), 1)
      tip += f"; {int(pixels[label]):,} pixels, {100 * share:.2g} % of all"
    bar = "" if iou is None else f'<span class="bar" style="width:{100 * iou:.2f}%"></span>'
    number = "–" if iou is None else f"{100 * iou:.1f}"
    rows.append(_row(name, palette[label], tip, bar, number))
  return _rows(rows, f'style="--mean:{100 * miou:.2f}%"', "IoU of each class")


def dot_pairs(
  names: Sequence[str],
  palette: np.ndarray,
  first: tuple[str, np.ndarray],
  second: tuple[str, np.ndarray],
  limits: tuple[float, float],
) -> str:
  """Returns a line with two dots for each class.

  Args:
    names: of the ``N`` classes.
    palette: uint8 ``[N,3]``.
    first: the meaning of the filled dot and its values ``[N]``; NaN where a class has none.
    second: likewise of the hollow dot.
    limits: of the axis.
  """

  def position(value: float) -> float:
    return float(100 * (np.clip(value, *limits) - limits[0]) / (limits[1] - limits[0]))

  rows = []
  for label, name in enumerate(names):
    pair = [float(values[label]) for _, values in (first, second)]
    texts = ["–" if np.isnan(value) else _digits(value, limits) for value in pair]
    tip = f"{name}: {first[0]} {texts[0]}, {second[0]} {texts[1]}"
    dots = ""
    if not np.isnan(pair).any():
      low, high = sorted(map(position, pair))
      dots += f'<span class="span" style="left:{low:.2f}%;width:{high - low:.2f}%"></span>'
    for value, kind in zip(pair, ("first", "second"), strict=True):
      if not np.isnan(value):
        dots += f'<span class="dot {kind}" style="left:{position(value):.2f}%"></span>'
    rows.append(_row(name, palette[label], tip, dots, " / ".join(texts)))
  axis = "".join(
    f'<span style="left:{position(tick):.2f}%">{short(tick)}</span>' for tick in ticks(*limits, number=3)
  )
  key = (
    f'<p class="key"><span><i class="dot first"></i>{html.escape(first[0])}</span> '
    f'<span><i class="dot second"></i>{html.escape(second[0])}</span></p>'
  )
  rows.append(
    f'<li class="scale" aria-hidden="true"><span></span><span></span><span class="track">{axis}</span></li>'
  )
  return key + _rows(rows, "", f"{first[0]} and {second[0]} of each class", wide=True)


def _digits(value: float, limits: tuple[float, float]) -> str:
  return f"{value:.2f}" if limits[1] <= 2 else f"{value:.0f}"


def _row(name: str, color: np.ndarray, tip: str, track: str, number: str) -> str:
  escaped = html.escape(name, quote=True)
  return (
    f'<li data-tip="{html.escape(tip, quote=True)}">{swatch(color)}<span class="name" title="{escaped}">{escaped}'
    f'</span><span class="track">{track}</span><span class="number">{number}</span></li>'
  )


def _rows(rows: list[str], style: str, label: str, wide: bool = False) -> str:
  kind = "rows columns" if len(rows) >= _COLUMNS_FROM else "rows"
  kind += " pairs" if wide else ""
  return (
    f'<ul class="{kind}" {style} tabindex="0" data-rove="1" aria-label="{html.escape(label, quote=True)}">'
    f"{''.join(rows)}</ul>"
  )


def confusion_chart(confusion: np.ndarray, names: Sequence[str]) -> str:
  """Returns a confusion matrix ``[N,N]`` (rows truth), or its largest entries if there are many classes."""
  fractions = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
  if len(names) > MANY_CLASSES:
    return _largest_confusions(confusion, fractions, names)
  return _matrix(confusion, fractions, names)


def _matrix(confusion: np.ndarray, fractions: np.ndarray, names: Sequence[str]) -> str:
  numbered = len(names) <= NUMBERED_CLASSES
  head = "".join(f'<th scope="col"><span>{html.escape(name)}</span></th>' for name in names)
  body = []
  for truth, name in enumerate(names):
    cells = []
    for prediction, other in enumerate(names):
      percent = 100 * fractions[truth, prediction]
      tip = f"{name} predicted as {other}: {percent:.2f} %, {int(confusion[truth, prediction]):,} pixels"
      number = f"{percent:.0f}" if numbered and percent >= 0.5 else ""
      kind = "same" if truth == prediction else "other"
      strong = " strong" if percent >= 55 else ""
      cells.append(
        f'<td class="{kind}{strong}" style="--share:{percent:.1f}%" data-tip="{html.escape(tip, quote=True)}">'
        f"{number}</td>"
      )
    body.append(f'<tr><th scope="row">{html.escape(name)}</th>{"".join(cells)}</tr>')
  kind = "matrix" if numbered else "matrix dense"
  return (
    f'<div class="scroll"><table class="{kind}" tabindex="0" data-rove="{len(names)}">'
    "<caption>Rows: ground truth. Columns: prediction.</caption>"
    f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
  )


def _largest_confusions(confusion: np.ndarray, fractions: np.ndarray, names: Sequence[str]) -> str:
  """Lists the pairs of classes with the most wrong pixels; a matrix of 150 classes is unreadable."""
  wrong = confusion * ~np.eye(len(names), dtype=bool)
  pairs = [divmod(int(pair), len(names)) for pair in np.argsort(-wrong, axis=None)[:CONFUSIONS]]
  pairs = [(truth, prediction) for truth, prediction in pairs if wrong[truth, prediction]]
  if not pairs:
    return "<p>No pixel was predicted wrongly.</p>"
  largest = wrong[pairs[0]]
  rows = []
  for truth, prediction in pairs:
    count, share = int(wrong[truth, prediction]), 100 * wrong[truth, prediction] / wrong.sum()
    text = f"{names[truth]} predicted as {names[prediction]}"
    tip = f"{text}: {count:,} pixels, {share:.1f} % of all wrong pixels"
    rows.append(
      f'<li data-tip="{html.escape(tip, quote=True)}"><span class="name">{html.escape(text)}</span>'
      f'<span class="track"><span class="bar" style="width:{100 * count / largest:.2f}%"></span></span>'
      f'<span class="number">{100 * fractions[truth, prediction]:.0f} % of the class</span></li>'
    )
  return (
    f'<ul class="rows pairs-list" tabindex="0" data-rove="1" aria-label="Confusions">{"".join(rows)}</ul>'
  )


def difference_matrix(
  names: Sequence[str],
  columns: Sequence[str],
  differences: np.ndarray,
  reference: tuple[str, np.ndarray],
  largest: float,
) -> str:
  """Returns a table with a row for each class and a column for each setting, coloured by the difference.

  Args:
    names: of the ``N`` classes.
    columns: names of the ``K`` settings.
    differences: ``[N,K]``, points of IoU; NaN where there is none.
    reference: the name of the setting to compare with, and its IoUs ``[N]`` in percent; NaN where there is none.
    largest: the absolute difference that has the full colour; 0: all differences are 0.
  """
  head = "".join(
    f'<th scope="col"><span>{html.escape(name)}</span></th>' for name in (reference[0], *columns)
  )
  body = []
  for label, name in enumerate(names):
    iou = float(reference[1][label])
    text = "–" if np.isnan(iou) else f"{iou:.1f}"
    tip = html.escape(f"{name}, {reference[0]}: IoU {text} %", quote=True)
    cells = [f'<td data-tip="{tip}">{text}</td>']
    for column, value in zip(columns, differences[label].tolist(), strict=True):
      text = "–" if np.isnan(value) else f"{round(value, 1) + 0.0:+.1f}"
      tip = f"{name}, {column}: {text} points of IoU against {reference[0]}"
      share = 0.0 if np.isnan(value) or not largest else 100 * abs(value) / largest
      kind = "same" if value > 0 else "other"  # the colours of right and wrong pixels
      strong = " strong" if share >= 55 else ""
      cells.append(
        f'<td class="{kind}{strong}" style="--share:{share:.1f}%" data-tip="{html.escape(tip, quote=True)}">{text}</td>'
      )
    body.append(f'<tr><th scope="row">{html.escape(name)}</th>{"".join(cells)}</tr>')
  return (
    f'<div class="scroll"><table class="matrix differences" tabindex="0" data-rove="{1 + len(columns)}">'
    f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
  )
