"""Reading pairs of images and labels: accepted forms, refused forms, and the words of the errors."""

import pathlib
import pickle

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from rc_jax import data
from rc_jax.data.reading import DatasetInfo, FilePairs, pair_files
from rc_jax.data.reading.decode import id_ranges, read_image, read_label
from rc_jax.data.reading.source import IncompleteSplit
from rc_jax.predictions.images import displayed_size
from tests.support import small_datasets

INFO = DatasetInfo(
  name="shapes",
  class_names=("disk", "square", "star"),
  palette=np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255)], np.uint8),
  label_ids=np.array([4, 5, 9]),
)
TRAIN_IDS = {0: 255, 4: 0, 5: 1, 9: 2}


@pytest.fixture
def rng():
  return np.random.default_rng(7)


def _refused(call, *args):
  with pytest.raises(ValueError) as error:
    call(*args)
  message = str(error.value)
  assert "\n" not in message
  return message


def _ids(rng, size=(20, 30)):
  return rng.choice(np.array(list(TRAIN_IDS), np.uint8), size)


def _expected(ids):
  out = np.zeros(ids.shape, np.uint8)
  for index, own_id in np.ndenumerate(ids):
    out[index] = TRAIN_IDS[int(own_id)]
  return out


def test_pair_is_read_in_train_ids_and_survives_pickling(tmp_path, rng):
  image = rng.integers(0, 256, (20, 30, 3), np.uint8)
  ids = _ids(rng)
  Image.fromarray(image).save(tmp_path / "a.png")
  Image.fromarray(ids).save(tmp_path / "a_label.png")
  pairs = FilePairs(INFO, (tmp_path / "a.png",), (tmp_path / "a_label.png",), TRAIN_IDS)
  example = pickle.loads(pickle.dumps(pairs))[0]
  assert len(pairs) == 1 and example["name"] == "a"
  np.testing.assert_array_equal(example["image"], image)
  np.testing.assert_array_equal(example["label"], _expected(ids))
  assert example["image"].dtype == example["label"].dtype == np.uint8


@pytest.mark.parametrize("kind", ["grey palette", "palette of classes", "16 bit"])
def test_labels_in_other_single_channel_forms(tmp_path, rng, kind):
  ids = _ids(rng)
  path = tmp_path / "label.png"
  if kind == "16 bit":
    Image.fromarray(ids.astype(np.uint16)).save(path)
  else:
    image = Image.fromarray(ids).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    palette = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
    if kind == "palette of classes":
      palette[INFO.label_ids] = INFO.palette
    image.putpalette(palette.tobytes())
    image.save(path)
  np.testing.assert_array_equal(read_label(path, TRAIN_IDS, INFO), _expected(ids))


def test_label_of_two_values_as_bits(tmp_path, rng):
  bits = rng.integers(0, 2, (9, 11)).astype(bool)
  Image.fromarray(bits).save(tmp_path / "label.png")
  np.testing.assert_array_equal(read_label(tmp_path / "label.png", {0: 7, 1: 8}, INFO), bits + 7)


@pytest.mark.parametrize("bad", [3, 200, 255])
def test_label_out_of_range_names_file_id_and_allowed_ids(tmp_path, rng, bad):
  ids = _ids(rng)
  ids[3, 4] = bad
  Image.fromarray(ids).save(tmp_path / "label.png")
  message = _refused(read_label, tmp_path / "label.png", TRAIN_IDS, INFO)
  assert str(tmp_path / "label.png") in message and f"ids {bad} " in message and "0, 4-5, 9" in message


def test_wide_label_out_of_range(tmp_path, rng):
  ids = _ids(rng).astype(np.uint16)
  ids[0, 0] = 40_000
  Image.fromarray(ids).save(tmp_path / "label.png")
  assert "40000" in _refused(read_label, tmp_path / "label.png", TRAIN_IDS, INFO)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colour_masks_are_refused(tmp_path, rng, mode):
  Image.fromarray(rng.integers(0, 5, (9, 9, len(mode)), np.uint8)).save(tmp_path / "label.png")
  message = _refused(read_label, tmp_path / "label.png", TRAIN_IDS, INFO)
  assert f"mode {mode}" in message and "one channel" in message


def test_colour_mask_with_small_palette_indices_is_refused(tmp_path):
  # Index 4 is a valid id, but painted in the colour of id 9.
  palette = np.zeros((256, 3), np.uint8)
  palette[4] = INFO.palette[2]
  image = Image.frombytes("P", (6, 5), np.full((5, 6), 4, np.uint8).tobytes())
  image.putpalette(palette.tobytes())
  image.save(tmp_path / "label.png")
  message = _refused(read_label, tmp_path / "label.png", TRAIN_IDS, INFO)
  assert "index 4" in message and "id 9" in message and "palette" in message


def test_sizes_must_agree(tmp_path, rng):
  Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "a.png")
  Image.fromarray(_ids(rng, (20, 29))).save(tmp_path / "b.png")
  message = _refused(FilePairs(INFO, (tmp_path / "a.png",), (tmp_path / "b.png",), TRAIN_IDS).__getitem__, 0)
  assert "29x20" in message and "30x20" in message and "a.png" in message and "b.png" in message


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_files_are_refused(tmp_path, rng, suffix):
  path = tmp_path / f"a.{suffix}"
  Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
  content = path.read_bytes()
  path.write_bytes(content[: len(content) // 2])
  assert str(path) in _refused(read_image, path)
  path.write_bytes(b"this is no image")
  assert "is text" in _refused(read_image, path)
  path.unlink()
  assert "was removed" in _refused(read_image, path)


def test_corrupt_label_is_refused(tmp_path, rng):
  path = tmp_path / "label.png"
  Image.fromarray(_ids(rng, (64, 64))).save(path)
  content = bytearray(path.read_bytes())
  content[60] ^= 0xFF
  path.write_bytes(bytes(content))
  assert "cannot be decoded" in _refused(read_label, path, TRAIN_IDS, INFO)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation):
  # Quadrants of four greys; where each must go is written down, not computed.
  shown = {1: "abcd", 2: "badc", 3: "dcba", 4: "cdab", 5: "acbd", 6: "cadb", 7: "dbca", 8: "bdac"}[
    orientation
  ]
  tones = dict(zip("abcd", (30, 90, 150, 210), strict=True))
  stored = np.zeros((32, 64), np.uint8)
  stored[:16, :32], stored[:16, 32:], stored[16:, :32], stored[16:, 32:] = tones.values()
  exif = Image.Exif()
  exif[0x0112] = orientation
  Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif, quality=98)
  image = read_image(tmp_path / "a.jpg")
  assert image.shape == ((32, 64, 3) if orientation <= 4 else (64, 32, 3))
  height, width = image.shape[:2]
  middles = [image[y, x, 0] for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
  np.testing.assert_allclose(np.array(middles, int), [tones[letter] for letter in shown], atol=3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["grey png", "palette png", "wide png", "png with xmp", "tif"])
def test_exif_rotation_is_applied_to_both_of_a_pair(tmp_path, form, orientation):
  # The red of the image is the id; the first pixel of the file goes to the corner that the EXIF standard names.
  ids = np.array([[4, 5, 9, 0], [9, 9, 4, 5], [0, 0, 5, 4]], np.uint8)
  suffix = form[-3:] if form != "png with xmp" else "png"
  exif, options = Image.Exif(), {}
  exif[0x0112] = orientation
  if form == "png with xmp":
    options["pnginfo"] = PngImagePlugin.PngInfo()
    text = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="{orientation}"/></x:xmpmeta>'
    options["pnginfo"].add_itxt("XML:com.adobe.xmp", text)
  else:
    options["exif"] = exif
  label = Image.fromarray(ids.astype(np.uint16) if form == "wide png" else ids)
  if form == "palette png":
    label.putpalette(np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1).tobytes())
  Image.fromarray(np.dstack([ids, ids * 0, ids * 0])).save(tmp_path / f"a.{suffix}", **options)
  label.save(tmp_path / f"b.{suffix}", **options)
  example = FilePairs(INFO, (tmp_path / f"a.{suffix}",), (tmp_path / f"b.{suffix}",), TRAIN_IDS)[0]
  np.testing.assert_array_equal(example["label"], _expected(example["image"][..., 0]))
  corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
  along = {1: "right", 2: "left", 3: "left", 4: "right", 5: "down", 6: "down", 7: "up", 8: "up"}[orientation]
  shown = example["image"][..., 0]
  lines = shown.T if along in ("down", "up") else shown
  first = lines[corner[orientation][along in ("down", "up")]]
  assert (first if along in ("right", "down") else first[::-1]).tolist() == [4, 5, 9, 0]
  assert displayed_size(tmp_path / f"a.{suffix}") == shown.shape


def test_every_kind_of_image_becomes_rgb(tmp_path, rng):
  grey = rng.integers(0, 256, (12, 10), np.uint8)
  rgb = rng.integers(0, 256, (12, 10, 3), np.uint8)
  Image.fromarray(grey).save(tmp_path / "grey.png")
  Image.fromarray(grey.astype(np.uint16) * 256 + 77).save(tmp_path / "wide.png")
  Image.fromarray(np.dstack([rgb, grey])).save(tmp_path / "rgba.png")
  Image.fromarray(np.dstack([grey, grey])).save(tmp_path / "la.png")
  Image.fromarray(rgb).quantize(200).save(tmp_path / "palette.png")
  Image.fromarray(np.dstack([rgb, grey]), "CMYK").save(tmp_path / "cmyk.tif")
  for name in ("grey", "wide", "la"):
    np.testing.assert_array_equal(read_image(tmp_path / f"{name}.png"), np.dstack([grey] * 3))
  np.testing.assert_array_equal(read_image(tmp_path / "rgba.png"), rgb)
  cmyk = read_image(tmp_path / "cmyk.tif").astype(int)
  ideal = (255 - rgb.astype(float)) * (255 - grey[..., None].astype(float)) / 255
  np.testing.assert_allclose(cmyk, ideal, atol=2)
  for path in sorted(tmp_path.iterdir()):
    image = read_image(path)
    assert image.shape == (12, 10, 3) and image.dtype == np.uint8, path


def test_images_without_labels_and_empty_splits_are_refused(tmp_path):
  def pair(images, labels):
    files = [
      {key: tmp_path / kind / f"{key}.png" for key in keys}
      for kind, keys in zip("il", (images, labels), strict=True)
    ]
    return pair_files(INFO, TRAIN_IDS, *files, images_at="images/*.jpg", labels_at="labels/*.png")

  assert [path.name for path in pair("ba", "ab").images] == ["a.png", "b.png"]
  message = _refused(pair, "abc", "a")
  assert (
    "b.png" in message and "no label" in message and "(and 1 more" in message and "labels/b.png" in message
  )
  message = _refused(pair, "a", "ax")
  assert "x.png" in message and "no image" in message and "images/x.jpg" in message
  assert "no images" in _refused(pair, "", "")


def test_an_incomplete_split_keeps_all_defects_and_the_complete_pairs(tmp_path):
  files = [
    {key: tmp_path / kind / f"{key}.png" for key in keys} for kind, keys in (("i", "abc"), ("l", "bcx"))
  ]
  with pytest.raises(IncompleteSplit) as error:
    pair_files(INFO, TRAIN_IDS, *files, images_at="i/*.png", labels_at="l/*.png", defects=["one before"])
  assert [path.name for path in error.value.complete.images] == ["b.png", "c.png"]
  assert error.value.complete.labels == (tmp_path / "l/b.png", tmp_path / "l/c.png")
  assert error.value.defects[0] == "one before" and len(error.value.defects) == 3
  assert "a.png: this image" in error.value.defects[1] and "x.png: this label" in error.value.defects[2]


def test_ranges_of_ids_read_well():
  assert id_ranges({0: 0, 1: 0, 2: 0, 7: 0, 9: 0, 10: 0}) == "0-2, 7, 9-10"


def test_folders_are_no_images_and_images_below_are_named(tmp_path: pathlib.Path) -> None:
  small_datasets.camvid(tmp_path)
  (tmp_path / "images/train/not_an_image.png").mkdir()
  source = data.load("camvid", str(tmp_path), "train")
  assert len(source) == 2 and data.notes_of(source) == ()
  small_datasets.save_image(tmp_path / "images/train/sequence_1/2.png", "2")
  (note,) = data.notes_of(data.load("camvid", str(tmp_path), "train"))
  assert "images/train: images left out: 1, because they lie in folders below (sequence_1/2.png, ...)" in note
