"""PNG and TIFF files of any sample width, byte by byte: Pillow writes few of the forms that it reads."""

import struct
import zlib

import numpy as np


def png(samples: np.ndarray, bits: int, color_type: int = 0) -> bytes:
  """Returns a PNG of samples ``[H,W]`` or ``[H,W,C]`` with ``bits`` each; color type 0 is grey, 2 is RGB."""
  height, width = samples.shape[:2]
  header = struct.pack(">2I5B", width, height, bits, color_type, 0, 0, 0)
  rows = packed(samples.reshape(height, -1), bits)
  pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
  return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def broad_png(width: int, height: int) -> bytes:
  """Returns a PNG whose header states a size, with pixels for one row."""
  content = bytearray(png(np.zeros((1, 1), int), 8))
  content[16:24] = struct.pack(">II", width, height)
  content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
  return bytes(content)


def tiff(
  samples: np.ndarray, bits: int, photometric: int = 1, sample_format: int = 1, extra: tuple[int, ...] = ()
) -> bytes:
  """Returns an uncompressed little-endian TIFF of samples ``[H,W]`` or ``[H,W,C]``.

  Args:
    samples: integers or, with ``sample_format`` 3, floating point numbers.
    bits: of a sample.
    photometric: 0: 0 is white; 1: 0 is black; 2: RGB.
    sample_format: 1: unsigned; 2: signed; 3: floating point.
    extra: the kinds of the bands above those of ``photometric``.
  """
  height, width = samples.shape[:2]
  bands = samples.shape[2] if samples.ndim == 3 else 1
  if bits >= 16:
    kind = {1: "u", 2: "i", 3: "f"}[sample_format]
    pixels = samples.astype(f"<{kind}{bits // 8}").tobytes()
  else:
    pixels = b"".join(packed(samples.reshape(height, -1), bits))
  # (tag, type, values); type 3 is a 16-bit number, 4 a 32-bit number.
  tags = [
    *((256, 4, (width,)), (257, 4, (height,)), (258, 3, (bits,) * bands), (259, 3, (1,))),
    *((262, 3, (photometric,)), (273, 4, (8,)), (277, 3, (bands,)), (278, 4, (height,))),
    (279, 4, (len(pixels),)),
    *([(338, 3, extra)] if extra else []),
    (339, 3, (sample_format,) * bands),
  ]
  directory_at = 8 + len(pixels)
  values_at = directory_at + 2 + 12 * len(tags) + 4
  directory, values = struct.pack("<H", len(tags)), b""
  for tag, kind, numbers in tags:
    content = struct.pack(f"<{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
    if len(content) > 4:
      content, values = struct.pack("<I", values_at + len(values)), values + content
    directory += struct.pack("<HHI", tag, kind, len(numbers)) + content.ljust(4, b"\0")
  return struct.pack("<2sHI", b"II", 42, directory_at) + pixels + directory + struct.pack("<I", 0) + values


def packed(rows: np.ndarray, bits: int) -> list[bytes]:
  """Returns rows ``[H,n]`` of unsigned numbers as bytes, the highest bit first, each row from a new byte."""
  shifts = np.arange(bits - 1, -1, -1)
  binary = (rows.astype(np.int64)[..., None] >> shifts) & 1
  return [np.packbits(row.ravel().astype(np.uint8)).tobytes() for row in binary]


def _chunk(kind: bytes, content: bytes) -> bytes:
  return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
