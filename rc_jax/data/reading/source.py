"""A split of a data set: a random access sequence of checked image/label pairs, and how files are paired."""

import bisect
import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from rc_jax.data.reading import locate
from rc_jax.data.reading.dataset_info import IGNORE_LABEL, AbsentClass, DatasetInfo
from rc_jax.data.reading.decode import check_sizes, decode_image, decode_label, read_file

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


class IncompleteSplit(ValueError):
  """A split whose files do not all pair up.

  Attributes:
    defects: one line each.
    complete: the pairs that are whole.
  """

  def __init__(self, defects: Sequence[str], complete: FilePairs):
    more = len(defects) - 1
    super().__init__(defects[0] + (f" (and {more} more: --mode=inspect lists them)" if more else ""))
    self.defects = tuple(defects)
    self.complete = complete


def lazily(source: Source) -> Source:
  """Returns the source with images and labels that are decoded only where they are indexed, if it has such.

  These stand for arrays ``[H,W,3]`` and ``[H,W]`` in ``transforms``, which takes a window of them; ``np.asarray``
  decodes the whole. Sources that can, have a method ``lazily`` without arguments.
  """
  if isinstance(source, Joined):
    return Joined(tuple(map(lazily, source.parts)))
  own = getattr(source, "lazily", None)
  return source if own is None else own()


def by_stem(folder: pathlib.Path, suffixes: tuple[str, ...], defects: list[str]) -> dict[str, pathlib.Path]:
  """Lists the files of a folder by their names without suffix.

  Args:
    folder: where they lie; names that begin with a dot are left out, and so are folders.
    suffixes: in lower case; files with others are left out.
    defects: gets a line for each file that differs from another in its suffix alone.
  """
  return by_key(((path.stem, path) for path in sorted(folder.iterdir())), suffixes, defects)


def by_key(
  named: Iterable[tuple[str, pathlib.Path]], suffixes: tuple[str, ...], defects: list[str]
) -> dict[str, pathlib.Path]:
  """Collects files by a key; arguments but for ``named``, pairs of key and path, as ``by_stem``."""
  files: dict[str, pathlib.Path] = {}
  for key, path in named:
    if path.suffix.lower() not in suffixes or path.name.startswith("."):
      continue
    if key in files:
      defects.append(
        f"{path}: has the same name as {files[key].name}, expected one file an image: remove one"
      )
    files.setdefault(key, path)
  return files


def pair_files(
  info: DatasetInfo,
  train_ids: Mapping[int, int],
  images: Mapping[str, pathlib.Path],
  labels: Mapping[str, pathlib.Path] | None,
  *,
  images_at: str,
  labels_at: str,
  defects: Sequence[str] = (),
) -> FilePairs:
  """Pairs images and labels that share a key, in the order of the keys.

  Args:
    info: the data set's classes.
    train_ids: its own id -> train id.
    images: key -> image path.
    labels: key -> label path; None for a split without labels.
    images_at: where images were looked for, with ``*`` in place of the key, for the errors.
    labels_at: where labels were looked for.
    defects: lines on what was met when the files were listed.

  Returns:
    The split.

  Raises:
    IncompleteSplit: when an image or a label has no counterpart, or there were defects before.
    ValueError: when there is no image.
  """
  if not images and not labels and not defects:
    folder = pathlib.Path(images_at.partition("*")[0])
    raise ValueError(
      f"{images_at}: found no images but {locate.contents(folder)}, expected at least one: "
      "check the folder and --config.dataset.root="
    )
  whole = sorted(images if labels is None else images.keys() & labels.keys())
  pairs = FilePairs(
    info,
    tuple(images[key] for key in whole),
    None if labels is None else tuple(labels[key] for key in whole),
    train_ids,
  )
  found = list(defects)
  if labels is not None:
    found += _halves("image", images, "label", labels, labels_at)
    # Of a label that lies in a wrong place, the line on its image has told.
    told = {_last(key) for key in images.keys() - labels.keys()}
    others = {key: path for key, path in labels.items() if key in images or _last(key) not in told}
    found += _halves("label", others, "image", images, images_at)
  if found:
    raise IncompleteSplit(found, pairs)
  return pairs


def _halves(
  kind: str, halves: Mapping[str, pathlib.Path], missing: str, others: Mapping[str, pathlib.Path], where: str
) -> list[str]:
  """One line for each of ``halves`` without a counterpart, with what was found that may be meant to be it."""
  alone = sorted(halves.keys() - others.keys())
  # A label in the folder of another city, or one that differs in capitals.
  elsewhere = {_last(key): others[key] for key in others.keys() - halves.keys()} if alone else {}
  listed: dict[pathlib.Path, list[str]] = {}
  lines = []
  for key in alone:
    expected = pathlib.Path(where.replace("*", key))
    if expected.parent not in listed:
      listed[expected.parent] = sorted(os.listdir(expected.parent)) if expected.parent.is_dir() else []
    stem = key.rpartition("/")[2]
    beside = [name for name in _beginning_with(stem, listed[expected.parent]) if name[len(stem)] in "._-"]
    if _last(key) in elsewhere:
      remedy = f"found {elsewhere[_last(key)]}: move or rename it"
    elif any(name.lower().endswith((".jpg", ".jpeg")) for name in beside) and missing == "label":
      remedy = f"found {beside[0]}: JPEG makes other ids of ids, export the label as PNG"
    elif beside:
      remedy = f"found {', '.join(beside[:3])}, which {'are' if beside[1:] else 'is'} none: add the {missing}"
    else:
      remedy = f"add the {missing} or remove the {kind}"
    lines.append(f"{halves[key]}: this {kind} has no {missing}, expected {expected}: {remedy}")
  return lines


def _last(key: str) -> str:
  return key.rpartition("/")[2].lower()


def _beginning_with(start: str, names: Sequence[str]) -> Sequence[str]:
  """Those of sorted ``names`` that begin with ``start`` and go on."""
  first = bisect.bisect_right(names, start)
  return names[first : bisect.bisect_left(names, start + "\U0010ffff", lo=first)]


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
  "IncompleteSplit",
  "Joined",
  "Source",
  "by_key",
  "by_stem",
  "check_root",
  "check_split",
  "lazily",
  "pair_files",
]
