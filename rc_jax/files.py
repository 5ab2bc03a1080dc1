"""Atomic writes: after a kill or on a full disk, a file holds its old content or its new content. And JSON files."""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO


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


def read_json_object(path: pathlib.Path, remedy: Callable[[], str]) -> dict[str, Any]:
  """Reads a file that holds one JSON object.

  Args:
    path: of the file.
    remedy: returns what to do where it is damaged, for the message.

  Raises:
    ValueError: the file is empty or holds something else; one line with its name.
    OSError: the file cannot be read.
  """
  content = path.read_bytes()
  try:
    value = json.loads(content)
  except (ValueError, RecursionError) as error:
    # Some file systems fill a file with zeros when the power fails.
    is_empty = not content.strip(b"\0 \r\n\t")
    reason = (
      f"is empty ({len(content)} bytes)" if is_empty else f"is not JSON ({' '.join(str(error).split())})"
    )
    raise ValueError(f"{path}: {reason}; {remedy()}") from error
  if not isinstance(value, dict):
    raise ValueError(f"{path}: holds a {type(value).__name__}, expected a JSON object; {remedy()}")
  return value
