"""``--mode=inspect``: its counts against loops over the files, its contact sheets, its exit status."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from rc_jax import data
from rc_jax.config import defaults
from rc_jax.data.reading import examine
from rc_jax.drawing import contact_sheet, panels
from rc_jax.modes import inspect as inspect_mode
from tests.support import small_datasets
from tests.support.paths import ROOT


def inspect(
  name: str, root: pathlib.Path, workdir: pathlib.Path, sample: int = 0, sheets: bool = False
) -> tuple[int, str]:
  config = defaults()
  config.dataset.name, config.dataset.root = name, str(root)
  config.train.crop_size = (33, 33)
  with pytest.MonkeyPatch.context() as patch:
    if not sheets:
      patch.setattr(inspect_mode, "draw_sheets", lambda *_: ())
    status = inspect_mode.run(config, workdir, sample)
  return status, (workdir / "inspect/report.txt").read_text()


@pytest.fixture
def camvid(tmp_path: pathlib.Path) -> pathlib.Path:
  small_datasets.camvid(tmp_path / "set")
  return tmp_path / "set"


def test_counts_are_those_of_a_loop_over_pixels(camvid: pathlib.Path, tmp_path: pathlib.Path) -> None:
  small_datasets.save_image(camvid / "images/train/2.png", "wide")
  Image.fromarray(small_datasets.photo("wide", (60, 120))).save(camvid / "images/train/2.png")
  ids = small_datasets.random_ids("wide", (3, 4, 11), (60, 120))
  ids[7, 9] = 77
  small_datasets.save_label(camvid / "labels/train/2.png", ids)
  status, report = inspect("camvid", camvid, tmp_path / "run")
  assert status == inspect_mode.DEFECTIVE
  table = json.loads((tmp_path / "run/inspect/train.json").read_text())

  pixels, images, ignored, every = dict.fromkeys(range(11), 0), dict.fromkeys(range(11), 0), 0, 0
  for path in sorted((camvid / "labels/train").iterdir()):
    seen = set()
    for value in np.asarray(Image.open(path)).ravel().tolist():
      if value == 77:
        continue
      every += 1
      if value == 11:
        ignored += 1
      else:
        pixels[value] += 1
        seen.add(value)
    for value in seen:
      images[value] += 1
  assert table["pixels"] == every and table["ignored"] == pytest.approx(ignored / every, abs=1e-12)
  for label, (name, entry) in enumerate(table["classes"].items()):
    assert name == data.info("camvid", "").class_names[label] and entry["id"] == label
    assert (entry["pixels"], entry["images"]) == (pixels[label], images[label]), name
    assert entry["share"] == pytest.approx(pixels[label] / (every - ignored), abs=1e-12)
    assert (name in table["never"]) == (pixels[label] == 0)
  assert table["unexpected"] == {"77": {"pixels": 1, "images": 1, "files": ["2.png"]}}
  assert table["sizes"] == {"smallest": [40, 30], "median": [40, 30], "largest": [120, 60], "different": 2}
  assert table["smaller_than_crop"] == ["0.png", "1.png"] and table["images"] == table["checked"] == 3
  assert "note: holds 3 images, the official release 367" in report


def test_an_image_of_two_splits_is_noted(camvid: pathlib.Path, tmp_path: pathlib.Path) -> None:
  for kind in ("images", "labels"):
    shutil.copy(camvid / kind / "train/1.png", camvid / kind / "val/0.png")
    shutil.copy(camvid / kind / "train/1.png", camvid / kind / "train/again.png")
  status, report = inspect("camvid", camvid, tmp_path / "run")
  # Notes do not stop training.
  assert status == inspect_mode.CLEAN
  assert (
    "note: 1 images of val are also trained on" in report and "0.png (as train: again.png); remove" in report
  )
  assert "note: 1 images equal another image of this split, pixel by pixel: again.png (as 1.png)" in report


def test_the_line_without_shared_images_names_the_split_that_was_compared(
  camvid: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
  for kind in ("images", "labels"):
    shutil.copytree(camvid / kind / "train", camvid / kind / "test")
  inspect("camvid", camvid, tmp_path / "run")
  assert "\nno image of val is also trained on\n" in capsys.readouterr().out


def test_ignored_labels_and_unseen_classes_are_noted(tmp_path: pathlib.Path) -> None:
  small_datasets.folder(tmp_path / "set")
  for split, number, value in (("train", 0, 255), ("train", 1, 1), ("val", 0, 1), ("val", 1, 2)):
    small_datasets.save_label(
      tmp_path / f"set/labels/{split}/{number}.png", np.full((30, 40), value, np.uint8)
    )
  status, report = inspect("folder", tmp_path / "set", tmp_path / "run")
  assert status == inspect_mode.CLEAN
  assert "note: 1 labels hold ignored pixels alone: 0.png" in report
  assert "note: 1 classes of val are shown by no training label: car; " in report
  assert "note: 1 classes occur in no label of train, val: background; " in report and "never" not in report


def test_labels_without_any_class_have_no_sheet_of_classes(tmp_path: pathlib.Path) -> None:
  small_datasets.folder(tmp_path / "set")
  for path in (tmp_path / "set/labels/train").iterdir():
    small_datasets.save_label(path, np.full((30, 40), 255, np.uint8))
  status, report = inspect("folder", tmp_path / "set", tmp_path / "run", sheets=True)
  assert status == inspect_mode.CLEAN and "note: 2 labels hold ignored pixels alone" in report
  sheets = {path.name for path in (tmp_path / "run/inspect").glob("*.png")}
  assert sheets == {"train.png", "crops.png", "val.png", "val_classes.png"}


def test_masks_of_0_and_255_are_noted_where_255_is_ignored(tmp_path: pathlib.Path) -> None:
  small_datasets.folder(tmp_path / "set")
  mask = small_datasets.random_ids("mask", (0, 255))
  for split in ("train", "val"):
    for number in range(2):
      small_datasets.save_label(tmp_path / f"set/labels/{split}/{number}.png", mask)
  _, report = inspect("folder", tmp_path / "set", tmp_path / "run")
  assert (
    "note: 2 labels hold the ids 0 and 255 alone, and 255 is ignored: 0.png, 1.png; if 255 marks" in report
  )
  assert "note: 2 classes occur in no label of train, val: road, car; " in report
  for number in range(2):  # one class and ignored borders, beside labels of several classes
    small_datasets.save_label(
      tmp_path / f"set/labels/train/{number + 2}.png", small_datasets.random_ids("x", (0, 1, 255))
    )
    small_datasets.save_image(tmp_path / f"set/images/train/{number + 2}.png", str(number))
  small_datasets.save_label(tmp_path / "set/labels/train/1.png", small_datasets.random_ids("x", (0, 2, 255)))
  _, report = inspect("folder", tmp_path / "set", tmp_path / "run")
  assert report.count("labels hold the ids 0 and 255 alone") == 1  # of val


def test_images_that_exif_data_turn_without_their_label_are_noted(
  camvid: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  exif = Image.Exif()
  for number, orientation, both in ((2, 3, False), (3, 3, True), (4, 6, False), (5, 1, False)):
    exif[0x0112] = orientation
    image = Image.new("RGB", (30, 40) if orientation == 6 else (40, 30), (number, 0, 0))
    image.save(camvid / f"images/train/{number}.png", exif=exif)
    label = Image.new("L", (40, 30), 3)
    label.save(camvid / f"labels/train/{number}.png", exif=exif if both else b"")
  status, report = inspect("camvid", camvid, tmp_path / "run")
  assert status == inspect_mode.CLEAN
  assert "note: 1 pairs have EXIF data that turn the image or its label, and not the other: 2.png; " in report


def test_a_class_that_is_called_void_is_noted_once(
  tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
  small_datasets.folder(tmp_path / "set")
  (tmp_path / "set/classes.csv").write_text("id,name\n0,background\n1,road\n2,car\n255,Void\n")
  status, report = inspect("folder", tmp_path / "set", tmp_path / "run")
  assert status == inspect_mode.CLEAN
  assert report.count("note: ") == report.count("classes.csv, line 5: 'Void' is a class of its own") == 1
  # A note on something else does not leave out this line.
  assert "\nno image of val is also trained on\n" in capsys.readouterr().out


def test_pictures_that_are_left_out_are_noted(tmp_path: pathlib.Path, camvid: pathlib.Path) -> None:
  (camvid / "images/train/7.gif").write_bytes(b"GIF89a")
  status, report = inspect("camvid", camvid, tmp_path / "run")
  assert status == inspect_mode.CLEAN
  note = "images/train: pictures left out: 1, because files ending .gif are not read (7.gif); convert"
  assert report.count(note) == 1


def test_a_sample_is_spread_over_the_split(camvid: pathlib.Path, tmp_path: pathlib.Path) -> None:
  for number in range(2, 21):
    for kind in ("images", "labels"):
      shutil.copy(camvid / kind / "train/0.png", camvid / kind / f"train/{number:02d}.png")
  _, report = inspect("camvid", camvid, tmp_path / "run", sample=3)
  assert "train: 21 images, 3 of them checked" in report
  assert "02.png" not in report and "20.png (as 0.png)" in report
  with pytest.raises(ValueError, match="--sample is -1"):
    inspect("camvid", camvid, tmp_path / "run", sample=-1)


@pytest.mark.run
def test_several_processes_find_the_same_as_one(
  camvid: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  for number in range(2, 20):
    for kind in ("images", "labels"):
      shutil.copy(camvid / kind / f"train/{number % 2}.png", camvid / kind / f"train/{number:02d}.png")
  (camvid / "labels/train/07.png").write_bytes(b"")
  source = data.load("camvid", str(camvid), "train")
  alone = list(examine.examine_all(source, range(20), processes=1))
  monkeypatch.setattr(examine, "SECONDS_MEASURED", 0.0)
  monkeypatch.setattr(examine, "SECONDS_WORTH_PROCESSES", 0.0)
  assert list(examine.examine_all(source, range(20), processes=2)) == alone
  assert [found.index for found in alone] == list(range(20))
  assert [found.index for found in alone if found.defects] == [6]  # 0, 02, 03, ...: in the order of the names


def test_rare_classes_are_shown_first() -> None:
  rng = np.random.default_rng(3)
  pixels = rng.integers(50, 100, (60, 6))
  pixels[:, 3] = pixels[:, 4] = 0
  pixels[17, 3], pixels[41, 3], pixels[29, 4] = 2, 9, 1
  chosen = contact_sheet.choose(pixels, 5)
  assert len(chosen) == 5 and {29, 41} <= set(chosen) and chosen == sorted(set(chosen))
  assert contact_sheet.choose(pixels, 1) == [29]
  assert contact_sheet.choose(pixels[:3], 12) == [0, 1, 2]


def test_the_widest_point_is_that_of_a_loop() -> None:
  mask = np.random.default_rng(5).random((14, 17)) < 0.9
  outside = [
    (y, x) for y in range(-1, 15) for x in range(-1, 18) if not (0 <= y < 14 and 0 <= x < 17 and mask[y, x])
  ]
  inside = np.argwhere(mask).tolist()
  depths = [min(np.hypot(y - v, x - u) for v, u in outside) for y, x in inside]
  depth, (y, x) = panels.widest_point(mask)
  assert depth == pytest.approx(max(depths)) and depths[inside.index([y, x])] == pytest.approx(depth)


def test_sheets_show_images_classes_and_crops(camvid: pathlib.Path, tmp_path: pathlib.Path) -> None:
  # The sheet mixes the colour of the image and the colour of the class, half and half.
  small_datasets.save_label(camvid / "labels/train/1.png", np.full((30, 40), 8, np.uint8))
  Image.new("RGB", (40, 30), (100, 200, 50)).save(camvid / "images/train/1.png")
  inspect("camvid", camvid, tmp_path / "run", sheets=True)
  folder = tmp_path / "run/inspect"
  assert {path.name for path in folder.iterdir()} == {
    *("report.txt", "train.json", "val.json", "crops.png"),
    *("train.png", "train_classes.png", "val.png", "val_classes.png"),
  }
  mixed = np.round(0.5 * np.array([100, 200, 50]) + 0.5 * data.info("camvid", "").palette[8]).astype(np.uint8)
  for name in ("train.png", "crops.png"):
    sheet = np.asarray(Image.open(folder / name))
    assert (sheet == mixed).all(axis=-1).any() and (sheet == (100, 200, 50)).all(axis=-1).any(), name
  tiles = np.asarray(Image.open(folder / "train_classes.png"))
  assert (tiles == (255, 255, 0)).all(axis=-1).any()  # outlines


def test_sheets_leave_damaged_examples_out(camvid: pathlib.Path, tmp_path: pathlib.Path) -> None:
  (camvid / "images/train/0.png").write_bytes(b"")
  status, report = inspect("camvid", camvid, tmp_path / "run", sheets=True)
  assert status == inspect_mode.DEFECTIVE and "an empty file" in report
  assert (tmp_path / "run/inspect/crops.png").is_file()


@pytest.mark.parametrize(
  ("name", "ids", "words"),
  [
    ("cityscapes", (0, 13, 18), "train ids"),
    ("cityscapes", (7, 21), ""),
    ("cityscapes", (), ""),
    ("ade20k", range(1, 150), "reduced by one"),
    ("ade20k", range(0, 151), ""),
    ("coco_stuff_164k", range(0, 182), "COCO-Stuff 10k"),
    ("coco_stuff_164k", (*range(0, 182), 255), ""),
    ("coco_stuff_10k", range(0, 182), "COCO-Stuff 164k"),
    ("coco_stuff_10k", range(0, 183), ""),
    ("camvid", (), ""),
  ],
)
def test_mistakes_that_no_single_label_shows(name: str, ids: Sequence[int], words: str) -> None:
  explained = data.info(name, "").mistakes.in_split(set(ids))
  assert words in explained and bool(words) == bool(explained)


def test_a_table_of_many_classes_fits_a_line() -> None:
  classes = {
    name: {"id": label, "pixels": label + 1, "share": 1e-3, "images": 118_287}
    for label, name in enumerate(data.info("ade20k", "").class_names)
  }
  lines = inspect_mode.class_table(classes)
  assert max(map(len, lines)) <= 120 and len(lines) < 80
  assert all(any(name in line for line in lines) for name in classes)


@pytest.mark.run
def test_defects_are_the_exit_status(camvid: pathlib.Path, tmp_path: pathlib.Path) -> None:
  (camvid / "labels/val/1.png").unlink()
  finished = subprocess.run(
    [
      *(sys.executable, "-m", "rc_jax.main", "--mode=inspect", "--config=configs/camvid.py"),
      *(f"--config.dataset.root={camvid}", f"--workdir={tmp_path / 'run'}", "--config.train.crop_size=33"),
    ],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )
  assert finished.returncode == 1 and not finished.stderr
  last = finished.stdout.splitlines()[-1]
  assert "1 defect, named in" in last and "report.txt" in last


@pytest.mark.parametrize(
  ("name", "folder", "splits"),
  [
    ("ade20k", "ade20k_sample/ADEChallengeData2016", ("train", "val")),
    ("cityscapes", "cityscapes_sample", ("train", "val")),
    ("coco_stuff_164k", "coco_stuff_sample/164k", ("train", "val")),
  ],
)
def test_real_data_is_clean(
  shared_dir: pathlib.Path,
  tmp_path: pathlib.Path,
  name: str,
  folder: str,
  splits: tuple[str, ...],
) -> None:
  status, report = inspect(name, shared_dir / "data" / folder, tmp_path)
  assert status == inspect_mode.CLEAN
  assert all(f"== {split}: " in report for split in splits)


def test_splits_in_folders(tmp_path: pathlib.Path) -> None:
  root = tmp_path / "set"
  small_datasets.folder(root)
  for kind in ("images", "labels"):
    (root / kind).rename(root / "fold0")
    (root / kind).mkdir()
    (root / "fold0").rename(root / kind / "fold0")
  config = defaults()
  config.dataset.name, config.dataset.root = "folder", str(root)
  config.dataset.train_split, config.eval.split = "fold0/train", "fold0/val"
  config.train.crop_size = (33, 33)
  assert inspect_mode.run(config, tmp_path / "run") == inspect_mode.CLEAN
  written = tmp_path / "run" / "inspect" / "fold0"
  assert {path.name for path in written.glob("val*")} == {"val.json", "val.png", "val_classes.png"}
