"""Two results on the same images side by side: which pixels each has right, and the change of each class's IoU.

RegionContrast, Figure 4.
"""

import dataclasses
import html
import json
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from rc_jax.data import IGNORE_LABEL, DatasetInfo
from rc_jax.drawing.panels import (
  IGNORED_COLOR,
  MANY_CLASSES,
  captioned,
  colorize,
  grid,
  legend,
  shrunk,
  swatches,
)
from rc_jax.drawing.report.class_charts import css_color, swatch
from rc_jax.drawing.report.page import Section, document, picture_button
from rc_jax.drawing.report.series import short, ticks

ONLY_SECOND_COLOR = (31, 110, 200)
ONLY_FIRST_COLOR = (230, 110, 20)
NEITHER_COLOR = (70, 70, 70)

_PICTURE_HEIGHT, _PICTURE_WIDTH = 384, 576  # pixels; larger pictures are shrunk to it
_PANEL_HEIGHT = 160  # pixels in the picture of all panels
_MARKS = (
  ("only the second is right", ONLY_SECOND_COLOR),
  ("only the first is right", ONLY_FIRST_COLOR),
  ("both are wrong", NEITHER_COLOR),
  ("ignored", IGNORED_COLOR),
)


@dataclasses.dataclass(frozen=True, eq=False)
class ComparedImage:
  """An image with two predictions.

  Attributes:
    name: of the image.
    image: uint8 ``[H,W,3]``.
    truth: uint8 ``[H,W]``, train ids, 255 where ignored.
    first: ``[H,W]``, train ids.
    second: likewise.
    mious: mean IoU of the image's classes, in 0..1, of both predictions.
  """

  name: str
  image: np.ndarray
  truth: np.ndarray
  first: np.ndarray
  second: np.ndarray
  mious: tuple[float, float]

  @property
  def caption(self) -> str:
    """The mean IoU of both predictions, and the change, in percent."""
    first, second = (100 * miou for miou in self.mious)
    return f"mean IoU of its classes {first:.1f} % and {second:.1f} %, change {second - first:+.1f}"


@dataclasses.dataclass(frozen=True)
class ClassChange:
  """The IoU of a class in both results.

  Attributes:
    name: of the class.
    first: its IoU, 0..1; None where the result leaves it out.
    second: likewise.
    interval: of the difference, second minus first; None: not known.
  """

  name: str
  first: float | None
  second: float | None
  interval: tuple[float, float] | None

  @property
  def change(self) -> float | None:
    """Second minus first."""
    return None if self.first is None or self.second is None else self.second - self.first


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
  """All that the page shows.

  Attributes:
    title: of the page.
    names: of both results.
    mious: of both, 0..1; None where no class is scored.
    change: in mIoU, second minus first, and its interval, as fractions.
    interval: its lower and upper end; None: of one image.
    coverage: of all intervals, 0..1.
    sentences: on what the change means.
    classes: of the ``N`` classes.
    groups: title -> sentence on its images, and the images.
    info: names and colours of the classes; None: no pictures, and the data set is not at hand.
    notes: why there are no pictures, and the like.
    software: versions and device, for the last line.
  """

  title: str
  names: tuple[str, str]
  mious: tuple[float | None, float | None]
  change: float
  interval: tuple[float, float] | None
  coverage: float
  sentences: Sequence[str]
  classes: Sequence[ClassChange]
  groups: Mapping[str, tuple[str, Sequence[ComparedImage]]]
  info: DatasetInfo | None
  notes: Sequence[str] = ()
  software: str = ""


def changed_pixels(image: np.ndarray, truth: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """Marks the pixels that one of two predictions, or neither, has right, over a light grey image.

  Args:
    image: uint8 ``[H,W,3]``.
    truth: ``[H,W]``, train ids; 255 is ignored, and drawn in ``IGNORED_COLOR``.
    first: ``[H,W]``, train ids.
    second: likewise.

  Returns:
    uint8 ``[H,W,3]``; grey where both are right.
  """
  light = np.repeat(110 + 0.5 * image.mean(axis=-1, keepdims=True), 3, axis=-1)
  marked = light.copy()
  by_first, by_second = first == truth, second == truth
  for mask, color in (
    (by_second & ~by_first, ONLY_SECOND_COLOR),
    (by_first & ~by_second, ONLY_FIRST_COLOR),
    (~by_first & ~by_second, NEITHER_COLOR),
  ):
    marked[mask] = 0.2 * light[mask] + 0.8 * np.array(color)
  marked[truth == IGNORE_LABEL] = IGNORED_COLOR
  return np.round(marked).astype(np.uint8)


def comparison_picture(comparison: Comparison) -> Image.Image:
  """Draws a row for each image: image, truth, first, second and the changed pixels; legends below.

  Args:
    comparison: with pictures.
  """
  info = comparison.info
  assert info is not None
  rows: list[list[Image.Image]] = []
  for title, (_, images) in comparison.groups.items():
    for each in images:
      panels = [Image.fromarray(shrunk(panel, _PANEL_HEIGHT)) for _, panel, _ in _panels(each, info)]
      change = 100 * (each.mious[1] - each.mious[0])
      texts = (f"{title}: {each.name}", "ground truth", "first", "second", f"changed pixels, {change:+.1f}")
      rows.append([captioned(panel, text) for panel, text in zip(panels, texts, strict=True)])
  drawn = grid(rows)
  marks = swatches([(name, "", np.array(color, np.uint8)) for name, color in _MARKS], drawn.width)
  return grid([[drawn], [legend(info, _classes_shown(comparison), drawn.width)], [marks]])


def comparison_page(comparison: Comparison) -> str:
  """Returns a page of HTML that needs no other file."""
  sections = [_class_chart(comparison), _class_table(comparison)]
  if comparison.info is not None:
    info = comparison.info
    key = _legend(comparison, info)
    for title, (lead, images) in comparison.groups.items():
      rows = "".join(_row(each, comparison.names, info) for each in images)
      anchor = "".join(letter for letter in title.lower() if letter.isalpha())
      sections.append(Section(anchor, title, f'<p class="lead">{html.escape(lead)}</p>{key}{rows}'))
      key = ""  # the script reads the classes from the first
  return document(comparison.title, _header(comparison), sections, html.escape(comparison.software))


def _header(comparison: Comparison) -> str:
  interval = comparison.interval
  where = "points of mIoU, second minus first"
  if interval is not None:
    where += (
      f"; {100 * comparison.coverage:g} % interval {100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}"
    )
  terms = "".join(
    f"<dt>{kind}: {html.escape(name)}</dt><dd>{_percent(miou)}</dd>"
    for kind, name, miou in zip(("first", "second"), comparison.names, comparison.mious, strict=True)
  )
  sentences = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in comparison.sentences)
  notes = "".join(f'<p class="note"><b>Note:</b> {html.escape(note)}</p>' for note in comparison.notes)
  return (
    f'<p class="kind">Comparison of two results, mIoU in %</p><h1>{html.escape(comparison.title)}</h1>'
    f'<div class="scores"><div class="score"><b>{100 * comparison.change:+.2f}</b><span>{where}</span></div>'
    f'<dl class="beside">{terms}</dl></div>{notes}{sentences}'
  )


def _percent(value: float | None, sign: str = "") -> str:
  return "–" if value is None else f"{100 * value:{sign}.1f}"


def _interval(interval: tuple[float, float] | None) -> str:
  return "–" if interval is None else f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}"


def _class_chart(comparison: Comparison) -> Section:
  """Returns a dot for the change of each class on one axis, with its interval; the largest gain first."""
  ends = [0.0]
  for each in comparison.classes:
    ends += [100 * value for value in (each.change, *(each.interval or ())) if value is not None]
  margin = 0.04 * (max(ends) - min(ends)) or 1.0
  low, high = min(ends) - margin, max(ends) + margin

  def position(value: float) -> float:
    return 100 * (value - low) / (high - low)

  palette = _palette(comparison)
  rows = []
  for each in sorted(comparison.classes, key=lambda each: -np.inf if each.change is None else -each.change):
    if each.change is None:
      continue
    marks = ""
    if each.interval is not None:
      left, right = (position(100 * end) for end in each.interval)
      marks += f'<span class="span" style="left:{left:.2f}%;width:{right - left:.2f}%"></span>'
    known = each.interval is not None and (each.interval[0] > 0 or each.interval[1] < 0)
    kind = "first" if known else "first open"
    marks += f'<span class="dot {kind}" style="left:{position(100 * each.change):.2f}%"></span>'
    name = html.escape(each.name, quote=True)
    tip = html.escape(
      f"{each.name}: {_percent(each.first)} and {_percent(each.second)}, change {_percent(each.change, '+')}, "
      f"interval {_interval(each.interval)}",
      quote=True,
    )
    rows.append(
      f'<li data-tip="{tip}">{swatch(palette.get(each.name))}<span class="name" title="{name}">{name}</span>'
      f'<span class="track">{marks}</span><span class="number">{_percent(each.change, "+")}</span></li>'
    )
  axis = "".join(
    f'<span style="left:{position(tick):.2f}%">{short(tick)}</span>' for tick in ticks(low, high, number=3)
  )
  rows.append(
    '<li class="scale" aria-hidden="true"><span></span><span></span>'
    f'<span class="track">{axis}</span><span></span></li>'
  )
  lead = (
    "Second minus first, in points of IoU. Bars are intervals over images, for each class alone: of many classes, some "
    "lie beside 0 by chance. A dot is hollow where its interval contains 0, or is unknown."
  )
  body = (
    f'<p class="lead">{lead}</p><ul class="rows changes" style="--mean:{position(0):.2f}%" tabindex="0" '
    f'data-rove="1" aria-label="Change of the IoU of each class">{"".join(rows)}</ul>'
  )
  return Section("changes", "Change of each class", body, half=True)


def _class_table(comparison: Comparison) -> Section:
  head = "".join(f'<th scope="col">{title}</th>' for title in ("first", "second", "change", "interval"))
  body = "".join(
    f'<tr><th scope="row">{html.escape(each.name)}</th><td>{_percent(each.first)}</td><td>{_percent(each.second)}</td>'
    f"<td>{_percent(each.change, '+')}</td><td>{_interval(each.interval)}</td></tr>"
    for each in comparison.classes
  )
  table = (
    f'<div class="scroll"><table class="numbers"><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>'
    "</div>"
  )
  return Section("classes", "IoU of each class in %", table, half=True)


def _palette(comparison: Comparison) -> dict[str, np.ndarray]:
  info = comparison.info
  return {} if info is None else dict(zip(info.class_names, info.palette, strict=True))


def _classes_shown(comparison: Comparison) -> list[int]:
  """Returns the classes of the legend: all, of many those in the pictures."""
  info = comparison.info
  assert info is not None
  if info.num_classes <= MANY_CLASSES:
    return list(range(info.num_classes))
  shown: set[int] = set()
  for _, images in comparison.groups.values():
    for each in images:
      for labels in (each.truth, each.first, each.second):
        shown |= set(np.unique(labels).tolist())
  return sorted(shown & set(range(info.num_classes)))


def _legend(comparison: Comparison, info: DatasetInfo) -> str:
  """Returns the colours of classes and marks, and for the script the class of each colour."""
  classes = _classes_shown(comparison)
  items, marks = (
    "".join(f"<li>{swatch(color)}{html.escape(name)}</li>" for name, color in entries)
    for entries in (
      [(info.class_names[label], info.palette[label]) for label in classes],
      [(name, np.array(color)) for name, color in _MARKS],
    )
  )
  names = {css_color(np.array(IGNORED_COLOR))[4:-1]: "ignored"}
  for label in reversed(classes):
    names[css_color(info.palette[label])[4:-1]] = info.class_names[label]
  return (
    f'<ul class="legend" data-classes="{html.escape(json.dumps(names), quote=True)}">{items}</ul>'
    f'<p class="note">Changed pixels:</p><ul class="legend">{marks}</ul>'
  )


def _panels(each: ComparedImage, info: DatasetInfo) -> list[tuple[str, np.ndarray, bool]]:
  """Returns title, pixels, and whether they are a photograph, of each panel of an image."""
  image, truth, first, second = (
    shrunk(array, _PICTURE_HEIGHT, _PICTURE_WIDTH)
    for array in (each.image, each.truth, each.first.astype(np.uint8), each.second.astype(np.uint8))
  )
  return [
    ("Image", image, True),
    ("Ground truth", colorize(truth, info.palette), False),
    ("First", colorize(first, info.palette), False),
    ("Second", colorize(second, info.palette), False),
    ("Changed pixels", changed_pixels(image, truth, first, second), True),
  ]


def _row(each: ComparedImage, names: tuple[str, str], info: DatasetInfo) -> str:
  described = {"First": f"First, {names[0]}", "Second": f"Second, {names[1]}"}
  buttons = "".join(
    picture_button(panel, title, f"{described.get(title, title)}: {each.name}", photograph)
    for title, panel, photograph in _panels(each, info)
  )
  caption = f"<b>{html.escape(each.name)}</b>: {html.escape(each.caption)}"
  return (
    f'<figure class="image"><figcaption>{caption}</figcaption>'
    f'<div class="panels five" data-read="truth,first,second">{buttons}</div></figure>'
  )
