"""Counts of the classes' pixels in the labels of a split, without decoding its images where they are files."""

import concurrent.futures
import os
from collections.abc import Iterator, Sequence

import numpy as np

from rc_jax.data.reading.decode import read_label
from rc_jax.data.reading.source import FilePairs, Joined, Source, decoded_on_access

_MOST_THREADS = 8


def label_counts(
  source: Source, indices: Sequence[int], *, skip_unreadable: bool = False
) -> Iterator[np.ndarray]:
  """Counts the pixels of each class in labels, in several threads.

  These are the counts of ``--mode=inspect``, in train ids.

  Args:
    source: a split with labels.
    indices: which examples.
    skip_unreadable: whether an unreadable label counts as one without pixels.

  Returns:
    ``[N]`` int64 of each example, in the order of ``indices``, without ignored pixels.

  Raises:
    ValueError: a label is damaged or has ids of another data set; one line.
    OSError: a file cannot be read.
  """
  source = decoded_on_access(source)

  def count(index: int) -> np.ndarray:
    num_classes = source.info.num_classes
    try:
      label = _label(source, index)
    except (ValueError, OSError):
      if not skip_unreadable:
        raise
      return np.zeros(num_classes, np.int64)
    return np.bincount(label.ravel(), minlength=256)[:num_classes].astype(np.int64)

  with concurrent.futures.ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
    try:
      yield from pool.map(count, indices)
    finally:
      pool.shutdown(cancel_futures=True)


def _label(source: Source, index: int) -> np.ndarray:
  """Returns the label of an example, uint8 ``[H,W]`` in train ids."""
  if isinstance(source, Joined):
    for part in source.parts:
      if index < len(part):
        return _label(part, index)
      index -= len(part)
  if isinstance(source, FilePairs) and source.labels is not None:
    return read_label(source.labels[index], source.train_ids, source.info)
  label = source[index]["label"]
  return np.asarray(label[:, :])
