"""A folder of predictions: what counts as done, after a kill, under other settings, for another image."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from rc_jax.config import as_dict, defaults
from rc_jax.data import DatasetInfo
from rc_jax.data.datasets import cityscapes
from rc_jax.predictions.folder import SETTINGS, PredictionFolder, Stamp, label_image, settings_of

STAMP = Stamp("a.jpg", 100, 7)
WANTED = {"labels": ".png"}


def open_folder(
  path: pathlib.Path, overwrite: bool = False, process: int = 0, **settings
) -> PredictionFolder:
  return PredictionFolder(
    path,
    {"weights": "w1", "step": 3, **settings},
    overwrite=overwrite,
    process=process,
    remedy="--output=DIR",
  )


def label(folder: PredictionFolder, name: str, stamp: Stamp = STAMP, content: bytes = b"x") -> None:
  with folder.writing("labels", name, ".png") as file:
    file.write(content)
  folder.mark_done(name, stamp)


def test_what_is_done_is_remembered(tmp_path: pathlib.Path) -> None:
  label(open_folder(tmp_path), "day/a")
  folder = open_folder(tmp_path)
  assert folder.is_done("day/a", STAMP, WANTED)
  assert not folder.is_done("day/b", STAMP, WANTED)
  assert not folder.is_done("day/a", STAMP, {**WANTED, "overlays": ".jpg"}), "an output is missing"
  folder.file("labels", "day/a", ".png").unlink()
  assert not folder.is_done("day/a", STAMP, WANTED), "the file was deleted"


@pytest.mark.parametrize(
  ("stamp", "same"),
  [
    (Stamp("a.jpg", 100, 8), False),
    (Stamp("a.jpg", 101, 7), False),
    (Stamp("moved/a.jpg", 100, 7), True),
  ],
)
def test_another_image_of_that_name_is_not_done(stamp: Stamp, same: bool, tmp_path: pathlib.Path) -> None:
  label(open_folder(tmp_path), "a")
  assert open_folder(tmp_path).is_done("a", stamp, WANTED) == same


def test_images_without_files_are_told_apart_by_their_split(tmp_path: pathlib.Path) -> None:
  label(open_folder(tmp_path), "0", Stamp("synthetic/val/0"))
  folder = open_folder(tmp_path)
  assert folder.is_done("0", Stamp("synthetic/val/0"), WANTED)
  assert not folder.is_done("0", Stamp("synthetic/train/0"), WANTED)


def test_a_line_that_a_kill_cut_is_no_line_and_harms_none(tmp_path: pathlib.Path) -> None:
  folder = open_folder(tmp_path)
  label(folder, "a")
  label(folder, "b")
  log = tmp_path / "done_0.jsonl"
  log.write_bytes(log.read_bytes()[:-9])
  folder = open_folder(tmp_path)
  assert folder.is_done("a", STAMP, WANTED) and not folder.is_done("b", STAMP, WANTED)
  label(folder, "c")
  folder = open_folder(tmp_path)
  assert folder.is_done("a", STAMP, WANTED) and folder.is_done("c", STAMP, WANTED)


def test_other_settings_are_refused_by_name(tmp_path: pathlib.Path) -> None:
  label(open_folder(tmp_path, eval={"scales": (1.0,), "flip": False}), "a")
  open_folder(tmp_path, eval={"scales": (1.0,), "flip": False})
  with pytest.raises(ValueError, match=r"eval\.flip: True, there False.*--overwrite.*--output") as error:
    open_folder(tmp_path, eval={"scales": (1.0,), "flip": True})
  assert "\n" not in str(error.value)
  with pytest.raises(ValueError, match=r"step: 4, there 3.*weights: w2, there w1|weights: w2.*step: 4"):
    open_folder(tmp_path, eval={"scales": (1.0,), "flip": False}, weights="w2", step=4)


def test_settings_that_are_lost_are_not_taken_for_the_same(tmp_path: pathlib.Path) -> None:
  label(open_folder(tmp_path), "a")
  (tmp_path / SETTINGS).write_text("{")
  with pytest.raises(ValueError, match=r"predictions\.json is missing or damaged\): add --overwrite"):
    open_folder(tmp_path)


def test_a_moved_checkpoint_is_the_same(tmp_path: pathlib.Path) -> None:
  label(open_folder(tmp_path, checkpoint="here/3"), "a")
  assert open_folder(tmp_path, checkpoint="there/3").is_done("a", STAMP, WANTED)


def test_overwriting_begins_anew_and_can_itself_be_resumed(tmp_path: pathlib.Path) -> None:
  label(open_folder(tmp_path), "a")
  label(open_folder(tmp_path, process=1), "b")
  folder = open_folder(tmp_path, overwrite=True, weights="w2")
  assert not folder.is_done("a", STAMP, WANTED) and not folder.is_done("b", STAMP, WANTED)
  label(folder, "a")
  folder = open_folder(tmp_path, weights="w2")
  assert folder.is_done("a", STAMP, WANTED) and not folder.is_done("b", STAMP, WANTED)
  assert json.loads((tmp_path / SETTINGS).read_text())["weights"] == "w2"


def test_settings_follow_weights_and_what_predictions_depend_on() -> None:
  def settings(value: float, **changes):
    config = defaults()
    config.dataset.name = "synthetic"
    config.update_from_flattened_dict(changes)
    variables = ({"head": {"kernel": np.full((2, 2), value, np.float32)}}, {})
    return settings_of(as_dict(config), variables, pathlib.Path("run/checkpoints/5"), 5)

  same = settings(1.0)
  assert settings(1.0) == same
  assert settings(1.0, **{"model.pretrained": "file.npz", "train.steps": 7, "model.dropout": 0.5}) == same
  assert settings(np.nextafter(np.float32(1), np.float32(2)))["weights"] != same["weights"]
  for field, value in (("eval.flip", True), ("eval.scales", (0.5, 1.0)), ("model.output_stride", 16)):
    assert settings(1.0, **{field: value}) != same


def test_a_label_image_reads_as_ids_and_looks_like_the_classes(tmp_path: pathlib.Path) -> None:
  labels = np.random.default_rng(0).integers(0, 19, (20, 30)).astype(np.uint8)
  label_image(labels, cityscapes.INFO).save(tmp_path / "a.png")
  with Image.open(tmp_path / "a.png") as image:
    np.testing.assert_array_equal(np.asarray(image), cityscapes.INFO.label_ids[labels])
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), cityscapes.INFO.palette[labels])


def test_ids_beyond_a_byte_keep_their_value(tmp_path: pathlib.Path) -> None:
  info = DatasetInfo("big", ("a", "b"), np.zeros((2, 3), np.uint8), np.array([7, 40_000]))
  labels = np.random.default_rng(0).integers(0, 2, (5, 4))
  label_image(labels, info).save(tmp_path / "a.png")
  with Image.open(tmp_path / "a.png") as image:
    np.testing.assert_array_equal(np.asarray(image), info.label_ids[labels])
