"""Lists the files of folders: through links, without the folders that systems and tools hide among them."""

import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

# In lower case: thumbnails and bins of network storage, and what macOS, Windows and Linux leave.
_SYSTEM_FOLDERS = frozenset(("@eadir", "__macosx", "#recycle", "$recycle.bin", "lost+found"))
# Pictures that are not read, so that leaving them out needs a word. Camera raw files are among them because decoders
# read their thumbnails.
UNREAD_SUFFIXES = frozenset(
  (
    *(".gif", ".heic", ".heif", ".avif", ".jxl", ".jxr", ".jp2", ".j2k", ".jpf", ".jpx", ".tga", ".psd"),
    *(".exr", ".hdr", ".ppm", ".pgm", ".pbm", ".pnm", ".dcm"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
  )
)
_SHOWN = 3


def is_hidden(name: str) -> bool:
  """Returns whether a file or folder of this name holds no data of users.

  >>> [name for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX", "train") if is_hidden(name)]
  ['.ipynb_checkpoints', '@eaDir', '__MACOSX']
  """
  return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def files_in(folder: pathlib.Path, *, recursive: bool) -> list[pathlib.Path]:
  """Lists the files of a folder in the order of their paths, without hidden ones.

  Args:
    folder: links to files and folders in it are followed, but for links to a folder above them. A link to nothing is
      listed as a file.
    recursive: whether to list the files of the folders in it, too.

  Raises:
    ValueError: a folder cannot be listed.
  """
  resolved = folder.resolve()
  above = frozenset(_identity(each) for each in (resolved, *resolved.parents))
  return sorted(_walk(folder, recursive, above))


def left_out(folder: pathlib.Path, files: Iterable[pathlib.Path], suffixes: Sequence[str]) -> list[str]:
  """Returns a line on the pictures in a folder that are not read; none where there is no such picture.

  Args:
    folder: for the line.
    files: those of the folder.
    suffixes: of files that are read.
  """
  pictures = [path for path in files if path.suffix.lower() in UNREAD_SUFFIXES - set(suffixes)]
  if not pictures:
    return []
  endings = ", ".join(sorted({path.suffix.lower() for path in pictures}))
  names = ", ".join(str(path.relative_to(folder)) for path in pictures[:_SHOWN])
  more = ", ..." if len(pictures) > _SHOWN else ""
  return [
    f"{folder}: pictures left out: {len(pictures):,}, because files ending {endings} are not read ({names}{more}); "
    "convert them to JPEG or PNG"
  ]


def common_folder(files: Iterable[pathlib.Path]) -> pathlib.Path:
  """Returns the deepest folder that holds all of one or more files, in it or below it.

  >>> common_folder([pathlib.Path("set/a/1.png"), pathlib.Path("set/b/1.png")]).as_posix()
  'set'
  """
  return pathlib.Path(os.path.commonpath([path.parent for path in files]))


def _walk(folder: pathlib.Path, recursive: bool, above: frozenset[tuple[int, int]]) -> Iterator[pathlib.Path]:
  try:
    names = os.listdir(folder)
  except OSError as error:
    raise ValueError(f"{folder}: cannot be listed ({error.strerror}): check the permissions") from None
  for path in (folder / name for name in names if not is_hidden(name)):
    if not path.is_dir():
      yield path
    elif recursive:
      identity = _identity(path)
      if identity not in above:
        yield from _walk(path, recursive, above | {identity})


def _identity(folder: pathlib.Path) -> tuple[int, int]:
  status = folder.stat()
  return status.st_dev, status.st_ino
