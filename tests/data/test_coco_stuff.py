"""COCO-Stuff: the lists of the 10k release, the two layouts of the 164k release, one image in both."""

import numpy as np
import pytest
import scipy.io
from PIL import Image

from rc_jax import data
from tests.data.test_datasets import coco_train_ids


def _10k(root, ids, stem="000000000009", split="train"):
  for folder in ("images", "annotations", "imageLists"):
    (root / folder).mkdir(parents=True, exist_ok=True)
  Image.new("RGB", ids.shape[::-1]).save(root / f"images/{stem}.jpg")
  scipy.io.savemat(root / f"annotations/{stem}.mat", {"S": ids, "names": np.array(["a"], object)})
  with (root / f"imageLists/{split}.txt").open("a") as file:
    file.write(f"{stem}\n")
  return str(root)


def _164k(root, ids, split="train2017", images="images", labels="annotations", stem="000000000009"):
  for folder, image, suffix in ((images, Image.new("RGB", ids.shape[::-1]), "jpg"), (labels, ids, "png")):
    (root / folder / split).mkdir(parents=True, exist_ok=True)
    image = image if suffix == "jpg" else Image.fromarray(ids)
    image.save(root / folder / split / f"{stem}.{suffix}")
  return str(root)


def test_lists_make_the_splits_of_10k(tmp_path):
  ids = np.full((4, 5), 3, np.uint8)
  for stem, split in (("b", "train"), ("a", "train"), ("c", "test")):
    root = _10k(tmp_path, ids, stem, split)
  train, test = (data.load("coco_stuff_10k", root, split) for split in ("train", "test"))
  assert [train[i]["name"] for i in range(len(train))] == ["a", "b"]
  assert [test[i]["name"] for i in range(len(test))] == ["c"]


def test_missing_files_of_10k_are_named(tmp_path):
  root = _10k(tmp_path, np.full((4, 5), 3, np.uint8))
  (tmp_path / "imageLists/test.txt").write_text("x\ny\n")
  with pytest.raises(ValueError, match=r"test\.txt: lists x, expected .*images/x\.jpg.*\(and 1 more"):
    data.load("coco_stuff_10k", root, "test")
  (tmp_path / "imageLists/test.txt").unlink()
  with pytest.raises(FileNotFoundError, match=r"test\.txt: this list"):
    data.load("coco_stuff_10k", root, "test")
  (tmp_path / "annotations/000000000009.mat").unlink()
  with pytest.raises(ValueError, match=r"no label.*annotations/000000000009\.mat"):
    data.load("coco_stuff_10k", root, "train")


@pytest.mark.parametrize(("images", "labels"), [("images", "annotations"), (".", "stuffthingmaps")])
def test_both_ways_to_unpack_164k(tmp_path, images, labels):
  root = _164k(tmp_path, np.full((4, 5), 0, np.uint8), images=images, labels=labels)
  _164k(tmp_path, np.full((4, 5), 2, np.uint8), "val2017", images, labels, stem="7")
  # A file that mmsegmentation's converter writes.
  Image.new("L", (5, 4)).save(tmp_path / labels / "val2017/7_labelTrainIds.png")
  val = data.load("coco_stuff_164k", root, "val")
  assert len(val) == 1 and val[0]["name"] == "7" and (val[0]["label"] == 2).all()
  assert (data.load("coco_stuff_164k", root, "train")[0]["label"] == 0).all()


def test_both_forms_of_an_image_give_one_label_map(shared_dir):
  root = shared_dir / "data/coco_stuff_sample"
  forms = {}
  for name, splits in (("coco_stuff_10k", ("train", "test")), ("coco_stuff_164k", ("train", "val"))):
    for split in splits:
      source = data.load(name, str(root / name[11:]), split)
      forms.setdefault(name, {}).update({source[i]["name"]: source[i] for i in range(len(source))})
  mat, png = forms["coco_stuff_10k"], forms["coco_stuff_164k"]
  assert mat.keys() == png.keys() and len(mat) == 13
  for stem, example in mat.items():
    np.testing.assert_array_equal(example["label"], png[stem]["label"], err_msg=stem)
    np.testing.assert_array_equal(example["image"], png[stem]["image"], err_msg=stem)
    ids = np.asarray(Image.open(next(root.glob(f"164k/annotations/*/{stem}.png"))))
    table = coco_train_ids(first=0, unlabelled=255)
    expected = np.array([table.get(own_id, 254) for own_id in range(256)], np.uint8)[ids]
    np.testing.assert_array_equal(example["label"], expected, err_msg=stem)
