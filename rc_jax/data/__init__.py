"""Data sets, augmentation and the input pipeline. Other packages see NumPy arrays only."""

import difflib
import functools
import os
import pathlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rc_jax.class_table import class_differences
from rc_jax.data.datasets import ade20k, camvid, cityscapes, coco_stuff, folder, synthetic
from rc_jax.data.pipeline.batches import TrainBatches, evaluation_examples, train_batches
from rc_jax.data.prepared import reader
from rc_jax.data.reading.class_mapping import with_classes
from rc_jax.data.reading.dataset import Dataset, SubmissionFormat
from rc_jax.data.reading.dataset_info import IGNORE_LABEL, DatasetInfo
from rc_jax.data.reading.decode import read_image
from rc_jax.data.reading.examine import NEARLY_BLACK_BELOW, Examined, examine_all
from rc_jax.data.reading.listing import UNREAD_SUFFIXES, common_folder, files_in
from rc_jax.data.reading.locate import SPLIT_FIELDS, labelled_splits, suggest, suggest_moves
from rc_jax.data.reading.pairing import IMAGE_SUFFIXES
from rc_jax.data.reading.source import (
  Example,
  FilePairs,
  IncompleteSplit,
  Joined,
  Source,
  Subset,
  names_of_files,
  notes_of,
)
from rc_jax.data.split_facts import class_facts, examples_digest, split_facts

# A name of ``dataset.name`` -> all that is known of the data set. If a folder has the signs of several, error messages
# suggest the first. CamVid is late in the list because other data sets have its two folders too.
DATASETS: dict[str, Dataset] = {
  "ade20k": ade20k.DATASET,
  "cityscapes": cityscapes.DATASET,
  "coco_stuff_10k": coco_stuff.DATASET_10K,
  "coco_stuff_164k": coco_stuff.DATASET_164K,
  "folder": folder.DATASET,
  "camvid": camvid.DATASET,
  "synthetic": synthetic.DATASET,
}


def load(name: str, root: str, split: str, *, labels: bool = True, classes: str = "") -> Source:
  """Opens a split of a data set: lists its files and decodes none.

  Args:
    name: one of ``DATASETS``.
    root: the folder of the data set, raw or prepared by ``--mode=prepare``; a data set without files ignores it.
    split: one of ``splits``, an alias, or several joined by ``+``, which follow each other.
    labels: whether the caller needs labels.
    classes: ``config.dataset.classes``, a table of new names of the classes; empty: the classes of the data set.

  Returns:
    A picklable sequence of examples ``{"image": uint8 [H,W,3], "label": uint8 [H,W], "name": str}``; ``label`` is
    absent in a split without labels.

  Raises:
    ValueError: in one line: an unknown name or split, an empty folder, an image or label without its counterpart, or a
      split without labels where they are needed.
    FileNotFoundError: in one line: a missing folder, with the expected layout.
  """
  dataset = _with_classes(name, root, classes)
  with _with_suggestions(name, root, parts_of(name, split), labels):
    opened = functools.partial(reader.load, name, dataset) if _is_prepared(dataset, root) else dataset.load
    parts = tuple(opened(root, part) for part in parts_of(name, split))
  for part in parts:
    if not part.labelled and (labels or any(other.labelled for other in parts)):
      expected = f"expected {dataset.layout}" if dataset.layout else "expected a split with labels"
      raise ValueError(
        f"split {split!r} of {name}: the images in {_folder_of(part, root)} have no labels to train on or to score, "
        f"{expected}: add them (--mode=predict needs no labels){_labels_elsewhere(dataset, root, split, part)}"
      )
  return parts[0] if len(parts) == 1 else Joined(parts)


def info(name: str, root: str, classes: str = "") -> DatasetInfo:
  """Returns the classes of a data set; ``folder`` reads them from ``root``, a prepared data set from its index.

  Args:
    name: one of ``DATASETS``.
    root: the folder of the data set.
    classes: as for ``load``.

  Raises:
    ValueError: in one line: an unknown name, or a wrong table of classes.
    FileNotFoundError: in one line: there is no table of classes.
  """
  dataset = _with_classes(name, root, classes)
  if _is_prepared(dataset, root):
    return reader.info(name, dataset, root)
  with _with_suggestions(name, root):
    return dataset.info_at(root)


def parts_of(name: str, split: str) -> tuple[str, ...]:
  """Returns the splits that ``split`` joins: ``("train", "val")`` for ``train+val``, and for an alias of it.

  >>> parts_of("cityscapes", "trainval")
  ('train', 'val')
  """
  return tuple(_dataset(name).aliases.get(split, split).split("+"))


def splits(name: str, root: str) -> tuple[str, ...]:
  """Returns the names of the splits that a data set may have; for ``folder``, those that ``root`` has."""
  return _dataset(name).splits_at(root)


def _dataset(name: str) -> Dataset:
  if name not in DATASETS:
    close = difflib.get_close_matches(name, DATASETS, n=1, cutoff=0.4)
    remedy = f"did you mean {close[0]}?" if close else "choose one of them"
    raise ValueError(f"dataset.name is {name!r}, expected one of {', '.join(sorted(DATASETS))}: {remedy}")
  return DATASETS[name]


def _with_classes(name: str, root: str, classes: str) -> Dataset:
  """Returns a data set with the classes that the file ``classes`` gives it, if there is one.

  Raises:
    ValueError: in one line: the file is wrong, or ``root`` was prepared with other classes.
    FileNotFoundError: in one line: there is no such file.
  """
  dataset = _dataset(name)
  if not classes:
    return dataset
  mapped = with_classes(name, dataset, classes)
  if _is_prepared(dataset, root):
    # Its labels hold the train ids of the classes that it was prepared with.
    differences = class_differences(mapped.info_at(root).table(), reader.info(name, mapped, root).table())
    if differences:
      raise ValueError(
        f"{root}: was prepared with other classes than those of dataset.classes={classes} ({'; '.join(differences)}); "
        "prepare the raw data set with this table, into another folder"
      )
  return mapped


def _is_prepared(dataset: Dataset, root: str) -> bool:
  return dataset.has_files and reader.is_prepared(root)


@contextmanager
def _with_suggestions(
  name: str, root: str, parts: Sequence[str] = (), needs_labels: bool = False
) -> Iterator[None]:
  """Appends to an error about a missing folder what has been found to work in place of it."""
  try:
    yield
  except FileNotFoundError as error:
    suggestion = suggest(name, root, parts, needs_labels, DATASETS, error)
    raise FileNotFoundError(f"{error}{suggestion}") from None


def _labels_elsewhere(dataset: Dataset, root: str, split: str, part: Source) -> str:
  """Returns what else to do about a split without labels, as far as it has been found to work."""
  if not isinstance(part, FilePairs):
    return ""
  parts = parts_of(dataset.info_at(root).name, split)
  path = pathlib.Path(os.path.expanduser(root))
  moves = suggest_moves(dataset, path, parts, True, part.labels_in) if part.labels_in else ""
  others = ", ".join(labelled_splits(dataset, root))
  return moves or (f", or choose a split that has labels, {others}, with {SPLIT_FIELDS}" if others else "")


def _folder_of(part: Source, root: str) -> str:
  """Returns the folder of the images of a split that are pairs of files; otherwise the root."""
  if not isinstance(part, FilePairs):
    return root
  return str(common_folder(part.images))


__all__ = [
  "DATASETS",
  "IGNORE_LABEL",
  "IMAGE_SUFFIXES",
  "NEARLY_BLACK_BELOW",
  "UNREAD_SUFFIXES",
  "Dataset",
  "DatasetInfo",
  "Examined",
  "Example",
  "FilePairs",
  "IncompleteSplit",
  "Joined",
  "Source",
  "SubmissionFormat",
  "Subset",
  "TrainBatches",
  "class_facts",
  "evaluation_examples",
  "examine_all",
  "examples_digest",
  "files_in",
  "info",
  "load",
  "names_of_files",
  "notes_of",
  "parts_of",
  "read_image",
  "split_facts",
  "splits",
  "train_batches",
]
