"""Samples of image files as they are stored: decoders scale, invert or cut some of them."""

import io

import numpy as np
from PIL import Image, TiffImagePlugin

# Decoders scale the samples of other formats or decode them with loss, and encoders of GIF renumber indices.
_LABEL_FORMATS = ("PNG", "BMP", "DIB", "TIFF")
_PNG_BIT_DEPTH_AT = 24  # in the header, which each PNG begins with

# Tags of TIFF, and values of its tags NewSubfileType, SubfileType and Compression.
_NEW_SUBFILE_TYPE, _SUBFILE_TYPE = 254, 255
_REDUCED, _MASK, _EARLIER_REDUCED = 1, 4, 2
_BITS, _COMPRESSION, _PHOTOMETRIC, _BANDS, _SAMPLE_FORMAT = 258, 259, 262, 277, 339
_WHITE_IS_ZERO = 0
_SIGNED = 2
_LOSSY_COMPRESSION = {
  **dict.fromkeys((6, 7, 33007), "JPEG"),
  **dict.fromkeys((33003, 33004, 33005, 34712), "JPEG 2000"),
  **dict.fromkeys((34892,), "lossy JPEG"),
  **dict.fromkeys((50001,), "WebP"),
  **dict.fromkeys((50002, 52546), "JPEG XL"),
}
# 12 bits fill these values of 16.
_TWELVE_BITS = 1 << 12


def stored_bits(image: Image.Image, content: bytes) -> int:
  """Returns the bits of a sample in an image file, which may be fewer than those of the decoded image.

  Args:
    image: decoded.
    content: the file.
  """
  if image.format == "PNG":
    return content[_PNG_BIT_DEPTH_AT]
  if isinstance(image, TiffImagePlugin.TiffImageFile):
    return int(max(image.tag_v2.get(_BITS, (1,))))
  return 16 if image.mode.startswith("I") else 8


def full_pages(content: bytes) -> int:
  """Returns the number of pages of a TIFF file, without smaller copies of the first one and masks of transparency."""
  pages = full = 1
  try:
    with Image.open(io.BytesIO(content)) as image:
      pages = getattr(image, "n_frames", 1)
      for page in range(1, pages):
        image.seek(page)
        full += not _is_copy_or_mask(image)
  except Exception:  # damaged files raise errors of any type
    return pages  # a damaged page behind the first one is a page
  return full


def _is_copy_or_mask(page: Image.Image) -> bool:
  tags = page.tag_v2 if isinstance(page, TiffImagePlugin.TiffImageFile) else {}
  kind = int(tags.get(_NEW_SUBFILE_TYPE, 0))
  return bool(kind & (_REDUCED | _MASK)) or tags.get(_SUBFILE_TYPE) == _EARLIER_REDUCED


def wide_to_eight_bits(image: Image.Image, content: bytes, where: str) -> np.ndarray:
  """Converts a greyscale image of more than 8 bits to its 8 highest bits.

  Args:
    image: of mode ``I``, ``I;16`` or their variants.
    content: the file.
    where: its name, for error messages.

  Returns:
    uint8 ``[H,W]``.

  Raises:
    ValueError: the file holds negative numbers or more than 16 bits, or as few as 12 bits in 16.
  """
  samples = np.asarray(image)
  bits = stored_bits(image, content)
  white_is_zero = _tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO
  low, high = int(samples.min()), int(samples.max())
  if bits > 16 or low < 0:
    raise ValueError(
      f"{where}: the image holds integers of {bits} bits from {low} to {high}, expected 8 or 16 bits without sign: "
      "scale them to 0-255 and save them with 8 bits"
    )
  if bits == 16 and 0 < high < _TWELVE_BITS:
    raise _too_dark(where)
  grey = np.right_shift(samples, bits - 8).astype(np.uint8)
  # Pillow inverts such samples of up to 8 bits alone.
  return 255 - grey if white_is_zero else grey


def check_unsigned(image: Image.Image, where: str) -> None:
  """Refuses a TIFF file of signed 8-bit samples with negative numbers, which the decoder reads as numbers above 127.

  Args:
    image: decoded.
    where: the file's name, for error messages.

  Raises:
    ValueError: the file holds negative numbers.
  """
  if image.mode != "L" or _tag(image, _SAMPLE_FORMAT) not in (_SIGNED, (_SIGNED,)):
    return
  signed = np.asarray(image).astype(np.int8)
  if signed.min() < 0:
    raise ValueError(
      f"{where}: holds signed integers of 8 bits from {signed.min()} to {signed.max()}, expected numbers from 0 on: "
      "convert them and save them without sign"
    )


def _tag(image: Image.Image, tag: int) -> object:
  """Returns the value of a tag of a TIFF file; None for another file."""
  return image.tag_v2.get(tag) if isinstance(image, TiffImagePlugin.TiffImageFile) else None


def check_brightness(image: Image.Image, content: bytes, pixels: np.ndarray, where: str) -> None:
  """Refuses a colour image of as few as 12 bits in 16.

  Args:
    image: decoded; Pillow keeps the high byte of its samples.
    content: the file.
    pixels: uint8 ``[H,W,3]``.
    where: the file's name, for error messages.

  Raises:
    ValueError: no sample exceeds 12 bits, and the image is not black.
  """
  if stored_bits(image, content) == 16 and 0 < int(pixels.max()) < _TWELVE_BITS >> 8:
    raise _too_dark(where)


def _too_dark(where: str) -> ValueError:
  return ValueError(
    f"{where}: the image has samples of 16 bits, but none above {_TWELVE_BITS - 1}, as a picture of 12 bits or less "
    "has, and would be nearly black; expected the range 0-65535: scale them, or save the picture with 8 bits"
  )


def check_label_format(image: Image.Image, where: str) -> None:
  """Refuses a label in a file from which ids cannot be read as they were written.

  Args:
    image: decoded.
    where: the file's name, for error messages.

  Raises:
    ValueError: the file was compressed with loss, holds several bands, or its decoder may scale or invert ids.
  """
  if image.format not in _LABEL_FORMATS:
    raise ValueError(
      f"{where}: the label is a {image.format} file despite its name, expected PNG: {image.format} changes ids, "
      "export the label as PNG"
    )
  if not isinstance(image, TiffImagePlugin.TiffImageFile):
    return
  compression = _LOSSY_COMPRESSION.get(image.tag_v2.get(_COMPRESSION, 1))
  if compression:
    raise ValueError(
      f"{where}: the label is a TIFF file with {compression} compression, expected compression without loss: "
      f"{compression} changes ids, export the label as PNG"
    )
  bands = image.tag_v2.get(_BANDS, 1)
  if bands > 1 and image.mode in ("L", "P"):
    raise ValueError(
      f"{where}: the label has {bands} bands, expected one band of ids: export that band alone"
    )
  # With one bit, all programs call the white pixels 1.
  if image.mode != "1" and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
    raise ValueError(
      f"{where}: the label is a TIFF file in which 0 is white, so that some programs invert its ids; expected 0 as "
      "black: export the label as PNG"
    )


def grey_step(image: Image.Image, content: bytes) -> int:
  """Returns the difference of neighbouring values in a decoded greyscale image: 85 for 2 bits, 17 for 4, 1 for 8.

  Args:
    image: of mode ``L``. Decoders scale its samples to 0-255.
    content: the file.
  """
  return 255 // ((1 << stored_bits(image, content)) - 1)
