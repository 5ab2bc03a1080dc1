"""Files are there whole or not at all."""

import os
import pathlib

import pytest

from rc_jax import files


def test_a_write_that_is_cut_leaves_the_old_file_and_nothing_else(tmp_path: pathlib.Path) -> None:
  target = tmp_path / "a.json"
  files.atomic_write_text(target, "old")
  with pytest.raises(KeyboardInterrupt), files.atomic_write(target) as file:
    file.write(b"new")
    raise KeyboardInterrupt
  assert target.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]
  files.atomic_write_text(target, "né")
  assert target.read_bytes() == "né".encode() and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no disk that is always full")
def test_a_full_disk_is_told_in_one_line(tmp_path: pathlib.Path) -> None:
  target = tmp_path / "a.json"
  target.write_text("old")
  told = r"a\.json: cannot be written \(No space left on device\)"
  with pytest.raises(OSError, match=told) as caught, files.atomic_write(target) as file:
    os.dup2(os.open("/dev/full", os.O_WRONLY), file.fileno())
    file.write(b"new")
  assert "\n" not in str(caught.value)
  assert target.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


def test_a_folder_that_is_missing_is_told_in_one_line(tmp_path: pathlib.Path) -> None:
  with pytest.raises(OSError, match=r"b\.json: cannot be written \(No such file or directory\)"):
    files.atomic_write_text(tmp_path / "nowhere" / "b.json", "text")


def test_what_a_library_says_is_passed_on(tmp_path: pathlib.Path) -> None:
  told = r"c\.jpg: cannot be written \(cannot write mode RGBA\)"
  with pytest.raises(OSError, match=told), files.atomic_write(tmp_path / "c.jpg"):
    raise OSError("cannot write mode RGBA")
