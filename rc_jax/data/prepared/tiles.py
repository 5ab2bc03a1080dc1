"""Images and labels in compressed tiles: a window decodes only the tiles that it touches.

A training crop of 769 from a 2048x1024 frame, resized by 0.5 to 2, needs a quarter of the frame's pixels on average.
But a PNG is one compressed stream, which must be inflated from its start, and that takes most of a data loader's time.
Here zstd compresses each square of 256 pixels separately, losslessly, and inflates several times as fast as zlib.

Before compression, green is subtracted from red and blue of an image, and each row from the row below it (modulo 256).
Of PNG's filters, this one has an inverse that adds complete rows, which NumPy does at the speed of memory; the others
work pixel by pixel. The size is within 6 % of Cityscapes' PNGs.

Format, little-endian: ``RCT1``; height, width, channels, side of a tile as uint32; the compressed sizes of the tiles
as uint32, row by row; the tiles, each one zstd frame of uint8 ``[h,w,channels]``.

pyarrow serves as the zstd codec: TFDS, which opens prepared data sets, installs it in any case.
"""

import math
import struct
from typing import Any

import numpy as np

MAGIC = b"RCT1"
_HEADER = struct.Struct("<4s4I")
_CODEC = "zstd"
# Smaller tiles fit windows more closely, but each costs a call and a compression table: 128 is slower, 512 no smaller.
_SIDE = 256
# Level 9 saves 3 % of the size and takes eight times as long.
_LEVEL = 1
# Images with more are refused before they are prepared.
_MOST_PIXELS = 1 << 28


def encode(pixels: np.ndarray, side: int = _SIDE) -> bytes:
  """Compresses an image or a label in tiles.

  Args:
    pixels: uint8 ``[H,W,3]`` or ``[H,W]``.
    side: side of a tile, in pixels.

  Returns:
    Bytes for ``TiledArray``, equal for equal pixels and the same release of zstd.
  """
  import pyarrow  # takes 0.1 s, and raw data sets do not need it

  height, width = pixels.shape[:2]
  codec = pyarrow.Codec(_CODEC, compression_level=_LEVEL)
  tiles = []
  for top in range(0, height, side):
    for left in range(0, width, side):
      tile = pixels[top : top + side, left : left + side]
      tiles.append(codec.compress(_residuals(tile).tobytes(), asbytes=True))
  channels = 1 if pixels.ndim == 2 else pixels.shape[2]
  header = _HEADER.pack(MAGIC, height, width, channels, side)
  return b"".join((header, np.array([len(tile) for tile in tiles], "<u4").tobytes(), *tiles))


class TiledArray:
  """An image or a label that is decoded where it is indexed: ``tiled[rows, columns]`` is an array.

  Rows and columns are slices of step 1 or arrays of indices, as in NumPy. ``np.asarray(tiled)`` decodes all tiles.

  Args:
    content: the bytes from ``encode``.
    where: the record's name, for error messages.

  Raises:
    ValueError: in one line, the content is damaged or is not from ``encode``.
  """

  dtype = np.dtype(np.uint8)

  def __init__(self, content: bytes, where: str):
    self._where = where
    if content[:4] != MAGIC or len(content) < _HEADER.size:
      raise ValueError(f"{where}: found {content[:4]!r}, expected {MAGIC!r}: prepare the data set again")
    _, height, width, channels, self._side = _HEADER.unpack_from(content)
    if channels not in (1, 3):
      raise ValueError(f"{where}: found {channels} channels, expected 1 or 3: prepare the data set again")
    if not self._side:
      raise ValueError(f"{where}: found tiles of side 0, expected at least 1: prepare the data set again")
    if not 0 < height * width <= _MOST_PIXELS:
      raise ValueError(
        f"{where}: found {height} x {width} pixels, expected 1 to {_MOST_PIXELS:,}: prepare the data set again"
      )
    self.shape = (height, width) if channels == 1 else (height, width, channels)
    self.ndim = len(self.shape)
    count = math.ceil(height / self._side) * math.ceil(width / self._side)
    if _HEADER.size + 4 * count > len(content):
      raise ValueError(
        f"{where}: found {len(content)} bytes, too few for {count} tiles: prepare the data set again"
      )
    sizes = np.frombuffer(content, "<u4", count, _HEADER.size).astype(np.int64)
    # The start of each tile, and the end of the last one.
    self._bounds = _HEADER.size + 4 * count + np.concatenate([[0], np.cumsum(sizes)])
    if self._bounds[-1] != len(content):
      raise ValueError(
        f"{where}: found {len(content)} bytes, expected {self._bounds[-1]}: prepare the data set again"
      )
    self._content = memoryview(content)

  @property
  def nbytes(self) -> int:
    """Bytes of the decoded array."""
    return math.prod(self.shape)

  def __len__(self) -> int:
    return self.shape[0]

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    if copy is False:
      raise ValueError(f"{self._where}: an array of tiles is a copy; expected copy=None or True")
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
      _undo_residuals(pixels, side)
    return pixels[top - first :]

  def _tile(self, index: int) -> np.ndarray:
    import pyarrow

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
        f"{self._where}: tile {index} is damaged ({error}), expected {size} bytes: prepare the data set again"
      ) from None
    return tile


def _residuals(tile: np.ndarray) -> np.ndarray:
  # Labels compress well without.
  if tile.ndim == 2:
    return tile
  residuals = tile.copy()
  residuals[..., 0] -= tile[..., 1]
  residuals[..., 2] -= tile[..., 1]
  residuals[1:] -= residuals[:-1].copy()
  return residuals


def _undo_residuals(pixels: np.ndarray, side: int) -> None:
  """Inverts ``_residuals`` in place, in rows of which the first is the first of a tile."""
  flat = pixels.reshape(len(pixels), math.prod(pixels.shape[1:]))
  # One vector addition for each row: np.add.accumulate takes tens of times as long.
  for row in range(1, len(flat)):
    if row % side:
      np.add(flat[row], flat[row - 1], out=flat[row])
  green = pixels[..., 1]
  pixels[..., 0] += green
  pixels[..., 2] += green


def _bounds(index: Any, size: int) -> tuple[int, int, Any]:
  """Returns the first position that an index touches, the one after the last, and the index relative to the first."""
  if isinstance(index, slice):
    first, last, step = index.indices(size)
    if step == 1:
      return first, max(first, last), slice(None)
    # Other steps, such as -1: all positions are read, then picked.
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
