"""Any folder of images and label images, paired by name, with a table of the classes."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

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
from rc_jax.data.reading.class_csv import IGNORED, check_class_name, is_ignored, read_rows
from rc_jax.files import one_line, read_text

CLASSES_FILE = "classes.csv"
SPLIT_LISTS = "splits"
_COLUMNS = (("id", "name"), ("id", "name", "color"))
# Names that other tools give to pixels that count nowhere, in small letters.
_NAMES_OF_VOID = frozenset(
  (
    *("void", "ignored", "ignore label", "ignore index", "dont care", "don't care", "none", "undefined"),
    *("unlabeled", "unlabelled", "not labeled", "not labelled", "no label", "unannotated", "not annotated"),
  )
)
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
    split: any name. A split without a folder of labels has no labels and serves for prediction alone. Where there is a
      file ``splits/<split>.txt``, it lists the images, by their paths below ``images/``.

  Returns:
    The split, in the order of the paths.

  Raises:
    FileNotFoundError: a folder is missing.
    ValueError: the split is empty, an image or a label has no counterpart, or ``classes.csv`` is wrong.
  """
  path = check_root(root, "folder", LAYOUT, ())
  info, train_ids = read_classes(path / CLASSES_FILE)
  list_file = path / SPLIT_LISTS / f"{split}.txt"
  if list_file.is_file():
    return _load_list(path, list_file, info, train_ids)
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


def _load_list(
  root: pathlib.Path, list_file: pathlib.Path, info: DatasetInfo, train_ids: Mapping[int, int]
) -> FilePairs:
  """Lists the images that a file names, in the order of their paths, with the labels of the same paths."""
  check_root(str(root), "folder", LAYOUT, ("images",))
  images_in, labels_in = root / "images", root / "labels"
  defects: list[str] = []
  images = _listed_images(list_file, images_in, defects)
  labels = None
  if labels_in.is_dir():
    of_images = [(key, path) for key, path in _files_by_path(labels_in) if key in images]
    labels = files_by_key(of_images, LABEL_SUFFIXES, defects)
  pairs = pair_files(
    info,
    train_ids,
    images,
    labels,
    images_at=str(images_in / "*.jpg"),
    labels_at=str(labels_in / "*.png"),
    defects=defects,
  )
  return pairs if pairs.labelled else dataclasses.replace(pairs, labels_in="labels")


def _listed_images(
  list_file: pathlib.Path, images_in: pathlib.Path, defects: list[str]
) -> dict[str, pathlib.Path]:
  """Returns the images that a file lists, by their paths below ``images/`` without suffix.

  Args:
    list_file: an image in each line, by its path below ``images/`` with or without suffix. Empty lines count nothing.
    images_in: the folder ``images/``.
    defects: gets a line for each line of the file that names no image, several, or one again.

  Raises:
    ValueError: the file is empty, or no text.
  """
  paths: dict[str, list[pathlib.Path]] = {}
  for key, path in _files_by_path(images_in):
    if path.suffix.lower() in IMAGE_SUFFIXES:
      paths.setdefault(key, []).append(path)
  without_suffix = {str(path.relative_to(images_in)): key for key, same in paths.items() for path in same}
  lines: dict[str, int] = {}
  for number, line in enumerate(read_text(list_file).splitlines(), 1):
    name = line.strip()
    if not name:
      continue
    where = f"{list_file}, line {number}: {one_line(repr(name), 80)}"
    key = without_suffix.get(name, name)
    if key not in paths:
      defects.append(
        f"{where} is no image below {images_in}, expected a path there, with or without suffix: add the image or "
        "remove the line"
      )
    elif len(paths[key]) > 1:
      # Also where the line has a suffix: both have the same label.
      names = " and ".join(path.name for path in paths[key])
      defects.append(f"{where} matches {names}, expected one file for each image: remove one")
    elif key in lines:
      defects.append(f"{where} is in line {lines[key]} already, expected each image once: remove one")
    else:
      lines[key] = number
  if not lines and not defects:
    raise ValueError(f"{list_file}: lists no images, expected one in each line: add them")
  return {key: paths[key][0] for key in lines}


def info(root: str) -> DatasetInfo:
  """Returns the classes of a folder; raises as ``load`` for a missing folder or a wrong ``classes.csv``."""
  return read_classes(check_root(root, "folder", LAYOUT, ()) / CLASSES_FILE)[0]


def splits(root: str) -> tuple[str, ...]:
  """Returns the names of the lists in ``splits/``, or, where there is none, of the folders in ``images/``.

  A folder that holds folders of splits, as in a cross validation, gives these: ``fold0/train``, ``fold0/val``.
  """
  lists = pathlib.Path(os.path.expanduser(root)) / SPLIT_LISTS
  if lists.is_dir():
    listed = [path for path in files_in(lists, recursive=True) if path.suffix == ".txt"]
    if listed:
      return tuple(path.relative_to(lists).with_suffix("").as_posix() for path in listed)
  images = lists.parent / "images"
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
  ``#rrggbb``. Classes keep the order of the lines. Ids of one name are one class, with the place, the colour and, in
  predictions, the id of its first line. The name ``ignore``, in any letters, marks ids that count nowhere. Names that
  often have that meaning, such as ``void``, are classes with a note.

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
  columns, rows = read_rows(path, _COLUMNS)
  names: list[str] = []
  own_ids: list[int] = []
  colors: list[tuple[int, ...] | None] = []
  train_ids: dict[int, int] = {}
  notes: list[str] = []
  stated_colors: dict[int, tuple[int, ...] | None] = {}
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
    check_class_name(name, where)
    color = _color(color_text, where)
    if is_ignored(name):
      train_ids[int(own_id)] = IGNORE_LABEL
      continue
    if name in names:
      train_ids[int(own_id)] = names.index(name)
    else:
      train_ids[int(own_id)] = len(names)
      if _means_void(int(own_id), name):
        notes.append(
          f"{where}: {name!r} is a class of its own; if its pixels count nowhere, name it {IGNORED}"
        )
      names.append(name)
      own_ids.append(int(own_id))
      colors.append(color)
    stated_colors[int(own_id)] = color
  if not 2 <= len(names) <= IGNORE_LABEL:
    raise ValueError(f"{path}: lists {len(names)} classes, expected 2 to {IGNORE_LABEL}: change it")
  palette = colormap(len(names) + 1)[1:]
  for index, color in enumerate(colors):
    if color is not None:
      palette[index] = color
  merged = {
    own_id: label for own_id, label in train_ids.items() if label != IGNORE_LABEL and own_id not in own_ids
  }
  for label in dict.fromkeys(merged.values()):
    others = ", ".join(str(own_id) for own_id, other in merged.items() if other == label)
    notes.append(
      f"{path}: the ids {own_ids[label]}, {others} are one class, {names[label]!r}, which predictions have as "
      f"{own_ids[label]}"
    )
  made_up = frozenset(index for index, color in enumerate(colors) if color is None)
  info = DatasetInfo(
    name="folder",
    class_names=tuple(names),
    palette=palette,
    label_ids=np.array(own_ids),
    made_up_colors=made_up,
    merged_ids=merged,
    colors_in_labels=_colors_in_labels(stated_colors, merged, colors) if merged else {},
    notes=tuple(notes),
    mistakes=IdMistakes(
      remedy=f"convert the labels, or add a line to {CLASSES_FILE} (name {IGNORED}: not counted)"
    ),
  )
  return info, train_ids


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


def _colors_in_labels(
  stated: Mapping[int, tuple[int, ...] | None],
  merged: Mapping[int, int],
  colors: Sequence[tuple[int, ...] | None],
) -> dict[tuple[int, ...], list[int]]:
  """Returns each stated colour with the ids that may have it in a label's palette: in their line or their class."""
  ids: dict[tuple[int, ...], list[int]] = {}
  for own_id, color in stated.items():
    of_class = colors[merged[own_id]] if own_id in merged else color
    for each in dict.fromkeys((color, of_class)):
      if each is not None:
        ids.setdefault(each, []).append(own_id)
  return ids


def _files_by_path(folder: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
  """Lists the files in and below a folder, each with its path below it without suffix."""
  paths = files_in(folder, recursive=True)
  return [(str(path.relative_to(folder).with_suffix("")), path) for path in paths]


DATASET = Dataset(info=info, splits=splits, load=load, layout=LAYOUT, signs=((CLASSES_FILE,),))
