"""COCO-Stuff 10k and 164k: layouts, ids, names, and the sample images where they are."""

import numpy as np
import pytest
import scipy.io
from PIL import Image

from rc_jax import data
from rc_jax.data.datasets import coco_stuff

# Of the 182 named ids, those that no image shows.
EMPTY = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}


def _10k(root, ids, stem="000000000009", split="train", field="S"):
  for folder in ("images", "annotations", "imageLists"):
    (root / folder).mkdir(parents=True, exist_ok=True)
  Image.new("RGB", ids.shape[::-1]).save(root / f"images/{stem}.jpg")
  scipy.io.savemat(root / f"annotations/{stem}.mat", {field: ids, "names": np.array(["a"], object)})
  with (root / f"imageLists/{split}.txt").open("a") as file:
    file.write(f"{stem}\n")
  return str(root)


def _164k(root, ids, split="train2017", images="images", labels="annotations", stem="000000000009"):
  for folder, image, suffix in ((images, Image.new("RGB", ids.shape[::-1]), "jpg"), (labels, ids, "png")):
    (root / folder / split).mkdir(parents=True, exist_ok=True)
    image = image if suffix == "jpg" else Image.fromarray(ids)
    image.save(root / folder / split / f"{stem}.{suffix}")
  return str(root)


def _expected(own_ids):
  """The classes in the order of their ids, written as a loop over the names."""
  train_ids, following = {}, 0
  for own_id in range(1, 183):
    train_ids[own_id] = 255 if own_id in EMPTY else following
    following += own_id not in EMPTY
  assert following == 171
  return [train_ids.get(own_id, 255) for own_id in own_ids]


def test_ids_of_10k(tmp_path):
  ids = np.arange(183, dtype=np.uint8).reshape(1, 183)
  label = coco_stuff.load_10k(_10k(tmp_path, ids), "train")[0]["label"]
  assert label[0].tolist() == _expected(range(183))


def test_ids_of_164k(tmp_path):
  ids = np.array([[*range(182), 255]], np.uint8)
  label = coco_stuff.load_164k(_164k(tmp_path, ids), "train")[0]["label"]
  assert label[0].tolist() == _expected([*range(1, 183), 0])


@pytest.mark.parametrize("info", [coco_stuff.INFO_10K, coco_stuff.INFO_164K])
def test_predictions_are_written_in_the_ids_that_labels_have(info):
  first = 1 if info is coco_stuff.INFO_10K else 0
  ids = {10: coco_stuff.TRAIN_IDS_10K, 164: coco_stuff.TRAIN_IDS_164K}[10 if first else 164]
  assert [ids[own_id] for own_id in info.label_ids.tolist()] == list(range(171))
  assert info.label_ids.tolist() == [i - 1 + first for i in range(1, 183) if i not in EMPTY]
  assert info.absent_class == "not_in_truth"


@pytest.mark.parametrize(("form", "bad"), [("10k", 183), ("10k", 255), ("164k", 182), ("164k", 254)])
def test_id_out_of_range(tmp_path, form, bad):
  make, load = {"10k": (_10k, coco_stuff.load_10k), "164k": (_164k, coco_stuff.load_164k)}[form]
  with pytest.raises(ValueError, match=rf"000000000009\.(mat|png).* {bad} .*0-18"):
    load(make(tmp_path, np.full((4, 4), bad, np.uint8)), "train")[0]


def test_lists_make_the_splits_of_10k(tmp_path):
  ids = np.full((4, 5), 3, np.uint8)
  for stem, split in (("b", "train"), ("a", "train"), ("c", "test")):
    root = _10k(tmp_path, ids, stem, split)
  train, test = (data.load("coco_stuff_10k", root, split) for split in ("train", "test"))
  assert [train[i]["name"] for i in range(len(train))] == ["a", "b"]
  assert [test[i]["name"] for i in range(len(test))] == ["c"]


def test_what_is_missing_of_10k_is_named(tmp_path):
  root = _10k(tmp_path, np.full((4, 5), 3, np.uint8))
  (tmp_path / "imageLists/test.txt").write_text("x\ny\n")
  with pytest.raises(ValueError, match=r"test\.txt: lists x, expected .*images/x\.jpg.*\(and 1 more"):
    coco_stuff.load_10k(root, "test")
  (tmp_path / "imageLists/test.txt").unlink()
  with pytest.raises(FileNotFoundError, match=r"test\.txt: this list"):
    coco_stuff.load_10k(root, "test")
  (tmp_path / "annotations/000000000009.mat").unlink()
  with pytest.raises(ValueError, match=r"no label.*annotations/000000000009\.mat"):
    coco_stuff.load_10k(root, "train")


@pytest.mark.parametrize(
  ("content", "words"),
  [
    (b"MATLAB 5.0 MAT-file, cut off", "cannot be decoded"),
    (b"no such thing", "is text .* MATLAB 5"),
    ("field", "no such field"),
    ("size", "expected a MATLAB 5 file"),
    ("fractions", "values that are no ids"),
  ],
)
def test_damaged_annotations_are_refused(tmp_path, content, words):
  ids = np.full((4, 5), 3, np.uint8)
  root = _10k(tmp_path, ids, field="T" if content == "field" else "S")
  path = tmp_path / "annotations/000000000009.mat"
  if isinstance(content, bytes):
    path.write_bytes(content)
  elif content == "size":
    scipy.io.savemat(path, {"S": np.zeros((2, 2, 2))})
  elif content == "fractions":
    scipy.io.savemat(path, {"S": np.full((4, 5), 0.5)})
  with pytest.raises(ValueError, match=words) as error:
    coco_stuff.load_10k(root, "train")[0]
  assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("images", "labels"), [("images", "annotations"), (".", "stuffthingmaps")])
def test_both_ways_to_unpack_164k(tmp_path, images, labels):
  root = _164k(tmp_path, np.full((4, 5), 0, np.uint8), images=images, labels=labels)
  _164k(tmp_path, np.full((4, 5), 2, np.uint8), "val2017", images, labels, stem="7")
  # What mmsegmentation's converter leaves.
  Image.new("L", (5, 4)).save(tmp_path / labels / "val2017/7_labelTrainIds.png")
  val = data.load("coco_stuff_164k", root, "val")
  assert len(val) == 1 and val[0]["name"] == "7" and (val[0]["label"] == 2).all()
  assert (data.load("coco_stuff_164k", root, "train")[0]["label"] == 0).all()


def test_names_are_the_official_ones(shared_dir):
  lines = (shared_dir / "data/coco_stuff_sample/cocostuff-labels.txt").read_text().splitlines()
  named = dict(line.split(": ", 1) for line in lines)
  for info, first in ((coco_stuff.INFO_10K, 1), (coco_stuff.INFO_164K, 0)):
    for own_id, name in zip(info.label_ids.tolist(), info.class_names, strict=True):
      assert named[str(own_id + 1 - first)] == name


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
    expected = np.array(_expected([*range(1, 256), 0]), np.uint8)[ids]
    np.testing.assert_array_equal(example["label"], expected, err_msg=stem)
