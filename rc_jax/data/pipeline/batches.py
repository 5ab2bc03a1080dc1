"""Training batches and evaluation examples of a split, which Grain reads ahead.

The batch at a position depends on the seed and the position alone: not on threads, worker processes, hosts or
interruptions. The state of the iterator is therefore its position and the list of files that could not be read, and a
run can resume with other numbers of threads, processes and hosts.
"""

import dataclasses
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from PIL import Image

from rc_jax.data.augment import options_of, training_crop
from rc_jax.data.pipeline.decoded_cache import CachedSource, DecodedCache, budget_bytes
from rc_jax.data.pipeline.rare_classes import RareClassSampling
from rc_jax.data.pipeline.skip_unreadable import (
  REASON,
  SKIPPED,
  NextReadable,
  split_report,
  too_many_unreadable,
)
from rc_jax.data.pipeline.worker_process import exit_with_parent
from rc_jax.data.reading.source import Example, Source, WrappedSource, decoded_on_access
from rc_jax.fields import Config

Batch = dict[str, np.ndarray]
"""``{"image": uint8 [b,h,w,3], "label": uint8 [b,h,w]}``, and ``"index": int32 [b]`` with ``with_index``."""

INDEX = "index"
_DRAWN_CLASS = "drawn_class"  # of an example, beside the pixels


def train_batches(
  source: Source,
  *,
  seed: int,
  batch_size: int,
  crop_size: tuple[int, int],
  augment: object,
  workers: int = 0,
  threads: int = 2,
  cache_gb: float = 0.0,
  max_skipped: float | None = None,
  host_index: int = 0,
  host_count: int = 1,
  with_index: bool = False,
  rare_classes: RareClassSampling | None = None,
) -> "TrainBatches":
  """Returns endless batches of augmented crops, in another order in each epoch.

  An epoch visits every image once. Epochs follow each other without a gap: a batch may span two of them, and may be
  larger than the data set. With ``rare_classes`` there are no epochs: each image is drawn by itself.

  Args:
    source: the training split.
    seed: of the order and of the augmentation, 0..2^32-1.
    batch_size: of the global batch, over all hosts.
    crop_size: ``(h,w)`` of the crops.
    augment: has the fields of ``config.augment`` as attributes; one that is absent has its default.
    workers: the number of processes that decode and augment; 0: this process.
    threads: the number of reading threads in each process; 0: a batch is made when it is requested.
    cache_gb: GiB of decoded examples to keep, in this process and its workers together; 0: none.
    max_skipped: the share of the split that may be unreadable: the next readable example replaces each. None: an
      unreadable example is an error.
    host_index: the contiguous part of the global batch to read, ``0..host_count-1``. Images of other hosts are not
      decoded.
    host_count: the number of parts.
    with_index: adds ``"index": int32 [b]``, the place of each image in ``source``. Where an unreadable example is
      replaced, it is that of the example that was read.
    rare_classes: draws the image of each position, of the same split; None: epochs.

  Returns:
    An iterator over ``{"image": uint8 [b,h,w,3], "label": uint8 [b,h,w]}``, ``b = batch_size / host_count``.

  Raises:
    ValueError: ``host_count`` does not divide ``batch_size``, a number is out of its range, or the cache is larger than
      this machine's memory.
  """
  if len(source) == 0:
    raise ValueError(f"{source.info.name}: the training split is empty, expected at least one image")
  if batch_size < 1 or batch_size % host_count:
    raise ValueError(
      f"train.batch_size is {batch_size}, expected a positive multiple of the number of hosts, {host_count}: change it"
    )
  if not 0 <= host_index < host_count:
    raise ValueError(f"host_index is {host_index}, expected 0 to {host_count - 1}")
  if not 0 <= seed < 2**32:
    raise ValueError(f"seed is {seed}, expected 0 to 2^32 - 1: choose another")
  for field, value in (("workers", workers), ("threads", threads)):
    if value < 0:
      raise ValueError(f"data.{field} is {value}, expected 0 or more: change it")
  rows = batch_size // host_count
  crop = _TrainingCrop((int(crop_size[0]), int(crop_size[1])), options_of(augment), rare_classes)
  examples_in_all = len(source)
  if cache_gb:
    source = CachedSource(source, DecodedCache(examples_in_all, budget_bytes(cache_gb)))
  else:
    # A crop decodes only the tiles that it touches; the cache would need all of them.
    source = decoded_on_access(source)
  if with_index:
    source = _Indexed(source)
  limit = None
  if max_skipped is not None:
    limit = int(max_skipped * examples_in_all)
    source = NextReadable(source, limit)
  # The random transformation comes after repeat and before the selection of the host's rows: Grain seeds its generator
  # by the index, which is then the position in the endless global stream.
  if rare_classes is None:
    ordered = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
  else:
    if rare_classes.examples != examples_in_all:
      raise ValueError(
        f"rare_classes is of {rare_classes.examples} examples, but the split has {examples_in_all}: count it again"
      )
    draws = _RareClassDraws(rare_classes, seed)
    ordered = grain.MapDataset.select_from_datasets([grain.MapDataset.source(source)], draws).seed(seed)
    ordered = ordered.map_with_index(_WithDrawnClass(rare_classes, seed))
  examples = ordered.random_map(crop)
  if host_count > 1:
    selection = _HostRows(len(examples) // batch_size * rows, batch_size, rows, host_index * rows)
    examples = grain.MapDataset.select_from_datasets([examples], selection)
  batches = examples.batch(rows, drop_remainder=True)
  return TrainBatches(batches, workers=workers, threads=threads, examples=examples_in_all, most_skipped=limit)


class TrainBatches(Iterator[Batch]):
  """Endless batches with a position that can be saved and restored. Owns the threads and processes that read ahead.

  They start at the first ``next`` and end with ``close``, at the end of a ``with`` block, or with the interpreter.

  Attributes:
    skipped: index -> reason of the examples that could not be read, in the batches returned so far.
    most_skipped: the largest number of skipped examples; None: an example that cannot be read is an error.
  """

  def __init__(
    self,
    batches: "grain.MapDataset[Batch]",
    *,
    workers: int,
    threads: int,
    examples: int,
    most_skipped: int | None,
  ):
    self.skipped: dict[int, str] = {}
    self._examples = examples
    self.most_skipped = most_skipped
    self._batches = batches
    self._workers = workers
    self._threads = threads
    self._position = 0
    # Grain's iterator while it runs; otherwise empty.
    self._running: list[grain.DatasetIterator[Batch]] = []
    # Grain's clean-up comes too late at the end of the interpreter: it prints errors and leaks shared memory.
    weakref.finalize(self, _end, self._running)

  def __next__(self) -> Batch:
    """Returns the batch at the position, and increments the position.

    Raises:
      ValueError: in one line: a file of the data set is damaged, in any thread or process, and the position stays; or
        too many examples were skipped.
      RuntimeError: a worker process died.
    """
    if not self._running:
      self._running.append(self._start())
    try:
      batch = next(self._running[0])
    except Exception as error:
      # Grain's threads continue after a failed element: the next call must start at this position again.
      self.close()
      if type(error).__name__ == "UnparsedFlagAccessError":
        raise RuntimeError(
          "data.workers > 0, but absl's flags, which Grain needs to start a process, are not parsed: "
          "call absl.flags.FLAGS.mark_as_parsed() first, or set data.workers=0"
        ) from error
      raise
    if self.most_skipped is not None:
      batch, skipped = split_report(batch)
      if skipped.keys() - self.skipped.keys():
        # A new dictionary, because callers hold the old one. Known reasons stay.
        self.skipped = {**self.skipped, **skipped, **self.skipped}
        if len(self.skipped) > self.most_skipped:
          self.close()
          last_reason = list(self.skipped.values())[-1]
          raise too_many_unreadable(len(self.skipped), self._examples, self.most_skipped, last_reason)
    self._position += 1
    # A copy, in a few milliseconds: Grain manages the lifetime of the workers' shared memory.
    return {name: np.array(value) for name, value in batch.items()} if self._workers else batch

  def get_state(self) -> dict[str, Any]:
    """Returns the position as ``{"next_batch": n}``, the number of batches returned, not read ahead.

    If examples were skipped, ``skipped`` holds the reason of each by its index, as a string.
    """
    skipped = {str(index): reason for index, reason in self.skipped.items()}
    return {"next_batch": self._position, **({"skipped": skipped} if skipped else {})}

  def set_state(self, state: dict[str, Any]) -> None:
    """Sets the position to one from ``get_state``, of any process with the same seed and batch size."""
    self.close()
    self._position = int(state["next_batch"])
    self.skipped = {int(index): reason for index, reason in state.get("skipped", {}).items()}

  def close(self) -> None:
    """Ends the threads and processes. Another ``next`` starts them again."""
    _end(self._running)

  def __enter__(self) -> "TrainBatches":
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def _start(self) -> "grain.DatasetIterator[Batch]":
    # A slice in place of Grain's state, which lists every worker: a run could resume only with the same number of them.
    _keep_image_memory()
    remaining = self._batches.slice(slice(self._position, None))
    dataset = remaining.to_iter_dataset(_read_options(self._threads))
    if self._workers:
      options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=2)
      dataset = dataset.mp_prefetch(options, _start_worker)
    return iter(dataset)


def _end(running: "list[grain.DatasetIterator[Batch]]") -> None:
  while running:
    running.pop().close()


def evaluation_examples(
  source: Source, host_index: int = 0, host_count: int = 1, threads: int = 2
) -> Iterator[Example]:
  """Returns the examples of a split in order and unchanged, read ahead by threads.

  Args:
    source: the split.
    host_index: this host reads the examples ``host_index, host_index + host_count, ...``.
    host_count: the number of hosts. If it does not divide the split, the last hosts get one example less.
    threads: the number of reading threads; 0: an example is read when it is requested.

  Returns:
    An iterator over ``{"image": uint8 [H,W,3], "label": uint8 [H,W], "name": str}``.

  Raises:
    ValueError: in one line, a file of the data set is damaged.
  """
  if not 0 <= host_index < host_count:
    raise ValueError(f"host_index is {host_index}, expected 0 to {host_count - 1}")
  # Grain refuses an empty slice.
  if host_index >= len(source):
    return iter(())
  return _read_ahead(grain.MapDataset.source(source).slice(slice(host_index, None, host_count)), threads)


def _read_ahead(examples: "grain.MapDataset[Example]", threads: int) -> Iterator[Example]:
  iterator = iter(examples.to_iter_dataset(_read_options(threads)))
  try:
    yield from iterator
  finally:
    iterator.close()


def _start_worker(index: int, count: int) -> None:
  del index, count
  _keep_image_memory()
  exit_with_parent()


def _keep_image_memory() -> None:
  # By default Pillow returns an image's memory to the system and gets the next one's page by page, which takes a
  # seventh of the time to decode a 2048x1024 PNG.
  Image.core.set_blocks_max(8)


def _read_options(threads: int) -> grain.ReadOptions:
  # An element is a batch: two for each thread keep all threads busy and hold few in memory.
  return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)


class _IndexedExample(Example):
  """An example and ``index``, its place in the split, int32."""

  index: np.int32


class _Indexed(WrappedSource):
  """A split whose examples hold their places."""

  def __getitem__(self, index: int) -> _IndexedExample:
    return {**self.source[index], "index": np.int32(index)}


@dataclasses.dataclass(frozen=True)
class _TrainingCrop(grain.transforms.RandomMap):
  """The training augmentation. It drops the name: strings cannot be stacked to an array."""

  crop_size: tuple[int, int]
  options: Config
  rare_classes: RareClassSampling | None

  def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> Batch:
    rare, drawn = self.rare_classes, element.get(_DRAWN_CLASS)
    for _ in range(1 if rare is None else rare.crops):
      image, label = training_crop(
        element["image"], element["label"], rng, crop_size=self.crop_size, options=self.options
      )
      if rare is None or np.count_nonzero(label == drawn) >= rare.crop_pixels[drawn]:
        break
    others = {key: element[key] for key in (INDEX, SKIPPED, REASON) if key in element}
    return {"image": image, "label": label, **others}


@dataclasses.dataclass(frozen=True)
class _RareClassDraws(grain.transforms.DatasetSelectionMap):
  """The endless stream of examples, each drawn by its position."""

  sampling: RareClassSampling
  seed: int

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, index: int) -> tuple[int, int]:
    return 0, self.sampling.draw(self.seed, index)[1]


@dataclasses.dataclass(frozen=True)
class _WithDrawnClass(grain.transforms.MapWithIndex):
  """Adds to each example the class for which it was drawn."""

  sampling: RareClassSampling
  seed: int

  def map_with_index(self, index: int, element: dict[str, Any]) -> dict[str, Any]:
    return {**element, _DRAWN_CLASS: self.sampling.draw(self.seed, index)[0]}


@dataclasses.dataclass(frozen=True)
class _HostRows(grain.transforms.DatasetSelectionMap):
  """Selects rows ``first..first+rows`` of every global batch from the endless stream of examples."""

  length: int
  batch_size: int
  rows: int
  first: int

  def __len__(self) -> int:
    return self.length

  def __getitem__(self, index: int) -> tuple[int, int]:
    batch, row = divmod(index, self.rows)
    return 0, batch * self.batch_size + self.first + row
