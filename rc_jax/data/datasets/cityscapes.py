"""Cityscapes: 2975 training and 500 validation frames of 2048x1024 from 50 cities, 19 of 34 label ids evaluated."""

import pathlib

import numpy as np

from rc_jax.data.reading.source import (
  IGNORE_LABEL,
  DatasetInfo,
  FilePairs,
  by_key,
  check_root,
  check_split,
  pair_files,
)

# split -> (folder of images, folder of labels)
SPLITS = {
  "train": ("leftImg8bit/train", "gtFine/train"),
  "val": ("leftImg8bit/val", "gtFine/val"),
  # The labels that come with it are empty.
  "test": ("leftImg8bit/test", None),
  "train_coarse": ("leftImg8bit/train", "gtCoarse/train"),
  "train_extra": ("leftImg8bit/train_extra", "gtCoarse/train_extra"),
}
LAYOUT = (
  "the official layout leftImg8bit/<split>/<city>/*_leftImg8bit.png "
  "and gtFine/<split>/<city>/*_gtFine_labelIds.png (gtCoarse for the coarse splits)"
)
_IMAGE_END = "_leftImg8bit.png"

# (label id, name, train id, colour), as the official cityscapesScripts have it (helpers/labels.py).
_LABELS = (
  (0, "unlabeled", 255, (0, 0, 0)),
  (1, "ego vehicle", 255, (0, 0, 0)),
  (2, "rectification border", 255, (0, 0, 0)),
  (3, "out of roi", 255, (0, 0, 0)),
  (4, "static", 255, (0, 0, 0)),
  (5, "dynamic", 255, (111, 74, 0)),
  (6, "ground", 255, (81, 0, 81)),
  (7, "road", 0, (128, 64, 128)),
  (8, "sidewalk", 1, (244, 35, 232)),
  (9, "parking", 255, (250, 170, 160)),
  (10, "rail track", 255, (230, 150, 140)),
  (11, "building", 2, (70, 70, 70)),
  (12, "wall", 3, (102, 102, 156)),
  (13, "fence", 4, (190, 153, 153)),
  (14, "guard rail", 255, (180, 165, 180)),
  (15, "bridge", 255, (150, 100, 100)),
  (16, "tunnel", 255, (150, 120, 90)),
  (17, "pole", 5, (153, 153, 153)),
  (18, "polegroup", 255, (153, 153, 153)),
  (19, "traffic light", 6, (250, 170, 30)),
  (20, "traffic sign", 7, (220, 220, 0)),
  (21, "vegetation", 8, (107, 142, 35)),
  (22, "terrain", 9, (152, 251, 152)),
  (23, "sky", 10, (70, 130, 180)),
  (24, "person", 11, (220, 20, 60)),
  (25, "rider", 12, (255, 0, 0)),
  (26, "car", 13, (0, 0, 142)),
  (27, "truck", 14, (0, 0, 70)),
  (28, "bus", 15, (0, 60, 100)),
  (29, "caravan", 255, (0, 0, 90)),
  (30, "trailer", 255, (0, 0, 110)),
  (31, "train", 16, (0, 80, 100)),
  (32, "motorcycle", 17, (0, 0, 230)),
  (33, "bicycle", 18, (119, 11, 32)),
  (-1, "license plate", 255, (0, 0, 142)),
)
_CATEGORIES = {
  "flat": ("road", "sidewalk"),
  "construction": ("building", "wall", "fence"),
  "object": ("pole", "traffic light", "traffic sign"),
  "nature": ("vegetation", "terrain"),
  "sky": ("sky",),
  "human": ("person", "rider"),
  "vehicle": ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
}
_CATEGORY_OF = {name: category for category, names in _CATEGORIES.items() for name in names}
_EVALUATED = sorted(
  (train_id, own_id, name, color) for own_id, name, train_id, color in _LABELS if train_id != 255
)

INFO = DatasetInfo(
  name="cityscapes",
  class_names=tuple(name for _, _, name, _ in _EVALUATED),
  palette=np.array([color for _, _, _, color in _EVALUATED], np.uint8),
  label_ids=np.array([own_id for _, own_id, _, _ in _EVALUATED]),
  categories=tuple(_CATEGORY_OF[name] for _, _, name, _ in _EVALUATED),
)
# The id -1 is 255 in an 8-bit file.
TRAIN_IDS = {
  own_id % 256: IGNORE_LABEL if train_id == 255 else train_id for own_id, _, train_id, _ in _LABELS
}


def load(root: str, split: str) -> FilePairs:
  """Lists a split of Cityscapes.

  Args:
    root: the folder that holds ``leftImg8bit/`` and ``gtFine/`` (``gtCoarse/`` for the coarse splits).
    split: ``train``, ``val``; ``test``, which has no labels; ``train_coarse`` (the images of ``train``, coarsely
      labelled) or ``train_extra`` (19,998 more, coarsely).

  Returns:
    The split: cities in alphabetical order, frames in order within.

  Raises:
    FileNotFoundError: when a folder is missing.
    ValueError: when the split is unknown or empty, or an image or a label has no counterpart.
  """
  check_split(split, INFO.name, tuple(SPLITS))
  image_folder, label_folder = SPLITS[split]
  path = check_root(root, INFO.name, LAYOUT, tuple(filter(None, (image_folder, label_folder))))
  label_end = f"_{label_folder.partition('/')[0]}_labelIds.png" if label_folder else ""
  defects: list[str] = []
  return pair_files(
    INFO,
    TRAIN_IDS,
    _by_frame(path / image_folder, _IMAGE_END, defects),
    _by_frame(path / label_folder, label_end, defects) if label_folder else None,
    images_at=str(path / image_folder / f"*{_IMAGE_END}"),
    labels_at=str(path / (label_folder or "") / f"*{label_end}"),
    defects=defects,
  )


def _by_frame(folder: pathlib.Path, end: str, defects: list[str]) -> dict[str, pathlib.Path]:
  # <city>/<city>_<sequence>_<frame>: the city's folder belongs to the key, so that a file in a wrong one shows.
  files = (path for path in sorted(folder.glob("*/*")) if path.name.lower().endswith(end.lower()))
  named = ((str(path.relative_to(folder))[: -len(end)], path) for path in files)
  return by_key(named, (pathlib.Path(end).suffix,), defects)
