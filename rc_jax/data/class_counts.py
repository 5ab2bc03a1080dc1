"""The pixels of each class in each label of a split: counted once, and kept in the folder of a run."""

import hashlib
import json
import pathlib
import zipfile
from typing import Any

import numpy as np

from rc_jax import files
from rc_jax.console import Progress, say
from rc_jax.data.label_counts import label_counts
from rc_jax.data.prepared import reader
from rc_jax.data.reading.listing import common_folder
from rc_jax.data.reading.source import FilePairs, Joined, Source

FILE = "class_pixels.npz"
_FORMAT = 1


def count_class_pixels(source: Source, folder: pathlib.Path, *, skip: bool, keep: bool) -> np.ndarray:
  """Returns the pixels of each class in each label of a split.

  The file ``folder/class_pixels.npz`` serves where it belongs to the same classes and label files, by their names,
  sizes and modification times. Otherwise every label is decoded once.

  Args:
    source: a split with labels.
    folder: of the run.
    skip: whether a label that cannot be read counts as empty; otherwise it is an error.
    keep: whether to write the file; of several processes, one may.

  Returns:
    int64 ``[n,N]``, in the order of the split.

  Raises:
    ValueError: a label is damaged; one line with its file.
    OSError: a file cannot be read.
  """
  listing, path = _listing(source), folder / FILE
  earlier = _read(path)
  if listing and earlier is not None and earlier[0] == listing:
    return earlier[1]
  pixels = _count(source, skip)
  if earlier is not None and not np.array_equal(earlier[1], pixels):
    say(
      f"{path}: the classes or the labels have changed since it was written: counted again, and the images are drawn "
      "in another order from here on"
    )
  if listing and keep:
    # A label that could not be read may be readable the next time: all are counted again then.
    perhaps_unreadable = skip and bool((pixels.sum(axis=1) == 0).any())
    with files.atomic_write(path) as file:
      np.savez_compressed(file, listing=np.array("" if perhaps_unreadable else listing), pixels=pixels)
  return pixels


def digest_of_counts(pixels: np.ndarray) -> str:
  """Returns what processes compare of their counts."""
  return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()[:16]


def _count(source: Source, skip: bool) -> np.ndarray:
  progress = Progress("counting the pixels of each class", len(source), "labels")
  counts = []
  try:
    for of_label in label_counts(source, range(len(source)), skip_unreadable=skip):
      counts.append(of_label)
      progress.advance(1)
  finally:
    progress.close()
  pixels = np.array(counts)
  empty = int((pixels.sum(axis=1) == 0).sum())
  if empty:
    reason = "cannot be read, or hold no class" if skip else "hold no class"
    say(f"{empty:,} of {len(source):,} labels {reason}: sampling by class never draws their images")
  return pixels


def _read(path: pathlib.Path) -> tuple[str, np.ndarray] | None:
  if not path.is_file():
    return None
  try:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
      return str(stored["listing"]), stored["pixels"].astype(np.int64)
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    say(f"{path}: cannot be read ({files.one_line(error)}); the labels are counted again")
    return None


def _listing(source: Source) -> str:
  """Returns a digest of the classes and label files of a split; empty where a part has no files to tell it by."""
  entries = [_entry(part) for part in _parts(source)]
  if not all(entries):
    return ""
  return hashlib.sha256(json.dumps([_FORMAT, source.info.table(), entries]).encode()).hexdigest()


def _entry(part: Source) -> Any:
  if isinstance(part, reader.PreparedSplit):
    return [part.split, reader.stored_metadata(part)]
  if not isinstance(part, FilePairs) or part.labels is None:
    return None
  top = common_folder(part.labels)
  names = [path.relative_to(top).as_posix() for path in part.labels]
  stamps = [_stamp(path) for path in part.labels]
  return [sorted(part.train_ids.items()), list(zip(names, stamps, strict=True))]


def _stamp(path: pathlib.Path) -> tuple[int, int]:
  try:
    status = path.stat()
  except OSError:
    return 0, 0  # reading the label says why
  return status.st_size, status.st_mtime_ns


def _parts(source: Source) -> tuple[Source, ...]:
  return source.parts if isinstance(source, Joined) else (source,)
