"""Images and labels in compressed tiles, of which a window decodes only those that it touches.

A training crop of 769 out of a 2048x1024 frame, resized by 0.5 to 2, needs a quarter of the frame's pixels on average,
but a PNG is one stream: all of it must be inflated, which takes most of a data loader's time. Here every square of 256
pixels is compressed apart, by zstd, which also inflates several times as fast as zlib. Nothing is lost.

A tile of an image first loses what is easily predicted: green is taken off red and blue, then each row off the row
below it (modulo 256). Of PNG's filters that is the one whose inverse adds whole rows, so NumPy does it at the speed of
memory; the smarter ones go pixel by pixel. The size is within 6 % of Cityscapes' own PNGs.

Layout, little-endian: ``RCT1``; height, width, channels, side of a tile as uint32; the compressed sizes of the tiles
as uint32, row by row; the tiles, each one zstd frame of uint8 ``[h,w,channels]``.
"""

import math
import struct
from typing import Any

import numpy as np
import pyarrow

MAGIC = b"RCT1"
_HEADER = struct.Struct("<4s4I")
_CODEC = "zstd"
# Smaller tiles fit windows closer, but each costs a call and a table of its own: 128 is slower, 512 no smaller.
_SIDE = 256
# Level 9 saves 3 % and takes eight times as long.
_LEVEL = 1


def encode(pixels: np.ndarray, side: int = _SIDE) -> bytes:
  """Compresses an image or a label in tiles.

  Args:
    pixels: uint8 ``[H,W,3]`` or ``[H,W]``.
    side: of a tile, in pixels.

  Returns:
    What ``TiledArray`` reads: the same bytes for the same pixels and the same release of zstd.
  """
  height, width = pixels.shape[:2]
  codec = pyarrow.Codec(_CODEC, compression_level=_LEVEL)
  tiles = []
  for top in range(0, height, side):
    for left in range(0, width, side):
      tile = pixels[top : top + side, left : left + side]
      tiles.append(codec.compress(_predicted(tile).tobytes(), asbytes=True))
  channels = 1 if pixels.ndim == 2 else pixels.shape[2]
  header = _HEADER.pack(MAGIC, height, width, channels, side)
  return b"".join((header, np.array([len(tile) for tile in tiles], "<u4").tobytes(), *tiles))


class TiledArray:
  """An image or a label that is decoded where it is indexed: ``tiled[rows, columns]`` gives an array.

  Rows and columns are slices of step 1 or arrays of indices, as for NumPy. ``np.asarray(tiled)`` decodes the whole.

  Args:
    content: what ``encode`` made.
    where: the record's name, for the errors.

  Raises:
    ValueError: in one line, when the content is something else.
  """

  dtype = np.dtype(np.uint8)

  def __init__(self, content: bytes, where: str):
    self._where = where
    if content[:4] != MAGIC or len(content) < _HEADER.size:
      raise ValueError(
        f"{where}: found {content[:4]!r}, expected tiles of rc_jax ({MAGIC!r}): prepare it again"
      )
    _, height, width, channels, self._side = _HEADER.unpack_from(content)
    self.shape = (height, width) if channels == 1 else (height, width, channels)
    self.ndim = len(self.shape)
    count = math.ceil(height / self._side) * math.ceil(width / self._side)
    sizes = np.frombuffer(content, "<u4", count, _HEADER.size).astype(np.int64)
    # Where each tile begins, and where the last one ends.
    self._bounds = _HEADER.size + 4 * count + np.concatenate([[0], np.cumsum(sizes)])
    if self._bounds[-1] != len(content):
      raise ValueError(f"{where}: found {len(content)} bytes, expected {self._bounds[-1]}: prepare it again")
    self._content = memoryview(content)

  @property
  def nbytes(self) -> int:
    """Bytes of the decoded array."""
    return math.prod(self.shape)

  def __len__(self) -> int:
    return self.shape[0]

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    if copy is False:
      raise ValueError(f"{self._where}: tiles cannot become an array without being decoded")
    return np.asarray(self._window(0, self.shape[0], 0, self.shape[1]), dtype)

  def __getitem__(self, key: Any) -> np.ndarray:
    rows, columns, *rest = key if isinstance(key, tuple) else (key, slice(None))
    top, bottom, rows = _bounds(rows, self.shape[0])
    left, right, columns = _bounds(columns, self.shape[1])
    return self._window(top, bottom, left, right)[(rows, columns, *rest)]

  def _window(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    """Decodes rows ``top..bottom-1`` and columns ``left..right-1``."""
    side, (height, width) = self._side, self.shape[:2]
    first = top // side * side  # rows are sums of those above them in their tile
    pixels = np.empty((max(0, bottom - first), max(0, right - left), *self.shape[2:]), np.uint8)
    across = math.ceil(width / side)
    for y in range(first, bottom if pixels.size else first, side):
      tall = min(side, height - y)
      for x in range(left // side * side, right, side):
        wide = min(side, width - x)
        tile = self._tile(y // side * across + x // side).reshape(tall, wide, *self.shape[2:])
        low, high = max(left, x), min(right, x + wide)
        pixels[y - first : y - first + tall, low - left : high - left] = tile[
          : bottom - y, low - x : high - x
        ]
    if self.ndim == 3:
      _undo_prediction(pixels, side)
    return pixels[top - first :]

  def _tile(self, index: int) -> np.ndarray:
    tall, wide = (
      min(self._side, size - place * self._side)
      for size, place in zip(
        self.shape[:2], divmod(index, math.ceil(self.shape[1] / self._side)), strict=True
      )
    )
    size = tall * wide * math.prod(self.shape[2:])
    compressed = pyarrow.py_buffer(self._content[self._bounds[index] : self._bounds[index + 1]])
    try:
      tile = np.frombuffer(pyarrow.decompress(compressed, size, codec=_CODEC), np.uint8)
    except OSError as error:
      raise ValueError(
        f"{self._where}: tile {index} is damaged ({error}), expected {size} pixels' bytes: prepare it again"
      ) from None
    return tile


def _predicted(tile: np.ndarray) -> np.ndarray:
  # Labels are flat as they are.
  if tile.ndim == 2:
    return tile
  rest = tile.copy()
  rest[..., 0] -= tile[..., 1]
  rest[..., 2] -= tile[..., 1]
  rest[1:] -= rest[:-1].copy()
  return rest


def _undo_prediction(pixels: np.ndarray, side: int) -> None:
  """Undoes ``_predicted``, in place, in rows that begin with a tile's first."""
  flat = pixels.reshape(len(pixels), math.prod(pixels.shape[1:]))
  # A loop over rows, each one vector addition: np.add.accumulate takes tens of times as long.
  for row in range(1, len(flat)):
    if row % side:
      np.add(flat[row], flat[row - 1], out=flat[row])
  green = pixels[..., 1]
  pixels[..., 0] += green
  pixels[..., 2] += green


def _bounds(index: Any, size: int) -> tuple[int, int, Any]:
  """The first place that an index touches, one after the last, and the index from there."""
  if isinstance(index, slice):
    first, last, step = index.indices(size)
    if step == 1:
      return first, max(first, last), slice(None)
    # Backwards, say: read whole, then picked.
    return 0, size, index
  places = np.asarray(index)
  if places.size == 0 or not np.issubdtype(places.dtype, np.integer):
    return 0, size, index
  low, high = int(places.min()), int(places.max())
  if low < -size or high >= size:
    raise IndexError(f"index {low if low < -size else high} is out of bounds for an axis of size {size}")
  if low < 0:
    return 0, size, index
  return low, high + 1, places - low
