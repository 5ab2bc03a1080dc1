"""Damage that the decoder does not notice, so that the file gives other pixels."""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, TiffImagePlugin

_PNG = b"\x89PNG\r\n\x1a\n"
# Of each pass of an interlaced PNG: first column, first row, and the distance of columns and rows.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_BLOCK = 1 << 16  # bytes that are decompressed at a time


def refuse_damaged_png(content: bytes) -> None:
  """Compares the pixels of a PNG with their checksums: the decoder stops at the last pixel, before it has compared all.

  Args:
    content: of any format.

  Raises:
    ValueError: a checksum differs, or the end is cut off; the message is a clause without the name of the file.

  Source: PNG (Portable Network Graphics) Specification, third edition, section 5.3.
  """
  if not content.startswith(_PNG):
    return
  view = memoryview(content)
  for kind, start, end in _png_chunks(content):
    # The decoder compares those of the other chunks that it needs.
    if kind == b"IDAT":
      if end + 4 > len(content):
        raise ValueError("its pixels are cut off")
      (expected,) = struct.unpack_from(">I", content, end)
      if zlib.crc32(view[start - 4 : end]) != expected:
        raise ValueError("its pixels do not fit their checksum")
    if kind == b"IEND":
      return
  raise ValueError("its end is cut off")


def refuse_short_png(content: bytes, image: Image.Image) -> None:
  """Refuses a PNG whose compressed pixels end before the last row, which the decoder fills with 0.

  The pixels are decompressed again, and only where the last row is 0.

  Args:
    content: of any format, undamaged otherwise.
    image: decoded.

  Raises:
    ValueError: pixels are missing; the message is a clause without the name of the file.

  Source: PNG Specification, sections 8.1 (interlacing) and 9.1 (a byte for the filter before each row).
  """
  if not content.startswith(_PNG) or np.asarray(image)[-1].any():
    return
  width, height, bits, color, _, _, interlaced = struct.unpack_from(">IIBBBBB", content, 16)
  bits *= {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(color, 1)
  passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
  expected = 0
  for left, top, across, down in passes:
    columns, rows = -(-(width - left) // across), -(-(height - top) // down)
    expected += rows * (1 + (columns * bits + 7) // 8) if columns > 0 and rows > 0 else 0
  stream = zlib.decompressobj()
  found = 0
  for kind, start, end in _png_chunks(content):
    part = content[start:end] if kind == b"IDAT" else b""
    while part and not stream.eof:
      found += len(stream.decompress(part, _BLOCK))
      part = stream.unconsumed_tail
  if found < expected:
    raise ValueError(f"it has {found:,} of {expected:,} bytes of pixels")


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
  """Yields type, start and end of the data of each chunk of a PNG up to ``IEND``; the last end may lie beyond it.

  A checksum of 4 bytes follows the data, and 4 bytes of the type precede them.
  """
  start = len(_PNG) + 8
  while start + 4 <= len(content):
    length, kind = struct.unpack_from(">I4s", content, start - 8)
    end = start + length
    yield kind, start, end
    if kind == b"IEND":
      return
    start = end + 12


def refuse_incomplete_tiff(image: Image.Image) -> None:
  """Refuses a TIFF without the strips or tiles of some pixels, which the decoder leaves at 0.

  Args:
    image: opened, not decoded.

  Raises:
    ValueError: pixels are missing; the message is a clause without the name of the file.
  """
  if not isinstance(image, TiffImagePlugin.TiffImageFile):
    return
  # Not its size, which is turned where EXIF data say so; tiles are not.
  width, height = (
    int(image.tag_v2[tag]) for tag in (TiffImagePlugin.IMAGEWIDTH, TiffImagePlugin.IMAGELENGTH)
  )
  covered = 0
  for tile in image.tile:
    left, top, right, bottom = tile[1] or (0, 0, width, height)
    covered += max(0, min(right, width) - left) * max(0, min(bottom, height) - top)
  if covered < width * height:
    raise ValueError(f"it has {covered:,} of {width * height:,} pixels")
  # Without its tag for the bits of a sample, or with a damaged one, a file of 16 bits is read as one of 1 bit.
  bits = sum(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
  stored = sum(image.tag_v2.get(TiffImagePlugin.STRIPBYTECOUNTS, ()))
  needed = (width * bits + 7) // 8 * height
  if image.tag_v2.get(TiffImagePlugin.COMPRESSION, 1) == 1 and stored >= 2 * needed:
    raise ValueError(f"its {stored:,} bytes of pixels are more than the {needed:,} of its size and bits")
