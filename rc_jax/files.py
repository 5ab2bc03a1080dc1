"""Atomic writes: after a kill or on a full disk, a file holds its old content or its new content. And files of text.

Every error of writing is one line with the file, the reason and the remedy.

Files are UTF-8 on each system, whatever its locale is.
"""

import codecs
import contextlib
import errno
import io
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
_REMEDIES = {
  errno.EROFS: "choose a folder on a file system that can be written",
  errno.EACCES: "choose a folder that this user may write to",
  errno.EPERM: "choose a folder that this user may write to",
  errno.EFBIG: "raise the limit of the size of files (ulimit -f)",
  errno.ENAMETOOLONG: "choose a shorter name",
  errno.EEXIST: "move the file of that name away",
  errno.ENOTDIR: "move the file away that takes the place of a folder",
}
# Some network and FUSE file systems answer so where the new name of a file exists.
_NO_REPLACE = (errno.EEXIST, errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)
REPLACED = ".rc_jax_replaced"  # the end of a file's name between the two renames there


class WriteError(OSError):
  """A file or folder cannot be written; one line.

  Attributes:
    problem: the line without the remedy, for a message with another.
  """

  def __init__(self, problem: str, remedy: str):
    super().__init__(f"{problem}; {remedy}")
    self.problem = problem


def write_error(path: pathlib.Path, error: OSError, action: str = "written") -> WriteError:
  """Returns an error in one line: the path, the reason and what to do.

  Args:
    path: the file or folder that cannot be written.
    error: as the system or a library raised it.
    action: what cannot be done with it.
  """
  reason = one_line(error.strerror or error)
  remedy = _REMEDIES.get(error.errno or 0, "free space there or write to another folder")
  return WriteError(f"{path}: cannot be {action} ({reason})", remedy)


def make_folder(folder: pathlib.Path) -> None:
  """Creates a folder with its parents, unless it exists.

  Raises:
    WriteError: it cannot be created; one line.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise write_error(folder, error, "created") from error


def check_writable(folder: pathlib.Path) -> None:
  """Creates a folder and writes a file into it, before hours of computing for which the folder is meant.

  Raises:
    WriteError: the folder cannot be written; one line.
  """
  make_folder(folder)
  probe = folder / f".{os.getpid()}.part"
  try:
    probe.write_bytes(b"0")
  except OSError as error:
    raise write_error(folder, error) from error
  finally:
    with contextlib.suppress(OSError):
      probe.unlink()


@contextlib.contextmanager
def atomic_write(target: pathlib.Path) -> Iterator[BinaryIO]:
  """Opens a temporary file beside ``target`` for writing, and renames it to ``target`` at the end.

  Readers find the old file or the complete new one. Where an exception ends the block, the old file stays.

  Args:
    target: the file to write; its folder exists.

  Raises:
    WriteError: the file cannot be written; one line with its name.
  """
  partial = target.with_name(f".{target.name}.part")
  try:
    with partial.open("wb") as file:
      yield file
    _replace(partial, target)
  except OSError as error:
    raise write_error(target, error) from error
  finally:
    with contextlib.suppress(OSError):
      partial.unlink(missing_ok=True)  # an incomplete file would use space on a full disk


def move(source: pathlib.Path, target: pathlib.Path) -> None:
  """Renames a file or folder on one file system; a file replaces another of that name.

  Raises:
    WriteError: the file system refuses; one line.
  """
  try:
    _replace(source, target)
  except OSError as error:
    raise write_error(target, error) from error


def _replace(partial: pathlib.Path, target: pathlib.Path) -> None:
  """Renames a file to a name that may exist, also where a file system refuses that."""
  try:
    os.replace(partial, target)
    return
  except OSError as error:
    if error.errno not in _NO_REPLACE or not target.is_file():
      raise
  # Never without a complete file: a kill after the first of these renames leaves the old one for `put_back`.
  moved = target.with_name(f".{target.name}{REPLACED}")
  with contextlib.suppress(FileNotFoundError):
    moved.unlink()
  os.rename(target, moved)
  try:
    os.rename(partial, target)
  except OSError:
    os.rename(moved, target)
    raise
  moved.unlink()


def put_back(folder: pathlib.Path) -> None:
  """Restores the files in a folder and below that ``atomic_write`` had moved away when it was killed.

  Call it while no other process writes to the folder.
  """
  for moved in folder.rglob(f".*{REPLACED}"):
    target = moved.with_name(moved.name[1 : -len(REPLACED)])
    with contextlib.suppress(OSError):
      if target.exists():
        moved.unlink()
      else:
        os.rename(moved, target)


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


class AppendedFile:
  """A file that grows by complete pieces: a piece that does not fit leaves nothing, and waits for the next call."""

  def __init__(self, path: pathlib.Path):
    """Starts to append to a file, which the first piece creates where it is absent."""
    self.path = path
    self._pending = b""

  def append(self, piece: bytes) -> None:
    """Appends a piece, after those that could not be written before.

    Raises:
      WriteError: nothing was appended; one line. The piece is kept.
    """
    self.keep(piece)
    self.flush()

  def keep(self, piece: bytes) -> None:
    """Keeps a piece for the next `flush`."""
    self._pending += piece

  @property
  def is_complete(self) -> bool:
    """Whether every piece has been written."""
    return not self._pending

  def flush(self) -> None:
    """Appends the pieces that could not be written before.

    Raises:
      WriteError: nothing was appended; one line. The pieces are kept.
    """
    if not self._pending:
      return
    end = None
    try:
      # Without a buffer, which would hold the rest of a piece. Closed, because some network file systems report errors
      # there alone.
      with io.FileIO(self.path, "ab") as file:
        end = os.fstat(file.fileno()).st_size
        rest = memoryview(self._pending)
        while rest:
          rest = rest[file.write(rest) :]
    except OSError as error:
      if end is not None:
        with contextlib.suppress(OSError):
          os.truncate(self.path, end)
      raise write_error(self.path, error) from error
    self._pending = b""


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
