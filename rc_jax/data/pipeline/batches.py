"""From a split of a data set to training batches and evaluation examples, with Grain reading ahead.

The batch at a position depends on the seed and the position alone: not on threads, worker processes, hosts, or where
the run was interrupted. So the position is all the state there is, but for a list of files that could not be read, and
a run may resume with other numbers of them.
"""

import dataclasses
import weakref
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from PIL import Image

from rc_jax.data.augment import transforms
from rc_jax.data.pipeline import skip_unreadable
from rc_jax.data.pipeline.decoded_cache import Cached, DecodedCache, budget_bytes
from rc_jax.data.pipeline.worker_process import tie_to_parent
from rc_jax.data.reading.source import Example, Source, lazily

Batch = dict[str, np.ndarray]
"""``{"image": uint8 [b,h,w,3], "label": uint8 [b,h,w]}``."""


def train_batches(
  source: Source,
  *,
  seed: int,
  batch_size: int,
  crop_size: tuple[int, int],
  augment: Any,
  workers: int = 0,
  threads: int = 2,
  cache_gb: float = 0.0,
  max_skipped: float | None = None,
  host_index: int = 0,
  host_count: int = 1,
) -> "TrainBatches":
  """Returns endless batches of augmented crops, shuffled anew in each epoch.

  An epoch visits every image once; epochs follow each other without a break, so a batch may span two of them, and
  may be larger than the data set.

  Args:
    source: the training split.
    seed: of the order and of the augmentation, 0..2^32-1.
    batch_size: of the global batch, over all hosts.
    crop_size: ``(h,w)`` of the crops.
    augment: the fields of ``config.augment``, under their names.
    workers: processes that decode and augment; 0 means this one.
    threads: reading threads in each process; 0 means that a batch is made when it is asked for.
    cache_gb: GiB of decoded examples to keep, in this process and its workers together; 0 means none.
    max_skipped: the share of the split that may be broken: the next example stands in for one that cannot be read.
      None means that such a one is an error.
    host_index: which contiguous part of the global batch to read, ``0..host_count-1``. Images of the other hosts'
      rows are not decoded here.
    host_count: number of parts.

  Returns:
    An iterator over ``{"image": uint8 [b,h,w,3], "label": uint8 [b,h,w]}``, ``b = batch_size / host_count``.

  Raises:
    ValueError: when ``host_count`` does not divide ``batch_size``, a number is out of its range, or the cache is larger
      than this machine's memory.
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
  crop = _Crop(
    crop_size=(int(crop_size[0]), int(crop_size[1])),
    scale=(float(augment.scale[0]), float(augment.scale[1])),
    flip=float(augment.flip),
    photometric=bool(augment.photometric),
    cat_max_ratio=float(augment.cat_max_ratio),
    rotation=float(augment.rotation),
    blur=float(augment.blur),
    blur_sigma=(float(augment.blur_sigma[0]), float(augment.blur_sigma[1])),
  )
  examples_in_all = len(source)
  # Of images in tiles the crop decodes those that it touches; a cache wants the whole.
  keeps = bool(cache_gb)
  source = Cached(source, DecodedCache(examples_in_all, budget_bytes(cache_gb))) if keeps else lazily(source)
  limit = None
  if max_skipped is not None:
    limit = int(max_skipped * examples_in_all)
    source = skip_unreadable.NextReadable(source, limit)
  # The random transformation comes after repeat and before the host's rows are picked: its index, from which Grain
  # seeds the generator, is then the position in the endless global stream.
  examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat().random_map(crop)
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
    # Grain's iterator while it runs, and nothing before and after.
    self._running: list[grain.DatasetIterator[Batch]] = []
    # Grain's own clean-up comes too late in the interpreter's end: it prints errors and leaks shared memory.
    weakref.finalize(self, _end, self._running)

  def __next__(self) -> Batch:
    """Returns the batch at the position, and moves it on by one.

    Raises:
      ValueError: in one line, when a file of the data set is damaged; whichever thread or process met it. The
        position stays. Or more of the examples were skipped than may be.
      RuntimeError: when a worker process died.
    """
    if not self._running:
      self._running.append(self._start())
    try:
      batch = next(self._running[0])
    except Exception as error:
      # Grain's threads go on behind a failed element: another try must begin at the position again.
      self.close()
      if type(error).__name__ == "UnparsedFlagAccessError":
        raise RuntimeError(
          "data.workers > 0, but absl's flags are not parsed, and Grain reads some to start a process: "
          "call absl.flags.FLAGS.mark_as_parsed() first, or set data.workers=0"
        ) from error
      raise
    if self.most_skipped is not None:
      batch, broken = skip_unreadable.taken_off(batch)
      if broken.keys() - self.skipped.keys():
        # A new one: states that were asked for keep the old.
        self.skipped = self.skipped | {index: broken[index] for index in broken if index not in self.skipped}
        if len(self.skipped) > self.most_skipped:
          self.close()
          raise skip_unreadable.too_many(
            len(self.skipped), self._examples, self.most_skipped, list(self.skipped.values())[-1]
          )
    self._position += 1
    # Out of the workers' shared memory, whose lifetime Grain manages, not we: a copy of a few milliseconds.
    return {name: np.array(value) for name, value in batch.items()} if self._workers else batch

  def get_state(self) -> dict[str, Any]:
    """Returns the position as ``{"next_batch": n}``: the batches returned so far, not those read ahead.

    Where examples were skipped, ``skipped`` holds the reason of each by its index, as a string.
    """
    skipped = {str(index): reason for index, reason in self.skipped.items()}
    return {"next_batch": self._position, **({"skipped": skipped} if skipped else {})}

  def set_state(self, state: dict[str, Any]) -> None:
    """Moves to a position from ``get_state``, of this or another process with the same seed and batch size."""
    self.close()
    self._position = int(state["next_batch"])
    self.skipped = {int(index): reason for index, reason in state.get("skipped", {}).items()}

  def close(self) -> None:
    """Ends the threads and processes. A further ``next`` starts them again."""
    _end(self._running)

  def __enter__(self) -> "TrainBatches":
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def _start(self) -> "grain.DatasetIterator[Batch]":
    # Starting from a slice rather than restoring Grain's own state: that one lists every worker, and so would tie a
    # resumed run to the same number of them.
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
  """Returns the examples of a split in order, whole and unchanged, read ahead by threads.

  Args:
    source: the split.
    host_index: this host reads examples ``host_index, host_index + host_count, ...``: over all hosts, each once.
    host_count: number of hosts. The last ones get one example less where it does not divide the split.
    threads: reading threads; 0 reads an example when it is asked for.

  Returns:
    An iterator over ``{"image": uint8 [H,W,3], "label": uint8 [H,W], "name": str}``.

  Raises:
    ValueError: in one line, when a file of the data set is damaged.
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
  tie_to_parent()


def _keep_image_memory() -> None:
  # Pillow otherwise gives an image's memory back to the system and gets the next one's page by page: a seventh of the
  # time in which a 2048x1024 PNG is decoded.
  Image.core.set_blocks_max(8)


def _read_options(threads: int) -> grain.ReadOptions:
  # An element is a whole batch: two a thread keep all threads busy without holding many in memory.
  return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)


@dataclasses.dataclass(frozen=True)
class _Crop(grain.transforms.RandomMap):
  """The training augmentation, without the name: strings do not batch into device arrays."""

  crop_size: tuple[int, int]
  scale: tuple[float, float]
  flip: float
  photometric: bool
  cat_max_ratio: float
  rotation: float
  blur: float
  blur_sigma: tuple[float, float]

  def random_map(self, element: Example, rng: np.random.Generator) -> Batch:
    image, label = transforms.augment(
      element["image"],
      element["label"],
      rng,
      crop_size=self.crop_size,
      scale=self.scale,
      flip=self.flip,
      photometric=self.photometric,
      cat_max_ratio=self.cat_max_ratio,
      rotation=self.rotation,
      blur=self.blur,
      blur_sigma=self.blur_sigma,
    )
    told = {
      name: element[name] for name in (skip_unreadable.BROKEN, skip_unreadable.REASON) if name in element
    }
    return {"image": image, "label": label, **told}


@dataclasses.dataclass(frozen=True)
class _HostRows(grain.transforms.DatasetSelectionMap):
  """Picks rows ``first..first+rows`` of every global batch out of the endless stream of examples."""

  length: int
  batch_size: int
  rows: int
  first: int

  def __len__(self) -> int:
    return self.length

  def __getitem__(self, index: int) -> tuple[int, int]:
    batch, row = divmod(index, self.rows)
    return 0, batch * self.batch_size + self.first + row
