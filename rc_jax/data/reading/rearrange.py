"""Finds moves of folders after which a data set can be read, and tries them on links before anybody is advised."""

import contextlib
import dataclasses
import difflib
import os
import pathlib
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence

from rc_jax.data.reading.listing import is_hidden

_DEPTH = 4  # levels below the root in which a folder is looked for
_MOST_FOLDERS = 2_000  # that are looked at: a wrong root may be the top of a disk
_CANDIDATES = 8  # for one missing folder
_ATTEMPTS = 40  # each lists a split and decodes an example
_MOST_MOVES = 4
_SPLIT_WORDS = {
  "train": r"train(?:ing)?",
  "val": r"val(?:id(?:ation)?)?",
  "test": r"test(?:ing)?",
}


class MissingFolder(FileNotFoundError):
  """A folder of a data set does not exist.

  Attributes:
    folder: its path below the root.
  """

  def __init__(self, message: str, folder: str):
    super().__init__(message)
    self.folder = folder

  def __reduce__(self) -> tuple[type["MissingFolder"], tuple[str, str]]:
    return MissingFolder, (str(self), self.folder)


@dataclasses.dataclass(frozen=True)
class Move:
  """A folder gets another place.

  Attributes:
    source: its path below the root.
    target: its new path below the root.
    contents: whether the files and folders in it move, and not it.
  """

  source: pathlib.PurePath
  target: pathlib.PurePath
  contents: bool = False


def find_moves(
  root: pathlib.Path, missing: str, splits: Sequence[str], check: Callable[[str], None]
) -> tuple[Move, ...]:
  """Finds moves of folders after which a data set can be read.

  Args:
    root: of the data set.
    missing: the folder that the data set lacks, below the root.
    splits: that are to be read.
    check: reads the data set in a root; raises MissingFolder, ValueError or OSError where that fails.

  Returns:
    The moves in their order, with which ``check`` has succeeded on links to the files; empty: none were found.
  """
  folders = list(_folders_below(root))
  attempts = iter(range(_ATTEMPTS))

  def search(moves: tuple[Move, ...], missing: str) -> tuple[Move, ...]:
    for folder in _candidates(folders, missing, splits):
      if any(_overlap(folder, move.source) for move in moves):
        continue
      for move in _ways(folder, pathlib.PurePath(missing)):
        if next(attempts, None) is None:
          return ()
        found = extended((*moves, move), missing)
        if found:
          return found
    return ()

  def extended(moves: tuple[Move, ...], missing: str) -> tuple[Move, ...]:
    try:
      with _rearranged(root, moves) as view:
        check(str(view))
    except MissingFolder as further:
      if further.folder == missing or len(moves) == _MOST_MOVES:
        return ()
      return search(moves, further.folder)
    except (ValueError, OSError):
      return ()
    return moves

  return search((), missing)


def shell_commands(root: pathlib.Path, moves: tuple[Move, ...]) -> str:
  """Returns moves below a root as one line for a shell."""
  commands, made = [], set()
  for move in moves:
    source, target = shlex.quote(str(root / move.source)), root / move.target
    if move.contents:
      commands.append(f"mv {source}/* {shlex.quote(str(target))}")
      continue
    if not target.parent.is_dir() and target.parent not in made:
      made.add(target.parent)
      commands.append(f"mkdir -p {shlex.quote(str(target.parent))}")
    commands.append(f"mv {source} {shlex.quote(str(target))}")
  return " && ".join(commands)


def _folders_below(root: pathlib.Path) -> Iterator[pathlib.PurePath]:
  """Yields the folders below a root, higher ones first, as paths below it."""
  level, count = [pathlib.PurePath()], 0
  for _ in range(_DEPTH):
    below = []
    for folder in level:
      try:
        with os.scandir(root / folder) as entries:
          names = sorted(entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name))
      except OSError:
        continue
      for name in names:
        count += 1
        if count > _MOST_FOLDERS:
          return
        below.append(folder / name)
        yield folder / name
    level = below


def _candidates(
  folders: list[pathlib.PurePath], missing: str, splits: Sequence[str]
) -> list[pathlib.PurePath]:
  """Returns the folders that may be a missing one, the likeliest first."""
  wanted = [split for split in splits if _is_of_split(pathlib.PurePath(missing), split)]
  parts = [part.casefold() for part in pathlib.PurePath(missing).parts]

  def rank(folder: pathlib.PurePath) -> tuple[bool, float, str]:
    same = [part.casefold() for part in folder.parts[-len(parts) :]] == parts
    return not same, -difflib.SequenceMatcher(None, missing, str(folder)).ratio(), str(folder)

  named = [
    folder
    for folder in folders
    if not rank(folder)[0] or any(_is_of_split(folder, split) for split in wanted)
  ]
  inside = pathlib.PurePath(missing)
  return sorted((folder for folder in named if not _overlap(folder, inside)), key=rank)[:_CANDIDATES]


def same_split(one: str, other: str) -> bool:
  """Returns whether two names mean the same split.

  >>> same_split("validation", "fold0/val"), same_split("trainval", "train")
  (True, False)
  """
  names = [name.rpartition("/")[2].casefold() for name in (one, other)]
  meant = [_splits_in(name) for name in names]
  return names[0] == names[1] or (len(meant[0]) == 1 and meant[0] == meant[1])


def _is_of_split(folder: pathlib.PurePath, split: str) -> bool:
  """Returns whether the name of a folder or of the one above it is that of a split, as in ``train/images``."""
  for part in reversed(folder.parts[-2:]):
    if _splits_in(part.casefold()) or part.casefold() == split.rpartition("/")[2].casefold():
      return same_split(part, split)
  return False


def _splits_in(name: str) -> set[str]:
  words = re.findall("|".join(_SPLIT_WORDS.values()), name)
  return {split for split, word in _SPLIT_WORDS.items() for each in words if re.fullmatch(word, each)}


def _ways(folder: pathlib.PurePath, missing: pathlib.PurePath) -> Iterator[Move]:
  """Yields the moves that bring a folder to the place of a missing one: together with its neighbours, or alone."""
  if folder.name == missing.name and len(folder.parts) > 1 and len(missing.parts) > 1:
    yield Move(folder.parent, missing.parent)
    if folder.parent.name == missing.parent.name:
      yield Move(folder.parent, missing.parent, contents=True)
  yield Move(folder, missing)


def _overlap(one: pathlib.PurePath, other: pathlib.PurePath) -> bool:
  return one == other or one in other.parents or other in one.parents


@contextlib.contextmanager
def _rearranged(root: pathlib.Path, moves: tuple[Move, ...]) -> Iterator[pathlib.Path]:
  """Makes a folder of links that looks like a root after moves; raises OSError where they cannot be made."""
  with tempfile.TemporaryDirectory() as temporary:
    view = pathlib.Path(temporary) / "view"
    view.symlink_to(root.resolve(), target_is_directory=True)
    for move in moves:
      source, target = view / move.source, view / move.target
      _unfold(view, move.source / "x" if move.contents else move.source)
      _unfold(view, move.target / "x" if move.contents else move.target)
      target.parent.mkdir(parents=True, exist_ok=True)
      pairs = (
        [(each, target / each.name) for each in source.iterdir()] if move.contents else [(source, target)]
      )
      for old, new in pairs:
        _check_inside(pathlib.Path(temporary), old, new)
        old.rename(new)
    yield view


def _check_inside(temporary: pathlib.Path, old: pathlib.Path, new: pathlib.Path) -> None:
  """Raises OSError where a move would reach beyond the links, to the data themselves, or overwrite something."""
  for parent in (old.parent, new.parent):
    if not parent.resolve().is_relative_to(temporary.resolve()):
      raise OSError(f"{parent}: is no folder of links")
  if os.path.lexists(new):
    raise FileExistsError(f"{new}: exists")


def _unfold(view: pathlib.Path, path: pathlib.PurePath) -> None:
  """Replaces the links on the way to a path by folders of links."""
  for folder in (view, *(view / above for above in reversed(path.parents[:-1]))):
    if folder.is_symlink():
      content = folder.resolve()
      folder.unlink()
      folder.mkdir()
      for name in os.listdir(content):
        (folder / name).symlink_to(content / name)
