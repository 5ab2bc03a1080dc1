"""What a crop shows: windows of resized and turned images and labels, of which only the pixels needed are computed."""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from rc_jax.data.reading.dataset_info import IGNORE_LABEL

# ImageNet's mean colour: such a pixel is (nearly) zero once the network has normalised it.
PADDING_COLOR = np.array([124, 116, 104], np.uint8)

Box = tuple[int, int, int, int]
"""``(top, left, height, width)`` in pixels."""


class View(NamedTuple):
  """What a crop shows: the whole is resized to ``size``, turned about its center, and cut along ``window``.

  Attributes:
    size: ``(h,w)`` of the whole resized image.
    window: within ``size``.
    angle: degrees, counter-clockwise. The turned image keeps its size: corners leave it, and others come up empty.
  """

  size: tuple[int, int]
  window: Box
  angle: float = 0.0


def image_window(image: np.ndarray, view: View) -> np.ndarray:
  """Returns what a view shows of an image: bilinear, with ImageNet's mean colour where nothing is.

  Args:
    image: uint8 ``[H,W,3]``.
    view: size, window and angle.

  Returns:
    uint8 ``[height,width,3]``, equal to resizing the whole, turning it and cropping, to within rounding.
  """
  if not view.angle:
    return resized_window(image, view.size, view.window)
  box, coefficients = _under_turned(view)
  part = Image.fromarray(resized_window(image, view.size, box))
  return _turn(part, view, coefficients, Image.Resampling.BILINEAR, tuple(PADDING_COLOR.tolist()))


def label_window(label: np.ndarray, view: View) -> np.ndarray:
  """Returns what a view shows of a label: nearest neighbour, with 255 where nothing is.

  Args:
    label: uint8 ``[H,W]``.
    view: size, window and angle.

  Returns:
    uint8 ``[height,width]``.
  """
  if not view.angle:
    return nearest_window(label, view.size, view.window)
  box, coefficients = _under_turned(view)
  part = Image.fromarray(nearest_window(label, view.size, box))
  return _turn(part, view, coefficients, Image.Resampling.NEAREST, IGNORE_LABEL)


def resized_window(image: np.ndarray, size: tuple[int, int], window: tuple[int, int, int, int]) -> np.ndarray:
  """A window of the bilinearly resized image, without resizing the rest.

  Args:
    image: uint8 ``[H,W,3]``.
    size: ``(h,w)`` to which the whole image is to be resized. Pillow widens the filter when shrinking, so small
      images are smooth, not sampled.
    window: ``(top, left, height, width)`` in the resized image.

  Returns:
    uint8 ``[height,width,3]``, equal to resizing the whole and cropping, to within rounding.
  """
  top, left, height, width = window
  if size == image.shape[:2]:
    return image[top : top + height, left : left + width]
  y = _source_span(image.shape[0], size[0], top, height)
  x = _source_span(image.shape[1], size[1], left, width)
  # Only the rows and columns under the filter are handed to Pillow, which copies what it is given.
  part = Image.fromarray(image[y.start : y.stop, x.start : x.stop])
  box = (x.low - x.start, y.low - y.start, x.high - x.start, y.high - y.start)
  return np.asarray(part.resize((width, height), Image.Resampling.BILINEAR, box=box))


def nearest_window(label: np.ndarray, size: tuple[int, int], window: tuple[int, int, int, int]) -> np.ndarray:
  """A window of the label resized by nearest neighbour: pixel ``i`` reads the source pixel under its center.

  Args:
    label: ``[H,W]``.
    size: ``(h,w)`` to which the whole label is to be resized.
    window: ``(top, left, height, width)`` in the resized label.

  Returns:
    ``[height,width]`` of the label's dtype.
  """
  top, left, height, width = window
  # floor((i + 1/2) H / h), in integers: exact.
  rows = (2 * np.arange(top, top + height) + 1) * label.shape[0] // (2 * size[0])
  columns = (2 * np.arange(left, left + width) + 1) * label.shape[1] // (2 * size[1])
  # A slice first, which is free for an array, and for tiles says which to decode; then one axis after the other: a
  # third of the time of picking both at once.
  part = label[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
  return np.take(np.take(part, rows - rows[0], axis=0), columns - columns[0], axis=1)


class _Span(NamedTuple):
  """Where a window of the resized axis lies in the source: exact bounds, and whole pixels under the filter."""

  low: float
  high: float
  start: int
  stop: int


def _source_span(source: int, resized: int, first: int, count: int) -> _Span:
  step = source / resized
  low, high = first * step, (first + count) * step
  # The triangle filter reaches one source pixel, or one resized pixel where that is larger; one more for rounding.
  reach = max(1.0, step) + 1
  return _Span(low, high, max(0, math.floor(low - reach)), min(source, math.ceil(high + reach)))


def _under_turned(view: View) -> tuple[Box, tuple[float, ...]]:
  """The part of the resized image that a turned window shows, and the affine map from the window into that part."""
  height, width = view.size
  top, left, rows, columns = view.window
  cos, sin = math.cos(math.radians(view.angle)), math.sin(math.radians(view.angle))
  # Pixel (x, y) of the turned image shows (cos x - sin y + x0, sin x + cos y + y0): about the center of the image.
  x0 = width / 2 - cos * width / 2 + sin * height / 2
  y0 = height / 2 - sin * width / 2 - cos * height / 2
  corners = [(x, y) for x in (left, left + columns) for y in (top, top + rows)]
  first_x, last_x = _clipped([cos * x - sin * y + x0 for x, y in corners], width)
  first_y, last_y = _clipped([sin * x + cos * y + y0 for x, y in corners], height)
  coefficients = (
    *(cos, -sin, cos * left - sin * top + x0 - first_x),
    *(sin, cos, sin * left + cos * top + y0 - first_y),
  )
  return (first_y, first_x, last_y - first_y, last_x - first_x), coefficients


def _clipped(places: list[float], size: int) -> tuple[int, int]:
  # One pixel more for the filter. A window that shows nothing of the image still needs a pixel to turn.
  first = min(max(math.floor(min(places)) - 1, 0), size - 1)
  return first, max(min(math.ceil(max(places)) + 1, size), first + 1)


def _turn(
  part: Image.Image,
  view: View,
  coefficients: tuple[float, ...],
  resample: Image.Resampling,
  fill: int | tuple[int, ...],
) -> np.ndarray:
  _, _, rows, columns = view.window
  turned = part.transform((columns, rows), Image.Transform.AFFINE, coefficients, resample, fillcolor=fill)
  return np.asarray(turned)
