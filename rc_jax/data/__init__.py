"""Data sets, augmentation and the input pipeline. The rest of the project sees NumPy arrays only."""

import difflib
import functools
import pathlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rc_jax.data.datasets import ade20k, camvid, cityscapes, coco_stuff, folder, synthetic
from rc_jax.data.pipeline.batches import TrainBatches, evaluation_examples, train_batches
from rc_jax.data.prepared import reader
from rc_jax.data.reading import locate
from rc_jax.data.reading.decode import read_image
from rc_jax.data.reading.diagnose import split_ids
from rc_jax.data.reading.examine import Examined, examine_all
from rc_jax.data.reading.source import (
  IGNORE_LABEL,
  IMAGE_SUFFIXES,
  DatasetInfo,
  Example,
  FilePairs,
  IncompleteSplit,
  Joined,
  Source,
)

DATASETS: dict[str, Callable[[str, str], Source]] = {
  "ade20k": ade20k.load,
  "camvid": camvid.load,
  "cityscapes": cityscapes.load,
  "coco_stuff_10k": coco_stuff.load_10k,
  "coco_stuff_164k": coco_stuff.load_164k,
  "folder": folder.load,
  "synthetic": synthetic.load,
}
_INFOS: dict[str, DatasetInfo] = {
  info.name: info
  for info in (
    *(ade20k.INFO, camvid.INFO, cityscapes.INFO, coco_stuff.INFO_10K, coco_stuff.INFO_164K),
    synthetic.INFO,
  )
}
_SPLITS: dict[str, tuple[str, ...]] = {
  "ade20k": tuple(ade20k.SPLITS),
  "camvid": camvid.SPLITS,
  "cityscapes": tuple(cityscapes.SPLITS),
  "coco_stuff_10k": coco_stuff.SPLITS_10K,
  "coco_stuff_164k": tuple(coco_stuff.SPLITS_164K),
  "synthetic": tuple(synthetic.SPLITS),
}
# What the field calls it.
_ALIASES = {("cityscapes", "trainval"): "train+val"}


def load(name: str, root: str, split: str, *, labels: bool = True) -> Source:
  """Opens a split of a data set: lists its files, and decodes none yet.

  Args:
    name: one of ``DATASETS``.
    root: the folder of the data set, raw or prepared by ``--mode=prepare``; ``synthetic`` needs none.
    split: ``train``, ``val``, or what else the data set has; several joined by ``+``, one after the other.
    labels: whether the caller needs labels.

  Returns:
    A picklable sequence of examples ``{"image": uint8 [H,W,3], "label": uint8 [H,W], "name": str}``; ``label`` is
    absent where the split has none.

  Raises:
    ValueError: in one line, for an unknown name or split, an empty folder, half a pair, or a split without labels
      where they are needed.
    FileNotFoundError: in one line, for a missing folder; it says the layout expected.
  """
  _check_name(name)
  with _hints(name, root):
    opened = functools.partial(reader.load, name) if _is_prepared(name, root) else DATASETS[name]
    parts = tuple(opened(root, part) for part in parts_of(name, split))
  for part in parts:
    if part.labelled != parts[0].labelled or (labels and not part.labelled):
      raise ValueError(
        f"split {split!r} of {name}: has no labels to train on or to score; expected one with labels "
        "(--mode=predict needs none)"
      )
  return parts[0] if len(parts) == 1 else Joined(parts)


def info(name: str, root: str) -> DatasetInfo:
  """Returns the classes of a data set; ``folder`` reads its table of them in ``root``, prepared data their index.

  Raises:
    ValueError: for an unknown name, or a wrong table.
    FileNotFoundError: there is no table.
  """
  _check_name(name)
  if _is_prepared(name, root):
    return reader.info(name, root)
  with _hints(name, root):
    return folder.info(root) if name == "folder" else _INFOS[name]


def parts_of(name: str, split: str) -> tuple[str, ...]:
  """Returns the splits that a split joins, ``("train", "val")`` for ``train+val`` and Cityscapes' ``trainval``."""
  return tuple(_ALIASES.get((name, split), split).split("+"))


def splits(name: str, root: str) -> tuple[str, ...]:
  """Names the splits that a data set may have; for ``folder`` those that ``root`` has."""
  _check_name(name)
  if name != "folder":
    return _SPLITS[name]
  images = pathlib.Path(root).expanduser() / "images"
  found = sorted(path.name for path in images.iterdir() if path.is_dir()) if images.is_dir() else ()
  return tuple(split for split in found if not split.startswith("."))


@contextmanager
def _hints(name: str, root: str) -> Iterator[None]:
  """Lets an error about a missing folder end with where the data set may be."""
  try:
    yield
  except FileNotFoundError as error:
    raise FileNotFoundError(f"{error}{locate.hint(name, root)}") from None


def _is_prepared(name: str, root: str) -> bool:
  return name != "synthetic" and reader.is_prepared(root)


def _check_name(name: str) -> None:
  if name not in DATASETS:
    close = difflib.get_close_matches(name, DATASETS, n=1, cutoff=0.4)
    meant = f"did you mean {close[0]}?" if close else "choose one of them"
    raise ValueError(f"dataset.name is {name!r}, expected one of {', '.join(sorted(DATASETS))}: {meant}")


__all__ = [
  "DATASETS",
  "IGNORE_LABEL",
  "IMAGE_SUFFIXES",
  "DatasetInfo",
  "Examined",
  "Example",
  "FilePairs",
  "IncompleteSplit",
  "Joined",
  "Source",
  "TrainBatches",
  "evaluation_examples",
  "examine_all",
  "info",
  "load",
  "parts_of",
  "read_image",
  "split_ids",
  "splits",
  "train_batches",
]
