"""A split of a data set: a random access sequence of checked image/label pairs, and how files are paired."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rc_jax.data.dataset_info import IGNORE_LABEL, AbsentClass, DatasetInfo
from rc_jax.data.decode import check_sizes, decode_image, decode_label, read_file

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
# Without loss alone: JPEG makes other ids of ids.
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")

Example = dict[str, Any]
"""``{"image": uint8 [H,W,3] RGB, "label": uint8 [H,W] train ids (255 = ignored), "name": str}``; splits for a test
server have no ``label``."""


class Source(Protocol):
  """A split of a data set: a picklable sequence of examples, each read when asked for."""

  @property
  def info(self) -> DatasetInfo: ...

  @property
  def labelled(self) -> bool: ...

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> Example: ...


@dataclasses.dataclass(frozen=True, eq=False)
class FilePairs:
  """The examples of a split that lies in image files and label files.

  Attributes:
    info: the data set's classes.
    images: paths of the images.
    labels: paths of the label images, in the same order; None for a split without labels.
    train_ids: the data set's own id -> train id or ``ignore_label``. Ids that are not a key are errors: labels of
      another data set, or colours in place of ids, must not train as if nothing were wrong.
  """

  info: DatasetInfo
  images: tuple[pathlib.Path, ...]
  labels: tuple[pathlib.Path, ...] | None
  train_ids: Mapping[int, int]

  @property
  def labelled(self) -> bool:
    return self.labels is not None

  def __len__(self) -> int:
    return len(self.images)

  def __getitem__(self, index: int) -> Example:
    """Reads example ``index``; raises ValueError, in one line, for a file that cannot be what it should be."""
    path = self.images[index]
    image = decode_image(read_file(path), str(path))
    example = {"image": image, "name": path.stem}
    if self.labels is not None:
      label_path = self.labels[index]
      label = decode_label(read_file(label_path), str(label_path), self.train_ids, self.info)
      check_sizes(image, label, str(path), str(label_path))
      example["label"] = label
    return example


@dataclasses.dataclass(frozen=True, eq=False)
class Joined:
  """Several splits of one data set, one after the other.

  Attributes:
    parts: with the same classes, all with labels or all without.
  """

  parts: tuple[Source, ...]

  @property
  def info(self) -> DatasetInfo:
    return self.parts[0].info

  @property
  def labelled(self) -> bool:
    return self.parts[0].labelled

  def __len__(self) -> int:
    return sum(map(len, self.parts))

  def __getitem__(self, index: int) -> Example:
    index = range(len(self))[index]
    for part in self.parts:
      if index < len(part):
        return part[index]
      index -= len(part)
    raise AssertionError("an index in range belongs to a part")


def lazily(source: Source) -> Source:
  """Returns the source with images and labels that are decoded only where they are indexed, if it has such.

  These stand for arrays ``[H,W,3]`` and ``[H,W]`` in ``transforms``, which takes a window of them; ``np.asarray``
  decodes the whole. Sources that can, have a method ``lazily`` without arguments.
  """
  if isinstance(source, Joined):
    return Joined(tuple(map(lazily, source.parts)))
  own = getattr(source, "lazily", None)
  return source if own is None else own()


def by_stem(folder: pathlib.Path, suffixes: tuple[str, ...]) -> dict[str, pathlib.Path]:
  """Lists the files of a folder by their names without suffix.

  Args:
    folder: where they lie; names that begin with a dot are left out, and so are folders.
    suffixes: in lower case; files with others are left out.

  Raises:
    ValueError: when two files differ in their suffix alone.
  """
  files: dict[str, pathlib.Path] = {}
  for path in sorted(folder.iterdir()):
    if path.suffix.lower() not in suffixes or path.name.startswith("."):
      continue
    if path.stem in files:
      raise ValueError(
        f"{path}: has the same name as {files[path.stem].name}, expected one file an image: remove one"
      )
    files[path.stem] = path
  return files


def pair_files(
  images: Mapping[str, pathlib.Path],
  labels: Mapping[str, pathlib.Path] | None,
  *,
  images_at: str,
  labels_at: str,
) -> tuple[tuple[pathlib.Path, ...], tuple[pathlib.Path, ...] | None]:
  """Pairs images and labels that share a key, in the order of the keys.

  Args:
    images: key -> image path.
    labels: key -> label path; None for a split without labels.
    images_at: where images were looked for, for the errors.
    labels_at: where labels were looked for.

  Returns:
    The image paths and the label paths, or None in place of these.

  Raises:
    ValueError: when there is no image, or an image or a label has no counterpart.
  """
  if not images and not labels:
    raise ValueError(
      f"{images_at}: found no images, expected at least one: check the folder and --config.dataset.root="
    )
  keys = sorted(images)
  if labels is None:
    return tuple(images[key] for key in keys), None
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


__all__ = [
  "IGNORE_LABEL",
  "IMAGE_SUFFIXES",
  "LABEL_SUFFIXES",
  "AbsentClass",
  "DatasetInfo",
  "Example",
  "FilePairs",
  "Joined",
  "Source",
  "by_stem",
  "check_root",
  "check_split",
  "lazily",
  "pair_files",
]
