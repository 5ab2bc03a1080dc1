"""Scores a network on a split: confusion matrix, counts of every image, and means by the data set's rule."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec

from rc_jax import data, models, sharding
from rc_jax.config import Config
from rc_jax.console import Progress, say
from rc_jax.evaluation import metrics
from rc_jax.inference import batched

Results = dict[str, Any]

# Whole images of so many sizes, each with a program of its own, are worth a word.
MANY_PROGRAMS = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Counts:
  """Pixels of a split, as all scores are made of.

  Attributes:
    confusion: int64 ``[N,N]``, rows truth, columns prediction.
    names: of the ``I`` images, in the order of the split.
    right: int32 ``[I,N]``, TP of each image and class; ``wrong``: FP, ``missed``: FN.
  """

  confusion: np.ndarray
  names: list[str]
  right: np.ndarray
  wrong: np.ndarray
  missed: np.ndarray


Evaluator = Callable[[Any, Any, Callable[[], None] | None], tuple[Results, Counts]]


def make_evaluator(network: models.Network, source: data.Source, config: Config) -> Evaluator:
  """Returns a function that scores weights on a source; compiled programs live as long as it does.

  Images are shared among processes, and within each among its devices. How images of many sizes go through few
  programs, and when they do not, is described in ``inference.batched``.

  Args:
    network: functions of the network.
    source: images with labels.
    config: reads ``eval`` and ``data.threads``.

  Returns:
    ``evaluate(params, batch_stats, poll) -> (results, counts)``. ``params`` and ``batch_stats`` are replicated
    arrays; ``poll`` (or None) is called between groups of images and may raise to stop. ``results``: what
    ``metrics.scores`` gives by the data set's rule, with classes by name, ``metrics.category_scores`` where the data
    set has categories, and what was scored how. ``counts`` cover the whole split on every process.
  """
  info = source.info
  mesh = sharding.local_mesh()
  images = batched.ImageSet(network, config.eval, mesh)

  def count_each(total: jax.Array, labels: jax.Array) -> jax.Array:
    def of_image(total: jax.Array, labels: jax.Array) -> jax.Array:
      return metrics.confusion_matrix(total.argmax(axis=-1), labels, info.num_classes)

    return jax.vmap(of_image)(total, labels)

  spread = PartitionSpec(sharding.DATA_AXIS)
  count: Any = jax.jit(
    jax.shard_map(count_each, mesh=mesh, in_specs=spread, out_specs=spread, check_vma=False)
  )

  def evaluate(
    params: Any, batch_stats: Any, poll: Callable[[], None] | None = None
  ) -> tuple[Results, Counts]:
    params, batch_stats = sharding.local_copy((params, batch_stats))
    own = _OwnCounts(len(source), info.num_classes)
    progress = Progress("scoring", len(source), unit="images")
    canvases: set[tuple[int, int]] = set()
    waiting: list[tuple[batched.Group, jax.Array]] = []
    for group in images.groups(_numbered(source, config)):
      total = images.probabilities(params, batch_stats, group)
      # One group stays in flight, so that decoding and computing overlap.
      labels = jax.device_put(group.stacked("label", info.ignore_label), sharding.batch_sharding(mesh))
      waiting.append((group, count(total, labels)))
      if len(waiting) > 1:
        own.add(*waiting.pop(0))
      progress.advance(len(group.examples) * jax.process_count())
      if images.views.window is None and group.canvas not in canvases:
        canvases.add(group.canvas)
        if len(canvases) == MANY_PROGRAMS:
          say(
            f"whole images: the network is compiled for each of their sizes, {MANY_PROGRAMS} so far; "
            f"a sliding window compiles it once, such as --config.eval.crop_size={min(group.canvas)}"
          )
      if poll is not None:
        poll()
    for part in waiting:
      own.add(*part)
    counts = own.gathered()
    progress.close()

    if not counts.confusion.any():
      raise ValueError(
        f"{info.name}/{config.eval.split}: has no labelled pixel to score; choose a split with labels"
      )
    scores = metrics.scores(counts.confusion, info.absent_class)
    for name in ("iou", "accuracy"):
      scores[name] = dict(zip(info.class_names, scores[name], strict=True))
    if info.categories:
      scores |= metrics.category_scores(counts.confusion, info.categories)
    results: Results = {
      **scores,
      "dataset": info.name,
      "absent_class": info.absent_class,
      "split": config.eval.split,
      "images": len(source),
      "scales": list(config.eval.scales),
      "flip": config.eval.flip,
      "crop_size": list(images.views.window or ()),
      "stride": list(images.views.stride) if images.views.window else [],
    }
    return results, counts

  return evaluate


def _numbered(source: data.Source, config: Config) -> Iterator[data.Example]:
  """This process's share of the examples, each with its ``row`` among them."""
  examples = data.evaluation_examples(
    source, host_index=jax.process_index(), host_count=jax.process_count(), threads=config.data.threads
  )
  for row, example in enumerate(examples):
    yield {**example, "row": row}


class _OwnCounts:
  """Adds up what this process counts: process ``p`` of ``P`` reads the images ``p, p + P, ...``."""

  def __init__(self, images: int, classes: int):
    self._images = images
    rows = -(-images // jax.process_count())
    self._confusion = np.zeros((classes, classes), np.int64)
    # TP, FP, FN; -1: not counted yet.
    self._of_images = np.full((rows, 3, classes), -1, np.int32)
    self._names = [""] * rows

  def add(self, group: batched.Group, confusions: jax.Array) -> None:
    """Adds the confusion matrices ``[places,N,N]`` of a group, of which the last may belong to no image."""
    for example, confusion in zip(group.examples, np.asarray(confusions), strict=False):
      row, right = example["row"], np.diagonal(confusion)
      assert (self._of_images[row] < 0).all(), f"{example['name']} was counted twice"
      self._of_images[row] = right, confusion.sum(axis=0) - right, confusion.sum(axis=1) - right
      self._names[row] = example["name"]
      self._confusion += confusion

  def gathered(self) -> Counts:
    """Returns the counts of all processes, in the order of the split."""
    confusion, of_images, names = self._confusion, self._of_images, self._names
    if jax.process_count() > 1:
      confusion = _sum_over_processes(confusion)
      of_images = _in_order(multihost_utils.process_allgather(of_images))
      names = _gathered_names(names)
    of_images, names = of_images[: self._images], names[: self._images]
    assert (of_images >= 0).all(), "an image was not counted"
    return Counts(confusion, names, of_images[:, 0], of_images[:, 1], of_images[:, 2])


def _in_order(gathered: np.ndarray) -> np.ndarray:
  """``[P,rows,...]`` of all processes -> ``[rows P,...]``: the first of each, then the second of each ..."""
  gathered = np.asarray(gathered)
  return gathered.swapaxes(0, 1).reshape(-1, *gathered.shape[2:])


def _gathered_names(names: list[str]) -> list[str]:
  # Collectives carry numbers of one shape.
  encoded = [name.encode() for name in names]
  longest = int(np.max(multihost_utils.process_allgather(np.int32(max(map(len, encoded))))))
  rows = np.zeros((len(names), longest), np.uint8)
  for row, name in zip(rows, encoded, strict=True):
    row[: len(name)] = np.frombuffer(name, np.uint8)
  return [row.tobytes().rstrip(b"\0").decode() for row in _in_order(multihost_utils.process_allgather(rows))]


def _sum_over_processes(confusion: np.ndarray) -> np.ndarray:
  # Two int32 halves: JAX has no int64 by default, and a split's pixels do not fit 32 bits.
  halves = np.stack([confusion & 0x7FFFFFFF, confusion >> 31]).astype(np.int32)
  low, high = np.asarray(multihost_utils.process_allgather(halves), np.int64).sum(axis=0)
  return low + (high << 31)
