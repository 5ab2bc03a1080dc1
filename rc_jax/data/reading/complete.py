"""Damage that the decoder does not notice, so that the file gives other pixels."""

import struct
import zlib

from PIL import Image, TiffImagePlugin

_PNG = b"\x89PNG\r\n\x1a\n"


def refuse_damaged_png(content: bytes) -> None:
  """Compares the pixels of a PNG with their checksums: the decoder stops at the last pixel, before it has compared all.

  Args:
    content: of any format.

  Raises:
    ValueError: a checksum differs or is cut off; the message is a clause without the name of the file.

  Source: PNG (Portable Network Graphics) Specification, third edition, section 5.3.
  """
  if not content.startswith(_PNG):
    return
  view = memoryview(content)
  at = len(_PNG)
  while at + 12 <= len(content):
    (length,) = struct.unpack_from(">I", content, at)
    end = at + 8 + length
    kind = content[at + 4 : at + 8]
    # The decoder compares those of the other chunks that it needs.
    if kind == b"IDAT":
      if end + 4 > len(content):
        raise ValueError("its pixels are cut off")
      (expected,) = struct.unpack_from(">I", content, end)
      if zlib.crc32(view[at + 4 : end]) != expected:
        raise ValueError("its pixels do not fit their checksum")
    if kind == b"IEND":
      return
    at = end + 4


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
