"""Atomic writes: after a kill or on a full disk, a file holds its old content or its new content."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def atomic_write(target: pathlib.Path) -> Iterator[BinaryIO]:
  """Opens a temporary file beside ``target`` for writing, and renames it to ``target`` at the end.

  Readers find the old file or the complete new one. Where an exception ends the block, the old file stays.

  Args:
    target: the file to write; its folder exists.

  Raises:
    OSError: the file cannot be written; one line with its name.
  """
  partial = target.with_name(f".{target.name}.part")
  try:
    with partial.open("wb") as file:
      yield file
    os.replace(partial, target)
  except OSError as error:
    raise OSError(
      f"{target}: cannot be written ({error.strerror or error}); free space there or write to another folder"
    ) from error
  finally:
    with contextlib.suppress(OSError):
      partial.unlink(missing_ok=True)  # an incomplete file would use space on a full disk


def atomic_write_text(target: pathlib.Path, text: str) -> None:
  """Writes a text in UTF-8 by ``atomic_write``."""
  with atomic_write(target) as file:
    file.write(text.encode())
