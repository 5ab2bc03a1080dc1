"""Small copies of every data set in its layout: two images in each split."""

import pathlib
from collections.abc import Callable

import numpy as np
import scipy.io
from PIL import Image

SIZE = (30, 40)
CLASSES = "id,name,color\n0,background,#000000\n1,road,#804080\n2,car,#00008e\n255,ignore\n"


def camvid(root: pathlib.Path) -> None:
  _pairs(root, "images/{}/{}.png", "labels/{}/{}.png", ("train", "val"), range(12))


def folder(root: pathlib.Path) -> None:
  root.mkdir(parents=True)
  (root / "classes.csv").write_text(CLASSES)
  _pairs(root, "images/{}/{}.png", "labels/{}/{}.png", ("train", "val"), (0, 1, 2, 255))


def ade20k(root: pathlib.Path) -> None:
  _pairs(root, "images/{}/{}.jpg", "annotations/{}/{}.png", ("training", "validation"), range(151))


def cityscapes(root: pathlib.Path) -> None:
  image, label = (f"{kind}/{{0}}/ulm/ulm_{{0}}_{{1}}_{end}.png" for kind, end in CITYSCAPES_ENDS)
  _pairs(root, image, label, ("train", "val"), range(34))


CITYSCAPES_ENDS = (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds"))


def coco_stuff_164k(root: pathlib.Path) -> None:
  ids = (*range(182), 255)
  _pairs(root, "images/{}/{}.jpg", "annotations/{}/{}.png", ("train2017", "val2017"), ids)


def coco_stuff_10k(root: pathlib.Path) -> None:
  for split in ("train", "test"):
    stems = [f"{split}_{number}" for number in range(2)]
    (root / "imageLists").mkdir(parents=True, exist_ok=True)
    (root / "imageLists" / f"{split}.txt").write_text("\n".join(stems) + "\n")
    for stem in stems:
      save_image(root / "images" / f"{stem}.jpg", stem)
      save_mat(root / "annotations" / f"{stem}.mat", random_ids(stem, range(183)))


MAKERS: dict[str, Callable[[pathlib.Path], None]] = {
  "ade20k": ade20k,
  "camvid": camvid,
  "cityscapes": cityscapes,
  "coco_stuff_10k": coco_stuff_10k,
  "coco_stuff_164k": coco_stuff_164k,
  "folder": folder,
}


def random_ids(seed: str, ids: range | tuple[int, ...], size: tuple[int, int] = SIZE) -> np.ndarray:
  """Returns uint8 ``[H,W]``, blocks of random ids: large enough for the names of classes in pictures."""
  rng = np.random.default_rng(list(seed.encode()))
  blocks = rng.choice(np.array(ids), (3, 4))
  return np.kron(blocks, np.ones((size[0] // 3, size[1] // 4), int)).astype(np.uint8)


def photo(seed: str, size: tuple[int, int] = SIZE) -> np.ndarray:
  """Returns uint8 ``[H,W,3]``, random pixels."""
  return np.random.default_rng(list(seed.encode())).integers(0, 256, (*size, 3), np.uint8)


def save_image(path: pathlib.Path, seed: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(photo(seed)).save(path)


def save_label(path: pathlib.Path, ids: np.ndarray) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(ids).save(path)


def save_mat(path: pathlib.Path, ids: np.ndarray, field: str = "S") -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  scipy.io.savemat(path, {field: ids.astype(float)})


def _pairs(
  root: pathlib.Path, image: str, label: str, splits: tuple[str, ...], ids: range | tuple[int, ...]
) -> None:
  for split in splits:
    for number in range(2):
      save_image(root / image.format(split, number), split + str(number))
      save_label(root / label.format(split, number), random_ids(split + str(number), ids))
