"""What a data set is: its classes, and a random access sequence of checked image/label pairs read from files."""

import dataclasses
import pathlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image, ImageOps

IGNORE_LABEL = 255
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
# Without loss alone: JPEG makes other ids of ids.
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")

Example = dict[str, Any]
"""``{"image": uint8 [H,W,3] RGB, "label": uint8 [H,W] train ids (255 = ignored), "name": str}``."""

AbsentClass = Literal["unless_predicted", "not_in_truth", "zero"]


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetInfo:
  """The classes of a data set, in the order of their train ids ``0..N-1``.

  Attributes:
    name: the data set's name in ``config.dataset.name``.
    class_names: ``N`` names.
    palette: uint8 ``[N,3]``, the RGB colour that pictures give each class.
    label_ids: int ``[N]``, train id -> the data set's own id, in which predictions are written.
    ignore_label: the value of pixels that count nowhere.
    absent_class: what the mean IoU does with a class without true positives in the evaluated images: left out
      unless it was predicted, left out if the ground truth lacks it, or scored 0. Each benchmark has its own rule.
  """

  name: str
  class_names: tuple[str, ...]
  palette: np.ndarray
  label_ids: np.ndarray
  ignore_label: int = IGNORE_LABEL
  absent_class: AbsentClass = "unless_predicted"

  @property
  def num_classes(self) -> int:
    return len(self.class_names)


class Source(Protocol):
  """A split of a data set: a picklable sequence of examples, each read when asked for."""

  @property
  def info(self) -> DatasetInfo: ...

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> Example: ...


@dataclasses.dataclass(frozen=True, eq=False)
class FilePairs:
  """The examples of a split that lies in image files and label PNGs.

  Attributes:
    info: the data set's classes.
    images: paths of the images.
    labels: paths of the label images, in the same order.
    train_ids: the data set's own id -> train id or ``ignore_label``. Ids that are not a key are errors: labels of
      another data set, or colours in place of ids, must not train as if nothing were wrong.
  """

  info: DatasetInfo
  images: tuple[pathlib.Path, ...]
  labels: tuple[pathlib.Path, ...]
  train_ids: Mapping[int, int]

  def __len__(self) -> int:
    return len(self.images)

  def __getitem__(self, index: int) -> Example:
    """Reads example ``index``; raises ValueError, in one line, for a file that cannot be what it should be."""
    image = read_image(self.images[index])
    label = read_label(self.labels[index], self.train_ids, self.info)
    if image.shape[:2] != label.shape:
      raise ValueError(
        f"{self.labels[index]}: the label is {_size(label)} pixels, but its image {self.images[index]} is "
        f"{_size(image)} (after its EXIF rotation, if any); expected equal sizes: export the label again from the "
        "image as it is displayed"
      )
    return {"image": image, "label": label, "name": self.images[index].stem}


def read_image(path: pathlib.Path) -> np.ndarray:
  """Reads an image file as it is meant to be seen.

  Args:
    path: any format that Pillow reads; greyscale, palette, CMYK, RGBA and 16-bit greyscale images become RGB, and
      a rotation in the EXIF data is applied.

  Returns:
    uint8 ``[H,W,3]``, RGB.

  Raises:
    ValueError: when the file is missing, truncated or not an image.
  """
  image = _decode(path)
  # In place: the function otherwise copies every image, the unrotated too.
  ImageOps.exif_transpose(image, in_place=True)
  if image.mode.startswith("I"):
    # Pillow's own conversion clips at 255; the high byte is the picture.
    grey = np.right_shift(np.asarray(image), 8).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)
  return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def read_label(path: pathlib.Path, train_ids: Mapping[int, int], info: DatasetInfo) -> np.ndarray:
  """Reads a label image and maps the data set's ids to train ids.

  Args:
    path: a single-channel image of ids, or a palette PNG whose indices are the ids.
    train_ids: id -> train id or ``info.ignore_label``.
    info: the data set's classes.

  Returns:
    uint8 ``[H,W]``: train ids, ``info.ignore_label`` where ignored.

  Raises:
    ValueError: when the file cannot be read, has several channels, holds colours in place of ids, or an id that
      the data set does not have.
  """
  image = _decode(path)
  if image.mode not in ("L", "P", "1") and not image.mode.startswith("I"):
    raise ValueError(
      f"{path}: the label is a colour image (mode {image.mode}), expected one channel that holds class ids "
      f"({_ranges(train_ids)}): convert the colours to ids"
    )
  ids = np.asarray(image)
  # Pillow counts 8-bit pixels many times faster than NumPy sorts them.
  present = (np.flatnonzero(image.histogram()) if image.mode in ("L", "P") else np.unique(ids)).tolist()
  unknown = [own_id for own_id in present if own_id not in train_ids]
  if unknown:
    shown = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
    kind = "palette indices" if image.mode == "P" else "ids"
    raise ValueError(
      f"{path}: the label holds {kind} {shown} that {info.name} does not have, "
      f"expected {_ranges(train_ids)}: convert the labels, or check dataset.name"
    )
  if image.mode == "P":
    _check_palette(path, image, present, info)
  table = np.full(int(present[-1]) + 1, info.ignore_label, np.uint8)
  for own_id in present:
    table[int(own_id)] = train_ids[own_id]
  return np.take(table, ids.astype(np.uint8) if ids.dtype == bool else ids)


def pair_files(
  images: Mapping[str, pathlib.Path], labels: Mapping[str, pathlib.Path], *, images_at: str, labels_at: str
) -> tuple[tuple[pathlib.Path, ...], tuple[pathlib.Path, ...]]:
  """Pairs images and labels that share a key, in the order of the keys.

  Args:
    images: key -> image path.
    labels: key -> label path.
    images_at: where images were looked for, for the errors.
    labels_at: where labels were looked for.

  Returns:
    The image paths and the label paths.

  Raises:
    ValueError: when there is no image, or an image or a label has no counterpart.
  """
  if not images and not labels:
    raise ValueError(
      f"{images_at}: found no images, expected at least one: check the folder and --config.dataset.root="
    )
  for halves, others, kind, missing, where in (
    (images, labels, "image", "label", labels_at),
    (labels, images, "label", "image", images_at),
  ):
    alone = sorted(set(halves) - set(others))
    if alone:
      more = f" (and {len(alone) - 1} more like it)" if len(alone) > 1 else ""
      raise ValueError(
        f"{halves[alone[0]]}: this {kind} has no {missing}{more}, expected {where.replace('*', alone[0])}: "
        f"add the {missing} or remove the {kind}"
      )
  keys = sorted(images)
  return tuple(images[key] for key in keys), tuple(labels[key] for key in keys)


def check_root(root: str, name: str, layout: str, folders: Sequence[str]) -> pathlib.Path:
  """Returns ``root`` as a path when it holds ``folders``; raises FileNotFoundError that says what it should hold."""
  remedy = f"expected {layout}: give the folder with --config.dataset.root="
  if not root:
    raise FileNotFoundError(f"dataset.root is empty, but the data set {name} is read from files; {remedy}")
  path = pathlib.Path(root).expanduser()
  for folder in (path, *(path / folder for folder in folders)):
    if not folder.is_dir():
      found = "is a file" if folder.exists() else "does not exist"
      raise FileNotFoundError(f"{folder}: this folder of the data set {name} {found}; {remedy}")
  return path


def check_split(split: str, name: str, splits: Sequence[str]) -> None:
  """Raises ValueError when ``split`` is not one of the data set's ``splits``."""
  if split not in splits:
    raise ValueError(
      f"split {split!r}: the data set {name} has no such split, expected one of {', '.join(splits)}"
    )


def _decode(path: pathlib.Path) -> Image.Image:
  try:
    image = Image.open(path)
    image.load()
    return image
  except FileNotFoundError:
    raise ValueError(
      f"{path}: the file has vanished since the folder was listed: restore it or start again"
    ) from None
  # Pillow's decoders raise all of these for damaged files.
  except (OSError, SyntaxError, EOFError, ValueError, struct.error, Image.DecompressionBombError) as error:
    reason = " ".join(str(error).replace(str(path), "file").split())
    raise ValueError(
      f"{path}: cannot be decoded ({reason}), found {path.stat().st_size:,} bytes, expected a whole image file: "
      "copy or download it again"
    ) from None


def _check_palette(path: pathlib.Path, image: Image.Image, present: Sequence[int], info: DatasetInfo) -> None:
  # A colour mask saved as an indexed PNG has small indices too, in any order. It gives itself away when the
  # palette paints an index in the colour of another of the data set's classes.
  palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
  own_ids = {
    tuple(color): int(own_id) for color, own_id in zip(info.palette.tolist(), info.label_ids, strict=True)
  }
  for index in present:
    color = tuple(palette[index].tolist()) if index < len(palette) else None
    own_id = own_ids.get(color, index) if color else index
    if own_id != index:
      raise ValueError(
        f"{path}: the label is a colour mask saved with a palette (index {index} has the colour of id {own_id}, "
        f"{color}), expected indices that are the ids: convert the colours to ids"
      )


def _size(array: np.ndarray) -> str:
  return f"{array.shape[1]}x{array.shape[0]}"


def _ranges(ids: Mapping[int, int]) -> str:
  """``{0, 1, 2, 3, 255}`` -> ``"0-3, 255"``."""
  runs: list[list[int]] = []
  for own_id in sorted(own_id for own_id in ids if own_id >= 0):
    if runs and own_id == runs[-1][1] + 1:
      runs[-1][1] = own_id
    else:
      runs.append([own_id, own_id])
  return ", ".join(f"{low}-{high}" if low != high else f"{low}" for low, high in runs)
