"""Disks that are full or cannot be written: a limit on the size of files, and small file systems in memory."""

import contextlib
import pathlib
import resource
import subprocess
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
  """Lets no file of this process grow beyond ``size`` bytes: a write stops in the middle, as on a full disk."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, options: str) -> Iterator[None]:
  """Mounts a file system of memory; skips the test where this user may not.

  Args:
    folder: where; created.
    options: of ``mount -t tmpfs``, such as ``size=2m`` or ``ro``.
  """
  folder.mkdir(parents=True, exist_ok=True)
  try:
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError):
    pytest.skip("needs the right to mount a file system")
  try:
    yield
  finally:
    subprocess.run(["umount", "-l", str(folder)], check=True)


def resize(folder: pathlib.Path, size: str) -> None:
  """Changes the size of a ``small_disk``."""
  subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
