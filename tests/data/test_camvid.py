"""CamVid: the folder layout, the ids, and the real frames where they are."""

import numpy as np
import pytest
from PIL import Image

from rc_jax.data.datasets import camvid


def _folder(root, frames=("b", "a"), value=3, split="train"):
  for name in frames:
    for kind, array in (
      ("images", np.full((8, 10, 3), 99, np.uint8)),
      ("labels", np.full((8, 10), value, np.uint8)),
    ):
      folder = root / kind / split
      folder.mkdir(parents=True, exist_ok=True)
      Image.fromarray(array).save(folder / f"{name}.png")
  return str(root)


def test_layout_and_order(tmp_path):
  split = camvid.load(_folder(tmp_path), "train")
  assert [split[i]["name"] for i in range(len(split))] == ["a", "b"]
  assert (split[0]["label"] == 3).all() and (split[0]["image"] == 99).all()


@pytest.mark.parametrize(("own_id", "train_id"), [*((i, i) for i in range(11)), (11, 255)])
def test_ids(tmp_path, own_id, train_id):
  assert (camvid.load(_folder(tmp_path, value=own_id), "train")[0]["label"] == train_id).all()


def test_id_out_of_range(tmp_path):
  with pytest.raises(ValueError, match=r"a\.png.* 12 .*0-11"):
    camvid.load(_folder(tmp_path, value=12), "train")[0]


def test_missing_half(tmp_path):
  root = _folder(tmp_path)
  (tmp_path / "labels/train/b.png").unlink()
  with pytest.raises(ValueError, match=r"images/train/b\.png.*no label.*labels/train/b\.png"):
    camvid.load(root, "train")


def test_jpeg_labels_do_not_count(tmp_path):
  root = _folder(tmp_path, frames=("a",))
  (tmp_path / "labels/train/a.png").rename(tmp_path / "labels/train/a.jpg")
  with pytest.raises(ValueError, match="no label"):
    camvid.load(root, "train")


def test_empty_folder(tmp_path):
  root = _folder(tmp_path, frames=("a",))
  for kind in ("images", "labels"):
    (tmp_path / kind / "train/a.png").unlink()
  with pytest.raises(ValueError, match="found no images"):
    camvid.load(root, "train")


def test_two_images_of_one_name(tmp_path):
  root = _folder(tmp_path)
  Image.fromarray(np.zeros((8, 10, 3), np.uint8)).save(tmp_path / "images/train/a.jpg")
  with pytest.raises(ValueError, match="same name"):
    camvid.load(root, "train")


def test_missing_split_folder(tmp_path):
  with pytest.raises(FileNotFoundError, match="images/val"):
    camvid.load(_folder(tmp_path), "val")


def test_real_frames(shared_dir):
  root = str(shared_dir / "data/camvid")
  train, val = camvid.load(root, "train"), camvid.load(root, "val")
  assert (len(train), len(val)) == (367, 101)
  names = {path.stem for path in (*train.images, *val.images)}
  assert len(names) == 468
  example = val[50]
  assert example["image"].shape == (360, 480, 3) and example["label"].shape == (360, 480)
  assert set(np.unique(example["label"])) <= {*range(11), 255}
  # The sky is above the road: the names stand at the right ids.
  rows = {
    name: np.mean(
      [np.nonzero(val[i]["label"] == camvid.INFO.class_names.index(name))[0].mean() for i in (0, 50, 99)]
    )
    for name in ("sky", "building", "road")
  }
  assert rows["sky"] < rows["building"] < rows["road"]
