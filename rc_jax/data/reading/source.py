"""A split of a data set: a random access sequence of examples."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import NotRequired, Protocol, TypedDict

import numpy as np

from rc_jax.data.reading.dataset_info import DatasetInfo
from rc_jax.data.reading.decode import check_sizes, decode_image, decode_label, read_file
from rc_jax.data.reading.listing import common_folder


class Example(TypedDict):
  """An image with its label.

  Keys:
    image: uint8 ``[H,W,3]``, RGB.
    label: uint8 ``[H,W]``, train ids, 255 where ignored; absent in a split without labels.
    name: the name of its predictions, without suffix.
  """

  image: np.ndarray
  label: NotRequired[np.ndarray]
  name: NotRequired[str]


class Source(Protocol):
  """A split of a data set: a picklable sequence of examples, each read when it is indexed."""

  @property
  def info(self) -> DatasetInfo: ...

  @property
  def labelled(self) -> bool: ...

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> Example: ...


@dataclasses.dataclass(frozen=True, eq=False)
class FilePairs:
  """The examples of a split that is stored as image files and label files.

  Attributes:
    info: the data set's classes.
    images: paths of the images.
    labels: paths of the label images, in the same order; None for a split without labels.
    train_ids: the data set's id -> train id or ``ignore_label``. Other ids are errors: a network must not train
      silently on labels of another data set, or on colours in place of ids.
    notes: sentences on files that were left out; training and inspection print them.
    labels_in: the folder below the root that would hold the labels of a split without labels; empty: none would.
    names: of the examples, for results and predictions; empty: by ``names_of_files``. A part of a split keeps the names
      of the split.
  """

  info: DatasetInfo
  images: tuple[pathlib.Path, ...]
  labels: tuple[pathlib.Path, ...] | None
  train_ids: Mapping[int, int]
  notes: tuple[str, ...] = ()
  labels_in: str = ""
  names: tuple[str, ...] = ()

  @property
  def labelled(self) -> bool:
    return self.labels is not None

  def __post_init__(self) -> None:
    if not self.names:
      object.__setattr__(self, "names", names_of_files(self.images))

  def __len__(self) -> int:
    return len(self.images)

  def __getitem__(self, index: int) -> Example:
    """Reads example ``index``; raises ValueError, in one line, for a damaged or wrong file."""
    path = self.images[index]
    image = decode_image(read_file(path), str(path))
    example: Example = {"image": image, "name": self.names[index]}
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


@dataclasses.dataclass(frozen=True, eq=False)
class WrappedSource:
  """A split that changes the examples of another one, for subclasses with ``__getitem__``.

  Attributes:
    source: the other split.
  """

  source: Source

  @property
  def info(self) -> DatasetInfo:
    return self.source.info

  @property
  def labelled(self) -> bool:
    return self.source.labelled

  def __len__(self) -> int:
    return len(self.source)


@dataclasses.dataclass(frozen=True, eq=False)
class Subset(WrappedSource):
  """Some examples of a split.

  Attributes:
    source: the split.
    indices: the examples, in order.
  """

  indices: tuple[int, ...]

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> Example:
    return self.source[self.indices[index]]


def names_of_files(paths: Sequence[pathlib.Path]) -> tuple[str, ...]:
  """Names images by the stems of their files, or, where two stems are equal, by their paths below a common folder.

  >>> names_of_files([pathlib.Path("set/a/1.png"), pathlib.Path("set/b/1.png")])
  ('a/1', 'b/1')
  """
  stems = tuple(path.stem for path in paths)
  if len(set(stems)) == len(stems):
    return stems
  top = common_folder(paths)
  return tuple(path.relative_to(top).with_suffix("").as_posix() for path in paths)


class IncompleteSplit(ValueError):
  """A split in which images or labels lack their counterpart.

  Attributes:
    defects: one line each.
    complete: the complete pairs.
    renames: number of images whose label was found under another name.
  """

  def __init__(self, defects: Sequence[str], complete: FilePairs, *, renames: int = 0):
    more = len(defects) - 1
    super().__init__(defects[0] + (f" (and {more} more: --mode=inspect lists them)" if more else ""))
    self.defects = tuple(defects)
    self.complete = complete
    self.renames = renames


def notes_of(source: Source) -> tuple[str, ...]:
  """Returns what is odd in the table of a split's classes and in the list of its files."""
  parts = source.parts if isinstance(source, Joined) else (source,)
  return (*source.info.notes, *(note for part in parts for note in getattr(part, "notes", ())))


def decoded_on_access(source: Source) -> Source:
  """Returns the split with images and labels that are decoded only where they are indexed, if it has such.

  ``rc_jax.data.augment`` indexes them like arrays ``[H,W,3]`` and ``[H,W]``, and takes a window of each. A source that
  has them has a method ``decoded_on_access`` without arguments.
  """
  if isinstance(source, Joined):
    return Joined(tuple(map(decoded_on_access, source.parts)))
  method = getattr(source, "decoded_on_access", None)
  return source if method is None else method()
