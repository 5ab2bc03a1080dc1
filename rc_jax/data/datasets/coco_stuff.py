"""COCO-Stuff, the 10k and the 164k release: images of any size, 171 classes of things and stuff."""

import pathlib
from collections.abc import Set

import numpy as np

from rc_jax.data.reading import (
  IGNORE_LABEL,
  IMAGE_SUFFIXES,
  LABEL_SUFFIXES,
  Dataset,
  DatasetInfo,
  FilePairs,
  IdMistakes,
  SubmissionFormat,
  check_root,
  check_split,
  colormap,
  files_by_key,
  files_by_stem,
  pair_files,
)
from rc_jax.files import one_line, read_text

SPLITS_10K = ("train", "test")
LAYOUT_10K = (
  "the layout of cocostuff-10k-v1.1.zip, images/*.jpg, annotations/*.mat (field S with the ids 0 for unlabelled and "
  "1-182) and imageLists/{train,test}.txt"
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
# Things with a name and no annotation: 171 classes remain.
_EMPTY = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
_IDS = tuple(own_id for own_id in range(1, len(_NAMES) + 1) if own_id not in _EMPTY)


def _mistake_in_10k_label(ids: Set[int], unknown: Set[int]) -> str:
  del ids
  if unknown == {255}:
    return "the ids of COCO-Stuff 164k (0-181, 255 for unlabelled): check dataset.name, or convert them"
  return ""


def _mistake_in_164k_label(ids: Set[int], unknown: Set[int]) -> str:
  del ids
  if unknown == {182}:
    return "the ids of COCO-Stuff 10k (0 for unlabelled, 1-182): check dataset.name, or subtract one"
  return ""


def _mistake_in_10k_split(ids: Set[int]) -> str:
  if len(ids) > 100 and 182 not in ids:
    return "182 never occurs, as if the ids were those of COCO-Stuff 164k, one lower"
  return ""


def _mistake_in_164k_split(ids: Set[int]) -> str:
  if len(ids) > 100 and 255 not in ids:
    return "255 (unlabelled) never occurs, as if the ids were those of COCO-Stuff 10k"
  return ""


def _info(name: str, first_id: int, mistakes: IdMistakes) -> DatasetInfo:
  ids = np.array(_IDS)
  return DatasetInfo(
    name=name,
    class_names=tuple(_NAMES[own_id - 1] for own_id in _IDS),
    # The releases have no colours; their viewer shuffles a rainbow each time.
    palette=colormap(len(_NAMES) + 1)[ids],
    made_up_colors=frozenset(range(len(ids))),
    label_ids=ids - 1 + first_id,
    absent_class="not_in_truth",
    mistakes=mistakes,
  )


def _train_ids(info: DatasetInfo, unlabelled: int, first_id: int) -> dict[int, int]:
  ignored = {unlabelled: IGNORE_LABEL, **{own_id - 1 + first_id: IGNORE_LABEL for own_id in _EMPTY}}
  return {**ignored, **{int(own_id): i for i, own_id in enumerate(info.label_ids)}}


INFO_10K = _info("coco_stuff_10k", 1, IdMistakes(_mistake_in_10k_label, _mistake_in_10k_split))
INFO_164K = _info("coco_stuff_164k", 0, IdMistakes(_mistake_in_164k_label, _mistake_in_164k_split))
TRAIN_IDS_10K = _train_ids(INFO_10K, unlabelled=0, first_id=1)
TRAIN_IDS_164K = _train_ids(INFO_164K, unlabelled=IGNORE_LABEL, first_id=0)
# There is no test server. The zip is for other scorers: the ids of the release's own label files, 1-182 for 10k and
# 0-181 for 164k, under the names of the images.
SUBMISSION = SubmissionFormat("coco_stuff")


def load_10k(root: str, split: str) -> FilePairs:
  """Lists a split of COCO-Stuff 10k.

  Args:
    root: the folder of ``images/``, ``annotations/`` and ``imageLists/``.
    split: ``train`` (9,000 images) or ``test`` (1,000 images, also labelled).

  Returns:
    The split, in the order of the file names.

  Raises:
    FileNotFoundError: a folder or the list of the split is missing.
    ValueError: the split is unknown or empty, or a listed image or its label is missing.
  """
  check_split(split, INFO_10K.name, SPLITS_10K)
  path = check_root(root, INFO_10K.name, LAYOUT_10K, ("images", "annotations", "imageLists"))
  list_file = path / "imageLists" / f"{split}.txt"
  if not list_file.is_file():
    raise FileNotFoundError(
      f"{list_file}: this list of images does not exist; expected {LAYOUT_10K}: download it again"
    )
  listed = set(read_text(list_file).split())
  defects: list[str] = []
  # Files of the other split are no defects of this one.
  files = {folder: sorted((path / folder).iterdir()) for folder in ("images", "annotations")}
  images, labels = (
    files_by_key(((file.stem, file) for file in files[folder] if file.stem in listed), suffixes, defects)
    for folder, suffixes in (("images", IMAGE_SUFFIXES), ("annotations", (".mat",)))
  )
  defects += [
    f"{list_file}: lists {one_line(stem, 80)}, expected {path / 'images'}/{one_line(stem, 80)}.jpg: download the "
    "images again"
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
    root: the folder of ``images/`` and ``annotations/``. Where these are absent, the folders of the splits are looked
      for in ``root`` (images) and in ``stuffthingmaps/`` (labels).
    split: ``train`` (118,287 images) or ``val`` (5,000).

  Returns:
    The split, in the order of the file names.

  Raises:
    FileNotFoundError: a folder is missing.
    ValueError: the split is unknown or empty, or an image or a label has no counterpart.
  """
  check_split(split, INFO_164K.name, tuple(SPLITS_164K))
  part = SPLITS_164K[split]
  path = check_root(root, INFO_164K.name, LAYOUT_164K, ())
  images_in = _existing(path, f"images/{part}", part)
  labels_in = _existing(path, f"annotations/{part}", f"stuffthingmaps/{part}")
  check_root(root, INFO_164K.name, LAYOUT_164K, (images_in, labels_in))
  defects: list[str] = []
  labels = files_by_stem(path / labels_in, LABEL_SUFFIXES, defects)
  return pair_files(
    INFO_164K,
    TRAIN_IDS_164K,
    files_by_stem(path / images_in, IMAGE_SUFFIXES, defects),
    # mmsegmentation's converter writes its label files beside them.
    {stem: file for stem, file in labels.items() if not stem.endswith("_labelTrainIds")},
    images_at=str(path / images_in / "*.jpg"),
    labels_at=str(path / labels_in / "*.png"),
    defects=defects,
  )


def _existing(root: pathlib.Path, usual: str, other: str) -> str:
  return other if (root / other).is_dir() and not (root / usual).is_dir() else usual


DATASET_10K = Dataset(
  info=INFO_10K,
  splits=SPLITS_10K,
  load=load_10k,
  layout=LAYOUT_10K,
  signs=(("imageLists",),),
  image_counts={"train": 9_000, "test": 1_000},
  submission=SUBMISSION,
)
DATASET_164K = Dataset(
  info=INFO_164K,
  splits=tuple(SPLITS_164K),
  load=load_164k,
  layout=LAYOUT_164K,
  signs=(("images/train2017",), ("images/val2017",), ("train2017",), ("val2017",)),
  image_counts={"train": 118_287, "val": 5_000},
  submission=SUBMISSION,
)
