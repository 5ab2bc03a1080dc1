"""COCO-Stuff, the 10k and the 164k release: images of any size, 171 classes of things and stuff."""

import pathlib

import numpy as np

from rc_jax.data.reading.palette import colormap
from rc_jax.data.reading.source import (
  IGNORE_LABEL,
  IMAGE_SUFFIXES,
  LABEL_SUFFIXES,
  DatasetInfo,
  FilePairs,
  by_key,
  by_stem,
  check_root,
  check_split,
  pair_files,
)

SPLITS_10K = ("train", "test")
LAYOUT_10K = (
  "that of cocostuff-10k-v1.1.zip, images/*.jpg, annotations/*.mat (field S with the ids 0 for unlabelled and 1-182) "
  "and imageLists/{train,test}.txt"
)
SPLITS_164K = {"train": "train2017", "val": "val2017"}
LAYOUT_164K = (
  "images/{train2017,val2017}/*.jpg of COCO 2017 and annotations/{train2017,val2017}/*.png of "
  "stuffthingmaps_trainval2017.zip (ids 0-181, 255 for unlabelled)"
)

# cocostuff-labels.txt, the ids 1-182.
# fmt: off
_NAMES = (
  "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
  "fire hydrant", "street sign", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse",
  "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "hat", "backpack", "umbrella", "shoe",
  "eye glasses", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
  "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle", "plate",
  "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
  "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "mirror",
  "dining table", "window", "desk", "toilet", "door", "tv", "laptop", "mouse", "remote", "keyboard",
  "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "blender", "book", "clock", "vase",
  "scissors", "teddy bear", "hair drier", "toothbrush", "hair brush", "banner", "blanket", "branch",
  "bridge", "building-other", "bush", "cabinet", "cage", "cardboard", "carpet", "ceiling-other",
  "ceiling-tile", "cloth", "clothes", "clouds", "counter", "cupboard", "curtain", "desk-stuff", "dirt",
  "door-stuff", "fence", "floor-marble", "floor-other", "floor-stone", "floor-tile", "floor-wood", "flower",
  "fog", "food-other", "fruit", "furniture-other", "grass", "gravel", "ground-other", "hill", "house",
  "leaves", "light", "mat", "metal", "mirror-stuff", "moss", "mountain", "mud", "napkin", "net", "paper",
  "pavement", "pillow", "plant-other", "plastic", "platform", "playingfield", "railing", "railroad", "river",
  "road", "rock", "roof", "rug", "salad", "sand", "sea", "shelf", "sky-other", "skyscraper", "snow",
  "solid-other", "stairs", "stone", "straw", "structural-other", "table", "tent", "textile-other", "towel",
  "tree", "vegetable", "wall-brick", "wall-concrete", "wall-other", "wall-panel", "wall-stone", "wall-tile",
  "wall-wood", "water-other", "waterdrops", "window-blind", "window-other", "wood",
)
# fmt: on
# Things that were named and never drawn: 171 classes are left.
_EMPTY = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
_IDS = tuple(own_id for own_id in range(1, len(_NAMES) + 1) if own_id not in _EMPTY)


def _info(name: str, first_id: int) -> DatasetInfo:
  ids = np.array(_IDS)
  return DatasetInfo(
    name=name,
    class_names=tuple(_NAMES[own_id - 1] for own_id in _IDS),
    # No colours come with the releases; their viewer shuffles a rainbow anew.
    palette=colormap(len(_NAMES) + 1)[ids],
    label_ids=ids - 1 + first_id,
    absent_class="not_in_truth",
  )


INFO_10K = _info("coco_stuff_10k", first_id=1)
INFO_164K = _info("coco_stuff_164k", first_id=0)


def _train_ids(info: DatasetInfo, unlabelled: int, first_id: int) -> dict[int, int]:
  nothing = {unlabelled: IGNORE_LABEL, **{own_id - 1 + first_id: IGNORE_LABEL for own_id in _EMPTY}}
  return {**nothing, **{int(own_id): i for i, own_id in enumerate(info.label_ids)}}


TRAIN_IDS_10K = _train_ids(INFO_10K, unlabelled=0, first_id=1)
TRAIN_IDS_164K = _train_ids(INFO_164K, unlabelled=IGNORE_LABEL, first_id=0)


def load_10k(root: str, split: str) -> FilePairs:
  """Lists a split of COCO-Stuff 10k.

  Args:
    root: the folder of ``images/``, ``annotations/`` and ``imageLists/``.
    split: ``train`` (9,000 images) or ``test`` (1,000, labelled too).

  Returns:
    The split, in the order of the file names.

  Raises:
    FileNotFoundError: when a folder or the list of the split is missing.
    ValueError: when the split is unknown or empty, or a listed image or its label is missing.
  """
  check_split(split, INFO_10K.name, SPLITS_10K)
  path = check_root(root, INFO_10K.name, LAYOUT_10K, ("images", "annotations", "imageLists"))
  list_file = path / "imageLists" / f"{split}.txt"
  if not list_file.is_file():
    raise FileNotFoundError(f"{list_file}: this list of images does not exist; expected {LAYOUT_10K}")
  listed = set(list_file.read_text().split())
  defects: list[str] = []
  # Of the other split's files nothing is said here.
  files = {folder: sorted((path / folder).iterdir()) for folder in ("images", "annotations")}
  images, labels = (
    by_key(((file.stem, file) for file in files[folder] if file.stem in listed), suffixes, defects)
    for folder, suffixes in (("images", IMAGE_SUFFIXES), ("annotations", (".mat",)))
  )
  defects += [
    f"{list_file}: lists {stem}, expected {path / 'images' / (stem + '.jpg')}: download the images again"
    for stem in sorted(listed - set(images))
  ]
  return pair_files(
    INFO_10K,
    TRAIN_IDS_10K,
    images,
    {stem: file for stem, file in labels.items() if stem in images},
    images_at=str(path / "images" / "*.jpg"),
    labels_at=str(path / "annotations" / "*.mat"),
    defects=defects,
  )


def load_164k(root: str, split: str) -> FilePairs:
  """Lists a split of COCO-Stuff 164k.

  Args:
    root: the folder of ``images/`` and ``annotations/``; where these are absent, the folders of the splits may lie in
      ``root`` itself (images) and in ``stuffthingmaps/`` (labels).
    split: ``train`` (118,287 images) or ``val`` (5,000).

  Returns:
    The split, in the order of the file names.

  Raises:
    FileNotFoundError: when a folder is missing.
    ValueError: when the split is unknown or empty, or an image or a label has no counterpart.
  """
  check_split(split, INFO_164K.name, tuple(SPLITS_164K))
  part = SPLITS_164K[split]
  path = check_root(root, INFO_164K.name, LAYOUT_164K, ())
  images_in = _first(path, f"images/{part}", part)
  labels_in = _first(path, f"annotations/{part}", f"stuffthingmaps/{part}")
  check_root(root, INFO_164K.name, LAYOUT_164K, (images_in, labels_in))
  defects: list[str] = []
  labels = by_stem(path / labels_in, LABEL_SUFFIXES, defects)
  return pair_files(
    INFO_164K,
    TRAIN_IDS_164K,
    by_stem(path / images_in, IMAGE_SUFFIXES, defects),
    # mmsegmentation leaves its own beside them.
    {stem: file for stem, file in labels.items() if not stem.endswith("_labelTrainIds")},
    images_at=str(path / images_in / "*.jpg"),
    labels_at=str(path / labels_in / "*.png"),
    defects=defects,
  )


def _first(root: pathlib.Path, usual: str, other: str) -> str:
  return other if (root / other).is_dir() and not (root / usual).is_dir() else usual
