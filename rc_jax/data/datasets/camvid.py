"""CamVid with the 11 classes of SegNet: 367 training, 101 validation and 233 test frames of 480x360 from a car."""

from collections.abc import Set

import numpy as np

from rc_jax.data.reading import (
  IGNORE_LABEL,
  Dataset,
  DatasetInfo,
  FilePairs,
  IdMistakes,
  check_root,
  check_split,
  pair_folders,
)

SPLITS = ("train", "val", "test")
LAYOUT = "images/<split>/*.jpg or *.png, and labels/<split>/*.png with the ids 0-10 and 11 for void"

# (name, colour) in the order of the ids, which are also the train ids.
_CLASSES = (
  ("sky", (128, 128, 128)),
  ("building", (128, 0, 0)),
  ("pole", (192, 192, 128)),
  ("road", (128, 64, 128)),
  ("pavement", (60, 40, 222)),
  ("tree", (128, 128, 0)),
  ("sign", (192, 128, 128)),
  ("fence", (64, 64, 128)),
  ("car", (64, 0, 128)),
  ("pedestrian", (64, 64, 0)),
  ("bicyclist", (0, 128, 192)),
)
_VOID = 11


def _mistake_in_label(ids: Set[int], unknown: Set[int]) -> str:
  if unknown == {255} and not ids <= {0, 255}:
    return "CamVid with 255 for void: write 11 in place of 255"
  if unknown and max(unknown) <= 31:
    return "the 32 classes of the original CamVid: convert them to the 11 of SegNet"
  return ""


INFO = DatasetInfo(
  name="camvid",
  class_names=tuple(name for name, _ in _CLASSES),
  palette=np.array([color for _, color in _CLASSES], np.uint8),
  label_ids=np.arange(len(_CLASSES)),
  mistakes=IdMistakes(_mistake_in_label),
)
TRAIN_IDS = {**{i: i for i in range(len(_CLASSES))}, _VOID: IGNORE_LABEL}


def load(root: str, split: str) -> FilePairs:
  """Lists a split of CamVid.

  Args:
    root: the folder that holds ``images/`` and ``labels/``.
    split: ``train``, ``val``, or ``test``, whose scores the field reports.

  Returns:
    The split, in the order of the file names.

  Raises:
    FileNotFoundError: a folder is missing.
    ValueError: the split is unknown or empty, or an image or a label has no counterpart.
  """
  check_split(split, INFO.name, SPLITS)
  images, labels = f"images/{split}", f"labels/{split}"
  path = check_root(root, INFO.name, LAYOUT, (images, labels))
  return pair_folders(INFO, TRAIN_IDS, path / images, path / labels)


DATASET = Dataset(
  info=INFO,
  splits=SPLITS,
  load=load,
  layout=LAYOUT,
  signs=(("images/train", "labels/train"), ("images/val", "labels/val")),
  image_counts={"train": 367, "val": 101, "test": 233},
)
