"""Any folder of images and labels, and the table of its classes."""

import numpy as np
import pytest
from PIL import Image

from rc_jax import data
from rc_jax.data.reading import colormap

CLASSES = 'id,name,color\n3, road ,#804080\n0,"sky, clouds"\n7,ignore\n255,ignore\n9,car,\n'


def _folder(root, ids, split="train", name="a", classes=CLASSES):
  (root / "classes.csv").write_text(classes)
  for kind, array in (("images", np.full((*ids.shape, 3), 50, np.uint8)), ("labels", ids)):
    path = root / kind / split / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
  return str(root)


def test_classes_in_the_order_of_the_table(tmp_path):
  root = _folder(tmp_path, np.array([[3, 0, 7, 255, 9]], np.uint8))
  info = data.info("folder", root)
  assert info.class_names == ("road", "sky, clouds", "car")
  assert info.label_ids.tolist() == [3, 0, 9]
  assert info.palette.tolist() == [[128, 64, 128], *colormap(4)[2:].tolist()]
  source = data.load("folder", root, "train")
  assert source[0]["label"].tolist() == [[0, 1, 255, 255, 2]] and source.info.class_names == info.class_names


def test_pairs_in_nested_folders(tmp_path):
  ids = np.full((4, 5), 3, np.uint8)
  _folder(tmp_path, ids, name="b/1")
  root = _folder(tmp_path, ids, name="a/1")
  source = data.load("folder", root, "train")
  assert [str(path.relative_to(tmp_path)) for path in source.images] == [
    "images/train/a/1.png",
    "images/train/b/1.png",
  ]
  (tmp_path / "labels/train/b/1.png").unlink()
  with pytest.raises(ValueError, match=r"images/train/b/1\.png.*no label.*labels/train/b/1\.png"):
    data.load("folder", root, "train")


def test_a_split_without_labels_is_for_prediction(tmp_path):
  root = _folder(tmp_path, np.full((4, 5), 3, np.uint8), split="street")
  (tmp_path / "labels/street/a.png").unlink()
  with pytest.raises(ValueError, match=r"no label"):  # half of a pair
    data.load("folder", root, "street")
  (tmp_path / "labels/street").rmdir()
  assert data.load("folder", root, "street", labels=False)[0].keys() == {"image", "name"}


def test_an_id_that_the_table_lacks(tmp_path):
  root = _folder(tmp_path, np.full((4, 5), 255, np.uint8), classes="id,name\n0,background\n1,road\n")
  with pytest.raises(ValueError, match=r"a\.png.* 255 .*0-1.*classes\.csv"):
    data.load("folder", root, "train")[0]


@pytest.mark.parametrize(
  ("table", "words"),
  [
    ("", "first line is nothing"),
    ("0,road\n1,sky\n", "first line is 0,road, expected id,name"),
    ("id,name\n0,road\n0,sky\n", "line 3: the id 0 is listed twice"),
    ("id,name\n0,road\n1,road\n", "line 3: the name 'road' is listed twice"),
    ("id,name\nx,road\n1,sky\n", "line 2: the id is 'x'"),
    ("id,name\n-1,road\n1,sky\n", "line 2: the id is '-1'"),
    ("id,name\n0,\n1,sky\n", "line 2: the id 0 has no name"),
    ("id,name\n0,road, wide\n1,sky\n", "line 2: has more than 2 columns"),
    ("id,name,color\n0,road,red\n1,sky,\n", "line 2: the color is 'red', expected #rrggbb"),
    ("id,name\n0,road\n255,ignore\n", "lists 1 classes"),
  ],
)
def test_a_wrong_table_is_answered_with_its_line(tmp_path, table, words):
  root = _folder(tmp_path, np.full((4, 5), 0, np.uint8), classes=table)
  with pytest.raises(ValueError) as error:
    data.load("folder", root, "train")
  message = str(error.value)
  assert words in message and str(tmp_path / "classes.csv") in message and "\n" not in message


def test_no_table(tmp_path):
  root = _folder(tmp_path, np.full((4, 5), 0, np.uint8))
  (tmp_path / "classes.csv").unlink()
  with pytest.raises(FileNotFoundError, match=r"classes\.csv.*id,name\[,color\]"):
    data.load("folder", root, "train")


def test_colormap_is_that_of_pascal_voc():
  # From the development kit: aeroplane, bicycle, bird, ..., tvmonitor, and the border of objects.
  colors = colormap(256)
  known = {1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
  for index, color in {**known, 255: (224, 224, 192)}.items():
    assert tuple(colors[index]) == color
  assert len(np.unique(colors, axis=0)) == 256
