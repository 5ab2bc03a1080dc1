"""Advice in errors about layouts and names, taken as it is printed: the data can then be read."""

import pathlib
import re
import shutil
import subprocess
from collections.abc import Callable

import pytest

from rc_jax import data
from tests.support import small_datasets

Change = Callable[[pathlib.Path], object]


def moved(*pairs: tuple[str, str]) -> Change:
  """Returns a function that moves files and folders below a root, and removes folders that become empty."""

  def move(root: pathlib.Path) -> None:
    for source, target in pairs:
      (root / target).parent.mkdir(parents=True, exist_ok=True)
      (root / source).rename(root / target)
      for folder in (root / source).parents:
        if folder != root and folder.is_dir() and not any(folder.iterdir()):
          folder.rmdir()

  return move


def renamed(folder: str, name: Callable[[pathlib.Path], str]) -> Change:
  """Returns a function that renames all files below a folder."""

  def rename(root: pathlib.Path) -> None:
    for path in sorted(path for path in (root / folder).rglob("*") if path.is_file()):
      path.rename(path.with_name(name(path)))

  return rename


def ended(folder: str, ending: str) -> Change:
  """Returns a function that appends an ending to the names of all files below a folder."""
  return renamed(folder, lambda path: f"{path.stem}{ending}{path.suffix}")


def all_of(*changes: Change) -> Change:
  """Returns a function that makes one change after the other."""
  return lambda root: [change(root) for change in changes]


def unchanged(root: pathlib.Path) -> None:
  """Changes nothing."""


SIDE_BY_SIDE = moved(
  ("leftImg8bit", "leftImg8bit_trainvaltest/leftImg8bit"), ("gtFine", "gtFine_trainvaltest/gtFine")
)
OUTER = "ADEChallengeData2016"
INTO_OUTER = moved(("images", f"{OUTER}/images"), ("annotations", f"{OUTER}/annotations"))
SPLIT_FIRST = moved(
  *((f"{kind}/{split}", f"{split}/{kind}") for split in ("train", "val") for kind in ("images", "labels"))
)
SEGNET = moved(
  *((f"images/{split}", split) for split in ("train", "val")),
  *((f"labels/{split}", f"{split}annot") for split in ("train", "val")),
)
COCO_ZIPS = moved(
  *((f"images/{part}", part) for part in ("train2017", "val2017")),
  ("annotations", "stuffthingmaps_trainval2017"),
)

# What lies there -> (data set, change of its layout, root below the folder, dataset.name where it is another).
LAYOUTS: dict[str, tuple[str, Change, str, str]] = {
  "Cityscapes, zips side by side": ("cityscapes", SIDE_BY_SIDE, "", ""),
  "Cityscapes, one of the two folders given": ("cityscapes", SIDE_BY_SIDE, "gtFine_trainvaltest", ""),
  "Cityscapes, one half in its place": (
    *("cityscapes", moved(("gtFine", "gtFine_trainvaltest/gtFine"))),
    *("", ""),
  ),
  "Cityscapes, a folder in itself": ("cityscapes", moved(("gtFine", "x"), ("x", "gtFine/gtFine")), "", ""),
  "Cityscapes, one level too low": ("cityscapes", unchanged, "leftImg8bit", ""),
  "Cityscapes, two levels too low": ("cityscapes", unchanged, "leftImg8bit/train", ""),
  "Cityscapes, one level too high": ("cityscapes", unchanged, "..", ""),
  "Cityscapes, a typo": ("cityscapes", unchanged, "../sett", ""),
  "ADE20K, the zip's outer folder": ("ade20k", INTO_OUTER, "", ""),
  "ADE20K, the outer folder in itself": (
    "ade20k",
    all_of(INTO_OUTER, moved((OUTER, f"{OUTER}_/{OUTER}"))),
    "",
    "",
  ),
  "COCO-Stuff, its zips in one folder": ("coco_stuff_164k", COCO_ZIPS, "", ""),
  "COCO-Stuff, its halves in two folders": (
    *("coco_stuff_164k", moved(("images", "coco/images"), ("annotations", "stuff/annotations"))),
    *("", ""),
  ),
  "COCO-Stuff 10k in three folders": (
    "coco_stuff_10k",
    moved(*((name, f"part/{name}") for name in ("images", "annotations"))),
    "",
    "",
  ),
  "CamVid as SegNet has it": ("camvid", SEGNET, "", ""),
  "CamVid, the split first": ("camvid", SPLIT_FIRST, "", ""),
  "CamVid, labels ending _L": ("camvid", ended("labels", "_L"), "", ""),
  "CamVid under another name": ("camvid", unchanged, "", "cityscapes"),
  "COCO-Stuff 10k under another name": ("coco_stuff_10k", unchanged, "", "camvid"),
  "a folder, the split first": ("folder", SPLIT_FIRST, "", ""),
  "a folder, the split first, labels ending _mask": (
    *("folder", all_of(SPLIT_FIRST, ended("train/labels", "_mask"), ended("val/labels", "_mask"))),
    *("", ""),
  ),
  "a folder with masks in place of labels": ("folder", moved(("labels", "masks")), "", ""),
  "a folder with another name of the split": (
    *("folder", moved(("images/val", "images/valid"), ("labels/val", "labels/valid"))),
    *("", ""),
  ),
  **{
    f"labels ending {ending}": ("folder", ended("labels", ending), "", "")
    for ending in ("_mask", "_label", "_L", "_gt", "_gt_mask", "-labels", ".seg")
  },
  "images ending _img": ("folder", ended("images", "_img"), "", ""),
  "images ending _sat, labels ending _mask": (
    *("folder", all_of(ended("images", "_sat"), ended("labels", "_mask"))),
    *("", ""),
  ),
  "labels ending .PNG": ("folder", renamed("labels", lambda path: f"{path.stem}.PNG"), "", ""),
  "labels ending _mask.PNG": ("folder", renamed("labels", lambda path: f"{path.stem}_mask.PNG"), "", ""),
}


def follow(message: str, name: str, root: str, split: str) -> tuple[str, str, str]:
  """Does what a message advises; returns the fields to try next."""
  command = re.search(
    r"(?:commands move them|all like it): (.*?)(; then give .*| \(and \d+ more.*)?$", message
  )
  if command:
    subprocess.run(["bash", "-c", command[1]], check=True)
    given = re.search("; then give (.*)$", message)
    return name, given[1] if given else root, split
  folder = re.search(r"found the data set in (\S+): give that folder|did you mean (\S+)\?", message)
  if folder:
    return name, folder[1] or folder[2], split
  other = re.search(r"set --config.dataset.name=(\w+)(?: and a split of it, (\w+))?", message)
  if other:
    return other[1], root, other[2] or split
  there = re.search(r"choose one of the splits there, (?:\w+, )*(\w+), with", message)
  assert there, f"no advice in: {message}"
  return name, root, there[1]


@pytest.mark.run  # bash
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_advice_works_as_it_is_printed(tmp_path: pathlib.Path, layout: str, split: str) -> None:
  made, change, below, other = LAYOUTS[layout]
  if made == "coco_stuff_10k" and not other:
    split = {"val": "test"}.get(split, split)
  small_datasets.MAKERS[made](tmp_path / "set")
  change(tmp_path / "set")
  name, root = other or made, str(tmp_path / "set" / below)
  for _ in range(3):
    try:
      source = data.load(name, root, split)
    except (ValueError, OSError) as error:
      name, root, split = follow(str(error), name, root, split)
    else:
      break
  assert [set(source[index]) for index in range(len(source))] == [{"image", "label", "name"}] * 2


@pytest.mark.parametrize("made", ["cityscapes", "folder"])
def test_moves_that_do_not_help_are_not_advised(tmp_path: pathlib.Path, made: str) -> None:
  small_datasets.MAKERS[made](tmp_path / "set")
  if made == "cityscapes":
    SIDE_BY_SIDE(tmp_path / "set")
    shutil.rmtree(tmp_path / "set/gtFine_trainvaltest")  # half of the data set is not there
  else:
    moved(("labels", "masks"))(tmp_path / "set")
    for path in (tmp_path / "set/masks/train").iterdir():  # colours in place of ids
      small_datasets.save_image(path, path.stem)
  before = sorted(tmp_path.rglob("*"))
  with pytest.raises((ValueError, OSError)) as error:
    data.load(made, str(tmp_path / "set"), "train")
  assert "mv " not in str(error.value) and "give that folder" not in str(error.value)
  assert sorted(tmp_path.rglob("*")) == before  # the attempts were made on links


def test_labels_that_cannot_be_read_are_not_to_be_renamed(tmp_path: pathlib.Path) -> None:
  root = tmp_path / "set"
  small_datasets.folder(root)
  ended("labels", "_mask")(root)
  for path in (root / "labels/train").iterdir():
    small_datasets.save_image(path, path.stem)
    small_datasets.save_label(
      path.with_name(path.name.replace("mask", "ids")), small_datasets.random_ids("x", (0, 1))
    )
  with pytest.raises(ValueError) as error:
    data.load("folder", str(root), "train")
  assert "found 0_ids.png: rename it to 0.png" in str(error.value)
  for path in (root / "labels/train").glob("*_ids.png"):
    path.unlink()
  with pytest.raises(ValueError) as error:
    data.load("folder", str(root), "train")
  assert "found only 0_mask.png: add the label" in str(error.value) and "rename" not in str(error.value)


@pytest.mark.parametrize(
  ("ids", "words"),
  [
    ((257, 514), "divide them by 257"),
    ((257, 2570), ""),
    ((256, 512), "divide them by 256"),
    ((256, 2560), ""),
    ((1, 2, 3), "subtract one"),
  ],
)
def test_conversions_of_ids_are_advised_where_they_give_known_ids(ids: tuple[int, ...], words: str) -> None:
  from rc_jax.data.reading.dataset_info import IdMistakes
  from rc_jax.data.reading.diagnose import explain_ids

  explained = explain_ids(ids, (0, 1, 2), IdMistakes())
  assert words in explained and bool(words) == bool(explained)
