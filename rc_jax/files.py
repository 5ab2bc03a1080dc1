"""Files that are there whole or not at all: a kill or a full disk leaves the ones before."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def atomic_write(target: pathlib.Path) -> Iterator[BinaryIO]:
  """Opens a file beside its place for writing, and moves it there at the end: readers find the old one or the new one.

  Raises:
    OSError: it cannot be written; one line that names it.
  """
  partial = target.with_name(f".{target.name}.part")
  try:
    with partial.open("wb") as file:
      yield file
    os.replace(partial, target)
  except OSError as error:
    raise OSError(
      f"{target}: cannot be written ({error.strerror or error}); make room there or write to another folder"
    ) from error
  finally:
    with contextlib.suppress(OSError):
      partial.unlink(missing_ok=True)  # half a file takes room that is missing


def atomic_write_text(target: pathlib.Path, text: str) -> None:
  """Writes a text, in UTF-8, as ``atomic_write`` does."""
  with atomic_write(target) as file:
    file.write(text.encode())
