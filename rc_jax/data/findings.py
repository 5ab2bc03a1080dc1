"""Summaries of examined splits: counts of pixels and images, sizes, unexpected ids."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rc_jax.data import DatasetInfo, Examined
from rc_jax.data.notes import ExaminedSplit, Note, example_names, train_ids_of


def summarize(
  split: ExaminedSplit, info: DatasetInfo, notes: Sequence[Note], crop_size: tuple[int, int] | None
) -> dict[str, Any]:
  """Summarizes a split for ``<split>.json``: sizes, pixels of each class, unexpected ids, defects, notes.

  Args:
    split: the split with its findings.
    info: the data set's classes.
    notes: from ``notes.find_notes``.
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
    "notes": [note.line() for note in notes],
  }


def class_pixels(examined: Sequence[Examined], train_ids: dict[int, int], num_classes: int) -> np.ndarray:
  """Returns the pixels of each class and, last, the ignored ones, int ``[n,N+1]``, without those of unknown ids."""
  counts = np.zeros((len(examined), num_classes + 1), np.int64)
  for row, example in zip(counts, examined, strict=True):
    for own_id, number in example.counts.items():
      if own_id in train_ids:
        row[min(train_ids[own_id], num_classes)] += number
  return counts


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
