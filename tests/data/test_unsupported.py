"""Intact images beyond the limits of the decoder: the message names the limit and the remedy, and no damage."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from rc_jax.data.reading.decode import decode_image
from tests.support.image_bytes import broad_png, png, tiff

RNG = np.random.default_rng(5)
BYTES = RNG.integers(0, 200, (6, 8, 5))


def jpeg(marker: int, bits: int, channels: int) -> bytes:
  """Returns a JPEG with an application segment and a frame header that Pillow refuses; no pixels follow."""
  frame = struct.pack(">BHHB", bits, 6, 8, channels) + b"\x01\x11\x00" * channels
  return (
    b"\xff\xd8\xff\xe0\x00\x04ab" + struct.pack(">BBH", 0xFF, marker, 2 + len(frame)) + frame + b"\xff\xd9"
  )


def png_with_text() -> bytes:
  """Returns a PNG with a compressed text of 2 MB before its pixels."""
  content = png(BYTES[..., 0], 8)
  text = b"zTXt" + b"key\0\0" + zlib.compress(bytes(2 << 20))
  chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
  return content[:33] + chunk + content[33:]


UNSUPPORTED = {
  "200 megapixels": (broad_png(20_000, 10_000), ("200 megapixels", "at most 179", "cut it into tiles")),
  "five bands": (tiff(BYTES, 8, 1, extra=(0,) * 4), ("5 bands of 8-bit unsigned integers", "export")),
  "five bands of 16 bits": (tiff(BYTES, 16, 2, extra=(0, 0)), ("5 bands of 16-bit unsigned", "export")),
  "three bands of floats": (tiff(BYTES[..., :3], 32, 2, 3), ("3 bands of 32-bit floating point", "export")),
  "double precision": (tiff(BYTES[..., 0], 64, 1, 3), ("1 band of 64-bit floating point", "export")),
  "12-bit JPEG": (jpeg(0xC1, 12, 3), ("JPEG file with 3 channels of 12 bits", "4 channels of 8", "convert")),
  "lossless JPEG": (jpeg(0xC3, 12, 1), ("1 channel of 12 bits, lossless", "convert")),
  "two channels": (jpeg(0xC0, 8, 2), ("JPEG file with 2 channels of 8 bits", "convert")),
  "a long text": (png_with_text(), ("metadata beside its pixels", "save it without metadata")),
  "JPEG XL": (b"\xff\x0a" + bytes(range(9, 99)), ("a JPEG XL image", "convert")),
  "AVIF": (b"\0\0\0\x1cftypavif" + bytes(range(99)), ("", "")),
  "OpenEXR": (b"\x76\x2f\x31\x01" + bytes(range(99)), ("an OpenEXR image", "convert")),
  "DICOM": (bytes(128) + b"DICM" + bytes(range(99)), ("a DICOM file", "export the picture as PNG")),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_a_limit_is_named_and_not_taken_for_damage(kind: str) -> None:
  content, words = UNSUPPORTED[kind]
  with pytest.raises(ValueError) as error:
    decode_image(content, "a.tif")
  message = str(error.value)
  assert message.startswith("a.tif: ") and "\n" not in message and "expected" in message
  for word in words:
    assert word in message, message
  if kind != "AVIF":  # which some versions of Pillow read, so that this file is a damaged one
    assert "download" not in message and "cannot be decoded" not in message


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_every_cut_of_a_file_is_damage_or_no_error() -> None:
  """A file that lacks its end must not be taken for an intact one in another form."""
  image = Image.fromarray(BYTES[..., :3].astype(np.uint8))
  for form in ("TIFF", "JPEG"):
    file = io.BytesIO()
    image.save(file, form)
    content = file.getvalue()
    for length in range(8, len(content) - 1):
      try:
        decode_image(content[:length], "a")
      except ValueError as error:
        assert "does not read" not in str(error), (form, length, str(error))


@pytest.mark.parametrize(("kind", "pages"), [(1, 1), (4, 1), (0, 2), (2, 2)])
def test_smaller_copies_and_masks_in_a_tiff_are_no_pages(kind: int, pages: int) -> None:
  first, second = (Image.fromarray(np.full((8, 9, 3), value, np.uint8)) for value in (70, 9))
  second.encoderinfo = {"tiffinfo": {254: kind}}  # NewSubfileType
  file = io.BytesIO()
  first.save(file, "TIFF", save_all=True, append_images=[second])
  assert Image.open(file).n_frames == 2
  if pages == 1:
    assert (decode_image(file.getvalue(), "a.tif") == 70).all()
    return
  with pytest.raises(ValueError, match="holds 2 pages"):
    decode_image(file.getvalue(), "a.tif")
