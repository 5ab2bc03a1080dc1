"""What an examination of a split found: counts of pixels and images, sizes, duplicates, and notes."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rc_jax import data
from rc_jax.data import Examined, Source

ON_SCREEN = 5  # defects, files and names that a terminal shows; report.txt holds all

# Of the official releases; another count says that the download or the unpacking is not whole.
_RELEASED = {
  ("ade20k", "train"): 20_210,
  ("ade20k", "val"): 2_000,
  ("camvid", "train"): 367,
  ("camvid", "val"): 101,
  ("cityscapes", "train"): 2_975,
  ("cityscapes", "val"): 500,
  ("cityscapes", "test"): 1_525,
  ("cityscapes", "train_coarse"): 2_975,
  ("cityscapes", "train_extra"): 19_998,
  ("coco_stuff_10k", "train"): 9_000,
  ("coco_stuff_10k", "test"): 1_000,
  ("coco_stuff_164k", "train"): 118_287,
  ("coco_stuff_164k", "val"): 5_000,
}


@dataclasses.dataclass(frozen=True)
class Split:
  """A split and what was found in it.

  Attributes:
    name: its name.
    source: its examples; None when it could not be opened.
    examined: what was found in those that were looked at.
    refused: lines on what was met when its files were listed.
  """

  name: str
  source: Source | None
  examined: tuple[Examined, ...]
  refused: tuple[str, ...]

  @property
  def defects(self) -> list[str]:
    return [*self.refused, *(line for found in self.examined for line in found.defects)]


def summary(split: Split, info: data.DatasetInfo, crop_size: tuple[int, int] | None) -> dict[str, Any]:
  """Sums up a split as what JSON knows: sizes, pixels of classes, ids that are not expected, defects, notes.

  Args:
    split: with what was found.
    info: the data set's classes.
    crop_size: ``(h,w)`` of the crops, for a split to train on, else None.

  Returns:
    ``split``, ``images``, ``checked``, ``labelled``, ``sizes``, ``smaller_than_crop``, ``pixels``, ``ignored``
    (a share), ``classes`` {name: id, pixels, share of what is not ignored, images}, ``never``, ``unexpected``
    {id: pixels, images, files}, ``defects``, ``notes``.
  """
  source, examined = split.source, split.examined
  train_ids = train_ids_of(source, info)
  names = file_names(source)
  sound = [found for found in examined if found.size is not None]
  sizes = sorted((found.size for found in sound if found.size), key=lambda size: (size[0] * size[1], size))
  small = [names(found) for found in sound if crop_size and (np.array(found.size) < crop_size).any()]
  counts = class_pixels(examined, train_ids, info.num_classes)
  pixels = counts.sum(axis=0)
  labelled = int(pixels[: info.num_classes].sum())
  every: dict[int, int] = {}
  unexpected: dict[int, dict[str, Any]] = {}
  for found in examined:
    for own_id, number in found.counts.items():
      every[own_id] = every.get(own_id, 0) + number
      if own_id not in train_ids:
        entry = unexpected.setdefault(own_id, {"pixels": 0, "images": 0, "files": []})
        entry["pixels"] += number
        entry["images"] += 1
        entry["files"].append(names(found))
  labelled_split = source is not None and source.labelled
  notes = []
  released = _RELEASED.get((info.name, split.name))
  if released and source is not None and len(source) != released:
    notes.append(f"holds {len(source):,} images, the official release {released:,}")
  seems = data.split_ids(info.name, every)
  if seems:
    notes.append(f"the labels: {seems}")
  if labelled_split:
    empty = [names(found) for found, row in zip(examined, counts, strict=True) if row[-1] == row.sum() > 0]
    if empty:
      notes.append(f"{len(empty):,} labels hold ignored pixels alone: {first_names(empty)}")
  notes += [f"{first} and {second} are the same file twice" for first, second in _twice(examined, names)]
  return {
    "split": split.name,
    "images": 0 if source is None else len(source),
    "checked": len(examined),
    "labelled": labelled_split,
    "sizes": {
      "smallest": list(sizes[0][::-1]) if sizes else None,
      "median": list(sizes[len(sizes) // 2][::-1]) if sizes else None,
      "largest": list(sizes[-1][::-1]) if sizes else None,
      "different": len(set(sizes)),
    },
    "crop": list(crop_size[::-1]) if crop_size else None,
    "smaller_than_crop": small,
    "pixels": int(pixels.sum()),
    "ignored": float(pixels[-1] / max(1, pixels.sum())),
    "classes": {
      name: {
        "id": int(info.label_ids[label]),
        "pixels": int(pixels[label]),
        "share": float(pixels[label] / max(1, labelled)),
        "images": int((counts[:, label] > 0).sum()),
      }
      for label, name in enumerate(info.class_names)
    },
    "never": [name for label, name in enumerate(info.class_names) if labelled_split and not pixels[label]],
    "unexpected": {str(own_id): unexpected[own_id] for own_id in sorted(unexpected)},
    "defects": split.defects,
    "notes": notes,
  }


def class_pixels(examined: Sequence[Examined], train_ids: dict[int, int], num_classes: int) -> np.ndarray:
  """Returns the pixels of each class and, last, the ignored ones, int ``[n,N+1]``; unknown ids are left out."""
  counts = np.zeros((len(examined), num_classes + 1), np.int64)
  for row, found in zip(counts, examined, strict=True):
    for own_id, number in found.counts.items():
      if own_id in train_ids:
        row[min(train_ids[own_id], num_classes)] += number
  return counts


def _twice(examined: Sequence[Examined], names: Any) -> Iterator[tuple[str, str]]:
  first: dict[bytes, Examined] = {}
  for found in examined:
    if found.digest in first:
      yield names(first[found.digest]), names(found)
    elif found.digest:
      first[found.digest] = found


def train_ids_of(source: Source | None, info: data.DatasetInfo) -> dict[int, int]:
  """Returns the map from the ids that ``Examined`` counts to train ids: the identity where files hold train ids."""
  if isinstance(source, data.FilePairs):
    return dict(source.train_ids)
  return {**{label: label for label in range(info.num_classes)}, info.ignore_label: info.ignore_label}


def file_names(source: Source | None) -> Any:
  """Returns a function that names what was examined: its image file below the split's folder, or else its number."""
  if isinstance(source, data.FilePairs) and source.images:
    above = os.path.commonpath([path.parent for path in source.images])
    return lambda found: os.path.relpath(source.images[found.index], above)
  return lambda found: f"example {found.index}"


def first_names(names: Sequence[str], limit: int = ON_SCREEN) -> str:
  """Joins the first ``limit`` names (0: all) with commas, and says by ``...`` that there are more."""
  shown = names[: limit or len(names)]
  return ", ".join(shown) + (", ..." if len(names) > len(shown) else "")
