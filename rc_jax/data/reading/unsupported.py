"""Images that are intact and beyond the limits of the decoder, distinguished from damaged files."""

import re
import struct

from PIL import Image, UnidentifiedImageError

# Tags of TIFF.
_WIDTH, _BITS, _COMPRESSION, _BANDS, _SAMPLE_FORMAT = 256, 258, 259, 277, 339
_SAMPLE_FORMATS = {
  1: "unsigned integers",
  2: "signed integers",
  3: "floating point numbers",
  6: "complex numbers",
}
_MOST_VALUES = 64  # of a tag that is read; more are a sign of damage

# Start of frame in JPEG: its markers, and those that the decoder reads.
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_FRAMES_READ = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))


def identify_unsupported(content: bytes, error: Exception) -> tuple[str, str]:
  """Identifies an intact image that the decoder refuses.

  Args:
    content: the file.
    error: of the decoder.

  Returns:
    What the file is with what is expected, and the remedy: ``("is a TIFF file with 5 bands ..., expected ...", "export
    ...")``. Both are empty where the file may be damaged.
  """
  if isinstance(error, Image.DecompressionBombError):
    pixels, limit = (int(number) / 1e6 for number in re.findall(r"\d+", str(error))[:2])
    return (
      f"has {pixels:,.0f} megapixels, expected at most {limit:,.0f}, the limit of the decoder",
      "cut it into tiles or save it smaller",
    )
  if re.search("MAX_TEXT|decompressed data too large", str(error), re.IGNORECASE):
    return (
      "holds metadata beside its pixels that are longer than the decoder reads, expected pixels alone",
      "save it without metadata",
    )
  if not isinstance(error, UnidentifiedImageError):
    return "", ""
  if content[:4] in (b"II*\0", b"MM\0*"):
    return _unsupported_tiff(content)
  if content[:3] == b"\xff\xd8\xff":
    return _unsupported_jpeg(content)
  return "", ""


def _unsupported_tiff(content: bytes) -> tuple[str, str]:
  try:
    tags = _tiff_tags(content)
  except struct.error:
    return "", ""
  if _WIDTH not in tags:
    return "", ""
  bands = tags.get(_BANDS, (1,))[0]
  bits = "/".join(str(value) for value in dict.fromkeys(tags.get(_BITS, (1,))))
  kind = _SAMPLE_FORMATS.get(tags.get(_SAMPLE_FORMAT, (1,))[0], "numbers of an unknown kind")
  return (
    f"is a TIFF file with {bands} band{'s' if bands > 1 else ''} of {bits}-bit {kind} "
    f"(compression {tags.get(_COMPRESSION, (1,))[0]}), a form that the decoder does not read, expected 1 or 3 bands of "
    "8 or 16 bits",
    "export these bands alone as PNG",
  )


def _tiff_tags(content: bytes) -> dict[int, tuple[int, ...]]:
  """Returns the integers in the first directory of a TIFF file; raises struct.error where it is cut off."""
  order = "<" if content[:2] == b"II" else ">"
  (directory,) = struct.unpack_from(f"{order}I", content, 4)
  (entries,) = struct.unpack_from(f"{order}H", content, directory)
  tags = {}
  for at in range(directory + 2, directory + 2 + 12 * entries, 12):
    tag, kind, count = struct.unpack_from(f"{order}HHI", content, at)
    if kind not in (3, 4) or count > _MOST_VALUES:
      continue
    size, code = (2, "H") if kind == 3 else (4, "I")
    values_at = at + 8
    if count * size > 4:
      (values_at,) = struct.unpack_from(f"{order}I", content, at + 8)
    tags[tag] = struct.unpack_from(f"{order}{count}{code}", content, values_at)
  return {tag: values for tag, values in tags.items() if values}


def _unsupported_jpeg(content: bytes) -> tuple[str, str]:
  at = 2
  while at + 10 <= len(content) and content[at] == 0xFF:
    marker = content[at + 1]
    if marker in _WITHOUT_LENGTH or marker == 0xFF:
      at += 1 if marker == 0xFF else 2
      continue
    if marker in _FRAMES:
      bits, channels = content[at + 4], content[at + 9]
      kind = "" if marker in _FRAMES_READ else ", lossless or hierarchical"
      if not kind and bits == 8 and channels in (1, 3, 4):
        return "", ""
      return (
        f"is a JPEG file with {channels} channel{'s' if channels > 1 else ''} of {bits} bits{kind}, a form that the "
        "decoder does not read, expected 1, 3 or 4 channels of 8 bits",
        "convert it to such a JPEG, or to PNG",
      )
    at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
  return "", ""
