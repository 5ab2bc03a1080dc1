"""Suggests another folder, split or data set when the folder of the config is not that of the data set."""

import difflib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from rc_jax.data.reading.dataset import Dataset
from rc_jax.data.reading.listing import is_hidden
from rc_jax.data.reading.rearrange import MissingFolder, find_moves, same_split, shell_commands
from rc_jax.data.reading.source import IncompleteSplit, Source

SPLIT_FIELDS = "--config.dataset.train_split= or --config.eval.split="

_FOLDERS_READ = 200  # of a level: a wrong root may be the top of a disk
_SIMILAR_NAMES = 3


def suggest(
  name: str,
  root: str,
  parts: Sequence[str],
  needs_labels: bool,
  datasets: Mapping[str, Dataset],
  error: OSError,
) -> str:
  """Suggests how to read data set ``name`` when ``root`` lacks a folder of it; each suggestion has been tried.

  Args:
    name: of the data set.
    root: ``config.dataset.root``.
    parts: the splits to read; empty: the classes alone.
    needs_labels: whether they must have labels.
    datasets: all data sets by name. Where a folder has the signs of several, the first of them is suggested.
    error: of reading them.

  Returns:
    The end of an error message, ``"; did you mean DIR?"``; empty where nothing was found.
  """
  dataset = datasets[name]
  if not root or not dataset.signs:
    return ""
  path = pathlib.Path(os.path.expanduser(root))
  if not path.is_dir():
    siblings = {sibling.name: sibling for sibling in _folders(path.parent)}
    for close in difflib.get_close_matches(path.name, siblings, n=_SIMILAR_NAMES):
      for near in (siblings[close], *_folders(siblings[close])):
        if _can_read(dataset, near, parts, needs_labels):
          return f"; did you mean {near}?"
    return ""
  above = tuple(path.resolve().parents)[:2]
  below = list(_folders(path))
  for near in (*above, *below, *(inner for folder in below for inner in _folders(folder))):
    if _has_signs(dataset, near) and _can_read(dataset, near, parts, needs_labels):
      return f"; found the data set in {near}: give that folder"
  other_name = _suggest_name(name, path, parts, needs_labels, datasets)
  if other_name or not parts:
    return other_name
  present = _readable_splits(dataset, root, needs_labels)
  if isinstance(error, MissingFolder) and not any(
    same_split(part, wanted) for part in present for wanted in parts
  ):
    moves = suggest_moves(dataset, path, parts, needs_labels, error.folder)
    if moves:
      return moves
  return f"; or choose one of the splits there, {', '.join(present)}, with {SPLIT_FIELDS}" if present else ""


def labelled_splits(dataset: Dataset, root: str) -> list[str]:
  """Returns the splits below a root that can be read and have labels."""
  return _readable_splits(dataset, root, needs_labels=True)


def suggest_moves(
  dataset: Dataset, path: pathlib.Path, parts: Sequence[str], needs_labels: bool, missing: str
) -> str:
  """Returns the commands that bring folders to the places where the data set expects them.

  Args:
    dataset: the data set.
    path: its root.
    parts: the splits to read.
    needs_labels: whether they must have labels.
    missing: a folder that the root lacks, below it.

  Returns:
    The end of an error message; empty where no moves were found with which the splits can be read.
  """

  def check(root: str) -> None:
    for part in parts:
      _decode_first(_open(dataset, root, part, needs_labels))

  advice = "; the expected folders are there in other places, and these commands move them: "
  moves = find_moves(path, missing, parts, check)
  if moves:
    return advice + shell_commands(path, moves)
  # Archives that were unpacked side by side, one of which was given.
  parent = path.resolve().parent
  if parent == parent.parent:
    return ""
  moves = find_moves(parent, missing, parts, check)
  if not any(path.resolve().name == move.source.parts[0] for move in moves):
    return ""
  return f"{advice}{shell_commands(parent, moves)}; then give {parent}"


def _suggest_name(
  name: str, path: pathlib.Path, parts: Sequence[str], needs_labels: bool, datasets: Mapping[str, Dataset]
) -> str:
  if _has_signs(datasets[name], path):
    return ""
  for other, dataset in datasets.items():
    if other == name or not _has_signs(dataset, path):
      continue
    advice = f"; this looks like {other}: set --config.dataset.name={other}"
    known = dataset.splits_at(str(path))
    if parts and all(part in known for part in parts):
      if _can_read(dataset, path, parts, needs_labels, decode=True):
        return advice
      continue
    readable = [part for part in known if _can_read(dataset, path, (part,), needs_labels, decode=True)]
    if readable:
      return advice + (f" and a split of it, {' or '.join(readable)}, with {SPLIT_FIELDS}" if parts else "")
  return ""


def _readable_splits(dataset: Dataset, root: str, needs_labels: bool) -> list[str]:
  present = []
  for split in dataset.splits_at(root):
    with suppress(ValueError, OSError):
      if dataset.load(root, split).labelled or not needs_labels:
        present.append(split)
  return present


def _can_read(
  dataset: Dataset, path: pathlib.Path, parts: Sequence[str], needs_labels: bool, decode: bool = False
) -> bool:
  """Returns whether a root holds splits with examples; with ``decode``, the first of them is decoded."""
  try:
    if not parts:
      dataset.info_at(str(path))
    for part in parts:
      source = _open(dataset, str(path), part, needs_labels)
      if decode:
        _decode_first(source)
  except (ValueError, OSError):
    return False
  return True


def _open(dataset: Dataset, root: str, split: str, needs_labels: bool) -> Source:
  """Opens the complete pairs of a split; raises ValueError or OSError where there are none."""
  try:
    source = dataset.load(root, split)
  except IncompleteSplit as error:
    # Training stops at these defects too, but with a line that names them.
    if len(error.complete) + error.renames == 0:
      raise
    source = error.complete
  if needs_labels and not source.labelled:
    raise MissingFolder(f"{root}: the split {split} has no labels", getattr(source, "labels_in", ""))
  return source


def _decode_first(source: Source) -> None:
  if len(source):  # otherwise all labels wait to be renamed, and were tried then
    source[0]


def _has_signs(dataset: Dataset, path: pathlib.Path) -> bool:
  return any(all((path / sign).exists() for sign in signs) for signs in dataset.signs)


def _folders(path: pathlib.Path) -> Iterator[pathlib.Path]:
  try:
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not is_hidden(entry.name))
  except OSError:  # a folder that this user may not list
    return
  yield from folders[:_FOLDERS_READ]
