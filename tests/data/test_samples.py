"""Samples that decoders scale, invert, cut or make up: read as they were written, or refused in one line."""

import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from rc_jax.data.reading import DatasetInfo
from rc_jax.data.reading.decode import decode_image, decode_label, label_ids
from tests.support.image_bytes import png, tiff

RNG = np.random.default_rng(3)
INFO = DatasetInfo("shapes", ("a", "b"), np.zeros((2, 3), np.uint8), np.arange(2))


def read_ids(content: bytes) -> np.ndarray:
  """Returns the label, with each id as its own train id, and checks the counts of pixels."""
  identity = {own_id: own_id for own_id in range(255)}
  ids, counts, _ = label_ids(content, "label", identity, INFO)
  assert {int(own_id): int((ids == own_id).sum()) for own_id in np.unique(ids)} == {
    own_id: count for own_id, count in enumerate(counts.tolist()) if count
  }
  return decode_label(content, "label", identity, INFO)


@pytest.mark.parametrize("form", [png, tiff])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_labels_of_few_bits_hold_the_ids_that_were_written(form, bits: int) -> None:
  ids = RNG.integers(0, min(1 << bits, 200), (9, 13))
  ids[0, 0] = min(1 << bits, 200) - 1
  np.testing.assert_array_equal(read_ids(form(ids, bits)), ids)


@pytest.mark.parametrize("bits", [12, 16])
def test_wide_labels(bits: int) -> None:
  ids = RNG.integers(0, 200, (8, 12))
  np.testing.assert_array_equal(read_ids(tiff(ids, bits)), ids)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_pictures_of_few_bits_use_the_range_of_eight(bits: int) -> None:
  samples = RNG.integers(0, 1 << bits, (9, 13))
  scale = 255 // ((1 << bits) - 1)
  for form in (png, tiff):
    np.testing.assert_array_equal(decode_image(form(samples, bits), "a")[..., 1], samples * scale)


def refused(read, *args) -> str:
  with pytest.raises(ValueError) as error:
    read(*args)
  assert "\n" not in str(error.value)
  return str(error.value)


def test_pictures_of_16_bits_keep_the_high_byte() -> None:
  samples = RNG.integers(0, 1 << 16, (9, 14))
  for content in (png(samples, 16), tiff(samples, 16)):
    np.testing.assert_array_equal(decode_image(content, "a")[..., 2], samples >> 8)
  color = RNG.integers(0, 1 << 16, (9, 14, 3))
  for content in (png(color, 16, 2), tiff(color, 16, 2)):
    np.testing.assert_array_equal(decode_image(content, "a"), color >> 8)
  assert not decode_image(png(samples * 0, 16), "a").any()


def test_a_tiff_of_12_bits_uses_the_range_of_eight() -> None:
  samples = RNG.integers(0, 1 << 12, (8, 12))
  np.testing.assert_array_equal(decode_image(tiff(samples, 12), "a")[..., 0], samples >> 4)


@pytest.mark.parametrize("largest", [3, 255, 1023, 4095])
def test_pictures_of_12_bits_in_16_are_refused(largest: int) -> None:
  samples = RNG.integers(0, largest + 1, (9, 14))
  samples[0, 0] = largest
  for content in (png(samples, 16), tiff(samples, 16)):
    message = refused(decode_image, content, "a.png")
    assert re.search(r"a\.png: .*16 bits, but none above 4095.*expected the range 0-65535: scale", message)
  color = np.dstack([samples, samples // 2, samples // 3])
  for content in (png(color, 16, 2), tiff(color, 16, 2)):
    if largest > 255:
      assert "none above 4095" in refused(decode_image, content, "a.png")


@pytest.mark.parametrize(
  ("content", "found"),
  [
    (tiff(np.array([[0, 200], [255, 7]]), 32), "32 bits from 0 to 255"),
    (tiff(np.array([[0, 70_000], [255, 7]]), 32), "32 bits from 0 to 70000"),
    (tiff(np.array([[-5, 70_000], [255, 7]]), 32, sample_format=2), "32 bits from -5 to 70000"),
    (tiff(np.array([[-5, 20_000], [255, 7]]), 16, sample_format=2), "16 bits from -5 to 20000"),
  ],
)
def test_integers_that_eight_bits_cannot_show_are_refused(content: bytes, found: str) -> None:
  message = refused(decode_image, content, "a.tif")
  assert (
    "a.tif: " in message and found in message and "expected 8 or 16 bits" in message and "save" in message
  )


def test_signed_pictures_of_16_bits_without_negative_numbers() -> None:
  samples = RNG.integers(5000, 1 << 15, (9, 14))
  content = tiff(samples, 16, sample_format=2)
  np.testing.assert_array_equal(decode_image(content, "a")[..., 0], samples >> 8)


@pytest.mark.parametrize(
  ("form", "options", "words"),
  [
    ("TIFF", {"compression": "jpeg", "quality": 100}, "TIFF file with JPEG compression"),
    ("TIFF", {"compression": "webp"}, "TIFF file with WebP compression"),
    ("WEBP", {"lossless": False}, "WEBP file"),
    ("JPEG2000", {"irreversible": True}, "JPEG2000 file"),
    ("JPEG", {}, "JPEG file"),
    ("PPM", {}, "PPM file"),
    ("GIF", {}, "GIF file"),
  ],
)
def test_labels_whose_ids_compression_or_a_decoder_changes(
  tmp_path: pathlib.Path, form: str, options: dict, words: str
) -> None:
  ids = np.kron(RNG.integers(0, 3, (4, 4)), np.ones((16, 16), int)).astype(np.uint8)
  image = Image.fromarray(ids)
  if options.get("compression") == "webp":
    image = image.convert("RGB")
  try:
    image.save(tmp_path / "label.png", form, **options)
  except (OSError, KeyError):
    pytest.skip("this Pillow does not write the format")
  message = refused(decode_label, (tmp_path / "label.png").read_bytes(), "label.png", {0: 0}, INFO)
  assert f"label.png: the label is a {words}" in message and "as PNG" in message


def test_labels_in_lossless_containers(tmp_path: pathlib.Path) -> None:
  ids = RNG.integers(0, 200, (40, 30), np.uint8)
  for number, compression in enumerate(("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")):
    path = tmp_path / f"{number}.tif"
    Image.fromarray(ids).save(path, compression=compression)
    np.testing.assert_array_equal(read_ids(path.read_bytes()), ids)
  Image.fromarray(ids).save(tmp_path / "a.bmp")
  np.testing.assert_array_equal(read_ids((tmp_path / "a.bmp").read_bytes()), ids)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_labels_in_which_0_is_white_are_refused(bits: int) -> None:
  message = refused(decode_label, tiff(RNG.integers(0, 3, (4, 8)), bits, 0), "a.tif", {0: 0}, INFO)
  assert "a.tif: the label is a TIFF file in which 0 is white" in message and "as PNG" in message


def test_labels_of_two_bands_are_refused() -> None:
  content = tiff(RNG.integers(0, 2, (4, 8, 2)), 8, extra=(0,))
  assert "2 bands" in refused(decode_label, content, "a.tif", {0: 0}, INFO)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_pictures_in_which_0_is_white_are_no_negatives(bits: int) -> None:
  samples = RNG.integers(0, 1 << bits, (8, 12))
  largest = (1 << bits) - 1
  expected = ((largest - samples) * 255 // largest) if bits <= 8 else (largest - samples) >> 8
  np.testing.assert_array_equal(decode_image(tiff(samples, bits, 0), "a.tif")[..., 1], expected)


def test_negative_numbers_of_8_bits_are_refused() -> None:
  samples = np.array([[-1, 2], [0, 5]])
  content = tiff(samples & 255, 8, sample_format=2)
  for read in (
    lambda: decode_image(content, "a.tif"),
    lambda: decode_label(content, "a.tif", {own_id: own_id for own_id in range(256)}, INFO),
  ):
    assert "a.tif: holds signed integers of 8 bits from -1 to 5, expected" in refused(read)
  np.testing.assert_array_equal(read_ids(tiff(np.abs(samples), 8, sample_format=2)), np.abs(samples))
