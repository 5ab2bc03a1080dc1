"""The geometry of sliding windows at every scale, mirrored or not, as arrays that are inputs of a compiled program.

Resizing, mirroring, padding and cutting act on each side of an image separately. So a few source pixels and weights for
each row and each column describe a window. Others describe the way back, from its probabilities to the image's pixels.
Because the program takes them as inputs, it does not depend on the size of an image.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np

from rc_jax.config import Config, height_width
from rc_jax.ops.resample import sample_positions


class Taps(NamedTuple):
  """Linear resampling along one side: pixel ``i`` is ``sum over k of weight[i,k] x[source[i,k]]``.

  Attributes:
    source: int32 ``[...,L,k]``, pixels of the side that is resampled.
    weight: float32 ``[...,L,k]``; all 0 for a pixel outside the source.
  """

  source: np.ndarray
  weight: np.ndarray


@dataclasses.dataclass(frozen=True)
class Views:
  """The views of an image whose probabilities are averaged.

  Attributes:
    scales: factors on the image's size.
    flip: whether the mirrored image is a view too.
    window: height and width of the sliding window in pixels; None: the full image at each scale.
    stride: height and width in pixels of the window's step, at most the window's size.
    align_corners: how probabilities are resampled to the image's size.
  """

  scales: tuple[float, ...]
  flip: bool
  window: tuple[int, int] | None
  stride: tuple[int, int]
  align_corners: bool

  @property
  def count(self) -> int:
    """The number of views."""
    return len(self.scales) * (2 if self.flip else 1)

  @property
  def taps(self) -> int:
    """The number of source pixels of a resampled pixel along a side: 1 if nothing is resized."""
    return 1 if set(self.scales) == {1.0} else 2


class Windows(NamedTuple):
  """All windows of an image, at all scales and both mirrorings; ``T`` of them, ``[h,w]`` pixels each.

  Attributes:
    cut_rows: ``[T,h,k]``: the window's rows from those of the canvas on which the image lies.
    cut_columns: ``[T,w,k]``: likewise its columns.
    corner: int32 ``[T,2]``: row and column of the canvas at which the region starts to which the window adds.
    add_rows: ``[T,R,k]``: the region's rows from those of the window; weights divide by the number of overlapping
      windows.
    add_columns: ``[T,S,k]``: likewise its columns.
  """

  cut_rows: Taps
  cut_columns: Taps
  corner: np.ndarray
  add_rows: Taps
  add_columns: Taps


def read_views(config_eval: Config, align_corners: bool) -> Views:
  """Reads ``scales``, ``flip``, ``crop_size`` and ``stride``; the stride is two thirds of the window by default."""
  window = height_width(config_eval.crop_size) if config_eval.crop_size else None
  sides = window or (1, 1)
  stride = height_width(config_eval.stride) if config_eval.stride else default_stride(sides)
  scales = tuple(float(scale) for scale in config_eval.scales)
  return Views(scales, bool(config_eval.flip), window, stride, align_corners)


def default_stride(window: tuple[int, int]) -> tuple[int, int]:
  """Returns two thirds of a window, rounded up.

  >>> default_stride((769, 769))
  (513, 513)
  """
  return (math.ceil(window[0] * 2 / 3), math.ceil(window[1] * 2 / 3))


def window_starts(length: int, window: int, stride: int) -> list[int]:
  """Returns the first pixel of each window along a side: every ``stride`` pixels, the last window ends at the border.

  >>> window_starts(2048, 769, 513)
  [0, 513, 1026, 1279]
  """
  starts = list(range(0, length - window, stride))
  return [*starts, length - window]


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
  """Returns an image's height and width at a scale, at least one pixel a side."""
  return (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))


def canvas_side(length: int) -> int:
  """Returns the least of 32, 40, 48, 56, 64, 80, 96, ... that is at least ``length``: four sizes an octave."""
  step = 2 ** max(3, (max(length, 2) - 1).bit_length() - 3)
  return max(32, -(-length // step) * step)


@functools.lru_cache(maxsize=1024)
def windows_of(size: tuple[int, int], canvas: tuple[int, int], views: Views) -> Windows:
  """Lists all windows of an image.

  Added up on the canvas, the probabilities of all windows sum to ``views.count`` at each of the image's pixels.

  Args:
    size: the image's height and width.
    canvas: height and width of the array that holds the image in its upper left corner; its other pixels are never
      read.
    views: scales, mirroring, window and stride; ``views.window`` is not None.
  """
  assert views.window is not None
  region = (
    _region_side(views.window[0], canvas[0], views),
    _region_side(views.window[1], canvas[1], views),
  )
  pairs: list[tuple[_Side, _Side]] = []
  for scale in views.scales:
    height, width = scaled_size(size, scale)
    for mirrored in (False, True) if views.flip else (False,):
      rows = _sides(size[0], height, views.window[0], views.stride[0], region[0], False, views)
      columns = _sides(size[1], width, views.window[1], views.stride[1], region[1], mirrored, views)
      pairs += [(row, column) for row in rows for column in columns]
  return Windows(
    cut_rows=_stacked([row.cut for row, _ in pairs]),
    cut_columns=_stacked([column.cut for _, column in pairs]),
    corner=np.array([(row.start, column.start) for row, column in pairs], np.int32),
    add_rows=_stacked([row.add for row, _ in pairs]),
    add_columns=_stacked([column.add for _, column in pairs]),
  )


class _Side(NamedTuple):
  """One side of a window: how it is cut, the pixel at which its region starts, and how it adds to that region."""

  cut: Taps
  start: int
  add: Taps


def _sides(
  source: int, scaled: int, window: int, stride: int, region: int, mirrored: bool, views: Views
) -> list[_Side]:
  """Returns one side of every window along it. ``pixel`` counts along the scaled and perhaps mirrored side."""
  starts = window_starts(max(scaled, window), window, stride)
  overlapping = np.zeros(max(scaled, window))
  for start in starts:
    overlapping[start : start + window] += 1

  # From the image to the scaled side, without aligned corners, as images are resized.
  pixel = np.arange(max(scaled, window))
  unmirrored = np.where(pixel < scaled, scaled - 1 - pixel if mirrored else pixel, 0)
  cut_index, cut_weight = _neighbours(
    sample_positions(source, scaled, align_corners=False)[unmirrored], source
  )
  cut_weight *= (pixel < scaled)[:, None]

  # From the scaled side back to each of the image's pixels, as logits are upsampled.
  add_index, add_weight = _neighbours(sample_positions(scaled, source, views.align_corners), scaled)
  add_index = scaled - 1 - add_index if mirrored else add_index
  add_weight = add_weight / overlapping[add_index]

  k = views.taps
  sides = []
  for start in starts:
    cut = _taps(cut_index[start : start + window, :k], cut_weight[start : start + window, :k])
    inside = (add_index >= start) & (add_index < start + window)
    weight = np.where(inside, add_weight, 0)
    index = np.clip(add_index - start, 0, window - 1)
    touched = np.flatnonzero(weight.any(axis=1))
    first = min(int(touched[0]), max(source - region, 0)) if touched.size else 0
    assert not touched.size or touched[-1] < first + region, "a window reaches beyond its region"
    # Beyond the image, the region adds nothing.
    missing = ((0, max(0, first + region - source)), (0, 0))
    rows = slice(first, first + region)
    sides.append(
      _Side(cut, first, _taps(np.pad(index[rows, :k], missing), np.pad(weight[rows, :k], missing)))
    )
  return sides


def _neighbours(position: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the two pixels around each position ``[L]`` along a side, and their weights: ``[L,2]`` each."""
  low = np.floor(position).astype(np.int64)
  fraction = position - low
  return np.stack([low, np.minimum(low + 1, length - 1)], -1), np.stack([1 - fraction, fraction], -1)


def _region_side(window: int, canvas: int, views: Views) -> int:
  """Returns how many of the image's pixels a window of any scale can touch along a side, for images of any size."""
  if views.taps == 1:
    return min(window, canvas)
  # A scaled side is rounded to full pixels, by which it may be 1.5 pixels short of one that the window still fits.
  longest = (window + 1) / min(views.scales) * window / max(window - 1.5, 0.5)
  return min(math.ceil(longest) + 2, canvas)


def _taps(index: np.ndarray, weight: np.ndarray) -> Taps:
  return Taps(index.astype(np.int32), weight.astype(np.float32))


def _stacked(taps: list[Taps]) -> Taps:
  return Taps(np.stack([each.source for each in taps]), np.stack([each.weight for each in taps]))
