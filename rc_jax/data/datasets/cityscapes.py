"""Cityscapes: 2975 training and 500 validation frames of 2048x1024 from 50 cities, 19 of 34 label ids evaluated."""

import pathlib
import re
from collections.abc import Set

import numpy as np

from rc_jax.data.reading import (
  IGNORE_LABEL,
  Dataset,
  DatasetInfo,
  FilePairs,
  IdMistakes,
  RecordFields,
  SubmissionFormat,
  TFDSBuild,
  check_root,
  check_split,
  files_by_key,
  is_hidden,
  pair_files,
)

# split -> (folder of images, folder of labels)
SPLITS = {
  "train": ("leftImg8bit/train", "gtFine/train"),
  "val": ("leftImg8bit/val", "gtFine/val"),
  # The labels in the archive of this split are empty.
  "test": ("leftImg8bit/test", None),
  "train_coarse": ("leftImg8bit/train", "gtCoarse/train"),
  "train_extra": ("leftImg8bit/train_extra", "gtCoarse/train_extra"),
}
LAYOUT = (
  "the official layout leftImg8bit/<split>/<city>/*_leftImg8bit.png "
  "and gtFine/<split>/<city>/*_gtFine_labelIds.png (gtCoarse for the coarse splits)"
)
_IMAGE_END = "_leftImg8bit.png"

# (label id, name, train id, colour), from the official cityscapesScripts (helpers/labels.py).
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


def _mistake_in_label(ids: Set[int], unknown: Set[int]) -> str:
  if 255 in ids and max(ids - {255}, default=0) <= 18:
    # Frames in label ids have 1 and 3 at their border and hardly ever 255; in train ids all of that border is 255.
    return "train ids (labelTrainIds, 0-18 and 255): give the *_labelIds.png as downloaded"
  if unknown and max(unknown) >= 1000:
    return "instance ids (instanceIds): give the *_labelIds.png as downloaded"
  return ""


def _mistake_in_split(ids: Set[int]) -> str:
  if ids and max(ids) <= 18:
    return "no id above 18 occurs, as if they were train ids (labelTrainIds) in place of label ids"
  return ""


INFO = DatasetInfo(
  name="cityscapes",
  class_names=tuple(name for _, _, name, _ in _EVALUATED),
  palette=np.array([color for _, _, _, color in _EVALUATED], np.uint8),
  label_ids=np.array([own_id for _, own_id, _, _ in _EVALUATED]),
  categories=tuple(_CATEGORY_OF[name] for _, _, name, _ in _EVALUATED),
  mistakes=IdMistakes(_mistake_in_label, _mistake_in_split),
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
    FileNotFoundError: a folder is missing.
    ValueError: the split is unknown or empty, or an image or a label has no counterpart.
  """
  check_split(split, INFO.name, tuple(SPLITS))
  image_folder, label_folder = SPLITS[split]
  path = check_root(root, INFO.name, LAYOUT, tuple(filter(None, (image_folder, label_folder))))
  label_end = f"_{label_folder.partition('/')[0]}_labelIds.png" if label_folder else ""
  defects: list[str] = []
  return pair_files(
    INFO,
    TRAIN_IDS,
    _files_by_frame(path / image_folder, _IMAGE_END, defects),
    _files_by_frame(path / label_folder, label_end, defects) if label_folder else None,
    images_at=str(path / image_folder / f"*{_IMAGE_END}"),
    labels_at=str(path / (label_folder or "") / f"*{label_end}"),
    defects=defects,
  )


def _files_by_frame(folder: pathlib.Path, end: str, defects: list[str]) -> dict[str, pathlib.Path]:
  # The city's folder is part of the key <city>/<city>_<sequence>_<frame>: a file in a wrong one is a defect.
  files = (
    path
    for path in sorted(folder.glob("*/*"))
    if path.name.lower().endswith(end.lower()) and not is_hidden(path.parent.name)
  )
  named = ((str(path.relative_to(folder))[: -len(end)], path) for path in files)
  return files_by_key(named, (pathlib.Path(end).suffix,), defects)


def _frame_of(stem: str) -> str | None:
  match = re.match(r"[A-Za-z-]+_\d{6}_\d{6}(?!\d)", stem)
  return match.group() if match else None


DATASET = Dataset(
  info=INFO,
  splits=tuple(SPLITS),
  load=load,
  layout=LAYOUT,
  signs=(("leftImg8bit",), ("gtFine",)),
  aliases={"trainval": "train+val"},
  image_counts={"train": 2_975, "val": 500, "test": 1_525, "train_coarse": 2_975, "train_extra": 19_998},
  # cityscapesScripts finds <city>_<sequence>_<frame>*.png (evalPixelLevelSemanticLabeling.getPrediction) and stops
  # with "Found multiple predictions" at a second one.
  submission=SubmissionFormat(
    name="cityscapes",
    key=_frame_of,
    file_name="{}_labelIds.png",
    names="<city>_<6 digits>_<6 digits>*.png",
    size=(1024, 2048),
  ),
  tfds=TFDSBuild(
    fields=RecordFields("image_left", "segmentation_label", "image_id", TRAIN_IDS, converted=False),
    splits={"val": "validation"},
    unlabelled=("test",),
  ),
)
