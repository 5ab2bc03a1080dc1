"""Where the windows of an image lie, at every scale, mirrored or not, as vectors that one program takes for all sizes.

Resizing, mirroring, padding and cutting act on each side of an image alone. So a window is told by a few source pixels
for each of its rows and for each of its columns, and so is the way back, from its probabilities to the image's own
pixels. These vectors are inputs of a program, not part of it: it depends on no image's size.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np

from rc_jax.config import Config, height_width


class Taps(NamedTuple):
  """One side of a resampling: pixel ``i`` is ``sum over k of weight[i,k] source[at[i,k]]``.

  Attributes:
    at: int32 ``[...,L,k]``, within the source.
    weight: float32 ``[...,L,k]``; all 0 where there is no source.
  """

  at: np.ndarray
  weight: np.ndarray


class Views(NamedTuple):
  """What is averaged for an image's probabilities.

  Attributes:
    scales: of the image, each at least once.
    flip: whether the mirrored image counts too.
    window: height and width of the sliding window; None: the whole image at each scale.
    stride: height and width, at most the window's.
    align_corners: how probabilities are resampled to the image's own size.
  """

  scales: tuple[float, ...]
  flip: bool
  window: tuple[int, int] | None
  stride: tuple[int, int]
  align_corners: bool

  @property
  def total(self) -> int:
    return len(self.scales) * (2 if self.flip else 1)

  @property
  def taps(self) -> int:
    """How many source pixels a pixel has along a side: one where nothing is resized."""
    return 1 if set(self.scales) == {1.0} else 2


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
  """``T`` windows of an image that have one shape ``(h,w)``.

  Attributes:
    shape: ``(h,w)``.
    cut_rows: ``[T,h,k]``, the window's rows, of the canvas that the image lies on.
    cut_columns: ``[T,w,k]``.
    first: int32 ``[T,2]``, row and column of the canvas where the region begins that the window adds to.
    add_rows: ``[T,R,k]``, the region's rows, of the window's; weights hold what overlapping windows share.
    add_columns: ``[T,S,k]``.
  """

  shape: tuple[int, int]
  cut_rows: Taps
  cut_columns: Taps
  first: np.ndarray
  add_rows: Taps
  add_columns: Taps

  def __len__(self) -> int:
    return len(self.first)

  def arrays(self) -> tuple[Taps, Taps, np.ndarray, Taps, Taps]:
    """Returns all arrays but the shape; they share the first axis."""
    return self.cut_rows, self.cut_columns, self.first, self.add_rows, self.add_columns


def views(config_eval: Config, align_corners: bool) -> Views:
  """Reads ``scales``, ``flip``, ``crop_size`` and ``stride``; the stride is two thirds of the window by default."""
  window = height_width(config_eval.crop_size) if config_eval.crop_size else None
  sides = window or (1, 1)
  stride = height_width(config_eval.stride) if config_eval.stride else default_stride(sides)
  scales = tuple(float(scale) for scale in config_eval.scales)
  return Views(scales, bool(config_eval.flip), window, stride, align_corners)


def default_stride(window: tuple[int, int]) -> tuple[int, int]:
  """Returns two thirds of a window, rounded up."""
  return (math.ceil(window[0] * 2 / 3), math.ceil(window[1] * 2 / 3))


def window_starts(length: int, window: int, stride: int) -> list[int]:
  """Returns where windows start along one side: every ``stride``, the last one flush with the end."""
  starts = list(range(0, length - window, stride))
  return [*starts, length - window]


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
  """Returns an image's size at a scale, at least one pixel a side."""
  return (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))


def canvas_side(length: int) -> int:
  """Returns the least of 32, 40, 48, 56, 64, 80, 96, ... that is at least ``length``: four sizes an octave."""
  step = 2 ** max(3, (max(length, 2) - 1).bit_length() - 3)
  return max(32, -(-length // step) * step)


@functools.lru_cache(maxsize=1024)
def windows_of(size: tuple[int, int], canvas: tuple[int, int], what: Views) -> tuple[Windows, ...]:
  """Lists all windows of an image, grouped by their shapes.

  Args:
    size: the image's height and width.
    canvas: of the array that holds it in its upper left corner; the rest of the canvas is never read.
    what: scales, mirroring and windows.

  Returns:
    With a sliding window one group, of all scales and both mirrorings; for whole images one group for each scale.
    Added up on the canvas, the probabilities of all windows sum to ``what.total`` at each of the image's pixels.
  """
  if what.window is not None:
    region = (_region(what.window[0], canvas[0], what), _region(what.window[1], canvas[1], what))
    parts = [_at_scale(size, scale, what.window, what.stride, region, what) for scale in what.scales]
    return (_joined(what.window, [window for part in parts for window in part]),)
  groups = []
  for scale in what.scales:
    shape = scaled_size(size, scale)
    groups.append(_joined(shape, _at_scale(size, scale, shape, shape, canvas, what)))
  return tuple(groups)


_Side = tuple[Taps, int, Taps]  # how a window's side is cut, where it adds, and how


def _at_scale(
  size: tuple[int, int],
  scale: float,
  window: tuple[int, int],
  stride: tuple[int, int],
  region: tuple[int, int],
  what: Views,
) -> list[tuple[_Side, _Side]]:
  height, width = scaled_size(size, scale)
  found = []
  for mirrored in (False, True) if what.flip else (False,):
    rows = _sides(size[0], height, window[0], stride[0], region[0], False, what)
    columns = _sides(size[1], width, window[1], stride[1], region[1], mirrored, what)
    found += [(row, column) for row in rows for column in columns]
  return found


def _sides(
  source: int, scaled: int, window: int, stride: int, region: int, mirrored: bool, what: Views
) -> list[_Side]:
  """One side of every window along it. ``m`` counts pixels of the scaled and perhaps mirrored side."""
  starts = window_starts(max(scaled, window), window, stride)
  seen = np.zeros(max(scaled, window))
  for start in starts:
    seen[start : start + window] += 1

  # There: half a pixel's offset, as images are resized. In float64: float32 positions would be wrong in the fourth
  # decimal at 2048 pixels.
  m = np.arange(max(scaled, window))
  of_scaled = np.where(m < scaled, scaled - 1 - m if mirrored else m, 0)
  there = np.clip((of_scaled + 0.5) * (source / scaled) - 0.5, 0, source - 1)
  cut_index, cut_weight = _neighbours(there, source)
  cut_weight *= (m < scaled)[:, None]

  # And back, for each of the image's pixels.
  pixel = np.arange(source)
  if what.align_corners:
    back = pixel * ((scaled - 1) / max(source - 1, 1))
  else:
    back = np.clip((pixel + 0.5) * (scaled / source) - 0.5, 0, scaled - 1)
  add_index, add_weight = _neighbours(back, scaled)
  add_index = scaled - 1 - add_index if mirrored else add_index
  add_weight = add_weight / seen[add_index]

  k = what.taps
  sides = []
  for start in starts:
    cut = Taps(
      _int32(cut_index[start : start + window, :k]), _float32(cut_weight[start : start + window, :k])
    )
    inside = (add_index >= start) & (add_index < start + window)
    weight = np.where(inside, add_weight, 0)
    index = np.clip(add_index - start, 0, window - 1)
    touched = np.flatnonzero(weight.any(axis=1))
    first = min(int(touched[0]), max(source - region, 0)) if touched.size else 0
    assert not touched.size or touched[-1] < first + region, "a window reaches beyond its region"
    # Beyond the image, the region adds nothing.
    missing = max(0, first + region - source)
    rows = slice(first, first + region)
    add = Taps(
      _int32(np.pad(index[rows, :k], ((0, missing), (0, 0)))),
      _float32(np.pad(weight[rows, :k], ((0, missing), (0, 0)))),
    )
    sides.append((cut, first, add))
  return sides


def _neighbours(position: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
  """The two grid points around each position ``[L]``, and their weights: ``[L,2]`` each."""
  low = np.floor(position).astype(np.int64)
  fraction = position - low
  return np.stack([low, np.minimum(low + 1, length - 1)], -1), np.stack([1 - fraction, fraction], -1)


def _region(window: int, canvas: int, what: Views) -> int:
  """How many of the image's pixels a window of any scale can touch along a side; one number for all image sizes."""
  smallest = min(what.scales)
  if what.taps == 1:
    return min(window, canvas)
  # A scaled side is rounded to whole pixels, by which it may be 1.5 pixels short of one that the window still fits.
  longest = (window + 1) / smallest * window / max(window - 1.5, 0.5)
  return min(math.ceil(longest) + 2, canvas)


def _joined(shape: tuple[int, int], pairs: list[tuple[_Side, _Side]]) -> Windows:
  def stacked(taps: list[Taps]) -> Taps:
    return Taps(np.stack([one.at for one in taps]), np.stack([one.weight for one in taps]))

  rows, columns = zip(*pairs, strict=True)
  first = np.array([(row[1], column[1]) for row, column in pairs], np.int32)
  return Windows(
    shape,
    stacked([row[0] for row in rows]),
    stacked([column[0] for column in columns]),
    first,
    stacked([row[2] for row in rows]),
    stacked([column[2] for column in columns]),
  )


def _int32(array: np.ndarray) -> np.ndarray:
  return array.astype(np.int32)


def _float32(array: np.ndarray) -> np.ndarray:
  return array.astype(np.float32)
