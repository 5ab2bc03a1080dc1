"""Renames, merges and leaves out classes of a data set, as a file of the user says."""

import dataclasses
import difflib
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from rc_jax.data.reading.class_csv import IGNORED, check_class_name, is_ignored, read_rows
from rc_jax.data.reading.dataset import Dataset
from rc_jax.data.reading.dataset_info import IGNORE_LABEL, DatasetInfo
from rc_jax.data.reading.source import Example, FilePairs, IncompleteSplit, Source, WrappedSource
from rc_jax.files import one_line

FIELD = "dataset.classes"
_COLUMNS = (("class", "name"),)
_SHOWN = 3


@dataclasses.dataclass(frozen=True, eq=False)
class ClassMapping:
  """The classes of a data set after a mapping.

  Attributes:
    info: the new classes.
    train_ids: train id of the data set -> new train id, or 255 where ignored; 255 -> 255.
  """

  info: DatasetInfo
  train_ids: dict[int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Relabelled(WrappedSource):
  """A split that is not stored as files, with the classes of a mapping."""

  mapping: ClassMapping

  @property
  def info(self) -> DatasetInfo:
    return self.mapping.info

  def __getitem__(self, index: int) -> Example:
    example = self.source[index]
    if "label" not in example:
      return example
    table = np.full(256, IGNORE_LABEL, np.uint8)
    for old, new in self.mapping.train_ids.items():
      table[old] = new
    return {**example, "label": table[example["label"]]}


def with_classes(name: str, dataset: Dataset, file: str) -> Dataset:
  """Returns a data set with the classes that a file gives it.

  Args:
    name: of the data set.
    dataset: whose classes are the same in every folder.
    file: the table, see ``read_mapping``.

  Raises:
    ValueError: in one line: the data set states its classes itself, or the table is wrong.
    FileNotFoundError: in one line: there is no such file.
  """
  if not isinstance(dataset.info, DatasetInfo):
    raise ValueError(
      f"{FIELD} is {file}, but the data set {name} states its classes in its folder: give ids one name, or the name "
      f"{IGNORED}, there, and leave {FIELD} empty"
    )
  mapping = read_mapping(pathlib.Path(os.path.expanduser(file)), dataset.info)

  def load(root: str, split: str) -> Source:
    try:
      return _relabelled(dataset.load(root, split), mapping)
    except IncompleteSplit as error:
      error.complete = _relabelled_files(error.complete, mapping)
      raise

  build = dataset.tfds
  if build is not None:
    fields = dataclasses.replace(build.fields, train_ids=_composed(build.fields.train_ids, mapping))
    build = dataclasses.replace(build, fields=fields)
  return dataclasses.replace(dataset, info=mapping.info, load=load, tfds=build, submission=None)


def read_mapping(path: pathlib.Path, info: DatasetInfo) -> ClassMapping:
  """Reads the new name of each class.

  The first line is ``class,name``. Every other line holds a class of the data set and its new name; each class has one
  line. Classes of one new name are one class; the name ``ignore``, in any letters, leaves pixels out. New classes have
  the order in which their names appear, and the colour and, in predictions, the id of their first line.

  Args:
    path: of the file; commas, semicolons or tabs separate the columns.
    info: the data set's classes.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a line of the file is wrong, or one is missing; the error names it.
  """
  if not path.is_file():
    raise FileNotFoundError(
      f"{path}: this table of {FIELD} does not exist; expected the first line class,name and a line for each of the "
      f"{info.num_classes} classes of {info.name}"
    )
  members: dict[str, list[int]] = {}
  seen: dict[str, int] = {}
  for line, row in read_rows(path, _COLUMNS)[1]:
    where = f"{path}, line {line}"
    if len(row) != 2:
      raise ValueError(f"{where}: has {len(row)} columns, expected 2: quote a name with a comma")
    old, new = row
    if old not in info.class_names:
      close = difflib.get_close_matches(old, info.class_names, n=1)
      advice = f"did you mean {close[0]!r}?" if close else "change it"
      raise ValueError(f"{where}: {info.name} has no class {one_line(repr(old), 80)}: {advice}")
    if old in seen:
      raise ValueError(f"{where}: the class {old!r} has line {seen[old]} already: remove one")
    check_class_name(new, where)
    seen[old] = line
    if not is_ignored(new):
      members.setdefault(new, []).append(info.class_names.index(old))
  missing = [name for name in info.class_names if name not in seen]
  if missing:
    names = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
    raise ValueError(
      f"{path}: lacks {len(missing)} of the {info.num_classes} classes of {info.name} ({names}): add a line for each, "
      f"with its own name or {IGNORED}"
    )
  if len(members) < 2:
    raise ValueError(f"{path}: makes {len(members)} classes, expected 2 or more: change it")
  return _mapping(info, members)


def _mapping(info: DatasetInfo, members: dict[str, list[int]]) -> ClassMapping:
  """Returns the mapping of ``{new name: old train ids}``."""
  first = [old_labels[0] for old_labels in members.values()]
  train_ids = dict.fromkeys([*range(info.num_classes), IGNORE_LABEL], IGNORE_LABEL)
  merged: dict[int, int] = {}
  for label, old_labels in enumerate(members.values()):
    train_ids |= dict.fromkeys(old_labels, label)
    merged |= {int(info.label_ids[old]): label for old in old_labels[1:]}
  # A group of classes is scored only where no new class is part of two groups.
  groups = [{info.categories[old] for old in labels} for labels in members.values() if info.categories]
  categories = tuple(next(iter(group)) for group in groups) if all(len(g) == 1 for g in groups) else ()
  new_info = dataclasses.replace(
    info,
    class_names=tuple(members),
    palette=info.palette[first],
    label_ids=info.label_ids[first],
    categories=categories,
    made_up_colors=frozenset(label for label, old in enumerate(first) if old in info.made_up_colors),
    merged_ids=merged,
    colors_in_labels=info.ids_by_color(),
  )
  return ClassMapping(new_info, train_ids)


def _composed(train_ids: Mapping[int, int], mapping: ClassMapping) -> dict[int, int]:
  return {own_id: mapping.train_ids[label] for own_id, label in train_ids.items()}


def _relabelled(source: Source, mapping: ClassMapping) -> Source:
  if isinstance(source, FilePairs):
    return _relabelled_files(source, mapping)
  return Relabelled(source, mapping)


def _relabelled_files(source: FilePairs, mapping: ClassMapping) -> FilePairs:
  return dataclasses.replace(source, info=mapping.info, train_ids=_composed(source.train_ids, mapping))
