"""Windows of resized and rotated images and labels, of which only the visible pixels are computed; padding."""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from rc_jax.data.reading.dataset_info import IGNORE_LABEL

# ImageNet's mean colour in uint8, which the network normalises to nearly zero.
PADDING_COLOR = np.array([124, 116, 104], np.uint8)

Box = tuple[int, int, int, int]
"""``(top, left, height, width)`` in pixels."""


class View(NamedTuple):
  """The part of an image that a crop shows: the image is resized, rotated about its center, and cut.

  Attributes:
    size: ``(h,w)`` of the resized image.
    window: the crop within ``size``.
    angle: degrees, counter-clockwise. The rotated image keeps its size: its corners are cut off, and the corners of the
      result are padding.
  """

  size: tuple[int, int]
  window: Box
  angle: float = 0.0


def image_window(image: np.ndarray, view: View) -> np.ndarray:
  """Computes a view of an image, bilinearly, with ``PADDING_COLOR`` outside of the image.

  Args:
    image: uint8 ``[H,W,3]``.
    view: size, window and angle.

  Returns:
    uint8 ``[height,width,3]``, equal to resizing, rotating and cropping the image, to within rounding.
  """
  if not view.angle:
    return resized_window(image, view.size, view.window)
  box, coefficients = _under_window(view)
  part = Image.fromarray(resized_window(image, view.size, box))
  return _rotate(part, view, coefficients, Image.Resampling.BILINEAR, tuple(PADDING_COLOR.tolist()))


def label_window(label: np.ndarray, view: View) -> np.ndarray:
  """Computes a view of a label, by nearest neighbours, with 255 outside of the label.

  Args:
    label: uint8 ``[H,W]``.
    view: size, window and angle.

  Returns:
    uint8 ``[height,width]``.
  """
  if not view.angle:
    return nearest_window(label, view.size, view.window)
  box, coefficients = _under_window(view)
  part = Image.fromarray(nearest_window(label, view.size, box))
  return _rotate(part, view, coefficients, Image.Resampling.NEAREST, IGNORE_LABEL)


def resized_window(image: np.ndarray, size: tuple[int, int], window: tuple[int, int, int, int]) -> np.ndarray:
  """Computes a window of the bilinearly resized image, without resizing the rest.

  Args:
    image: uint8 ``[H,W,3]``.
    size: ``(h,w)`` of the resized image. Pillow widens the filter where it shrinks, so that small images have no
      aliasing.
    window: ``(top, left, height, width)`` in the resized image.

  Returns:
    uint8 ``[height,width,3]``, equal to resizing and cropping the image, to within rounding.
  """
  top, left, height, width = window
  if size == image.shape[:2]:
    return image[top : top + height, left : left + width]
  y = _source_span(image.shape[0], size[0], top, height)
  x = _source_span(image.shape[1], size[1], left, width)
  # Pillow copies its input: it gets only the rows and columns under the filter.
  part = Image.fromarray(image[y.start : y.stop, x.start : x.stop])
  box = (x.low - x.start, y.low - y.start, x.high - x.start, y.high - y.start)
  return np.asarray(part.resize((width, height), Image.Resampling.BILINEAR, box=box))


def nearest_window(label: np.ndarray, size: tuple[int, int], window: tuple[int, int, int, int]) -> np.ndarray:
  """Computes a window of the label, by nearest neighbours: each pixel is the source pixel under its center.

  Args:
    label: ``[H,W]``.
    size: ``(h,w)`` of the resized label.
    window: ``(top, left, height, width)`` in the resized label.

  Returns:
    ``[height,width]`` of the label's dtype.
  """
  top, left, height, width = window
  # floor((i + 1/2) H / h), exact in integers.
  rows = (2 * np.arange(top, top + height) + 1) * label.shape[0] // (2 * size[0])
  columns = (2 * np.arange(left, left + width) + 1) * label.shape[1] // (2 * size[1])
  # A slice first, which costs nothing for an array and selects the tiles to decode. Then one axis after the other, in a
  # third of the time of both at once.
  part = label[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
  return np.take(np.take(part, rows - rows[0], axis=0), columns - columns[0], axis=1)


def pad(image: np.ndarray, label: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
  """Pads an image and its label to ``size`` on the right and at the bottom, as mmsegmentation does.

  Args:
    image: uint8 ``[h,w,3]``; the padding is ``PADDING_COLOR``.
    label: uint8 ``[h,w]``; the padding is 255, which counts nowhere.
    size: ``(H,W)``, along both axes at least the image's.

  Returns:
    Image ``[H,W,3]`` and label ``[H,W]``, contiguous.
  """
  height, width = label.shape
  if (height, width) == size:
    return np.ascontiguousarray(image), np.ascontiguousarray(label)
  padded_image = np.empty((*size, 3), np.uint8)
  padded_image[:] = PADDING_COLOR
  padded_image[:height, :width] = image
  padded_label = np.full(size, IGNORE_LABEL, np.uint8)
  padded_label[:height, :width] = label
  return padded_image, padded_label


class _Span(NamedTuple):
  """The part of the source axis under a window of the resized axis: exact bounds, and pixels under the filter."""

  low: float
  high: float
  start: int
  stop: int


def _source_span(source: int, resized: int, first: int, count: int) -> _Span:
  step = source / resized
  low, high = first * step, (first + count) * step
  # The triangle filter reaches one source pixel, or one resized pixel if that is larger; one more for rounding.
  reach = max(1.0, step) + 1
  return _Span(low, high, max(0, math.floor(low - reach)), min(source, math.ceil(high + reach)))


def _under_window(view: View) -> tuple[Box, tuple[float, ...]]:
  """Returns the part of the resized image that a rotated window shows, and the affine map from window to part."""
  height, width = view.size
  top, left, rows, columns = view.window
  cos, sin = math.cos(math.radians(view.angle)), math.sin(math.radians(view.angle))
  # Pixel (x, y) of the rotated image shows (cos x - sin y + x0, sin x + cos y + y0): a rotation about the center.
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


def _clipped(positions: list[float], size: int) -> tuple[int, int]:
  # One pixel more for the filter. A window outside of the image still needs a pixel to rotate.
  first = min(max(math.floor(min(positions)) - 1, 0), size - 1)
  return first, max(min(math.ceil(max(positions)) + 1, size), first + 1)


def _rotate(
  part: Image.Image,
  view: View,
  coefficients: tuple[float, ...],
  resample: Image.Resampling,
  fill: int | tuple[int, ...],
) -> np.ndarray:
  _, _, rows, columns = view.window
  rotated = part.transform((columns, rows), Image.Transform.AFFINE, coefficients, resample, fillcolor=fill)
  return np.asarray(rotated)
