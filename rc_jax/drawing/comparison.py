"""Two results on the same images side by side: which pixels each has right, and the change of each class's IoU.

RegionContrast, Figure 4.
"""

import dataclasses
import html
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

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
    first, second = self.mious
    return f"mean IoU of its classes {percent(first)} % and {percent(second)} %, change {percent(second - first, '+')}"


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
class ComparedResults:
  """Two results with their differences: all that the page shows.

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


def percent(value: float | None, sign: Literal["", "+"] = "", digits: int = 1, absent: str = "–") -> str:
  """Returns a fraction in percent. A value that rounds to zero has no minus, which would claim a loss.

  Args:
    value: a fraction; None: there is none.
    sign: ``"+"`` shows the sign of positive values too.
    digits: after the point.
    absent: the text for None.

  >>> percent(0.1234), percent(-0.0004, "+"), percent(-0.0004, "+", 2), percent(None)
  ('12.3', '+0.0', '-0.04', '–')
  """
  return absent if value is None else f"{100 * value:{sign}z.{digits}f}"


def interval_text(interval: tuple[float, float] | None, digits: int = 1, absent: str = "–") -> str:
  """Returns both ends of an interval of fractions, in percent with their signs; arguments as for ``percent``."""
  return absent if interval is None else " to ".join(percent(end, "+", digits) for end in interval)


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


def comparison_picture(compared: ComparedResults) -> Image.Image:
  """Draws a row for each image: image, truth, first, second and the changed pixels; legends below.

  Args:
    compared: with pictures.
  """
  info = compared.info
  assert info is not None
  rows: list[list[Image.Image]] = []
  for title, (_, images) in compared.groups.items():
    for image in images:
      panels = [Image.fromarray(shrunk(panel, _PANEL_HEIGHT)) for _, panel, _ in _panels(image, info)]
      change = percent(image.mious[1] - image.mious[0], "+")
      texts = (f"{title}: {image.name}", "ground truth", "first", "second", f"changed pixels, {change}")
      rows.append([captioned(panel, text) for panel, text in zip(panels, texts, strict=True)])
  drawn = grid(rows)
  marks = swatches([(name, "", np.array(color, np.uint8)) for name, color in _MARKS], drawn.width)
  return grid([[drawn], [legend(info, _classes_shown(compared), drawn.width)], [marks]])


def comparison_page(compared: ComparedResults) -> str:
  """Returns a page of HTML that needs no other file."""
  sections = [_class_chart(compared), _class_table(compared)]
  if compared.info is not None:
    info = compared.info
    key = _legend(compared, info)
    for title, (lead, images) in compared.groups.items():
      rows = "".join(_row(image, compared.names, info) for image in images)
      anchor = "".join(letter for letter in title.lower() if letter.isalpha())
      sections.append(Section(anchor, title, f'<p class="lead">{html.escape(lead)}</p>{key}{rows}'))
      key = ""  # the script reads the classes from the first
  return document(compared.title, _header(compared), sections, html.escape(compared.software))


def _header(compared: ComparedResults) -> str:
  interval = compared.interval
  where = "points of mIoU, second minus first"
  if interval is not None:
    where += f"; {100 * compared.coverage:g} % interval {interval_text(interval, digits=2)}"
  terms = "".join(
    f"<dt>{kind}: {html.escape(name)}</dt><dd>{percent(miou, digits=2)}</dd>"
    for kind, name, miou in zip(("first", "second"), compared.names, compared.mious, strict=True)
  )
  sentences = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in compared.sentences)
  notes = "".join(f'<p class="note"><b>Note:</b> {html.escape(note)}</p>' for note in compared.notes)
  return (
    f'<p class="kind">Comparison of two results, mIoU in %</p><h1>{html.escape(compared.title)}</h1>'
    f'<div class="scores"><div class="score"><b>{percent(compared.change, "+", 2)}</b><span>{where}</span></div>'
    f'<dl class="beside">{terms}</dl></div>{notes}{sentences}'
  )


def _class_chart(compared: ComparedResults) -> Section:
  """Returns a dot for the change of each class on one axis, with its interval; the largest gain first."""
  changes = [class_change for class_change in compared.classes if class_change.change is not None]
  ends = [0.0]
  for class_change in changes:
    ends += [
      100 * value for value in (class_change.change, *(class_change.interval or ())) if value is not None
    ]
  margin = 0.04 * (max(ends) - min(ends)) or 1.0
  low, high = min(ends) - margin, max(ends) + margin

  def position(value: float) -> float:
    return 100 * (value - low) / (high - low)

  palette = _palette(compared)
  rows = [
    _change_row(class_change, palette.get(class_change.name), position)
    for class_change in sorted(changes, key=lambda class_change: -(class_change.change or 0.0))
  ]
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


def _change_row(
  class_change: ClassChange, color: np.ndarray | None, position: Callable[[float], float]
) -> str:
  """Returns the row of a class with a change; ``position`` maps points to percent of the axis."""
  assert class_change.change is not None
  marks = ""
  if class_change.interval is not None:
    start, end = (position(100 * value) for value in class_change.interval)
    marks += f'<span class="span" style="left:{start:.2f}%;width:{end - start:.2f}%"></span>'
  known = class_change.interval is not None and (class_change.interval[0] > 0 or class_change.interval[1] < 0)
  kind = "first" if known else "first open"
  marks += f'<span class="dot {kind}" style="left:{position(100 * class_change.change):.2f}%"></span>'
  name = html.escape(class_change.name, quote=True)
  change = percent(class_change.change, "+")
  tip = html.escape(
    f"{class_change.name}: {percent(class_change.first)} and {percent(class_change.second)}, change {change}, "
    f"interval {interval_text(class_change.interval)}",
    quote=True,
  )
  return (
    f'<li data-tip="{tip}">{swatch(color)}<span class="name" title="{name}">{name}</span>'
    f'<span class="track">{marks}</span><span class="number">{change}</span></li>'
  )


def _class_table(compared: ComparedResults) -> Section:
  head = "".join(f'<th scope="col">{title}</th>' for title in ("first", "second", "change", "interval"))
  body = "".join(
    f'<tr><th scope="row">{html.escape(class_change.name)}</th>'
    f"<td>{percent(class_change.first)}</td><td>{percent(class_change.second)}</td>"
    f"<td>{percent(class_change.change, '+')}</td><td>{interval_text(class_change.interval)}</td></tr>"
    for class_change in compared.classes
  )
  table = (
    f'<div class="scroll"><table class="numbers"><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>'
    "</div>"
  )
  return Section("classes", "IoU of each class in %", table, half=True)


def _palette(compared: ComparedResults) -> dict[str, np.ndarray]:
  info = compared.info
  return {} if info is None else dict(zip(info.class_names, info.palette, strict=True))


def _classes_shown(compared: ComparedResults) -> list[int]:
  """Returns the classes of the legend: all, of many those in the pictures."""
  info = compared.info
  assert info is not None
  if info.num_classes <= MANY_CLASSES:
    return list(range(info.num_classes))
  shown: set[int] = set()
  for _, images in compared.groups.values():
    for image in images:
      for labels in (image.truth, image.first, image.second):
        shown |= set(np.unique(labels).tolist())
  return sorted(shown & set(range(info.num_classes)))


def _legend(compared: ComparedResults, info: DatasetInfo) -> str:
  """Returns the colours of classes and marks, and for the script the class of each colour."""
  classes = _classes_shown(compared)
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


def _panels(compared_image: ComparedImage, info: DatasetInfo) -> list[tuple[str, np.ndarray, bool]]:
  """Returns title, pixels, and whether they are a photograph, of each panel of an image."""
  image, truth, first, second = (
    shrunk(array, _PICTURE_HEIGHT, _PICTURE_WIDTH)
    for array in (
      compared_image.image,
      compared_image.truth,
      compared_image.first.astype(np.uint8),
      compared_image.second.astype(np.uint8),
    )
  )
  return [
    ("Image", image, True),
    ("Ground truth", colorize(truth, info.palette), False),
    ("First", colorize(first, info.palette), False),
    ("Second", colorize(second, info.palette), False),
    ("Changed pixels", changed_pixels(image, truth, first, second), True),
  ]


def _row(compared_image: ComparedImage, names: tuple[str, str], info: DatasetInfo) -> str:
  described = {"First": f"First, {names[0]}", "Second": f"Second, {names[1]}"}
  buttons = "".join(
    picture_button(panel, title, f"{described.get(title, title)}: {compared_image.name}", photograph)
    for title, panel, photograph in _panels(compared_image, info)
  )
  caption = f"<b>{html.escape(compared_image.name)}</b>: {html.escape(compared_image.caption)}"
  return (
    f'<figure class="image"><figcaption>{caption}</figcaption>'
    f'<div class="panels five" data-read="truth,first,second">{buttons}</div></figure>'
  )
