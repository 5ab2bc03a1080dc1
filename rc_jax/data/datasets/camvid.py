"""CamVid with the 11 classes of SegNet: 367 training and 101 validation frames of 480x360, driven through a town."""

import numpy as np

from rc_jax.data.reading.source import (
  IGNORE_LABEL,
  IMAGE_SUFFIXES,
  LABEL_SUFFIXES,
  DatasetInfo,
  FilePairs,
  by_stem,
  check_root,
  check_split,
  pair_files,
)

SPLITS = ("train", "val")
LAYOUT = "images/<split>/*.jpg or *.png, and labels/<split>/*.png with the ids 0-10 and 11 for void"

# (name, colour) in the order of the ids, which are the train ids too.
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

INFO = DatasetInfo(
  name="camvid",
  class_names=tuple(name for name, _ in _CLASSES),
  palette=np.array([color for _, color in _CLASSES], np.uint8),
  label_ids=np.arange(len(_CLASSES)),
)
TRAIN_IDS = {**{i: i for i in range(len(_CLASSES))}, _VOID: IGNORE_LABEL}


def load(root: str, split: str) -> FilePairs:
  """Lists a split of CamVid.

  Args:
    root: the folder that holds ``images/`` and ``labels/``.
    split: ``train`` or ``val``.

  Returns:
    The split, in the order of the file names.

  Raises:
    FileNotFoundError: when a folder is missing.
    ValueError: when the split is unknown or empty, or an image or a label has no counterpart.
  """
  check_split(split, INFO.name, SPLITS)
  path = check_root(root, INFO.name, LAYOUT, (f"images/{split}", f"labels/{split}"))
  defects: list[str] = []
  return pair_files(
    INFO,
    TRAIN_IDS,
    by_stem(path / "images" / split, IMAGE_SUFFIXES, defects),
    by_stem(path / "labels" / split, LABEL_SUFFIXES, defects),
    images_at=str(path / "images" / split / "*.jpg"),
    labels_at=str(path / "labels" / split / "*.png"),
    defects=defects,
  )
