"""Suggests another folder or data set when the folder of the config is not that of the data set."""

import difflib
import os
import pathlib
from collections.abc import Iterator, Mapping

from rc_jax.data.reading.dataset import Dataset
from rc_jax.data.reading.listing import is_hidden

_FOLDERS_READ = 200  # of a level: a wrong root may be the top of a disk


def suggest_root(name: str, root: str, datasets: Mapping[str, Dataset]) -> str:
  """Suggests where data set ``name`` is, when ``root`` lacks a folder of it.

  Args:
    name: of the data set.
    root: ``config.dataset.root``.
    datasets: all data sets by name. Where a folder has the signs of several, the first of them is suggested.

  Returns:
    The end of an error message, ``"; did you mean DIR?"``; empty where nothing was found.
  """
  if not root or not datasets[name].signs:
    return ""
  path = pathlib.Path(os.path.expanduser(root))
  if not path.is_dir():
    siblings = [sibling.name for sibling in _folders(path.parent)]
    close = difflib.get_close_matches(path.name, siblings, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""
  for folder in _folders(path):
    for inner in _folders(folder):
      if folder.name == inner.name:
        return f"; found {inner}, unpacked into a folder of the same name: move its content one level up"
  if _has_signs(datasets[name], path):
    return ""
  above = tuple(path.resolve().parents)[:2]
  below = list(_folders(path))
  for near in (*above, *below, *(inner for folder in below for inner in _folders(folder))):
    if _has_signs(datasets[name], near):
      return f"; found the data set in {near}: give that folder"
  for other, dataset in datasets.items():
    if other != name and _has_signs(dataset, path):
      return f"; this looks like {other}: set --config.dataset.name={other}"
  return ""


def _has_signs(dataset: Dataset, path: pathlib.Path) -> bool:
  return any(all((path / sign).exists() for sign in signs) for signs in dataset.signs)


def _folders(path: pathlib.Path) -> Iterator[pathlib.Path]:
  try:
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not is_hidden(entry.name))
  except OSError:  # a folder that this user may not list
    return
  yield from folders[:_FOLDERS_READ]
