"""Kinds of files whose readers have each fault that ``benchmarks.fuzz`` must notice; run as the process that reads."""

import json
import os
import pathlib
import signal
import sys
import time

from benchmarks.fuzz import worker
from benchmarks.fuzz.kinds import KINDS, Kind
from benchmarks.fuzz.mutations import MARKER
from rc_jax.data.prepared import tiles

CONTENT = b"0123456789" * 20


def make(folder: pathlib.Path) -> None:
  (folder / "file").write_bytes(CONTENT)


def _changed(folder: pathlib.Path) -> bool:
  return (folder / "file").read_bytes() != CONTENT


def crash(folder: pathlib.Path, name: str) -> None:
  if _changed(folder):
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(folder: pathlib.Path, name: str) -> None:
  while _changed(folder):
    pass


def wait(folder: pathlib.Path, name: str) -> None:
  if _changed(folder):
    time.sleep(60)


def library_error(folder: pathlib.Path, name: str) -> None:
  if _changed(folder):
    json.loads("[")


def nameless_error(folder: pathlib.Path, name: str) -> None:
  if _changed(folder):
    tiles.TiledArray(b"", "a file")


def wrong(folder: pathlib.Path, name: str) -> int:
  return len((folder / "file").read_bytes()) + _changed(folder)


def large(folder: pathlib.Path, name: str) -> int:
  return len(bytes(b"x" * (200 << 20))) if _changed(folder) else 200 << 20


def run(folder: pathlib.Path, name: str) -> str:
  if _changed(folder):
    os.system(f"touch {MARKER}")
  return "right"


def right(folder: pathlib.Path, name: str) -> str:
  return "right"


READERS = (crash, hang, wait, library_error, nameless_error, wrong, large, run, right)
KINDS |= {reader.__name__: Kind(make, ("file",), reader) for reader in READERS}

if __name__ == "__main__":
  worker.main(sys.argv[1:])
