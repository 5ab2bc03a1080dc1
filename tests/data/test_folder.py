"""Any folder of images and labels, and the table of its classes."""

import errno
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from rc_jax import data
from rc_jax.data.reading import colormap
from tests.support import small_datasets

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


@pytest.mark.parametrize("word", ["ignore", "Ignore", "IGNORE", " ignore "])
def test_ignored_ids_in_any_letters(tmp_path, word):
  table = f"ID,Name\n0,background\n1,road\n254,{word}\n255,ignore\n"
  root = _folder(tmp_path, np.array([[0, 1, 255, 254]], np.uint8), classes=table)
  assert data.info("folder", root).class_names == ("background", "road")
  assert data.info("folder", root).notes == ()
  assert data.load("folder", root, "train")[0]["label"].tolist() == [[0, 1, 255, 255]]


@pytest.mark.parametrize(
  ("own_id", "name", "noted"),
  [
    *((255, "void", True), (0, "Unlabeled", True), (7, "not_labelled", True), (255, "Don't care", True)),
    *((255, "background", True), (0, "background", False), (255, "crack", False), (9, "other", False)),
  ],
)
def test_names_of_pixels_that_count_nowhere_are_classes_with_a_note(tmp_path, own_id, name, noted):
  table = f"id,name\n1,road\n{own_id},{name}\n"
  root = _folder(tmp_path, np.array([[1, own_id]], np.uint8), classes=table)
  info = data.info("folder", root)
  assert info.class_names == ("road", name)
  assert data.load("folder", root, "train")[0]["label"].tolist() == [[0, 1]]
  if not noted:
    assert info.notes == ()
    return
  (note,) = info.notes
  assert note.startswith(f"{tmp_path / 'classes.csv'}, line 3: {name!r}") and "name it ignore" in note


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


def test_hidden_folders_hold_no_examples(tmp_path):
  ids = np.full((4, 5), 3, np.uint8)
  for name in (
    ".ipynb_checkpoints/a",
    "b/.ipynb_checkpoints/1-checkpoint",
    "@eaDir/a",
    "__MACOSX/b/1",
    "b/1",
  ):
    root = _folder(tmp_path, ids, name=name)
  for split in (".ipynb_checkpoints", "@eaDir"):
    _folder(tmp_path, ids, split=split)
  assert [path.name for path in data.load("folder", root, "train").images] == ["1.png"]
  assert data.splits("folder", root) == ("train",)


def test_linked_folders_are_followed_once(tmp_path):
  ids = np.full((4, 5), 3, np.uint8)
  for name in ("set", "store"):
    (tmp_path / name).mkdir()
  root = _folder(tmp_path / "set", ids, name="a/1")
  _folder(tmp_path / "store", ids, name="2")
  for kind in ("images", "labels"):
    (tmp_path / f"set/{kind}/train/linked").symlink_to(tmp_path / f"store/{kind}/train")
    (tmp_path / f"set/{kind}/train/a/loop").symlink_to(tmp_path / f"set/{kind}")
    (tmp_path / f"set/{kind}/other").symlink_to(tmp_path / f"store/{kind}/train")
  images = data.load("folder", root, "train").images
  assert [str(path.relative_to(tmp_path / "set/images/train")) for path in images] == [
    "a/1.png",
    "linked/2.png",
  ]
  assert len(data.load("folder", root, "other")) == 1 and data.splits("folder", root) == ("other", "train")


def test_pictures_of_other_types_are_named_and_counted(tmp_path):
  root = _folder(tmp_path, np.full((4, 5), 3, np.uint8))
  for name in ("b.HEIC", "c.gif", "deep/d.dng", "notes.txt", "deep/.e.gif"):
    (tmp_path / "images/train" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "images/train" / name).touch()
  (note,) = data.notes_of(data.load("folder", root, "train"))
  assert note.startswith(f"{tmp_path / 'images/train'}: pictures left out: 3,")
  assert ".dng, .gif, .heic" in note and "(b.HEIC, c.gif, deep/d.dng); convert them" in note
  joined = data.load("folder", root, "train+train")
  assert data.notes_of(joined) == (note, note)


def test_jfif_files_are_photos(tmp_path):
  root = _folder(tmp_path, np.full((4, 5), 3, np.uint8))
  (tmp_path / "images/train/a.png").unlink()
  Image.new("RGB", (5, 4), (9, 99, 200)).save(tmp_path / "images/train/a.jfif", "JPEG")
  assert abs(data.load("folder", root, "train")[0]["image"][0, 0].astype(int) - (9, 99, 200)).max() < 4


def test_hidden_folders_beside_cities(tmp_path):
  small_datasets.cityscapes(tmp_path)
  for kind in ("leftImg8bit", "gtFine"):
    city = tmp_path / kind / "train/ulm"
    shutil.copytree(city, city.parent / ".ipynb_checkpoints")
    shutil.copytree(city, city.parent / "@eaDir")
  assert len(data.load("cityscapes", str(tmp_path), "train")) == 2


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
  root = _folder(tmp_path, np.full((4, 5), 3, np.uint8), name="deep/a")
  listdir = os.listdir

  def refused(folder):
    # Not by the folder's mode, which does not stop the user root.
    if str(folder).endswith("images/train/deep"):
      raise PermissionError(errno.EACCES, "Permission denied", str(folder))
    return listdir(folder)

  monkeypatch.setattr(os, "listdir", refused)
  with pytest.raises(ValueError, match=r"images/train/deep: cannot be listed \(Permission denied\)"):
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
    ("id,name\n0,road\n1,road\n", "lists 1 classes, expected 2 to 255"),
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


def _indexed(root, ids, palette):
  image = Image.frombytes("P", ids.shape[::-1], ids.tobytes())
  image.putpalette(palette.astype(np.uint8).tobytes())
  image.save(root / "labels/train/a.png")


PLAIN = "id,name\n0,background\n1,road\n2,car\n255,ignore\n"
VOC_COLORED = "id,name,color\n0,background,#000000\n1,road,#800000\n2,car,#008000\n255,ignore\n"
SHIFTED = "id,name,color\n0,road,#800000\n1,car,#008000\n2,sky,#808000\n255,ignore\n"
WHITE = "id,name,color\n0,background,#000000\n1,crack,#ffffff\n2,dust,#101010\n255,ignore\n"
GREYS = np.repeat(np.arange(256)[:, None], 3, axis=1)
WHITE_LAST = np.concatenate([[(9, 9, 9), (200, 0, 0), (0, 0, 200)], np.zeros((252, 3)), [(255, 255, 255)]])


@pytest.mark.parametrize("table", [PLAIN, VOC_COLORED, SHIFTED, WHITE])
@pytest.mark.parametrize(
  "palette",
  [colormap(256), np.roll(colormap(256), -1, axis=0), colormap(3), GREYS, WHITE_LAST],
  ids=["voc", "voc without black", "voc of three", "greys", "white last"],
)
def test_index_masks_with_the_palette_of_a_tool(tmp_path, table, palette):
  ids = np.array([[0, 1, 2, 0, 2] if len(palette) == 3 else [0, 1, 2, 255, 2]], np.uint8)
  root = _folder(tmp_path, ids, classes=table)
  _indexed(tmp_path, ids, palette)
  assert data.load("folder", root, "train")[0]["label"].tolist() == ids.tolist()


def test_an_index_mask_in_the_colours_that_pictures_of_other_classes_have(tmp_path):
  # Without colours in the table, the pictures of car show (0, 128, 0): no colour of the labels.
  ids = np.array([[3, 0, 9]], np.uint8)
  root = _folder(tmp_path, ids, classes="id,name\n3,road\n0,sky\n9,car\n")
  palette = np.zeros((10, 3))
  palette[[0, 3, 9]] = colormap(4)[[2, 3, 1]]
  _indexed(tmp_path, ids, palette)
  assert data.load("folder", root, "train")[0]["label"].tolist() == [[0, 1, 2]]


def test_a_colour_mask_with_a_palette_is_refused_by_the_colours_of_the_table(tmp_path):
  ids = np.array([[0, 1, 2]], np.uint8)
  table = "id,name,color\n0,background,#000000\n1,road,#804080\n2,car,#00008e\n3,sky,\n"
  root = _folder(tmp_path, ids, classes=table)
  for palette in ([(0, 0, 0), (0, 0, 142), (128, 64, 128)], [(128, 64, 128), (0, 0, 0), (0, 0, 142)]):
    _indexed(tmp_path, ids, np.array(palette))
    with pytest.raises(ValueError, match=r"a\.png.*colour mask.*convert the colours to ids"):
      data.load("folder", root, "train")[0]


def test_colours_of_pictures_are_no_advice_on_a_colour_mask(tmp_path):
  # These are the first colours of VOC, which the project also gives to classes without colours.
  ids = np.array([[0, 1, 2]], np.uint8)
  root = _folder(tmp_path, ids, classes="id,name\n0,background\n1,road\n2,car\n")
  Image.fromarray(colormap(3)[ids]).save(tmp_path / "labels/train/a.png")
  with pytest.raises(ValueError, match="it has 3 colours: convert the colours to ids"):
    data.load("folder", root, "train")[0]


@pytest.mark.parametrize(
  ("name", "label", "ids"),
  [
    ("camvid", "labels/train/1.png", (0, 1, 7, 11)),
    ("cityscapes", "gtFine/train/ulm/ulm_train_1_gtFine_labelIds.png", (0, 7, 21, 33)),
    ("coco_stuff_164k", "annotations/train2017/1.png", (0, 1, 90, 181, 255)),
  ],
)
def test_benchmark_labels_with_the_palette_of_voc(tmp_path, name, label, ids):
  small_datasets.MAKERS[name](tmp_path)
  ids = small_datasets.random_ids("x", ids)
  image = Image.frombytes("P", ids.shape[::-1], ids.tobytes())
  image.putpalette(colormap(256).tobytes())
  image.save(tmp_path / label)
  source = data.load(name, str(tmp_path), "train")
  expected = [[source.train_ids[own_id] for own_id in row] for row in ids.tolist()]
  assert source[1]["label"].tolist() == expected


def test_the_splits_of_a_cross_validation(tmp_path):
  ids = np.full((4, 5), 3, np.uint8)
  for split in ("fold0/train", "fold0/val", "all/ulm", "all/aachen", "test/test", ".cache/val"):
    root = _folder(tmp_path, ids, split=split)
  assert data.splits("folder", root) == ("all", "fold0/train", "fold0/val", "test")
  assert len(data.load("folder", root, "fold0/val")) == 1


def _listed(root, lines, split="train"):
  (root / "splits").mkdir(exist_ok=True)
  (root / f"splits/{split}.txt").write_text(lines)
  return data.load("folder", str(root), split)


def test_a_list_chooses_the_images_of_a_split(tmp_path):
  for place, name in enumerate(("1", "2", "3", "scene.04")):
    _folder(tmp_path, np.full((2, 2), (3, 0)[place % 2], np.uint8), split="town", name=name)
  source = _listed(tmp_path, "town/3\r\n\n  town/1.png  \ntown/scene.04\n")
  assert [path.name for path in source.images] == ["1.png", "3.png", "scene.04.png"]
  assert [path.name for path in source.labels] == ["1.png", "3.png", "scene.04.png"]
  assert [int(source[place]["label"][0, 0]) for place in range(3)] == [0, 0, 1]
  _listed(tmp_path, "town/2\n", "val")
  assert data.splits("folder", str(tmp_path)) == ("train", "val")
  # A list goes before a folder of its name.
  assert len(_listed(tmp_path, "town/2\n", "town")) == 1
  assert data.info("folder", str(tmp_path)).class_names == ("road", "sky, clouds", "car")
  shutil.rmtree(tmp_path / "labels")
  assert not data.load("folder", str(tmp_path), "val", labels=False).labelled


@pytest.mark.parametrize(
  ("lines", "message"),
  [
    (
      "town/1\ntown/1.png\n",
      "train.txt, line 2: 'town/1.png' is in line 1 already, expected each image once",
    ),
    ("town/1\ntown/7\n", "train.txt, line 2: 'town/7' is no image below .*images, expected a path"),
    ("town/1.jpg\n", "train.txt, line 1: 'town/1.jpg' is no image"),
    ("town/2\n", r"train.txt, line 1: 'town/2' matches 2.jpg and 2.png, expected one file"),
    ("town/2.jpg\n", "train.txt, line 1: 'town/2.jpg' matches 2.jpg and 2.png"),
    ("town/3\n", r"images/town/3\.png: this image has no label, expected .*labels/town/3\.png"),
    ("\n", "train.txt: lists no images, expected one in each line"),
    ("caf\xe9\0", "train.txt, line 1: holds zero bytes"),
  ],
)
def test_wrong_lists_are_refused_in_one_line(tmp_path, lines, message):
  for name in ("1", "2", "3"):
    _folder(tmp_path, np.full((2, 2), 3, np.uint8), split="town", name=name)
  Image.new("RGB", (2, 2)).save(tmp_path / "images/town/2.jpg")
  (tmp_path / "labels/town/3.png").unlink()
  with pytest.raises(ValueError, match=message) as error:
    _listed(tmp_path, lines)
  assert "\n" not in str(error.value)
  # Files that no line names are no defects.
  assert len(_listed(tmp_path, "town/1\n")) == 1


def test_the_test_split_of_camvid(tmp_path):
  with pytest.raises(
    FileNotFoundError, match="images/test: this folder of the data set camvid does not exist"
  ):
    (tmp_path / "images/train").mkdir(parents=True)
    data.load("camvid", str(tmp_path), "test")
  for kind, array in (("images", np.zeros((2, 2, 3), np.uint8)), ("labels", np.full((2, 2), 4, np.uint8))):
    (tmp_path / kind / "test").mkdir(parents=True)
    Image.fromarray(array).save(tmp_path / kind / "test/a.png")
  assert data.load("camvid", str(tmp_path), "test")[0]["label"].tolist() == [[4, 4], [4, 4]]
  assert data.DATASETS["camvid"].image_counts["test"] == 233
