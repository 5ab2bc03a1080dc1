"""Locks of folders: one command at a time trains, predicts or prepares in a folder.

The kernel releases a lock (``flock``) when its process ends, however it ends. On some shared file systems the lock does
not reach other machines. Therefore the holder also renews the lock's file, and a command that finds the file of another
machine watches it before it takes the folder over. No clocks of two machines are compared.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from rc_jax import files
from rc_jax.console import say

FILE = ".lock"
_RENEWED_EVERY = 5.0  # seconds
_WATCHED_FOR = 16.0  # seconds: three renewals
_BOOT_ID = pathlib.Path("/proc/sys/kernel/random/boot_id")


@contextlib.contextmanager
def folder_lock(folder: pathlib.Path, remedy: str) -> Iterator[None]:
  """Creates a folder and holds its lock inside the ``with`` block.

  A lock that a killed process or a dead machine left behind is taken over: at once where it was of this machine, after
  16 seconds without a renewal where it was of another.

  Args:
    folder: the folder to write to.
    remedy: the end of the error message, such as ``"choose another --workdir"``.

  Raises:
    ValueError: another process holds the lock; one line that names the process and its machine. Or it is a file.
    OSError: the folder cannot be written.
  """
  if folder.exists() and not folder.is_dir():
    raise ValueError(f"{folder}: is a file; expected a folder or a new name")
  files.make_folder(folder)
  path = folder / FILE
  descriptor, excludes = _open(path, remedy)
  try:
    holder = _read(path)
    # The kernel of this machine has already excluded its other processes.
    if holder and not (excludes and holder.get("boot") == _boot()):
      _watch(path, holder, remedy)
    content = {
      **{"host": socket.gethostname(), "process": os.getpid(), "boot": _boot()},
      **{"since": time.strftime("%Y-%m-%d %H:%M:%S"), "renewals": 0},
    }
    try:
      _write(descriptor, content)
    except OSError as error:
      if os.fstat(descriptor).st_size == 0:
        path.unlink()  # the next command would watch it for a sign of life
      raise files.write_error(folder, error) from error
    files.put_back(folder)
    stop = threading.Event()
    thread = threading.Thread(target=_renew, args=(descriptor, content, stop), name="lock", daemon=True)
    thread.start()
    try:
      yield
    finally:
      stop.set()
      thread.join()
      with contextlib.suppress(OSError):
        path.unlink()
  finally:
    os.close(descriptor)


def _open(path: pathlib.Path, remedy: str) -> tuple[int, bool]:
  """Opens and locks the file; returns its descriptor, and whether the file system has locks."""
  while True:
    try:
      descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
      raise files.write_error(path.parent, error) from error
    excludes = True
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      os.close(descriptor)
      raise _held(path, _read(path), remedy) from None
    except OSError:
      excludes = False  # a file system without locks, such as a mounted bucket
    # The last holder may have removed the file in between: its lock would exclude nobody.
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(descriptor), path.stat()):
        return descriptor, excludes
    os.close(descriptor)


def _watch(path: pathlib.Path, holder: dict[str, Any], remedy: str) -> None:
  """Raises the error of a held lock if the file changes while it is watched."""
  say(f"{path}: of {_described(holder)}; watching for {_WATCHED_FOR:g} s whether that is still running")
  end = time.monotonic() + _WATCHED_FOR
  while time.monotonic() < end:
    time.sleep(min(1.0, _WATCHED_FOR / 10))
    if _read(path) != holder:
      raise _held(path, holder, remedy)


def _held(path: pathlib.Path, holder: dict[str, Any], remedy: str) -> ValueError:
  return ValueError(f"{path.parent}: {_described(holder)} writes to this folder; {remedy}")


def _described(holder: dict[str, Any]) -> str:
  if "process" not in holder:
    return "another process"
  return f"process {holder['process']} on {holder.get('host')} (since {holder.get('since')})"


def _renew(descriptor: int, content: dict[str, Any], stop: threading.Event) -> None:
  while not stop.wait(_RENEWED_EVERY):
    content["renewals"] += 1
    with contextlib.suppress(OSError):  # a full disk, or a server that restarts: the next renewal may succeed
      _write(descriptor, content)


def _write(descriptor: int, content: dict[str, Any]) -> None:
  # In place: machines that share a file system see the change of an open file before they see a new one.
  text = json.dumps(content).encode() + b"\n"
  os.pwrite(descriptor, text, 0)
  os.ftruncate(descriptor, len(text))
  os.fsync(descriptor)


def _read(path: pathlib.Path) -> dict[str, Any]:
  """Returns the content of the file; nothing where it is empty, being written or gone."""
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError, RecursionError):
    return {}
  return content if isinstance(content, dict) else {}


def _boot() -> str:
  """Returns what distinguishes this machine, since it was started, from all others."""
  try:
    return _BOOT_ID.read_text(encoding="utf-8").strip()
  except OSError:
    return socket.gethostname()
