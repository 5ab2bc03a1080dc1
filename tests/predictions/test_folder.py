"""A folder of predictions: which images count as done, after a kill, under other settings, for another image."""

import json
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from rc_jax.config import as_dict, defaults
from rc_jax.data import DatasetInfo
from rc_jax.data.datasets import camvid, cityscapes
from rc_jax.predictions.folder import SETTINGS, Fingerprint, PredictionFolder, label_image, settings_of
from rc_jax.weights.checksums import weights_digest
from tests.support import disks

FINGERPRINT = Fingerprint("a.jpg", 100, 7)
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


def label(
  folder: PredictionFolder, name: str, fingerprint: Fingerprint = FINGERPRINT, content: bytes = b"x"
) -> None:
  with folder.writing("labels", name, ".png") as file:
    file.write(content)
  folder.mark_done(name, fingerprint)


def test_done_images_are_remembered(tmp_path: pathlib.Path) -> None:
  label(open_folder(tmp_path), "day/a")
  folder = open_folder(tmp_path)
  assert folder.is_done("day/a", FINGERPRINT, WANTED)
  assert not folder.is_done("day/b", FINGERPRINT, WANTED)
  assert not folder.is_done("day/a", FINGERPRINT, {**WANTED, "overlays": ".jpg"}), "an output is missing"
  folder.file("labels", "day/a", ".png").write_bytes(b"")
  assert not folder.is_done("day/a", FINGERPRINT, WANTED), "the file is empty"
  folder.file("labels", "day/a", ".png").unlink()
  assert not folder.is_done("day/a", FINGERPRINT, WANTED), "the file was deleted"


def image_file(path: pathlib.Path, content: bytes, modified: int = 7) -> Fingerprint:
  """Writes a file with a chosen time of change, as unpacking an archive does; returns its fingerprint."""
  path.parent.mkdir(exist_ok=True)
  path.write_bytes(content)
  os.utime(path, ns=(modified, modified))
  status = path.stat()
  return Fingerprint(str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def test_another_image_of_that_name_is_not_done(tmp_path: pathlib.Path) -> None:
  """Whatever its size and its time of change, and wherever it lies."""
  first = image_file(tmp_path / "one" / "a.jpg", b"first")
  label(open_folder(tmp_path / "out"), "a", first)

  def is_done(fingerprint: Fingerprint) -> bool:
    return open_folder(tmp_path / "out").is_done("a", fingerprint, WANTED)

  assert is_done(first)
  assert not is_done(image_file(tmp_path / "other" / "a.jpg", b"other"))
  assert not is_done(image_file(tmp_path / "other" / "a.jpg", b"longer"))
  assert is_done(image_file(tmp_path / "moved" / "a.jpg", b"first", modified=8))
  assert not is_done(image_file(tmp_path / "one" / "a.jpg", b"other")), "replaced, with its time of change"
  assert is_done(image_file(tmp_path / "one" / "a.jpg", b"first")), "and put back"


def test_lines_of_earlier_versions_count_for_the_same_path_alone(tmp_path: pathlib.Path) -> None:
  here = image_file(tmp_path / "one" / "a.jpg", b"first")
  there = image_file(tmp_path / "other" / "a.jpg", b"first")
  label(open_folder(tmp_path / "out"), "a", here)
  log = tmp_path / "out" / "done_0.jsonl"
  line = json.loads(log.read_text())
  log.write_text(json.dumps({key: line[key] for key in ("name", "source", "bytes", "modified")}) + "\n")
  folder = open_folder(tmp_path / "out")
  assert folder.is_done("a", here, WANTED) and not folder.is_done("a", there, WANTED)


def test_images_without_files_differ_by_their_content(tmp_path: pathlib.Path) -> None:
  label(open_folder(tmp_path), "0", Fingerprint("folder/val/0", digest="d1"))
  folder = open_folder(tmp_path)
  assert folder.is_done("0", Fingerprint("folder/val/0", digest="d1"), WANTED)
  assert not folder.is_done("0", Fingerprint("folder/val/0", digest="d2"), WANTED)


def test_a_line_that_a_kill_cut_is_ignored(tmp_path: pathlib.Path) -> None:
  folder = open_folder(tmp_path)
  label(folder, "a")
  label(folder, "b")
  log = tmp_path / "done_0.jsonl"
  log.write_bytes(log.read_bytes()[:-9])
  folder = open_folder(tmp_path)
  assert folder.is_done("a", FINGERPRINT, WANTED) and not folder.is_done("b", FINGERPRINT, WANTED)
  label(folder, "c")
  folder = open_folder(tmp_path)
  assert folder.is_done("a", FINGERPRINT, WANTED) and folder.is_done("c", FINGERPRINT, WANTED)


def test_other_settings_are_refused_with_the_names_of_the_fields(tmp_path: pathlib.Path) -> None:
  label(open_folder(tmp_path, eval={"scales": (1.0,), "flip": False}), "a")
  open_folder(tmp_path, eval={"scales": (1.0,), "flip": False})
  with pytest.raises(ValueError, match=r"eval\.flip: True, there False.*--overwrite.*--output") as error:
    open_folder(tmp_path, eval={"scales": (1.0,), "flip": True})
  assert "\n" not in str(error.value)
  with pytest.raises(ValueError, match=r"step: 4, there 3.*weights: w2, there w1|weights: w2.*step: 4"):
    open_folder(tmp_path, eval={"scales": (1.0,), "flip": False}, weights="w2", step=4)


def test_damaged_settings_do_not_count_as_the_same(tmp_path: pathlib.Path) -> None:
  label(open_folder(tmp_path), "a")
  (tmp_path / SETTINGS).write_text("{")
  with pytest.raises(ValueError, match=r"predictions\.json is missing or damaged\): add --overwrite"):
    open_folder(tmp_path)


def test_a_moved_checkpoint_counts_as_the_same(tmp_path: pathlib.Path) -> None:
  label(open_folder(tmp_path, checkpoint="here/3"), "a")
  assert open_folder(tmp_path, checkpoint="there/3").is_done("a", FINGERPRINT, WANTED)


def test_overwriting_starts_again_and_can_be_resumed(tmp_path: pathlib.Path) -> None:
  label(open_folder(tmp_path), "a")
  label(open_folder(tmp_path, process=1), "b")
  folder = open_folder(tmp_path, overwrite=True, weights="w2")
  assert not folder.is_done("a", FINGERPRINT, WANTED) and not folder.is_done("b", FINGERPRINT, WANTED)
  label(folder, "a")
  folder = open_folder(tmp_path, weights="w2")
  assert folder.is_done("a", FINGERPRINT, WANTED) and not folder.is_done("b", FINGERPRINT, WANTED)
  assert json.loads((tmp_path / SETTINGS).read_text())["weights"] == "w2"


def test_settings_change_with_weights_and_with_fields_that_predictions_depend_on() -> None:
  def settings(value: float, info: DatasetInfo = cityscapes.INFO, **changes):
    config = defaults()
    config.dataset.name = "synthetic"
    config.update_from_flattened_dict(changes)
    variables = ({"head": {"kernel": np.full((2, 2), value, np.float32)}}, {})
    return settings_of(as_dict(config), weights_digest(variables), pathlib.Path("run/checkpoints/5"), 5, info)

  same = settings(1.0)
  assert settings(1.0) == same
  assert settings(1.0, **{"model.pretrained": "file.npz", "train.steps": 7, "model.dropout": 0.5}) == same
  assert settings(np.nextafter(np.float32(1), np.float32(2)))["weights"] != same["weights"]
  for field, value in (("eval.flip", True), ("eval.scales", (0.5, 1.0)), ("model.output_stride", 16)):
    assert settings(1.0, **{field: value}) != same
  assert settings(1.0, **{"eval.pad_to_grid": False}) != same
  assert settings(1.0, camvid.INFO) != same


def test_a_label_image_holds_ids_and_shows_the_colours_of_the_classes(tmp_path: pathlib.Path) -> None:
  labels = np.random.default_rng(0).integers(0, 19, (20, 30)).astype(np.uint8)
  label_image(labels, cityscapes.INFO).save(tmp_path / "a.png")
  with Image.open(tmp_path / "a.png") as image:
    np.testing.assert_array_equal(np.asarray(image), cityscapes.INFO.label_ids[labels])
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), cityscapes.INFO.palette[labels])


def test_ids_above_255_keep_their_value(tmp_path: pathlib.Path) -> None:
  info = DatasetInfo("big", ("a", "b"), np.zeros((2, 3), np.uint8), np.array([7, 40_000]))
  labels = np.random.default_rng(0).integers(0, 2, (5, 4))
  label_image(labels, info).save(tmp_path / "a.png")
  with Image.open(tmp_path / "a.png") as image:
    np.testing.assert_array_equal(np.asarray(image), info.label_ids[labels])


def test_labels_that_no_prediction_wrote_are_kept(tmp_path: pathlib.Path) -> None:
  truth = tmp_path / "labels/val/0.png"
  truth.parent.mkdir(parents=True)
  truth.write_bytes(b"truth")
  for overwrite in (False, True):
    with pytest.raises(
      ValueError, match=r"holds labels/val/0\.png, which --mode=predict did not write; .*--output="
    ):
      PredictionFolder(tmp_path, {}, overwrite=overwrite, process=0, remedy="")
  assert truth.read_bytes() == b"truth" and not (tmp_path / "predictions.json").exists()


def test_a_full_disk_leaves_the_labels_and_the_log_usable(tmp_path: pathlib.Path) -> None:
  folder = open_folder(tmp_path)
  label(folder, "a")
  size = (tmp_path / "done_0.jsonl").stat().st_size
  with (
    disks.file_size_limit(size + 10),
    pytest.raises(OSError, match=r"done_0\.jsonl: cannot be written") as error,
  ):
    label(folder, "b")
  assert "\n" not in str(error.value)
  other = open_folder(tmp_path / "other")
  with disks.file_size_limit(3), pytest.raises(OSError, match=r"labels/c\.png: cannot be written"):
    label(other, "c", content=b"four")
  again = open_folder(tmp_path)
  assert again.is_done("a", FINGERPRINT, WANTED) and not again.is_done("b", FINGERPRINT, WANTED)
  label(again, "b")
  assert open_folder(tmp_path).is_done("b", FINGERPRINT, WANTED)
  assert all(json.loads(line) for line in (tmp_path / "done_0.jsonl").read_text().splitlines())
  assert not list(tmp_path.rglob("*.part"))
