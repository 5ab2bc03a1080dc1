"""Which images a path means; what it labels them is tested in whole runs (``test_train.py``)."""

import pathlib

import pytest

from rc_jax.predict import image_files


def test_a_file_or_the_images_of_a_folder_in_order(tmp_path: pathlib.Path) -> None:
  for name in ("b.jpg", "a.PNG", "notes.txt", "._b.jpg"):
    (tmp_path / name).touch()
  assert [path.name for path in image_files(tmp_path)] == ["a.PNG", "b.jpg"]
  assert image_files(tmp_path / "b.jpg") == [tmp_path / "b.jpg"]


def test_nothing_to_label_is_said(tmp_path: pathlib.Path) -> None:
  with pytest.raises(FileNotFoundError, match="holds no image"):
    image_files(tmp_path)
  with pytest.raises(FileNotFoundError, match="no such file or folder"):
    image_files(tmp_path / "nowhere")


def test_two_images_of_one_stem_are_refused(tmp_path: pathlib.Path) -> None:
  for name in ("street.jpg", "street.png"):
    (tmp_path / name).touch()
  with pytest.raises(ValueError, match=r"street\.jpg.*street\.png"):
    image_files(tmp_path)
