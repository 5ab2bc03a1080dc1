"""Reads and checks the examples of a split in several processes; a damaged example does not stop the others."""

import concurrent.futures
import concurrent.futures.process
import dataclasses
import hashlib
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rc_jax.data.reading.dataset_info import DatasetInfo
from rc_jax.data.reading.decode import (
  check_ids,
  check_sizes,
  decode_image,
  exif_orientation,
  is_transparent,
  label_ids,
  read_file,
)
from rc_jax.data.reading.palette import is_standard
from rc_jax.data.reading.source import FilePairs, Source

_CHUNK = 8  # examples in a task of a process
SECONDS_MEASURED = 2.0  # of work in this process, from which the remaining time is estimated
# A picture of 14 bits in 16, or of the numbers 0 to 1, has no sample as bright as this one of 8 bits.
NEARLY_BLACK_BELOW = 64
# Processes take several seconds to start: the remaining work must take longer.
SECONDS_WORTH_PROCESSES = 10.0


@dataclasses.dataclass(frozen=True)
class Examined:
  """The findings in an example.

  Attributes:
    index: its place in the split.
    size: ``(H,W)`` of the image as it is displayed; None for an image that cannot be decoded.
    counts: id -> pixels of the label, in the ids of its file (train ids where there is no file).
    digest: of the image's pixels, equal for equal images; empty for a file that cannot be decoded.
    defects: the errors that would stop training, one line each.
    turned_alone: whether EXIF data turn or mirror the image and not the label, or the reverse, and sizes do not show
      whether that is right.
    transparent: whether the image's file has pixels that are not opaque.
    blank: whether the image has several pixels, all of one colour.
    nearly_black: whether no sample of the image exceeds a quarter of the range.
    palette: index -> RGB of the indices in the label, from the palette of its file, without those that have the colour
      of their class. Empty for a palette that tools give to ids of any data set, and for a file without palette.
  """

  index: int
  size: tuple[int, int] | None
  counts: dict[int, int]
  digest: bytes
  defects: tuple[str, ...]
  turned_alone: bool = False
  transparent: bool = False
  blank: bool = False
  nearly_black: bool = False
  palette: Mapping[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)


def examine(source: Source, index: int) -> Examined:
  """Decodes example ``index`` and makes all checks of training, also after a first defect."""
  if not isinstance(source, FilePairs):
    return _examine_array(source, index)
  defects: list[str] = []
  image = ids = None
  counts, turned_alone, transparent = np.zeros(0, int), False, False
  palette = None
  image_at = str(source.images[index])
  try:
    content = read_file(source.images[index])
    image = decode_image(content, image_at)
    transparent = is_transparent(content)
  except ValueError as error:
    defects.append(str(error))
  if source.labels is not None:
    label_at = str(source.labels[index])
    try:
      label_content = read_file(source.labels[index])
      ids, counts, palette = label_ids(label_content, label_at, source.train_ids, source.info)
      check_ids(label_at, counts, palette, source.train_ids, source.info)
    except ValueError as error:
      defects.append(str(error))
      palette = None  # a further line on its colours would repeat the error
    if image is not None and ids is not None:
      try:
        check_sizes(image, ids, image_at, label_at)
        turned_alone = _turned_alone(content, label_content, image.shape[0] == image.shape[1])
      except ValueError as error:
        defects.append(str(error))
  found = _nonzero(counts)
  return Examined(
    index,
    size=None if image is None else (image.shape[0], image.shape[1]),
    counts=found,
    digest=_digest(image),
    defects=tuple(defects),
    turned_alone=turned_alone,
    transparent=transparent,
    blank=_is_blank(image),
    nearly_black=image is not None and int(image.max()) < NEARLY_BLACK_BELOW,
    palette=_colors(palette, list(found), source.info),
  )


def examine_all(source: Source, indices: Sequence[int], processes: int | None = None) -> Iterator[Examined]:
  """Examines examples in parallel.

  Args:
    source: a split.
    indices: which examples.
    processes: the largest number of processes; None: as many as there are cores.

  Returns:
    The findings in the order of ``indices``, each as soon as it is known.

  Raises:
    OSError: in one line, a process died.
  """
  processes = processes or cores()
  start, done = time.monotonic(), 0
  for index in indices:
    yield examine(source, index)
    done += 1
    spent = time.monotonic() - start
    remaining = spent / done * (len(indices) - done)
    if processes > 1 and spent > SECONDS_MEASURED and remaining > SECONDS_WORTH_PROCESSES:
      break
  rest = indices[done:]
  if not rest:
    return
  chunks = [rest[first : first + _CHUNK] for first in range(0, len(rest), _CHUNK)]
  # A server process without JAX's threads forks them after its imports; forks of this process may hang.
  methods = multiprocessing.get_all_start_methods()
  context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
  context.set_forkserver_preload([__name__])
  pool = concurrent.futures.ProcessPoolExecutor(
    processes, context, initializer=_start_process, initargs=(source,)
  )
  try:
    yield from itertools.chain.from_iterable(pool.map(_examine_chunk, chunks))
  except concurrent.futures.process.BrokenProcessPool:
    raise OSError(
      "a process that checked files died, probably because memory ran out: check fewer images with --sample"
    ) from None
  finally:
    pool.shutdown(cancel_futures=True)


def cores() -> int:
  """Returns the number of cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _examine_array(source: Source, index: int) -> Examined:
  try:
    example = source[index]
  except ValueError as error:
    return Examined(index, None, {}, b"", (str(error),))
  image, label = example["image"], example.get("label")
  counts = np.zeros(0, int) if label is None else np.bincount(label.ravel())
  size = image.shape[0], image.shape[1]
  return Examined(
    index,
    size,
    _nonzero(counts),
    _digest(image),
    (),
    blank=_is_blank(image),
    nearly_black=int(image.max()) < NEARLY_BLACK_BELOW,
  )


def _digest(image: np.ndarray | None) -> bytes:
  if image is None:
    return b""
  digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
  digest.update(np.ascontiguousarray(image).data)
  return digest.digest()


def _is_blank(image: np.ndarray | None) -> bool:
  # The first rows decide for nearly all images.
  return (
    image is not None
    and image.shape[:2] != (1, 1)
    and all((rows == image[0, 0]).all() for rows in (image[:2], image))
  )


def _colors(
  palette: np.ndarray | None, present: Sequence[int], info: DatasetInfo
) -> dict[int, tuple[int, ...]]:
  if palette is None or not present or is_standard(palette, present):
    return {}
  ids_by_color = info.ids_by_color()
  colors = {index: tuple(palette[index].tolist()) for index in present if index < len(palette)}
  return {index: color for index, color in colors.items() if index not in ids_by_color.get(color, ())}


def _turned_alone(image: bytes, label: bytes, square: bool) -> bool:
  orientations = exif_orientation(image), exif_orientation(label)
  if (orientations[0] == 1) == (orientations[1] == 1):
    return False
  # From 5 on, height and width change places: equal sizes then show that the label is as the image is displayed.
  return square or max(orientations) < 5


def _nonzero(counts: np.ndarray) -> dict[int, int]:
  return {own_id: int(counts[own_id]) for own_id in np.flatnonzero(counts).tolist()}


# The split that a worker process reads.
_source: list[Source] = []


def _start_process(source: Source) -> None:
  # Ctrl-C reaches all processes of a terminal; the main one ends the others.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  _source.append(source)


def _examine_chunk(indices: Sequence[int]) -> list[Examined]:
  return [examine(_source[0], index) for index in indices]
