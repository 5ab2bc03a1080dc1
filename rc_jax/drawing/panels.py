"""Labels as colours, rows of panels, captions and legends, for pictures of runs and of data sets."""

from collections.abc import Iterable, Sequence

import numpy as np
import scipy.ndimage
from PIL import Image, ImageDraw, ImageFont

from rc_jax.data import IGNORE_LABEL, DatasetInfo
from rc_jax.drawing.fonts import drawable, drawable_names, font_of

MANY_CLASSES = 40  # above, legends and plots show the classes that occur, or the largest values

MARGIN = 6  # pixels between panels
IGNORED_COLOR = (0, 0, 0)
WRONG_COLOR = (224, 38, 32)
_FONT_SIZE = 11
_LEGEND_FONT_SIZE = 13  # below, a space between words is hard to see
_LINE = 18  # pixels from one line of text to the next
# Least distance in pixels from a point to the border of its region for a name to be written there.
_NAME_CLEARANCE = 7


def colorize(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
  """Returns uint8 colours ``[H,W,3]`` of ``labels [H,W]``; labels outside ``palette [N,3]`` are black."""
  table = np.full((256, 3), IGNORED_COLOR, np.uint8)
  table[: len(palette)] = palette
  return table[labels]


def overlay(image: np.ndarray, labels: np.ndarray, palette: np.ndarray, opacity: float = 0.55) -> np.ndarray:
  """Blends the colours of ``labels [H,W]`` with ``image [H,W,3]`` uint8; ``opacity`` in 0..1."""
  return np.round((1 - opacity) * image + opacity * colorize(labels, palette)).astype(np.uint8)


def differences(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
  """Marks the wrong pixels of a prediction over a light grey image.

  Args:
    image: uint8 ``[H,W,3]``.
    truth: ``[H,W]``, train ids; 255 is ignored, and drawn in ``IGNORED_COLOR``.
    prediction: ``[H,W]``, train ids.

  Returns:
    uint8 ``[H,W,3]``; grey where the prediction is correct, ``WRONG_COLOR`` through which the image shows where it
    is not.
  """
  # Light, so that neither dark pixels look ignored nor the marks disappear.
  light = np.repeat(110 + 0.5 * image.mean(axis=-1, keepdims=True), 3, axis=-1)
  wrong = (prediction != truth)[..., None]
  marked = np.where(wrong, 0.25 * light + 0.75 * np.array(WRONG_COLOR), light)
  marked[truth == IGNORE_LABEL] = IGNORED_COLOR
  return np.round(marked).astype(np.uint8)


def named_overlay(image: np.ndarray, labels: np.ndarray, info: DatasetInfo) -> Image.Image:
  """Blends the colours of ``labels [H,W]`` with ``image [H,W,3]``, and writes each class's name on its widest region.

  With many classes, colours alone do not distinguish them.
  """
  picture = Image.fromarray(overlay(image, labels, info.palette, opacity=0.5))
  draw = ImageDraw.Draw(picture)
  names = drawable_names(info)
  font = font_of(names, _FONT_SIZE)
  regions = sorted(
    ((*widest_point(labels == label), label) for label in np.unique(labels).tolist()), reverse=True
  )
  written: list[tuple[float, float, float]] = []  # x, y and half of the width of each name
  for clearance, center, label in regions:
    name = names[label] if label < info.num_classes else "ignored"
    half = font.getlength(name) / 2 + 2
    x = min(max(center[1], half), max(half, picture.width - half))
    y = min(max(center[0], 8), picture.height - 8)
    crowded = any(abs(x - other[0]) < half + other[2] and abs(y - other[1]) < _LINE - 4 for other in written)
    if clearance >= _NAME_CLEARANCE and not crowded:
      draw.text((x, y), name, "white", font, anchor="mm", stroke_width=2, stroke_fill="black")
      written.append((x, y, half))
  return picture


def widest_point(mask: np.ndarray) -> tuple[float, tuple[int, int]]:
  """Returns the largest distance of a point in ``mask [H,W]`` to its edge, in pixels, and that point ``(y,x)``."""
  # The border of the picture is an edge too, where a name would be cut.
  depth = scipy.ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
  y, x = np.unravel_index(int(depth.argmax()), mask.shape)
  return float(depth[y, x]), (int(y), int(x))


def shrunk(panel: np.ndarray, height: int, width: int | None = None) -> np.ndarray:
  """Shrinks ``panel [H,W]`` or ``[H,W,3]`` to at most ``height`` (and ``width``); never enlarges or distorts it."""
  factor = min(1, height / panel.shape[0], (width or panel.shape[1]) / panel.shape[1])
  if factor == 1:
    return panel
  size = (max(1, round(panel.shape[1] * factor)), max(1, round(panel.shape[0] * factor)))
  # Nearest neighbour, so that class colours do not mix; photographs lose little at this size.
  return np.asarray(Image.fromarray(panel).resize(size, Image.Resampling.NEAREST))


def grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
  """Pastes rows of panels onto a white picture."""
  width = max(sum(panel.width + MARGIN for panel in row) for row in rows) - MARGIN
  height = sum(max(panel.height for panel in row) + MARGIN for row in rows) - MARGIN
  canvas = Image.new("RGB", (width, height), "white")
  top = 0
  for row in rows:
    left = 0
    for panel in row:
      canvas.paste(panel, (left, top))
      left += panel.width + MARGIN
    top += max(panel.height for panel in row) + MARGIN
  return canvas


def flow(panels: Sequence[Image.Image], width: int) -> Image.Image:
  """Pastes panels in their order onto a white picture, in rows of at most ``width`` pixels."""
  rows: list[list[Image.Image]] = [[]]
  used = 0
  for panel in panels:
    if rows[-1] and used + panel.width > width:
      rows.append([])
      used = 0
    rows[-1].append(panel)
    used += panel.width + MARGIN
  return grid(rows)


def captioned(panel: Image.Image, text: str) -> Image.Image:
  """Writes a line above a panel, and cuts it at the panel's width."""
  text = drawable(text)
  font = font_of([text], _FONT_SIZE)
  canvas = Image.new("RGB", (panel.width, panel.height + _LINE), "white")
  ImageDraw.Draw(canvas).text((0, 1), _cut(text, font, panel.width), "black", font)
  canvas.paste(panel, (0, _LINE))
  return canvas


def legend(info: DatasetInfo, classes: Iterable[int], width: int) -> Image.Image:
  """Draws a swatch and a name for each of ``classes``, in as many lines as the width requires."""
  names = drawable_names(info)
  return swatches([(names[label], "", info.palette[label]) for label in classes], width)


def swatches(
  entries: Iterable[tuple[str, str, np.ndarray | None]], width: int, letter: int = _LEGEND_FONT_SIZE
) -> Image.Image:
  """Draws swatches and their texts, in as many lines as the width requires.

  Args:
    entries: a name, which is cut if it is longer than a line; a text after it, which is not cut; a colour, uint8
      ``[3]``, or None for the text alone.
    width: of the picture, in pixels.
    letter: height of the letters, in pixels; swatches and gaps are proportional to it.

  Returns:
    An RGB picture on white.
  """
  entries = list(entries)
  font = font_of([name + suffix for name, suffix, _ in entries], letter)
  gap, line = letter // 2, round(letter * 1.6)
  left, top, placed = gap, gap, []
  for name, suffix, color in entries:
    swatch = 0 if color is None else letter + gap
    text = _cut(name, font, width - 2 * gap - swatch - round(font.getlength(suffix))) + suffix
    advance = swatch + round(font.getlength(text)) + 2 * gap
    if left > gap and left + advance > width:
      left, top = gap, top + line
    placed.append((left, top, text, color))
    left += advance
  canvas = Image.new("RGB", (width, top + line), "white")
  draw = ImageDraw.Draw(canvas)
  for left, top, text, color in placed:
    if color is not None:
      draw.rectangle((left, top, left + letter, top + letter), fill=tuple(color.tolist()), outline="black")
      left += letter + gap
    draw.text((left, top + letter // 2), text, fill="black", font=font, anchor="lm")
  return canvas


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
  if font.getlength(text) <= width:
    return text
  while text and font.getlength(text + "…") > width:
    text = text[:-1]
  return text + "…"
