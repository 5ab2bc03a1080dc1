"""Data sets, augmentation and the input pipeline. The rest of the project sees NumPy arrays only."""

import difflib
from collections.abc import Callable

from rc_jax.data import camvid, cityscapes, synthetic
from rc_jax.data.pipeline import TrainBatches, evaluation_examples, train_batches
from rc_jax.data.source import IGNORE_LABEL, DatasetInfo, Example, Source

DATASETS: dict[str, Callable[[str, str], Source]] = {
  "camvid": camvid.load,
  "cityscapes": cityscapes.load,
  "synthetic": synthetic.load,
}
INFOS: dict[str, DatasetInfo] = {module.INFO.name: module.INFO for module in (camvid, cityscapes, synthetic)}


def load(name: str, root: str, split: str) -> Source:
  """Opens a split of a data set: lists its files, and decodes none yet.

  Args:
    name: one of ``DATASETS``.
    root: the folder of the data set; ``synthetic`` needs none.
    split: ``train``, ``val``, or what else the data set has.

  Returns:
    A picklable sequence of examples ``{"image": uint8 [H,W,3], "label": uint8 [H,W], "name": str}``.

  Raises:
    ValueError: in one line, for an unknown name or split, an empty folder, or half a pair.
    FileNotFoundError: in one line, for a missing folder; it says the layout expected.
  """
  _check_name(name)
  return DATASETS[name](root, split)


def info(name: str) -> DatasetInfo:
  """Returns the classes of a data set without touching its files; raises ValueError for an unknown name."""
  _check_name(name)
  return INFOS[name]


def _check_name(name: str) -> None:
  if name not in DATASETS:
    close = difflib.get_close_matches(name, DATASETS, n=1, cutoff=0.4)
    meant = f"did you mean {close[0]}?" if close else "choose one of them"
    raise ValueError(f"dataset.name is {name!r}, expected one of {', '.join(sorted(DATASETS))}: {meant}")


__all__ = [
  "DATASETS",
  "IGNORE_LABEL",
  "DatasetInfo",
  "Example",
  "Source",
  "TrainBatches",
  "evaluation_examples",
  "info",
  "load",
  "train_batches",
]
