"""The door to the data sets: names, splits, roots."""

import numpy as np
import pytest

from rc_jax import data

OFFICIAL = [name for name in data.DATASETS if name != "folder"]


def _one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
  message = str(error.value)
  assert "\n" not in message
  return message


def test_an_unknown_name_is_answered_with_the_closest():
  with pytest.raises(ValueError) as error:
    data.load("cityscape", "", "train")
  message = _one_line(error)
  assert "dataset.name" in message and "did you mean cityscapes?" in message
  with pytest.raises(
    ValueError, match="ade20k, camvid, cityscapes, coco_stuff_10k, coco_stuff_164k, folder, "
  ):
    data.info("xyz", "")


@pytest.mark.parametrize("name", OFFICIAL)
def test_an_unknown_split_is_answered_with_the_known(name):
  with pytest.raises(ValueError) as error:
    data.load(name, "", "valid")
  known = "train, test" if name == "coco_stuff_10k" else "train, val"
  assert "'valid'" in _one_line(error) and known in str(error.value)


@pytest.mark.parametrize("name", [name for name in data.DATASETS if name != "synthetic"])
@pytest.mark.parametrize("root", ["", "missing", "empty", "file"])
def test_a_missing_root_is_answered_with_the_layout(tmp_path, name, root):
  (tmp_path / "empty").mkdir()
  (tmp_path / "file").write_text("no folder")
  with pytest.raises(FileNotFoundError) as error:
    data.load(name, root and str(tmp_path / root), "train")
  message = _one_line(error)
  assert "images" in message.lower() or "leftImg8bit" in message
  assert "--config.dataset.root=" in message or (name, root) == ("folder", "empty")
  assert (str(tmp_path / root) if root else "dataset.root is empty") in message
  # The tuple form of OSError would print an errno in front of the message.
  assert error.value.args == (message,)


@pytest.mark.parametrize("name", OFFICIAL)
def test_classes_are_complete(name):
  info = data.info(name, "")
  assert info.name == name
  assert info.num_classes == len(set(info.class_names)) == len(info.palette) == len(info.label_ids)
  assert info.palette.dtype == np.uint8 and info.palette.shape == (info.num_classes, 3)
  # The challenge gave roads and skyscrapers one colour.
  assert len(np.unique(info.palette, axis=0)) == info.num_classes - (name == "ade20k")
  assert len(np.unique(info.label_ids)) == info.num_classes
  assert info.ignore_label == 255
