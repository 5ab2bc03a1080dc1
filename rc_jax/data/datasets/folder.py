"""Any folder of images and label images, paired by name, with a table of the classes."""

import csv
import dataclasses
import io
import os
import pathlib
import re

import numpy as np

from rc_jax.data.reading import (
  IGNORE_LABEL,
  IMAGE_SUFFIXES,
  LABEL_SUFFIXES,
  Dataset,
  DatasetInfo,
  FilePairs,
  IdMistakes,
  check_root,
  colormap,
  files_by_key,
  files_in,
  is_hidden,
  pair_files,
)
from rc_jax.files import one_line, read_text

CLASSES_FILE = "classes.csv"
_SEPARATORS = (",", ";", "\t")
IGNORED = "ignore"
# Names that other tools give to pixels that count nowhere, in small letters.
_NAMES_OF_VOID = frozenset(
  (
    *("void", "ignored", "ignore label", "ignore index", "dont care", "don't care", "none", "undefined"),
    *("unlabeled", "unlabelled", "not labeled", "not labelled", "no label", "unannotated", "not annotated"),
  )
)
_LONGEST_NAME = 200
# The csv module refuses cells of more than 131,072 letters.
_LONGEST_HEAD = 1000
# They would change what a terminal or a page shows.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
# Folders of these names are splits, not parts of the split in whose folder they lie.
_SPLITS = ("train", "training", "trainval", "val", "valid", "validation", "test", "testing")
LAYOUT = (
  f"{CLASSES_FILE} with the columns id,name[,color], "
  "images/<split>/ and labels/<split>/ with files of the same names"
)


def load(root: str, split: str) -> FilePairs:
  """Lists a split of a folder.

  Args:
    root: holds ``classes.csv``, ``images/<split>/`` and ``labels/<split>/``. An image and its label have the same path
      below these but for the suffix; folders within are searched too, through links, but not hidden ones.
    split: any name. A split without a folder of labels has no labels and serves for prediction alone.

  Returns:
    The split, in the order of the paths.

  Raises:
    FileNotFoundError: a folder is missing.
    ValueError: the split is empty, an image or a label has no counterpart, or ``classes.csv`` is wrong.
  """
  path = check_root(root, "folder", LAYOUT, ())
  info, train_ids = read_classes(path / CLASSES_FILE)
  images_in, labels_in = path / "images" / split, path / "labels" / split
  # A missing folder of labels means that the split has none; an empty one is a mistake.
  check_root(root, "folder", LAYOUT, (f"images/{split}",))
  defects: list[str] = []
  images = _files_by_path(images_in)
  labels = _files_by_path(labels_in) if labels_in.is_dir() else None
  pairs = pair_files(
    info,
    train_ids,
    files_by_key(images, IMAGE_SUFFIXES, defects),
    None if labels is None else files_by_key(labels, LABEL_SUFFIXES, defects),
    images_at=str(images_in / "*.jpg"),
    labels_at=str(labels_in / "*.png"),
    images_in=images_in,
    listed=images,
    defects=defects,
  )
  return pairs if pairs.labelled else dataclasses.replace(pairs, labels_in=f"labels/{split}")


def info(root: str) -> DatasetInfo:
  """Returns the classes of a folder; raises as ``load`` for a missing folder or a wrong ``classes.csv``."""
  return read_classes(check_root(root, "folder", LAYOUT, ()) / CLASSES_FILE)[0]


def splits(root: str) -> tuple[str, ...]:
  """Returns the names of the folders in ``images/``.

  A folder that holds folders of splits, as in a cross validation, gives these: ``fold0/train``, ``fold0/val``.
  """
  images = pathlib.Path(os.path.expanduser(root)) / "images"
  names: list[str] = []
  for name in _folders_in(images):
    inner = [f"{name}/{split}" for split in _folders_in(images / name) if split.lower() in _SPLITS]
    names += inner if len(inner) > 1 else [name]  # one alone: a zip unpacked into a folder of its name
  return tuple(names)


def _folders_in(folder: pathlib.Path) -> list[str]:
  paths = folder.iterdir() if folder.is_dir() else ()
  return sorted(path.name for path in paths if path.is_dir() and not is_hidden(path.name))


def read_classes(path: pathlib.Path) -> tuple[DatasetInfo, dict[int, int]]:
  """Reads the table of classes.

  The first line names the columns, ``id,name`` or ``id,name,color``, with commas, semicolons or tabs between. Every
  other line holds an id of the labels (0..65535), the name of its class, and the colour of the class in pictures, as
  ``#rrggbb``. Classes keep the order of the lines. The name
  ``ignore``, in any letters, marks ids that count nowhere; several lines may have it. Names that often have that
  meaning, such as ``void``, are classes with a note.

  Args:
    path: the file.

  Returns:
    The classes, and the map from the ids of the table to train ids, 255 where ignored.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a line of the file is wrong; the error names it.
  """
  if not path.is_file():
    raise FileNotFoundError(f"{path}: this table of classes does not exist; expected {LAYOUT}")
  columns, rows = _table(path)
  names: list[str] = []
  own_ids: list[int] = []
  colors: list[tuple[int, ...] | None] = []
  train_ids: dict[int, int] = {}
  notes: list[str] = []
  for line, row in rows:
    where = f"{path}, line {line}"
    if len(row) > len(columns):
      raise ValueError(
        f"{where}: has more than {len(columns)} columns, expected {len(columns)}: quote a name with a comma"
      )
    own_id, name, color_text = (*row, "", "", "")[:3]
    if not (own_id.isdecimal() and len(own_id) < 20 and int(own_id) < 2**16):
      found = one_line(repr(own_id), 80)
      raise ValueError(f"{where}: the id is {found}, expected a number from 0 to 65535: change it")
    if int(own_id) in train_ids:
      raise ValueError(f"{where}: the id {own_id} is listed twice, expected each id once: remove one")
    if not name:
      raise ValueError(f"{where}: the id {own_id} has no name: add one, or {IGNORED}")
    if len(name) > _LONGEST_NAME or _CONTROL.search(name):
      raise ValueError(
        f"{where}: the name {one_line(repr(name), 80)} is longer than {_LONGEST_NAME} letters or holds control "
        "characters: choose another"
      )
    if name in names:
      raise ValueError(f"{where}: the name {name!r} is listed twice, expected each name once: choose another")
    ignored = name.casefold() == IGNORED
    train_ids[int(own_id)] = IGNORE_LABEL if ignored else len(names)
    if not ignored:
      if _means_void(int(own_id), name):
        notes.append(
          f"{where}: {name!r} is a class of its own; if its pixels count nowhere, name it {IGNORED}"
        )
      names.append(name)
      own_ids.append(int(own_id))
      colors.append(_color(color_text, where))
  if not 2 <= len(names) <= IGNORE_LABEL:
    raise ValueError(f"{path}: lists {len(names)} classes, expected 2 to {IGNORE_LABEL}: change it")
  palette = colormap(len(names) + 1)[1:]
  for index, color in enumerate(colors):
    if color is not None:
      palette[index] = color
  made_up = frozenset(index for index, color in enumerate(colors) if color is None)
  info = DatasetInfo(
    name="folder",
    class_names=tuple(names),
    palette=palette,
    label_ids=np.array(own_ids),
    made_up_colors=made_up,
    notes=tuple(notes),
    mistakes=IdMistakes(
      remedy=f"convert the labels, or add a line to {CLASSES_FILE} (name {IGNORED}: not counted)"
    ),
  )
  return info, train_ids


def _table(path: pathlib.Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
  """Reads the columns of the table and its other lines, with their numbers, in any of the forms of spreadsheets.

  These separate columns by commas, semicolons or tabs, write empty columns and lines at the end, and a first line
  ``sep=;``.
  """
  lines = io.StringIO(read_text(path), newline="")
  first = lines.readline()
  skipped = 1 if re.fullmatch(r"sep=.\s*", first) else 0
  head = lines.readline() if skipped else first
  for separator in _SEPARATORS:
    columns = [
      column.lower() for column in _cells(next(csv.reader([head[:_LONGEST_HEAD]], delimiter=separator), []))
    ]
    if columns in (["id", "name"], ["id", "name", "color"]):
      break
  else:
    found = one_line(head, 80) or "nothing"
    raise ValueError(f"{path}: the first line is {found}, expected id,name or id,name,color: add it")
  rows = csv.reader(lines, delimiter=separator, skipinitialspace=True)
  try:
    cells = [(rows.line_num + 1 + skipped, _cells(row)) for row in rows]
  except csv.Error as error:
    raise ValueError(
      f"{path}, line {rows.line_num + 1 + skipped}: is no line of a table ({one_line(error)}): change it"
    ) from None
  return columns, [(line, row) for line, row in cells if row]


def _cells(row: list[str]) -> list[str]:
  """Returns the cells of a line without the empty ones at its end."""
  cells = [cell.strip() for cell in row]
  while cells and not cells[-1]:
    cells.pop()
  return cells


def _means_void(own_id: int, name: str) -> bool:
  words = re.sub(r"[\s_-]+", " ", name.casefold())
  return words in _NAMES_OF_VOID or (own_id == IGNORE_LABEL and words == "background")


def _color(text: str, where: str) -> tuple[int, ...] | None:
  text = text.strip()
  if not text:
    return None
  if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
    raise ValueError(
      f"{where}: the color is {one_line(repr(text), 80)}, expected #rrggbb, such as #804080: change it"
    )
  return tuple(bytes.fromhex(text[1:]))


def _files_by_path(folder: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
  """Lists the files in and below a folder, each with its path below it without suffix."""
  paths = files_in(folder, recursive=True)
  return [(str(path.relative_to(folder).with_suffix("")), path) for path in paths]


DATASET = Dataset(info=info, splits=splits, load=load, layout=LAYOUT, signs=((CLASSES_FILE,),))
