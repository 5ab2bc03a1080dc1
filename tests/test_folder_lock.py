"""One command at a time writes to a folder; a lock that a dead process or machine left behind is taken over."""

import contextlib
import errno
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from rc_jax import files, folder_lock
from tests.support import disks
from tests.support.paths import ROOT

OTHER_MACHINE = {
  "host": "node7",
  "process": 12,
  "boot": "another",
  "since": "2026-01-01 00:00:00",
  "renewals": 3,
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
  """Seconds become hundredths."""
  monkeypatch.setattr(folder_lock, "_RENEWED_EVERY", 0.05)
  monkeypatch.setattr(folder_lock, "_WATCHED_FOR", 0.3)
  monkeypatch.setattr(folder_lock, "_CONFIRMED_AFTER", 0.15)


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
  """A file system without locks, such as a mounted bucket."""

  def refuse(*arguments: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(folder_lock.fcntl, "flock", refuse)


def test_the_lock_excludes_and_is_released(tmp_path: pathlib.Path) -> None:
  folder = tmp_path / "new" / "run"
  for _ in range(2):
    with folder_lock.folder_lock(folder, "wait"):
      with (
        pytest.raises(
          folder_lock.FolderInUse, match=f"{folder}: process {os.getpid()} on .* writes to this folder; wait"
        ),
        folder_lock.folder_lock(folder, "wait"),
      ):
        pass
      with folder_lock.folder_lock(tmp_path / "another", "wait"):
        pass
    assert not list(folder.iterdir())


@pytest.mark.run
def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path: pathlib.Path) -> None:
  code = (
    "import pathlib, sys, time\n"
    "from rc_jax.folder_lock import folder_lock\n"
    "with folder_lock(pathlib.Path(sys.argv[1]), 'wait'):\n"
    "  print('locked', flush=True)\n"
    "  time.sleep(100)\n"
  )
  command = [sys.executable, "-c", code, str(tmp_path)]
  process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
  assert process.stdout is not None and process.stdout.readline() == "locked\n"
  with (
    pytest.raises(ValueError, match=f"process {process.pid} on"),
    folder_lock.folder_lock(tmp_path, "wait"),
  ):
    pass
  process.kill()
  process.communicate()
  assert (tmp_path / folder_lock.FILE).is_file()
  start = time.monotonic()
  with folder_lock.folder_lock(tmp_path, "wait"):
    assert time.monotonic() - start < 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("content", [json.dumps(OTHER_MACHINE), "", "[]", '{"host": "no', "{}"])
def test_the_lock_of_a_dead_machine_is_taken_over(content: str, tmp_path: pathlib.Path, capsys) -> None:
  (tmp_path / folder_lock.FILE).write_text(content)
  with folder_lock.folder_lock(tmp_path, "wait"):
    assert json.loads((tmp_path / folder_lock.FILE).read_text())["process"] == os.getpid()
  assert ("process 12 on node7" in capsys.readouterr().out) == ("node7" in content)


@pytest.mark.usefixtures("quick", "no_locks")
def test_without_locks_renewals_exclude(tmp_path: pathlib.Path, capsys) -> None:
  with folder_lock.folder_lock(tmp_path, "wait"):
    assert "the file system has no locks; watching for" in capsys.readouterr().out
    with pytest.raises(ValueError, match="writes to this folder"), folder_lock.folder_lock(tmp_path, "wait"):
      pass
    assert (tmp_path / folder_lock.FILE).is_file()
  with folder_lock.folder_lock(tmp_path, "wait"):
    pass


@pytest.mark.usefixtures("quick")
def test_a_machine_whose_locks_do_not_reach_this_one_excludes(tmp_path: pathlib.Path) -> None:
  path, stop = tmp_path / folder_lock.FILE, threading.Event()
  path.write_text(json.dumps(OTHER_MACHINE))

  def renew() -> None:
    renewals = OTHER_MACHINE["renewals"]
    while not stop.wait(0.02):
      renewals += 1
      path.write_text(json.dumps(OTHER_MACHINE | {"renewals": renewals}))

  thread = threading.Thread(target=renew)
  thread.start()
  try:
    with pytest.raises(ValueError, match="process 12 on node7"), folder_lock.folder_lock(tmp_path, "wait"):
      pass
  finally:
    stop.set()
    thread.join()


class Machines:
  """Two machines, each a thread, which share a folder; ``flock`` of one does not reach the other."""

  def __init__(self, monkeypatch: pytest.MonkeyPatch, flock: str) -> None:
    self._opened, self._written = (threading.Barrier(2) for _ in range(2))
    self._pwrite, self._flock, self._first = os.pwrite, flock, set()
    monkeypatch.setattr(folder_lock.fcntl, "flock", self._lock)
    monkeypatch.setattr(folder_lock.os, "pwrite", self._write)
    monkeypatch.setattr(folder_lock, "_boot", lambda: threading.current_thread().name)
    self._ended = threading.Semaphore(0)

  def _lock(self, *arguments: object) -> None:
    self._opened.wait(10)  # both have opened the file before either reads it
    if self._flock == "absent":
      raise OSError(errno.ENOLCK, "No locks available")

  def _write(self, descriptor: int, text: bytes, offset: int) -> int:
    name = threading.current_thread().name
    if name.startswith("machine") and name not in self._first:
      self._first.add(name)
      with contextlib.suppress(threading.BrokenBarrierError):
        self._written.wait(0.5)  # both have ended their watch before either writes, where both get so far
    return self._pwrite(descriptor, text, offset)

  def start_together(self, folder: pathlib.Path) -> list[str]:
    """Returns what each machine got, ``"holds"`` or its error; the holder keeps the lock until the other has ended."""
    results: list[str] = []

    def hold() -> None:
      try:
        with folder_lock.folder_lock(folder, "wait", quiet=True):
          results.append("holds")
          self._ended.acquire(timeout=5)
      except folder_lock.FolderInUse as error:
        results.append(str(error))
      self._ended.release()

    threads = [threading.Thread(target=hold, name=f"machine{i}") for i in range(2)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    return results


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("flock", ["absent", "on each machine"])
@pytest.mark.parametrize("left", [None, "", json.dumps(OTHER_MACHINE)], ids=["new", "empty", "stale"])
def test_of_two_machines_that_start_together_one_holds_the_lock(
  flock: str, left: str | None, tmp_path: pathlib.Path, monkeypatch, capsys
) -> None:
  if left is not None:
    (tmp_path / folder_lock.FILE).write_text(left)
  with monkeypatch.context() as patch:
    results = Machines(patch, flock).start_together(tmp_path)
  assert results.count("holds") == 1 and len(results) == 2, results
  assert sum(f"process {os.getpid()} on" in text for text in results) == 1
  assert not capsys.readouterr().out and not list(tmp_path.iterdir())


def test_a_file_is_no_folder(tmp_path: pathlib.Path) -> None:
  (tmp_path / "run").touch()
  with (
    pytest.raises(ValueError, match="is a file") as error,
    folder_lock.folder_lock(tmp_path / "run", "wait"),
  ):
    pass
  assert not isinstance(error.value, folder_lock.FolderInUse)


def test_a_lock_on_a_full_disk_is_an_error_in_one_line(tmp_path: pathlib.Path) -> None:
  with (
    disks.file_size_limit(0),
    pytest.raises(OSError, match=f"^{tmp_path}: cannot be written .File too large.; ") as error,
    folder_lock.folder_lock(tmp_path, "wait"),
  ):
    pass
  assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
  with folder_lock.folder_lock(tmp_path, "wait"):
    pass


@pytest.mark.run
def test_a_lock_in_a_folder_that_cannot_be_written(tmp_path: pathlib.Path) -> None:
  with (
    disks.small_disk(tmp_path / "disk", "ro"),
    pytest.raises(OSError, match=r"disk: cannot be written \(Read-only file system\); choose a folder"),
    folder_lock.folder_lock(tmp_path / "disk", "wait"),
  ):
    pass


@pytest.mark.usefixtures("quick", "no_locks")
def test_a_clock_that_is_set_back_changes_no_lock(tmp_path: pathlib.Path, monkeypatch) -> None:
  times = iter(range(2_000_000_000, 0, -100_000))
  monkeypatch.setattr(time, "time", lambda: next(times))
  with folder_lock.folder_lock(tmp_path, "wait"):
    os.utime(tmp_path / folder_lock.FILE, (2**31, 2**31))
    with pytest.raises(ValueError, match="writes to this folder"), folder_lock.folder_lock(tmp_path, "wait"):
      pass
  (tmp_path / folder_lock.FILE).write_text(json.dumps(OTHER_MACHINE))
  os.utime(tmp_path / folder_lock.FILE, (2**31, 2**31))
  with folder_lock.folder_lock(tmp_path, "wait"):
    pass


def test_files_that_a_kill_left_under_another_name_return_with_the_lock(tmp_path: pathlib.Path) -> None:
  (tmp_path / f".metrics.jsonl{files.REPLACED}").write_text("lines")
  with folder_lock.folder_lock(tmp_path, "wait"):
    assert (tmp_path / "metrics.jsonl").read_text() == "lines"
