"""Augmentation of training examples on uint8 arrays, image and label together, each from an explicit generator.

The order is the usual one of the field (mmsegmentation's): random resize, random crop, flip, photometric distortion,
padding. Everything stays uint8: the network normalises on the device, to which a quarter of the bytes travel.
"""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from rc_jax.data.source import IGNORE_LABEL

# ImageNet's mean colour: a padded pixel is (nearly) zero once the network has normalised it.
PADDING_COLOR = np.array([124, 116, 104], np.uint8)


def augment(
  image: np.ndarray,
  label: np.ndarray,
  rng: np.random.Generator,
  *,
  crop_size: tuple[int, int],
  scale: tuple[float, float] = (0.5, 2.0),
  flip: float = 0.5,
  photometric: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
  """Makes a training crop of an image and its label.

  Args:
    image: uint8 ``[H,W,3]``, RGB.
    label: uint8 ``[H,W]``.
    rng: the only source of randomness.
    crop_size: ``(h,w)`` of the result.
    scale: the range from which the resizing factor is drawn, uniformly.
    flip: probability of a mirror image.
    photometric: whether to distort colours.

  Returns:
    The image uint8 ``[h,w,3]`` and the label uint8 ``[h,w]``.
  """
  image, label = random_resized_crop(image, label, rng, crop_size=crop_size, scale=scale)
  image, label = random_flip(image, label, rng, flip)
  if photometric:
    image = photometric_distortion(image, rng)
  return pad(image, label, crop_size)


def random_resized_crop(
  image: np.ndarray,
  label: np.ndarray,
  rng: np.random.Generator,
  *,
  crop_size: tuple[int, int],
  scale: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray]:
  """Resizes by a factor drawn from ``scale``, then cuts a window at a place drawn uniformly.

  The window is chosen first and only its pixels are resized: of a 2048x1024 frame at scale 2, a 769 crop needs 7 %.

  Args:
    image: uint8 ``[H,W,3]``.
    label: uint8 ``[H,W]``.
    rng: draws the factor, the row and the column.
    crop_size: ``(h,w)``.
    scale: smallest and largest factor.

  Returns:
    Image and label of at most ``crop_size``: smaller along an axis where the resized image is.
  """
  factor = rng.uniform(*scale)
  height, width = (max(1, round(size * factor)) for size in label.shape)
  crop_height, crop_width = min(crop_size[0], height), min(crop_size[1], width)
  top = int(rng.integers(height - crop_height + 1))
  left = int(rng.integers(width - crop_width + 1))
  window = (top, left, crop_height, crop_width)
  return resized_window(image, (height, width), window), nearest_window(label, (height, width), window)


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
  return label[rows[:, None], columns]


def random_flip(
  image: np.ndarray, label: np.ndarray, rng: np.random.Generator, probability: float
) -> tuple[np.ndarray, np.ndarray]:
  """Mirrors image ``[h,w,3]`` and label ``[h,w]`` left to right with ``probability``."""
  if rng.random() < probability:
    return image[:, ::-1], label[:, ::-1]
  return image, label


def photometric_distortion(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Distorts brightness, contrast, saturation and hue, each with probability 1/2, as mmsegmentation does.

  Brightness adds -32..32; contrast multiplies by 0.5..1.5, before or after the colours; saturation multiplies HSV's
  S by 0.5..1.5; hue turns by up to 36 degrees either way. Rounding is Pillow's, whose HSV has 8 bits a channel.

  Args:
    image: uint8 ``[h,w,3]``, RGB.
    rng: draws which, how much, and where contrast stands.

  Returns:
    uint8 ``[h,w,3]``.
  """
  # All drawn at once, so that later draws do not depend on which of these apply.
  apply_brightness, contrast_first, apply_contrast, apply_saturation, apply_hue = rng.random(5) < 0.5
  brightness = rng.uniform(-32, 32) if apply_brightness else 0.0
  contrast = rng.uniform(0.5, 1.5) if apply_contrast else 1.0
  saturation = rng.uniform(0.5, 1.5) if apply_saturation else 1.0
  hue = rng.uniform(-0.1, 0.1) if apply_hue else 0.0
  return distort(
    image,
    brightness=brightness,
    contrast=contrast,
    saturation=saturation,
    hue=hue,
    contrast_first=bool(contrast_first),
  )


def distort(
  image: np.ndarray,
  *,
  brightness: float,
  contrast: float,
  saturation: float,
  hue: float,
  contrast_first: bool,
) -> np.ndarray:
  """Applies a given photometric distortion.

  Args:
    image: uint8 ``[h,w,3]``, RGB.
    brightness: added to every channel, in 0..255 levels.
    contrast: factor of every channel.
    saturation: factor of HSV's S.
    hue: added to HSV's H, in turns.
    contrast_first: contrast before saturation and hue, rather than after.

  Returns:
    uint8 ``[h,w,3]``; every stage saturates at 0 and 255.
  """
  # A function of one channel is a table of 256 entries: far cheaper than float arithmetic on the image.
  levels = np.arange(256, dtype=np.float64)
  before = _levels(levels + brightness)
  after = np.arange(256, dtype=np.uint8)
  if contrast_first:
    before = _levels(before * contrast)
  else:
    after = _levels(levels * contrast)
  pixels = Image.fromarray(image).point(before.tolist() * 3)
  if saturation != 1 or hue != 0:
    hues = np.round(levels + 256 * hue).astype(np.int64) % 256
    tables = [*hues.tolist(), *_levels(levels * saturation).tolist(), *range(256)]
    pixels = pixels.convert("HSV").point(tables).convert("RGB")
  return np.asarray(pixels.point(after.tolist() * 3) if not contrast_first else pixels)


def pad(image: np.ndarray, label: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
  """Fills up to ``size`` on the right and at the bottom, as the usual toolboxes do.

  Args:
    image: uint8 ``[h,w,3]``; the padding is ImageNet's mean colour.
    label: uint8 ``[h,w]``; the padding is 255, which counts nowhere.
    size: ``(H,W)``, nowhere smaller than the image.

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


def _levels(values: np.ndarray) -> np.ndarray:
  return np.round(np.clip(values, 0, 255)).astype(np.uint8)
