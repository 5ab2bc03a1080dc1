"""All data sets by one table: classes, ids, splits, layouts, errors about names and roots; samples of real data."""

import ast
import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from rc_jax import data
from tests.support import small_datasets
from tests.support.small_datasets import photo, save_label, save_mat

# Written without the tables in the modules.
CITYSCAPES_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
CITYSCAPES_NAMES = (
  "road sidewalk building wall fence pole traffic_light traffic_sign vegetation terrain sky person rider car truck "
  "bus train motorcycle bicycle"
)
CITYSCAPES_COLORS = (
  "804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4 dc143c ff0000 00008e 000046 "
  "003c64 005064 0000e6 770b20"
)
COCO_EMPTY = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}  # ids with a name that no image shows


def coco_train_ids(first: int, unlabelled: int) -> dict[int, int]:
  """Returns the train ids of a COCO-Stuff release whose ids begin with ``first``."""
  train_ids, following = {unlabelled: 255}, 0
  for own_id in range(1, 183):
    train_ids[own_id - 1 + first] = 255 if own_id in COCO_EMPTY else following
    following += own_id not in COCO_EMPTY
  assert following == 171
  return train_ids


@dataclasses.dataclass(frozen=True)
class Case:
  """A data set as ``small_datasets`` makes it.

  Attributes:
    image: path of an image of the split ``train``.
    label: path of its label.
    train_ids: each id that a label may hold -> train id.
    unknown: ids that no label may hold.
    ranges: the allowed ids in error messages.
    splits: splits with labels.
    absent_class: the rule of its benchmark.
  """

  image: str
  label: str
  train_ids: dict[int, int]
  unknown: tuple[int, ...]
  ranges: str
  splits: tuple[str, ...] = ("train", "val")
  absent_class: str = "unless_predicted"


CASES: dict[str, Case] = {
  "ade20k": Case(
    image="images/training/1.jpg",
    label="annotations/training/1.png",
    train_ids={0: 255, **{i: i - 1 for i in range(1, 151)}},
    unknown=(151, 255),
    ranges="0-150",
    absent_class="zero",
  ),
  "camvid": Case(
    image="images/train/1.png",
    label="labels/train/1.png",
    train_ids={**{i: i for i in range(11)}, 11: 255},
    unknown=(12,),
    ranges="0-11",
  ),
  "cityscapes": Case(
    image="leftImg8bit/train/ulm/ulm_train_1_leftImg8bit.png",
    label="gtFine/train/ulm/ulm_train_1_gtFine_labelIds.png",
    train_ids={i: CITYSCAPES_IDS.index(i) if i in CITYSCAPES_IDS else 255 for i in [*range(34), 255]},
    unknown=(34,),
    ranges="0-33, 255",
  ),
  "coco_stuff_10k": Case(
    image="images/train_1.jpg",
    label="annotations/train_1.mat",
    train_ids=coco_train_ids(first=1, unlabelled=0),
    unknown=(183, 255),
    ranges="0-182",
    splits=("train", "test"),
    absent_class="not_in_truth",
  ),
  "coco_stuff_164k": Case(
    image="images/train2017/1.jpg",
    label="annotations/train2017/1.png",
    train_ids=coco_train_ids(first=0, unlabelled=255),
    unknown=(182, 254),
    ranges="0-181, 255",
    absent_class="not_in_truth",
  ),
  "folder": Case(
    image="images/train/1.png",
    label="labels/train/1.png",
    train_ids={0: 0, 1: 1, 2: 2, 255: 255},
    unknown=(9,),
    ranges="0-2, 255",
  ),
}


@pytest.fixture
def make(tmp_path: pathlib.Path) -> Callable[[str], pathlib.Path]:
  """Returns a function that makes a small copy of a data set."""

  def make_set(name: str) -> pathlib.Path:
    small_datasets.MAKERS[name](tmp_path / "set")
    return tmp_path / "set"

  return make_set


def write_pair(root: pathlib.Path, case: Case, ids: np.ndarray) -> None:
  """Writes the image and the label of a case, with these ids ``[H,W]``."""
  Image.fromarray(photo("x", ids.shape)).save(root / case.image)
  (save_mat if case.label.endswith(".mat") else save_label)(root / case.label, ids)


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
  message = str(error.value)
  assert "\n" not in message
  # The tuple form of OSError would print a number in front of the message.
  assert error.value.args == (message,)
  return message


def test_every_data_set_has_a_case() -> None:
  assert set(CASES) == set(data.DATASETS) - {"synthetic"}


@pytest.mark.parametrize("name", data.DATASETS)
def test_classes_are_complete(name: str, make: Callable[[str], pathlib.Path]) -> None:
  info = data.info(name, str(make(name)) if name == "folder" else "")
  assert info.name == name
  assert info.num_classes == len(set(info.class_names)) == len(info.palette) == len(info.label_ids)
  assert info.palette.dtype == np.uint8 and info.palette.shape == (info.num_classes, 3)
  # ADE20K's challenge gave roads and skyscrapers one colour.
  assert len(np.unique(info.palette, axis=0)) == info.num_classes - (name == "ade20k")
  assert len(np.unique(info.label_ids)) == info.num_classes
  assert info.ignore_label == 255
  assert info.absent_class == (CASES[name].absent_class if name in CASES else "unless_predicted")


@pytest.mark.parametrize("name", CASES)
def test_ids_become_train_ids_and_back(name: str, make: Callable[[str], pathlib.Path]) -> None:
  case, root = CASES[name], make(name)
  ids = np.array([list(case.train_ids)], np.uint8)
  write_pair(root, case, ids)
  example = data.load(name, str(root), "train")[1]
  assert example["label"][0].tolist() == list(case.train_ids.values())
  assert example["image"].shape == (*ids.shape, 3)
  info = data.info(name, str(root))
  assert info.num_classes == len(set(case.train_ids.values()) - {255})
  for own_id, train_id in case.train_ids.items():
    assert train_id == 255 or info.label_ids[train_id] == own_id


@pytest.mark.parametrize(("name", "unknown"), [(name, i) for name in CASES for i in CASES[name].unknown])
def test_an_unknown_id_is_an_error(name: str, unknown: int, make: Callable[[str], pathlib.Path]) -> None:
  case, root = CASES[name], make(name)
  write_pair(root, case, np.full((4, 4), unknown, np.uint8))
  with pytest.raises(ValueError, match=rf" {unknown} .*{case.ranges}") as error:
    data.load(name, str(root), "train")[1]
  assert str(root / case.label) in one_line(error)


@pytest.mark.parametrize("name", CASES)
def test_splits_are_in_the_order_of_names(name: str, make: Callable[[str], pathlib.Path]) -> None:
  root, (first, second) = str(make(name)), CASES[name].splits
  assert set(CASES[name].splits) <= set(data.splits(name, root))
  parts = [data.load(name, root, split) for split in (first, second)]
  both = data.load(name, root, f"{first}+{second}")
  assert both.labelled and both.info.class_names == parts[0].info.class_names
  names = [part[i]["name"] for part in parts for i in range(len(part))]
  assert [both[i]["name"] for i in range(len(both))] == names and len(names) == 4
  for part in parts:
    stems = [part[i]["name"] for i in range(len(part))]
    assert stems == sorted(stems)


def test_cities_are_in_alphabetical_order_and_trainval_joins_splits(tmp_path: pathlib.Path) -> None:
  for split, frame in (
    ("train", "b_000000"),
    ("train", "a_000002"),
    ("train", "a_000001"),
    ("val", "a_000000"),
  ):
    folder, stem = f"{split}/{frame[0]}", f"{frame}_000019"
    save_label(tmp_path / f"leftImg8bit/{folder}/{stem}_leftImg8bit.png", photo("x"))
    save_label(tmp_path / f"gtFine/{folder}/{stem}_gtFine_labelIds.png", np.full((30, 40), 7, np.uint8))
  source = data.load("cityscapes", str(tmp_path), "trainval")
  assert [source[i]["name"] for i in range(len(source))] == [
    f"{frame}_000019_leftImg8bit" for frame in ("a_000001", "a_000002", "b_000000", "a_000000")
  ]


def test_coarse_labels_of_cityscapes(make: Callable[[str], pathlib.Path]) -> None:
  root = make("cityscapes")
  for split in ("train", "train_extra"):
    for number in range(2):
      stem = f"{split}/ulm/ulm_{split}_{number}"
      save_label(root / f"leftImg8bit/{stem}_leftImg8bit.png", photo("x"))
      save_label(root / f"gtCoarse/{stem}_gtCoarse_labelIds.png", np.full((30, 40), 26, np.uint8))
  for split in ("train_coarse", "train_extra"):
    assert (data.load("cityscapes", str(root), split)[0]["label"] == 13).all(), split
  assert len(data.load("cityscapes", str(root), "train+train_extra")) == 4


UNLABELLED = {
  "ade20k": "release_test/testing/ADE_test_00000001.jpg",
  "cityscapes": "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png",
}


@pytest.mark.parametrize("name", UNLABELLED)
def test_a_split_without_labels_serves_for_prediction_alone(
  name: str, make: Callable[[str], pathlib.Path]
) -> None:
  root = make(name)
  small_datasets.save_image(root / UNLABELLED[name], "x")
  source = data.load(name, str(root), "test", labels=False)
  assert not source.labelled and source[0].keys() == {"image", "name"}
  for split in ("test", "train+test"):
    with pytest.raises(ValueError, match="have no labels to train on or to score") as error:
      data.load(name, str(root), split)
    assert str((root / UNLABELLED[name]).parent) in one_line(error) and "--config.eval.split=" in str(
      error.value
    )


def test_a_missing_split_is_answered_with_those_that_can_be_read(tmp_path: pathlib.Path) -> None:
  root = tmp_path / "set"
  small_datasets.folder(root)
  for kind in ("images", "labels"):
    (root / kind / "val").rename(root / kind / "valid")
  small_datasets.save_image(root / "images" / "street" / "1.png", "x")
  advice = "or choose one of the splits there, {}, with --config.dataset.train_split= or --config.eval.split="
  with pytest.raises(FileNotFoundError) as error:
    data.load("folder", str(root), "val")
  assert advice.format("train, valid") in one_line(error) and str(root / "images" / "val") in str(error.value)
  with pytest.raises(FileNotFoundError, match="street, train, valid"):
    data.load("folder", str(root), "val", labels=False)
  for kind in ("images", "labels"):
    (root / kind / "train").rename(root / kind / "tr")
  (root / "labels" / "tr" / "0.png").unlink()
  with pytest.raises(FileNotFoundError) as error:
    data.load("folder", str(root), "val")
  assert advice.format("valid") in one_line(error)  # half a pair is no remedy


@pytest.mark.parametrize("name", CASES)
def test_a_folder_is_recognised_as_its_data_set(name: str, make: Callable[[str], pathlib.Path]) -> None:
  other = "ade20k" if name == "cityscapes" else "cityscapes"
  with pytest.raises(FileNotFoundError) as error:
    data.load(other, str(make(name)), "train")
  assert f"this looks like {name}: set --config.dataset.name={name}" in one_line(error)


def test_an_unknown_name_is_answered_with_the_closest() -> None:
  with pytest.raises(ValueError) as error:
    data.load("cityscape", "", "train")
  message = one_line(error)
  assert "dataset.name" in message and "did you mean cityscapes?" in message
  with pytest.raises(ValueError, match=", ".join(sorted(data.DATASETS))):
    data.info("xyz", "")


@pytest.mark.parametrize("name", [name for name in data.DATASETS if name != "folder"])
def test_an_unknown_split_is_answered_with_the_known(name: str) -> None:
  with pytest.raises(ValueError) as error:
    data.load(name, "", "valid")
  assert "'valid'" in one_line(error) and ", ".join(data.splits(name, "")) in str(error.value)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("root", ["", "missing", "empty", "file"])
def test_a_missing_root_is_answered_with_the_layout(tmp_path: pathlib.Path, name: str, root: str) -> None:
  (tmp_path / "empty").mkdir()
  (tmp_path / "file").write_text("no folder")
  with pytest.raises(FileNotFoundError) as error:
    data.load(name, root and str(tmp_path / root), "train")
  message = one_line(error)
  assert data.DATASETS[name].layout in message
  assert "--config.dataset.root=" in message or (name, root) == ("folder", "empty")
  assert (str(tmp_path / root) if root else "dataset.root is empty") in message


def test_cityscapes_has_the_official_table() -> None:
  info = data.info("cityscapes", "")
  assert list(info.class_names) == [name.replace("_", " ") for name in CITYSCAPES_NAMES.split()]
  colors = ["".join(f"{channel:02x}" for channel in color) for color in info.palette.tolist()]
  assert colors == CITYSCAPES_COLORS.split()


def test_ade20k_has_the_names_of_the_challenge(shared_dir: pathlib.Path) -> None:
  file = shared_dir / "data/ade20k_sample/ADEChallengeData2016/objectInfo150.txt"
  rows = [line.split("\t") for line in file.read_text().splitlines()[1:]]
  info = data.info("ade20k", "")
  assert [int(row[0]) for row in rows] == info.label_ids.tolist()
  assert [row[4].split(",")[0].strip() for row in rows] == list(info.class_names)


def test_ade20k_has_the_colours_of_the_challenge() -> None:
  # From mmsegmentation; read, not imported, because importing it needs compiled operations.
  module = importlib.util.find_spec("mmseg")
  if module is None or module.origin is None:
    pytest.skip("no mmsegmentation to compare with")
  tree = ast.parse((pathlib.Path(module.origin).parent / "datasets/ade.py").read_text())
  palette = next(
    ast.literal_eval(node.value)
    for node in ast.walk(tree)
    if isinstance(node, ast.keyword) and node.arg == "palette"
  )
  assert data.info("ade20k", "").palette.tolist() == palette


def test_coco_stuff_has_the_official_names(shared_dir: pathlib.Path) -> None:
  lines = (shared_dir / "data/coco_stuff_sample/cocostuff-labels.txt").read_text().splitlines()
  names = dict(line.split(": ", 1) for line in lines)
  for name, first in (("coco_stuff_10k", 1), ("coco_stuff_164k", 0)):
    info = data.info(name, "")
    for own_id, class_name in zip(info.label_ids.tolist(), info.class_names, strict=True):
      assert names[str(own_id + 1 - first)] == class_name


SAMPLES = [
  ("ade20k", "ade20k_sample/ADEChallengeData2016", {"train": 1, "val": 1}),
  ("camvid", "camvid", {"train": 367, "val": 101}),
  ("cityscapes", "cityscapes_sample", {"train": 5, "val": 1}),
  ("coco_stuff_164k", "coco_stuff_sample/164k", {"train": None, "val": None}),
]


@pytest.mark.parametrize(("name", "folder", "counts"), SAMPLES, ids=[name for name, _, _ in SAMPLES])
def test_real_labels_keep_the_pixels_of_each_class(
  shared_dir: pathlib.Path, name: str, folder: str, counts: dict[str, int | None]
) -> None:
  table = np.full(256, 254, np.uint8)
  for own_id, train_id in CASES[name].train_ids.items():
    table[own_id] = train_id
  for split, count in counts.items():
    source = data.load(name, str(shared_dir / "data" / folder), split)
    assert isinstance(source, data.FilePairs) and source.labels is not None
    assert count is None or len(source) == count
    example = source[len(source) // 2]
    ids = np.asarray(Image.open(source.labels[len(source) // 2]))
    assert example["image"].shape[:2] == ids.shape
    np.testing.assert_array_equal(example["label"], table[ids])
    assert (example["label"] < 254).mean() > 0.5


def test_the_classes_of_camvid_have_the_right_ids(shared_dir: pathlib.Path) -> None:
  val = data.load("camvid", str(shared_dir / "data/camvid"), "val")
  rows = {
    name: np.mean(
      [np.nonzero(val[i]["label"] == val.info.class_names.index(name))[0].mean() for i in (0, 50, 99)]
    )
    for name in ("sky", "building", "road")
  }
  assert rows["sky"] < rows["building"] < rows["road"]
