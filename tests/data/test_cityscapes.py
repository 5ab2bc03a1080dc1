"""Cityscapes: the official layout and label ids, and the sample frames where they are."""

import numpy as np
import pytest
from PIL import Image

from rc_jax import data
from rc_jax.data.datasets import cityscapes

# Written down apart from the table in the module: the 19 evaluated classes, in the order of their train ids.
NAMES = (
  "road sidewalk building wall fence pole traffic_light traffic_sign vegetation terrain sky person rider car truck "
  "bus train motorcycle bicycle"
)
LABEL_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
COLORS = (
  "804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4 dc143c ff0000 00008e 000046 "
  "003c64 005064 0000e6 770b20"
)


def _folder(root, ids, split="train", city="ulm", frame="ulm_000001_000019"):
  for kind, end, array in (
    ("leftImg8bit", "leftImg8bit", np.full((*ids.shape, 3), 50, np.uint8)),
    ("gtFine", "gtFine_labelIds", ids),
  ):
    folder = root / kind / split / city
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(folder / f"{frame}_{end}.png")
  return str(root)


def test_table_is_the_official_one():
  info = cityscapes.INFO
  assert list(info.class_names) == [name.replace("_", " ") for name in NAMES.split()]
  assert info.label_ids.tolist() == LABEL_IDS
  assert ["".join(f"{channel:02x}" for channel in color) for color in info.palette.tolist()] == COLORS.split()
  assert info.absent_class == "unless_predicted"


def test_all_34_ids_and_the_license_plate(tmp_path):
  ids = np.arange(34, dtype=np.uint8).reshape(2, 17)
  ids = np.concatenate([ids, np.full((1, 17), 255, np.uint8)])
  label = cityscapes.load(_folder(tmp_path, ids), "train")[0]["label"]
  for own_id, train_id in zip(ids.ravel().tolist(), label.ravel().tolist(), strict=True):
    assert train_id == (LABEL_IDS.index(own_id) if own_id in LABEL_IDS else 255), own_id


def test_id_out_of_range(tmp_path):
  with pytest.raises(ValueError, match=r"_gtFine_labelIds\.png.* 34 .*0-33, 255"):
    cityscapes.load(_folder(tmp_path, np.full((4, 4), 34, np.uint8)), "train")[0]


def test_splits_and_names(tmp_path):
  ids = np.full((4, 4), 7, np.uint8)
  for frame in ("b_000000_000019", "a_000002_000019", "a_000001_000019"):
    _folder(tmp_path, ids, "train", frame[0], frame)
  root = _folder(tmp_path, ids, "val", "a", "a_000000_000019")
  expected = [f"{frame}_000019_leftImg8bit" for frame in ("a_000001", "a_000002", "b_000000")]
  train = data.load("cityscapes", root, "train")
  assert [train[i]["name"] for i in range(3)] == expected
  for split in ("trainval", "train+val"):
    both = data.load("cityscapes", root, split)
    assert [both[i]["name"] for i in range(len(both))] == [*expected, "a_000000_000019_leftImg8bit"]
    assert both.info is cityscapes.INFO and both.labelled


def test_coarse_labels(tmp_path):
  fine, coarse = np.full((4, 4), 7, np.uint8), np.full((4, 4), 26, np.uint8)
  root = _folder(tmp_path, fine)
  for split, label_split in (("train", "train"), ("train_extra", "train_extra")):
    _folder(tmp_path, coarse, split)
    folder = tmp_path / "gtCoarse" / label_split / "ulm"
    folder.mkdir(parents=True)
    Image.fromarray(coarse).save(folder / "ulm_000001_000019_gtCoarse_labelIds.png")
  for split, train_id in (("train_coarse", 13), ("train_extra", 13)):
    assert (data.load("cityscapes", root, split)[0]["label"] == train_id).all(), split
  assert len(data.load("cityscapes", root, "train+train_extra")) == 2


def test_the_test_split_has_images_alone(tmp_path):
  root = _folder(tmp_path, np.full((4, 4), 0, np.uint8), "test")
  example = data.load("cityscapes", root, "test", labels=False)[0]
  assert example.keys() == {"image", "name"}
  for split in ("test", "train+test"):
    _folder(tmp_path, np.full((4, 4), 7, np.uint8), "train")
    with pytest.raises(ValueError, match=r"has no labels to train on or to score"):
      data.load("cityscapes", root, split)


def test_missing_label(tmp_path):
  root = _folder(tmp_path, np.full((4, 4), 7, np.uint8))
  (tmp_path / "gtFine/train/ulm/ulm_000001_000019_gtFine_labelIds.png").unlink()
  with pytest.raises(ValueError, match=r"no label.*gtFine/train/ulm/ulm_000001_000019_gtFine_labelIds\.png"):
    cityscapes.load(root, "train")


def test_label_in_another_city(tmp_path):
  root = _folder(tmp_path, np.full((4, 4), 7, np.uint8))
  (tmp_path / "gtFine/train/ulm").rename(tmp_path / "gtFine/train/bonn")
  with pytest.raises(ValueError, match="no label"):
    cityscapes.load(root, "train")


def test_empty(tmp_path):
  for kind in ("leftImg8bit", "gtFine"):
    (tmp_path / kind / "train").mkdir(parents=True)
  with pytest.raises(ValueError, match="found no images"):
    cityscapes.load(str(tmp_path), "train")


def test_real_frames(shared_dir):
  root = str(shared_dir / "data/cityscapes_sample")
  train = cityscapes.load(root, "train")
  assert (len(train), len(cityscapes.load(root, "val"))) == (5, 1)
  example = train[2]
  assert example["name"] == "aachen_000002_000019_leftImg8bit"
  assert example["image"].shape == (1024, 2048, 3)
  ids = np.asarray(Image.open(train.labels[2]))
  for train_id, own_id in enumerate(LABEL_IDS):
    np.testing.assert_array_equal(example["label"] == train_id, ids == own_id)
