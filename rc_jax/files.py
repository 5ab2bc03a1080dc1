"""Atomic writes: after a kill or on a full disk, a file holds its old content or its new content. And files of text.

Files are UTF-8 on each system, whatever its locale is.
"""

import codecs
import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

# Longer marks first: that of UTF-32 begins as that of UTF-16 does.
_MARKS = (
  (codecs.BOM_UTF8, "utf-8-sig"),
  (codecs.BOM_UTF32_LE, "utf-32"),
  (codecs.BOM_UTF32_BE, "utf-32"),
  (codecs.BOM_UTF16_LE, "utf-16"),
  (codecs.BOM_UTF16_BE, "utf-16"),
)


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
  """Writes a text by ``atomic_write``, encoded by ``utf8``."""
  with atomic_write(target) as file:
    file.write(utf8(text))


def utf8(text: str) -> bytes:
  """Encodes a text in UTF-8. Names of files in it keep their bytes, which may be no UTF-8.

  >>> utf8("Straße"), utf8("caf\\udce9.png")
  (b'Stra\\xc3\\x9fe', b'caf\\xe9.png')
  """
  try:
    return text.encode("utf-8", "surrogateescape")
  except UnicodeEncodeError:
    return text.encode("utf-8", "backslashreplace")


def read_text(path: pathlib.Path) -> str:
  """Reads a text that a user wrote: UTF-8, or another encoding of Unicode that the file's first bytes state.

  Args:
    path: of the file.

  Raises:
    ValueError: the encoding is another one; one line with the file and the first line that shows it.
    OSError: the file cannot be read.
  """
  content = path.read_bytes()
  encoding = next((encoding for mark, encoding in _MARKS if content.startswith(mark)), "utf-8")
  remedy = "expected UTF-8: save the file as UTF-8"
  try:
    text = content.decode(encoding)
  except UnicodeDecodeError as error:
    line = content.count(b"\n", 0, error.start) + 1
    found = content[error.start : error.start + 1].hex()
    claimed = encoding.upper().removesuffix("-SIG")
    raise ValueError(f"{path}, line {line}: the byte 0x{found} is no text in {claimed}; {remedy}") from None
  if "\0" in text:
    line = text.count("\n", 0, text.index("\0")) + 1
    raise ValueError(
      f"{path}, line {line}: holds zero bytes, as UTF-16 without its first mark does; {remedy}"
    )
  return text


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
  except (ValueError, RecursionError) as error:  # the latter: brackets in brackets, thousands deep
    # Some file systems fill a file with zeros when the power fails.
    is_empty = not content.strip(b"\0 \r\n\t")
    reason = f"is empty ({len(content)} bytes)" if is_empty else f"is not JSON ({one_line(error)})"
    raise ValueError(f"{path}: {reason}; {remedy()}") from error
  if not isinstance(value, dict):
    raise ValueError(f"{path}: holds a {type(value).__name__}, expected a JSON object; {remedy()}")
  return value


def one_line(text: object, longest: int = 200) -> str:
  """Returns text that is not ours, such as an error of a library or a name in a file, fit for a message.

  Args:
    text: of any length. Characters that control a terminal become escapes.
    longest: letters to keep; three dots follow where there are more.

  >>> one_line("Bad magic\\nnumber", longest=6), one_line(chr(27) + "[2J")
  ('Bad ma...', '\\\\x1b[2J')
  """
  joined = " ".join(str(text)[: 4 * longest].split())
  shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in joined[: longest + 1])
  return shown if len(shown) <= longest else f"{shown[:longest]}..."
