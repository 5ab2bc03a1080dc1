"""ADE20K: the challenge's layout, ids and names, and the sample images where they are."""

import ast
import importlib.util
import pathlib

import numpy as np
import pytest
from PIL import Image

from rc_jax import data
from rc_jax.data.datasets import ade20k


def _folder(root, ids, split="training", stem="ADE_train_00000001"):
  for kind, array in (("images", np.full((*ids.shape, 3), 50, np.uint8)), ("annotations", ids)):
    folder = root / kind / split
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(folder / f"{stem}.{'jpg' if kind == 'images' else 'png'}")
  return str(root)


def test_ids(tmp_path):
  ids = np.arange(151, dtype=np.uint8).reshape(1, 151)
  label = ade20k.load(_folder(tmp_path, ids), "train")[0]["label"]
  assert label[0].tolist() == [255, *range(150)]
  assert ade20k.INFO.label_ids[label[0, 1:]].tolist() == list(range(1, 151))
  assert ade20k.INFO.absent_class == "zero"


@pytest.mark.parametrize("bad", [151, 255])
def test_id_out_of_range(tmp_path, bad):
  with pytest.raises(ValueError, match=rf"ADE_train_00000001\.png.* {bad} .*0-150"):
    ade20k.load(_folder(tmp_path, np.full((4, 4), bad, np.uint8)), "train")[0]


def test_splits(tmp_path):
  ids = np.full((4, 5), 3, np.uint8)
  root = _folder(tmp_path, ids)
  _folder(tmp_path, ids, "validation", "ADE_val_00000001")
  (tmp_path / "release_test/testing").mkdir(parents=True)
  Image.new("RGB", (6, 5)).save(tmp_path / "release_test/testing/ADE_test_00000001.jpg")
  assert data.load("ade20k", root, "train")[0]["name"] == "ADE_train_00000001"
  assert data.load("ade20k", root, "val")[0]["name"] == "ADE_val_00000001"
  test = data.load("ade20k", root, "test", labels=False)
  assert not test.labelled and test[0].keys() == {"image", "name"}
  with pytest.raises(ValueError, match="no labels"):
    data.load("ade20k", root, "test")


def test_names_are_those_of_the_challenge(shared_dir):
  file = shared_dir / "data/ade20k_sample/ADEChallengeData2016/objectInfo150.txt"
  rows = [line.split("\t") for line in file.read_text().splitlines()[1:]]
  assert [int(row[0]) for row in rows] == ade20k.INFO.label_ids.tolist()
  assert [row[4].split(",")[0].strip() for row in rows] == list(ade20k.INFO.class_names)


def test_colours_are_those_of_the_challenge():
  # As mmsegmentation carries them over; read, not imported, because importing it needs compiled operations.
  found = importlib.util.find_spec("mmseg")
  if found is None:
    pytest.skip("no mmsegmentation to compare with")
  tree = ast.parse((pathlib.Path(found.origin).parent / "datasets/ade.py").read_text())
  theirs = next(
    ast.literal_eval(node.value)
    for node in ast.walk(tree)
    if isinstance(node, ast.keyword) and node.arg == "palette"
  )
  assert ade20k.INFO.palette.tolist() == theirs


def test_real_images(shared_dir):
  root = str(shared_dir / "data/ade20k_sample/ADEChallengeData2016")
  for split in ("train", "val"):
    source = ade20k.load(root, split)
    assert len(source) == 1
    example = source[0]
    ids = np.asarray(Image.open(source.labels[0]))
    assert example["image"].shape[:2] == example["label"].shape == ids.shape
    counts = np.bincount(ids.ravel(), minlength=151)
    assert counts[1:].tolist() == np.bincount(example["label"].ravel(), minlength=256)[:150].tolist()
    assert (example["label"] == 255).sum() == counts[0]
    assert counts[1:].sum() > 0.8 * ids.size
