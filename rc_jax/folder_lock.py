"""Locks of folders: one command at a time trains, predicts or prepares in a folder.

The kernel releases a lock (``flock``) when its process ends, however it ends. On some shared file systems the lock does
not reach other machines, or there is none. Therefore the holder also renews the lock's file, and a command that finds
the file of another machine watches it before it takes the folder over. It then writes its name to the file, waits for
longer than a renewal, and gives way if the file has changed: of two commands that take a folder over, the later writer
keeps it. No clocks of two machines are compared.

The lock excludes, by file system:

- Local disks, and shared ones whose ``flock`` reaches all machines (NFS 4, Lustre with ``flock``): always.
- Shared ones whose ``flock`` holds on each machine alone, or that have none (NFS 3 without its lock service, Lustre
  with ``localflock``): where creating a file is exclusive (``O_EXCL``), which these are. A command finds the file that
  another created, also before that has written to it, and watches it.
- Mounted buckets, whose client may neither create exclusively nor show changes of other machines at once: commands of
  one machine exclude each other. Those of several machines do if changes are visible within some seconds.

The last two need a holder that renews its file within the time of the watch: a process that was suspended for longer
has lost its lock and does not know.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from rc_jax import files
from rc_jax.console import say

FILE = ".lock"
_RENEWED_EVERY = 5.0  # seconds
_WATCHED_FOR = 16.0  # seconds: three renewals
_CONFIRMED_AFTER = 6.0  # seconds: longer than a renewal, which shows that there is a holder
_BOOT_ID = pathlib.Path("/proc/sys/kernel/random/boot_id")


class FolderInUse(ValueError):
  """Another process holds the lock of a folder; one line that names the process and its machine."""


@contextlib.contextmanager
def folder_lock(folder: pathlib.Path, remedy: str, *, quiet: bool = False) -> Iterator[None]:
  """Creates a folder and holds its lock inside the ``with`` block; see the module for its limits.

  A lock that a killed process or a dead machine left behind is taken over: at once where it was of this machine, after
  22 seconds without a renewal where it was of another. A new lock takes 6 seconds on a file system without locks.

  Args:
    folder: the folder to write to.
    remedy: the end of the error message, such as ``"choose another --workdir"``.
    quiet: prints no line when it waits, for callers that try many folders.

  Raises:
    FolderInUse: another process holds the lock.
    ValueError: the folder is a file.
    OSError: the folder cannot be written.
  """
  if folder.exists() and not folder.is_dir():
    raise ValueError(f"{folder}: is a file; expected a folder or a new name")
  files.make_folder(folder)
  path = folder / FILE
  descriptor, created, excludes = _open(path, remedy)
  try:
    content = _claim(path, descriptor, created, excludes, remedy, quiet)
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


def _open(path: pathlib.Path, remedy: str) -> tuple[int, bool, bool]:
  """Opens and locks the file; returns its descriptor, whether it is new, and whether the file system has locks."""
  while True:
    created = True
    try:
      try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
      except FileExistsError:
        created = False
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
        return descriptor, created, excludes
    os.close(descriptor)


def _claim(
  path: pathlib.Path, descriptor: int, created: bool, excludes: bool, remedy: str, quiet: bool
) -> dict[str, Any]:
  """Writes the name of this process to the file; returns the content, or raises the error of a held lock."""
  holder = _read(path)
  # The kernel of this machine has already excluded its other processes.
  at_once = excludes and (created or holder.get("boot") == _boot())
  if not at_once and not quiet:
    say(f"{path}: {_reason_to_wait(holder, created)}")
  if not at_once and not created:
    # Also where the file is empty: the command that created it may be about to write to it.
    changed = _changed(path, holder, _WATCHED_FOR)
    if changed is not None:
      raise _held(path, changed or holder, remedy)
  content = {
    **{"host": socket.gethostname(), "process": os.getpid(), "boot": _boot(), "id": uuid.uuid4().hex},
    **{"since": time.strftime("%Y-%m-%d %H:%M:%S"), "renewals": 0},
  }
  try:
    _write(descriptor, content)
  except OSError as error:
    if os.fstat(descriptor).st_size == 0:
      path.unlink()  # the next command would watch it for a sign of life
    raise files.write_error(path.parent, error) from error
  if not at_once:
    # Another command may have ended its watch at the same moment. A renewal here would hide its name.
    changed = _changed(path, content, _CONFIRMED_AFTER)
    if changed is not None:
      raise _held(path, changed, remedy)
  return content


def _reason_to_wait(holder: dict[str, Any], created: bool) -> str:
  if created:
    what = f"watching for {_CONFIRMED_AFTER:g} s whether another machine writes to this folder"
    return f"the file system has no locks; {what}"
  seconds = _WATCHED_FOR + _CONFIRMED_AFTER
  return f"of {_described(holder)}; watching for {seconds:g} s whether that is still running"


def _changed(path: pathlib.Path, content: dict[str, Any], seconds: float) -> dict[str, Any] | None:
  """Returns another content that the file has or gets within so many seconds; None where it stays."""
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    time.sleep(min(1.0, seconds / 10))
    found = _read(path)
    if found != content:
      return found
  return None


def _held(path: pathlib.Path, holder: dict[str, Any], remedy: str) -> FolderInUse:
  return FolderInUse(f"{path.parent}: {_described(holder)} writes to this folder; {remedy}")


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
