"""Files are complete or absent, on full disks and on unusual file systems."""

import errno
import os
import pathlib

import numpy as np
import pytest

from rc_jax import files
from tests.support import disks


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


def test_a_line_that_does_not_fit_leaves_nothing_and_is_written_later(tmp_path: pathlib.Path) -> None:
  path = tmp_path / "log"
  path.write_bytes(b"first\n")
  log = files.AppendedFile(path)
  with disks.file_size_limit(20):
    log.append(b"second\n")
    for line in (b"third, too long\n", b"4\n"):
      with pytest.raises(
        files.WriteError, match=r"log: cannot be written \(File too large\); raise the limit"
      ):
        log.append(line)
      assert path.read_bytes() == b"first\nsecond\n"
  log.append(b"5\n")
  assert path.read_bytes() == b"first\nsecond\nthird, too long\n4\n5\n"


def test_flushing_writes_what_did_not_fit(tmp_path: pathlib.Path) -> None:
  log = files.AppendedFile(tmp_path / "new" / "log")
  with pytest.raises(files.WriteError, match="No such file or directory"):
    log.append(b"line\n")
  (tmp_path / "new").mkdir()
  log.flush()
  assert (tmp_path / "new" / "log").read_bytes() == b"line\n"


def refuse_existing(rename):
  """A rename as some FUSE and SMB file systems have it: the new name must be free."""

  def renamed(source, target) -> None:
    if os.path.exists(target):
      raise OSError(errno.EEXIST, "File exists")
    rename(source, target)

  return renamed


def test_a_file_system_that_replaces_no_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(os, "replace", refuse_existing(os.replace))
  target = tmp_path / "a.json"
  for text in ("one", "two", "three"):
    files.atomic_write_text(target, text)
    assert target.read_text() == text and os.listdir(tmp_path) == ["a.json"]
  rename = os.rename

  def cut(source, target) -> None:
    """A rename before whose second call the process is killed."""
    if str(source).endswith(".part"):
      raise KeyboardInterrupt
    rename(source, target)

  monkeypatch.setattr(os, "rename", cut)
  with pytest.raises(KeyboardInterrupt):
    files.atomic_write_text(target, "four")
  assert not target.exists()
  files.put_back(tmp_path)
  assert target.read_text() == "three" and os.listdir(tmp_path) == ["a.json"]


def test_a_file_that_was_replaced_is_not_put_back(tmp_path: pathlib.Path) -> None:
  (tmp_path / f".a.json{files.REPLACED}").write_text("old")
  (tmp_path / "a.json").write_text("new")
  files.put_back(tmp_path)
  assert (tmp_path / "a.json").read_text() == "new" and os.listdir(tmp_path) == ["a.json"]


def test_files_of_users_are_not_put_back(tmp_path: pathlib.Path) -> None:
  (tmp_path / "notes").mkdir()
  (tmp_path / "eval").mkdir()
  for name in (".env.old", ".notes.old", ".a.part"):
    (tmp_path / name).write_text(name)
  (tmp_path / "eval" / f".val.json{files.REPLACED}").write_text("scores")
  files.put_back(tmp_path)
  assert {path.name for path in tmp_path.iterdir()} == {".env.old", ".notes.old", ".a.part", "notes", "eval"}
  assert [path.name for path in (tmp_path / "eval").iterdir()] == ["val.json"]


@pytest.mark.parametrize("number", [errno.EEXIST, errno.ENOSPC, errno.EIO])
def test_where_no_rename_works_the_old_file_stays(tmp_path: pathlib.Path, monkeypatch, number) -> None:
  def fail(*unused: object) -> None:
    raise OSError(number, os.strerror(number))

  (tmp_path / "a.json").write_text("old")
  monkeypatch.setattr(os, "replace", fail)
  monkeypatch.setattr(os, "rename", fail)
  with pytest.raises(OSError, match=r"a\.json: cannot be written"):
    files.atomic_write_text(tmp_path / "a.json", "new")
  assert (tmp_path / "a.json").read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.run
def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(
  tmp_path: pathlib.Path, monkeypatch
) -> None:
  def refuse(*unused: object, **options: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pathlib.Path, "mkdir", refuse)
    with pytest.raises(
      OSError, match=r"new: cannot be created \(Permission denied\); .*this user may write to"
    ):
      files.check_writable(tmp_path / "new")
  files.check_writable(tmp_path / "new")
  assert not list((tmp_path / "new").iterdir())
  with disks.small_disk(tmp_path / "disk", "ro"):
    with pytest.raises(OSError, match=r"disk: cannot be written \(Read-only file system\); choose a folder"):
      files.check_writable(tmp_path / "disk")
    with pytest.raises(OSError, match=r"disk/new: cannot be created \(Read-only file system\)"):
      files.make_folder(tmp_path / "disk" / "new")


@pytest.mark.parametrize("size", [0, 30, 300])
def test_arrays_that_do_not_fit_leave_the_old_file(tmp_path: pathlib.Path, size: int) -> None:
  target = tmp_path / "a.npz"
  target.write_bytes(b"old")
  noise = np.random.default_rng(0).normal(size=1000)
  with (
    disks.file_size_limit(size),
    pytest.raises(files.WriteError, match="File too large"),
    files.atomic_write(target) as file,
  ):
    np.savez_compressed(file, noise=noise)
  assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.npz"]
