"""Checksums of a checkpoint's files: a flipped byte in an array is a valid array, which trains and scores.

``checksums.json`` in the folder of a checkpoint holds the size and the CRC-32 of each file. Checkpoints of earlier
versions have none; of them only missing parts are noticed. ``weights_digest`` stands for arrays wherever they came
from.
"""

import hashlib
import json
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from rc_jax import files

FILE = "checksums.json"
FORMAT = 1

_CHUNK = 1 << 24  # bytes read at a time


def write(folder: pathlib.Path, items: Sequence[str]) -> None:
  """Writes the checksums of a complete checkpoint.

  Args:
    folder: of the checkpoint.
    items: subfolders whose files are listed. Orbax changes the files beside them later.

  Raises:
    OSError: a file cannot be read or written.
  """
  listed = {
    path.relative_to(folder).as_posix(): [path.stat().st_size, _crc32(path)]
    for item in items
    for path in sorted((folder / item).rglob("*"))
    if path.is_file()
  }
  files.atomic_write_text(folder / FILE, json.dumps({"format": FORMAT, "crc32": listed}) + "\n")


def damage(folder: pathlib.Path, items: Sequence[str]) -> str | None:
  """Compares the files of a checkpoint with their checksums.

  Args:
    folder: of the checkpoint.
    items: subfolders that must be there, and whose files are read.

  Returns:
    The first difference, such as ``"model/d/4f: 3 bytes, expected 5"``; None where there is none.
  """
  for item in items:
    if not (folder / item).is_dir():
      return f"{item} is missing"
  path = folder / FILE
  if not path.is_file():
    return None
  try:
    listed = json.loads(path.read_bytes())["crc32"]
    expected = {name: (int(size), int(crc)) for name, (size, crc) in listed.items()}
  except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
    return f"{FILE} cannot be read"
  for name, (size, crc) in expected.items():
    file = folder / name
    if name.partition("/")[0] not in items:
      continue
    if not file.is_file():
      return f"{name} is missing"
    if file.stat().st_size != size:
      return f"{name}: {file.stat().st_size:,} bytes, expected {size:,}"
    if _crc32(file) != crc:
      return f"{name} does not fit its checksum"
  return None


def weights_digest(variables: Any) -> str:
  """Returns 16 hexadecimal digits that stand for the names and values of arrays: ``(params, batch_stats)``."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree.leaves_with_path(variables):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()[:16]


def _crc32(path: pathlib.Path) -> int:
  crc = 0
  with path.open("rb") as file:
    while chunk := file.read(_CHUNK):
      crc = zlib.crc32(chunk, crc)
  return crc
