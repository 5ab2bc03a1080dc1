"""Summaries of examined splits: counts of pixels and images, sizes, duplicate files, notes."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from rc_jax import data
from rc_jax.data import IGNORE_LABEL, DatasetInfo, Examined, FilePairs, Source

ON_SCREEN = 5  # defects, files and names that a terminal shows; report.txt holds all


@dataclasses.dataclass(frozen=True)
class ExaminedSplit:
  """A split and the findings in it.

  Attributes:
    name: its name.
    source: its examples; None for a split that could not be opened.
    examined: the findings in the examples that were examined.
    listing_defects: lines on defects that were found while its files were listed.
  """

  name: str
  source: Source | None
  examined: tuple[Examined, ...]
  listing_defects: tuple[str, ...]

  @property
  def defects(self) -> list[str]:
    return [*self.listing_defects, *(line for example in self.examined for line in example.defects)]


def summarize(split: ExaminedSplit, info: DatasetInfo, crop_size: tuple[int, int] | None) -> dict[str, Any]:
  """Summarizes a split for ``<split>.json``: sizes, pixels of each class, unexpected ids, defects, notes.

  Args:
    split: the split with its findings.
    info: the data set's classes.
    crop_size: ``(h,w)`` of the crops; None for a split that is not trained on.

  Returns:
    ``split``, ``images``, ``checked``, ``labelled``, ``sizes``, ``smaller_than_crop``, ``pixels``, ``ignored``
    (a share), ``classes`` {name: id, pixels, share of the pixels that are not ignored, images}, ``never``,
    ``unexpected`` {id: pixels, images, files}, ``defects``, ``notes``.
  """
  source, examined = split.source, split.examined
  train_ids = train_ids_of(source, info)
  name_of = example_names(source)
  counts = class_pixels(examined, train_ids, info.num_classes)
  pixels = counts.sum(axis=0)
  counted = int(pixels[: info.num_classes].sum())
  labelled = source is not None and source.labelled
  decoded = [(example, example.size) for example in examined if example.size is not None]
  return {
    "split": split.name,
    "images": 0 if source is None else len(source),
    "checked": len(examined),
    "labelled": labelled,
    "sizes": _sizes([size for _, size in decoded]),
    "crop": list(crop_size[::-1]) if crop_size else None,
    "smaller_than_crop": [
      name_of(example) for example, size in decoded if crop_size and (np.array(size) < crop_size).any()
    ],
    "pixels": int(pixels.sum()),
    "ignored": float(pixels[-1] / max(1, pixels.sum())),
    "classes": {
      name: {
        "id": int(info.label_ids[label]),
        "pixels": int(pixels[label]),
        "share": float(pixels[label] / max(1, counted)),
        "images": int((counts[:, label] > 0).sum()),
      }
      for label, name in enumerate(info.class_names)
    },
    "never": [name for label, name in enumerate(info.class_names) if labelled and not pixels[label]],
    "unexpected": _unexpected_ids(examined, train_ids, name_of),
    "defects": split.defects,
    "notes": [*_notes(split, info, counts), *_duplicates(examined, name_of)],
  }


def class_pixels(examined: Sequence[Examined], train_ids: dict[int, int], num_classes: int) -> np.ndarray:
  """Returns the pixels of each class and, last, the ignored ones, int ``[n,N+1]``, without those of unknown ids."""
  counts = np.zeros((len(examined), num_classes + 1), np.int64)
  for row, example in zip(counts, examined, strict=True):
    for own_id, number in example.counts.items():
      if own_id in train_ids:
        row[min(train_ids[own_id], num_classes)] += number
  return counts


def train_ids_of(source: Source | None, info: DatasetInfo) -> dict[int, int]:
  """Returns the map from the ids in ``Examined.counts`` to train ids, the identity for labels in train ids."""
  if isinstance(source, FilePairs):
    return dict(source.train_ids)
  return {**{label: label for label in range(info.num_classes)}, info.ignore_label: info.ignore_label}


def example_names(source: Source | None) -> Callable[[Examined], str]:
  """Returns a function that names an example: its image file below the split's folder, or else its index."""
  if isinstance(source, FilePairs) and source.images:
    images = source.images
    top = os.path.commonpath([path.parent for path in images])
    return lambda example: os.path.relpath(images[example.index], top)
  return lambda example: f"example {example.index}"


def first_names(names: Sequence[str], limit: int = ON_SCREEN) -> str:
  """Joins the first ``limit`` names (0: all) with commas; ``...`` marks that there are more.

  >>> first_names(["a", "b", "c"], 2)
  'a, b, ...'
  """
  shown = names[: limit or len(names)]
  return ", ".join(shown) + (", ..." if len(names) > len(shown) else "")


def _sizes(sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
  """Returns the smallest, median and largest size by area, each ``[W,H]``, and the number of different sizes."""
  by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
  return {
    "smallest": list(by_area[0][::-1]) if by_area else None,
    "median": list(by_area[len(by_area) // 2][::-1]) if by_area else None,
    "largest": list(by_area[-1][::-1]) if by_area else None,
    "different": len(set(by_area)),
  }


def _unexpected_ids(
  examined: Sequence[Examined], train_ids: dict[int, int], name_of: Callable[[Examined], str]
) -> dict[str, dict[str, Any]]:
  unexpected: dict[int, dict[str, Any]] = {}
  for example in examined:
    for own_id, number in example.counts.items():
      if own_id not in train_ids:
        entry = unexpected.setdefault(own_id, {"pixels": 0, "images": 0, "files": []})
        entry["pixels"] += number
        entry["images"] += 1
        entry["files"].append(name_of(example))
  return {str(own_id): unexpected[own_id] for own_id in sorted(unexpected)}


def _notes(split: ExaminedSplit, info: DatasetInfo, counts: np.ndarray) -> Iterator[str]:
  """Yields what is odd in a split, from the counts of ``class_pixels``; training does not stop at it."""
  source, examined = split.source, split.examined
  if isinstance(source, FilePairs):
    yield from source.notes
  released = data.DATASETS[info.name].image_counts.get(split.name)
  if released and source is not None and len(source) != released:
    yield f"holds {len(source):,} images, the official release {released:,}"
  ids = {own_id for example in examined for own_id in example.counts}
  explained = info.mistakes.in_split(ids)
  if explained:
    yield f"the labels: {explained}"
  if source is not None and source.labelled:
    name_of = example_names(source)
    ignored = [
      name_of(example) for example, row in zip(examined, counts, strict=True) if row[-1] == row.sum() > 0
    ]
    if ignored:
      yield f"{len(ignored):,} labels hold ignored pixels alone: {first_names(ignored)}"
    yield from _masks_of_0_and_255(examined, train_ids_of(source, info), name_of)
    turned = [name_of(example) for example in examined if example.turned_alone]
    if turned:
      yield (
        f"EXIF data turn the image or its label in {len(turned):,} pairs, and not the other: {first_names(turned)}; "
        "compare them on the contact sheet"
      )


def _masks_of_0_and_255(
  examined: Sequence[Examined], train_ids: dict[int, int], name_of: Callable[[Examined], str]
) -> Iterator[str]:
  """Yields a note on masks whose class is ignored because tools write 255 for it."""
  if train_ids.get(IGNORE_LABEL) != IGNORE_LABEL or train_ids.get(0, IGNORE_LABEL) == IGNORE_LABEL:
    return
  with_255 = [example for example in examined if IGNORE_LABEL in example.counts]
  masks = [name_of(example) for example in with_255 if example.counts.keys() == {0, IGNORE_LABEL}]
  # A label of one class and ignored borders is no such mask; most labels with such borders hold other classes too.
  if masks and 2 * len(masks) >= len(with_255):
    yield (
      f"{len(masks):,} labels hold the ids 0 and 255 alone, and 255 is ignored: {first_names(masks)}; if 255 marks a "
      "class there, write its id in place of 255"
    )


def _duplicates(examined: Sequence[Examined], name_of: Callable[[Examined], str]) -> Iterator[str]:
  first: dict[bytes, Examined] = {}
  for example in examined:
    if example.digest in first:
      yield f"{name_of(first[example.digest])} and {name_of(example)} are the same file"
    elif example.digest:
      first[example.digest] = example
