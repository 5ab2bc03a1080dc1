"""The images of a path or a split: which they are, their names, sizes and fingerprints."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from rc_jax.data import DatasetInfo
from rc_jax.data.reading.source import FilePairs
from rc_jax.predictions import images

INFO = DatasetInfo("two", ("a", "b"), np.array([[255, 0, 0], [0, 255, 0]], np.uint8), np.arange(2))


def photo(path: pathlib.Path, size: tuple[int, int] = (8, 6), **options) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)).save(
    path, **options
  )
  return path


def names(path: pathlib.Path, recursive: bool = False, outputs: pathlib.Path | None = None) -> list[str]:
  found = images.from_path(path, recursive, outputs or path / "predictions")
  return [image.name for image in found]


def test_a_path_is_a_file_or_the_images_of_a_folder_in_order(tmp_path: pathlib.Path) -> None:
  for name in ("b.jpg", "a.PNG", "notes.txt", "._b.jpg"):
    (tmp_path / name).touch()
  assert names(tmp_path) == ["a", "b"]
  assert names(tmp_path / "b.jpg") == ["b"]


def test_recursive_lists_all_folders_but_the_outputs(tmp_path: pathlib.Path) -> None:
  for name in ("a.jpg", "day/a.jpg", "day/far/b.v2.jpg", ".trash/c.jpg", "predictions/overlays/a.jpg"):
    photo(tmp_path / name)
  assert names(tmp_path) == ["a"]
  assert names(tmp_path, recursive=True) == ["a", "day/a", "day/far/b.v2"]


def test_hidden_folders_are_left_out_and_links_are_followed(tmp_path: pathlib.Path) -> None:
  for name in ("a.jpg", ".ipynb_checkpoints/b.jpg", "@eaDir/c.jpg", "__MACOSX/d.jpg"):
    photo(tmp_path / "set" / name)
  photo(tmp_path / "store/e.jfif", format="JPEG")
  (tmp_path / "set/linked").symlink_to(tmp_path / "store")
  (tmp_path / "store/loop").symlink_to(tmp_path / "store")
  assert names(tmp_path / "set", recursive=True) == ["a", "linked/e"]


def test_pictures_that_cannot_be_read_are_listed_with_their_error(tmp_path: pathlib.Path) -> None:
  """``--mode=predict`` names those, counts them and exits with 1."""
  for name in ("a.jpg", "b.jpg"):
    photo(tmp_path / name)
  for name in ("b.heic", "c.HEIC", "d.gif", "e.dng", "notes.txt"):
    (tmp_path / name).touch()
  (tmp_path / "f.jpg").symlink_to("/nowhere/f.jpg")
  found = images.from_path(tmp_path, False, tmp_path / "predictions")
  assert sorted(image.name for image in found) == ["a", "b", "c", "d", "e", "f"]
  errors = {}
  for image, pixels in images.read_ahead(found, threads=2):
    if isinstance(pixels, ValueError):
      errors[image.name] = str(pixels)
      assert image.size is None
  assert errors.keys() == {"c", "d", "e", "f"}
  assert f"{tmp_path / 'c.HEIC'}: is a picture of a type that is not read" in errors["c"]
  assert "convert it" in errors["d"] and "convert it" in errors["e"]
  assert "link to /nowhere/f.jpg, which does not exist" in errors["f"]


def test_a_path_without_images_is_refused(tmp_path: pathlib.Path) -> None:
  with pytest.raises(FileNotFoundError, match="holds no image"):
    names(tmp_path)
  with pytest.raises(FileNotFoundError, match="no such file or folder"):
    names(tmp_path / "nowhere")
  photo(tmp_path / "day" / "a.jpg")
  with pytest.raises(FileNotFoundError, match="hold 1: add --recursive"):
    names(tmp_path)


def test_two_images_of_one_stem_are_refused(tmp_path: pathlib.Path) -> None:
  for name in ("street.jpg", "street.png"):
    (tmp_path / name).touch()
  with pytest.raises(ValueError, match=r"street\.jpg.*street\.png"):
    names(tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_those_after_exif_rotation(orientation: int, tmp_path: pathlib.Path) -> None:
  exif = Image.Exif()
  exif[0x0112] = orientation
  path = photo(tmp_path / "a.jpg", (40, 24), exif=exif)
  (found,) = images.from_path(path, False, tmp_path / "out")
  assert found.size == found.read().shape[:2] == ((24, 40) if orientation < 5 else (40, 24))


def test_a_damaged_image_gives_its_error_and_the_others_are_read(tmp_path: pathlib.Path) -> None:
  rng = np.random.default_rng(1)
  for name in ("a", "b", "c"):
    Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(tmp_path / f"{name}.png")
  content = (tmp_path / "b.png").read_bytes()
  (tmp_path / "b.png").write_bytes(content[: len(content) // 2])
  (tmp_path / "d.png").write_text("hello")
  found = images.from_path(tmp_path, False, tmp_path / "out")
  assert [image.size for image in found] == [(30, 40)] * 3 + [None]
  read = {image.name: pixels for image, pixels in images.read_ahead(found, threads=2)}
  assert isinstance(read["b"], ValueError) and "b.png" in str(read["b"])
  assert isinstance(read["d"], ValueError) and "d.png" in str(read["d"])
  assert read["a"].shape == read["c"].shape == (30, 40, 3)
  assert list(read) == ["a", "b", "c", "d"]


def test_images_of_a_split_are_named_by_stems_and_no_label_is_read(tmp_path: pathlib.Path) -> None:
  files = (photo(tmp_path / "x" / "1.png"), photo(tmp_path / "y" / "2.png"))
  source = FilePairs(INFO, files, (tmp_path / "missing.png",) * 2, {0: 0, 1: 1})
  found = images.from_source(source, "val")
  assert [image.name for image in found] == ["1", "2"]
  assert found[0].read().shape == (6, 8, 3)


def test_images_of_a_split_with_repeated_stems_are_named_by_folders(tmp_path: pathlib.Path) -> None:
  files = (photo(tmp_path / "x" / "1.png"), photo(tmp_path / "y" / "1.png"))
  source = FilePairs(INFO, files, files, {0: 0, 1: 1})
  assert [image.name for image in images.from_source(source, "val")] == ["x/1", "y/1"]


class InMemory:
  """Three images without files."""

  info = INFO

  def __len__(self) -> int:
    return 3

  def __getitem__(self, index: int):
    return {"image": np.full((4, 5 + index, 3), index, np.uint8), "label": None, "name": f"drawn{index}"}


def test_images_of_a_split_without_files_are_listed() -> None:
  found = images.from_source(InMemory(), "val")
  assert [image.name for image in found] == ["drawn0", "drawn1", "drawn2"]
  assert [image.size for image in found] == [(4, 5), (4, 6), (4, 7)]
  assert (found[2].read() == 2).all()
  assert len({image.fingerprint.source for image in found}) == 3
  assert len({image.fingerprint.digest for image in found}) == 3


def test_images_of_one_size_follow_each_other(tmp_path: pathlib.Path) -> None:
  for name, size in (("a", (8, 6)), ("b", (6, 8)), ("c", (8, 6)), ("d", (6, 8))):
    photo(tmp_path / f"{name}.png", size)
  found = images.ordered_by_size(images.from_path(tmp_path, False, tmp_path / "out"))
  assert [image.name for image in found] == ["a", "c", "b", "d"]


def test_predictions_may_lie_beside_the_images(tmp_path: pathlib.Path) -> None:
  photo(tmp_path / "a.png")
  photo(tmp_path / "labels" / "a.png")
  photo(tmp_path / "more" / "b.png")
  for recursive, names in ((False, ["a"]), (True, ["a", "more/b"])):
    assert [image.name for image in images.from_path(tmp_path, recursive, tmp_path)] == names
