"""Scores a network on a split: confusion matrix, counts and loss of every image, and means by the data set's rule."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec

from rc_jax import data, distributed, models, sharding
from rc_jax.config import Config
from rc_jax.console import Progress, say
from rc_jax.evaluation import metrics
from rc_jax.evaluation.protocol import scoring_protocol
from rc_jax.inference.batched import BatchedPredictor, ImageBatch

Results = dict[str, Any]
"""``eval/<split>.json``: the scores of a split, what was scored, and how."""


@dataclasses.dataclass(frozen=True, eq=False)
class Counts:
  """Pixels of a split and the loss on them, from which all scores are computed.

  Attributes:
    confusion: int64 ``[N,N]``, rows truth, columns prediction.
    names: of the ``I`` images, in the order of the split.
    true_positives: int32 ``[I,N]``, pixels of each image and class.
    false_positives: int32 ``[I,N]``.
    false_negatives: int32 ``[I,N]``.
    cross_entropy: float64 ``[I]``, nats, the sum over the counted pixels of each image.
  """

  confusion: np.ndarray
  names: list[str]
  true_positives: np.ndarray
  false_positives: np.ndarray
  false_negatives: np.ndarray
  cross_entropy: np.ndarray


class Truth(NamedTuple):
  """The ground truth of an image: its row among this process's images, its name, train ids uint8 ``[H,W]``."""

  row: int
  name: str
  label: np.ndarray


Evaluator = Callable[[Any, Any, Callable[[], None] | None], tuple[Results, Counts]]


def make_evaluator(network: models.Network, source: data.Source, config: Config) -> Evaluator:
  """Returns a function that scores weights on a source; compiled programs live as long as it does.

  Images are divided among processes, and within each among its devices. ``inference.batched`` describes how images of
  many sizes share few programs.

  Args:
    network: functions of the network.
    source: images with labels.
    config: reads ``eval`` and ``data.threads``.

  Returns:
    ``evaluate(params, batch_stats, poll) -> (results, counts)``. ``params`` and ``batch_stats`` are replicated
    arrays; ``poll`` (or None) is called between batches and may raise to stop. ``results``: what ``metrics.scores``
    gives by the data set's rule, with classes by name, ``metrics.category_scores`` if the data set has categories,
    ``never``, the classes that no label holds, and the settings; ``cross_entropy``, the validation loss: the mean over
    all counted pixels, in nats, of ``metrics.cross_entropy_of_rows``, None where it is not finite. ``counts`` cover the
    full split on every process.
  """
  info = source.info
  mesh = sharding.local_mesh()
  predictor = BatchedPredictor(network, config.eval, mesh)

  def count_each(
    predictions: jax.Array, probabilities: jax.Array, labels: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    def of_image(predictions: jax.Array, labels: jax.Array) -> jax.Array:
      return metrics.confusion_matrix(predictions, labels, info.num_classes)

    confusions = jax.vmap(of_image)(predictions, labels)  # [rows,Hc,Wc] -> [rows,N,N]
    return confusions, metrics.cross_entropy_of_rows(probabilities, labels)  # [rows,Hc]

  spread = PartitionSpec(sharding.DATA_AXIS)
  count: Any = jax.jit(
    jax.shard_map(count_each, mesh=mesh, in_specs=spread, out_specs=spread, check_vma=False)
  )

  def counted(params: Any, batch_stats: Any, batch: ImageBatch[Truth]) -> tuple[jax.Array, jax.Array]:
    # A function, so that no variable keeps the probabilities while the next batch is computed.
    predictions, probabilities = predictor.predict(params, batch_stats, batch, probabilities=True)
    labels = batch.stack([truth.label for truth in batch.keys], info.ignore_label)
    result: tuple[jax.Array, jax.Array] = count(
      predictions, probabilities, jax.device_put(labels, sharding.batch_sharding(mesh))
    )
    return result

  def evaluate(
    params: Any, batch_stats: Any, poll: Callable[[], None] | None = None
  ) -> tuple[Results, Counts]:
    params, batch_stats = sharding.local_copy((params, batch_stats))
    counts_here = _CountsOfProcess(len(source), info.num_classes)
    progress = Progress("scoring", len(source), unit="images")
    in_flight: tuple[ImageBatch[Truth], jax.Array, jax.Array] | None = None
    for batch in predictor.batches(_images(source, config)):
      # One batch stays in flight, so that decoding and computing overlap.
      started = (batch, *counted(params, batch_stats, batch))
      if in_flight is not None:
        counts_here.add(*in_flight)
      in_flight = started
      progress.advance(len(batch.images) * jax.process_count())
      if poll is not None:
        poll()
    if in_flight is not None:
      counts_here.add(*in_flight)
    counts = counts_here.gathered()
    progress.close()

    if not counts.confusion.any():
      raise ValueError(
        f"{info.name}/{config.eval.split}: has no labelled pixel to score; choose a split with labels"
      )
    _warn_of_undefined(counts)
    return _results(counts, source, config, predictor), counts

  return evaluate


def _images(source: data.Source, config: Config) -> Iterator[tuple[Truth, np.ndarray]]:
  """Yields the truth and the image of each of this process's examples."""
  examples = data.evaluation_examples(
    source, host_index=jax.process_index(), host_count=jax.process_count(), threads=config.data.threads
  )
  for row, example in enumerate(examples):
    yield Truth(row, example["name"], example["label"]), example["image"]


def _warn_of_undefined(counts: Counts) -> None:
  """Says which images have probabilities that are no numbers: each of their pixels would count as a prediction."""
  undefined = [
    name for name, loss in zip(counts.names, counts.cross_entropy, strict=True) if math.isnan(loss)
  ]
  if undefined:
    say(
      f"WARNING: the network computes NaN in {len(undefined)} of {len(counts.names)} images ({undefined[0]}), where "
      "its labels, and so these scores, mean nothing: score other weights, such as an earlier checkpoint"
    )


def _results(counts: Counts, source: data.Source, config: Config, predictor: BatchedPredictor) -> Results:
  info, views, confusion = source.info, predictor.views, counts.confusion
  scores = metrics.scores(confusion, info.absent_class)
  for name in metrics.OF_CLASSES:
    scores[name] = dict(zip(info.class_names, scores[name], strict=True))
  cross_entropy = float(counts.cross_entropy.sum() / confusion.sum())
  scores["cross_entropy"] = cross_entropy if math.isfinite(cross_entropy) else None
  if info.categories:
    scores |= metrics.category_scores(confusion, info.categories)
  return {
    **scores,
    "dataset": info.name,
    "absent_class": info.absent_class,
    "never": [
      name for name, pixels in zip(info.class_names, confusion.sum(axis=1), strict=True) if not pixels
    ],
    "split": config.eval.split,
    **scoring_protocol(config, views.align_corners, len(source)),
  }


class _CountsOfProcess:
  """Adds up the counts of this process: process ``p`` of ``P`` reads the images ``p, p + P, ...``."""

  def __init__(self, images: int, classes: int):
    self._images = images
    rows = -(-images // jax.process_count())
    self._confusion = np.zeros((classes, classes), np.int64)
    # TP, FP, FN; -1: not counted yet.
    self._of_images = np.full((rows, 3, classes), -1, np.int32)
    self._names = [""] * rows
    self._cross_entropy = np.zeros(rows)

  def add(self, batch: ImageBatch[Truth], confusions: jax.Array, cross_entropies: jax.Array) -> None:
    """Adds a batch, whose last rows may belong to no image.

    Args:
      batch: its images.
      confusions: matrices ``[rows,N,N]``.
      cross_entropies: float32 ``[rows,Hc]``, of each row of pixels.
    """
    of_images = np.asarray(cross_entropies).sum(axis=1, dtype=np.float64)
    for truth, confusion, cross_entropy in zip(batch.keys, np.asarray(confusions), of_images, strict=False):
      assert (self._of_images[truth.row] < 0).all(), f"{truth.name} was counted twice"
      self._of_images[truth.row] = metrics.positives_and_negatives(confusion)
      self._names[truth.row] = truth.name
      self._cross_entropy[truth.row] = cross_entropy
      self._confusion += confusion

  def gathered(self) -> Counts:
    """Returns the counts of all processes, in the order of the split."""
    confusion, of_images, names = self._confusion, self._of_images, self._names
    cross_entropy = self._cross_entropy
    if jax.process_count() > 1:
      confusion = _sum_over_processes(confusion)
      of_images = _in_order(multihost_utils.process_allgather(of_images))
      names = _gathered_names(names)
      # As bytes, because a gathered array of float64 would become float32.
      gathered = distributed.allgather_bytes(cross_entropy.tobytes())
      cross_entropy = _in_order(np.stack([np.frombuffer(content) for content in gathered]))
    of_images, names = of_images[: self._images], names[: self._images]
    assert (of_images >= 0).all(), "an image was not counted"
    # Added up image by image in one order, the loss depends on no number of processes.
    return Counts(
      confusion, names, of_images[:, 0], of_images[:, 1], of_images[:, 2], cross_entropy[: self._images]
    )


def _in_order(gathered: np.ndarray) -> np.ndarray:
  """``[P,rows,...]`` of all processes -> ``[rows P,...]``: the first of each, then the second of each ..."""
  gathered = np.asarray(gathered)
  return gathered.swapaxes(0, 1).reshape(-1, *gathered.shape[2:])


def _gathered_names(names: list[str]) -> list[str]:
  """Returns the names of all processes, in the order of ``_in_order``."""
  # JSON escapes the surrogates by which Python shows bytes of a file's name that are no UTF-8.
  gathered = distributed.allgather_bytes(json.dumps(names).encode())
  return [name for row in zip(*map(json.loads, gathered), strict=True) for name in row]


def _sum_over_processes(confusion: np.ndarray) -> np.ndarray:
  # Two int32 halves: JAX has no int64 by default, and a split's pixels do not fit 32 bits.
  halves = np.stack([confusion & 0x7FFFFFFF, confusion >> 31]).astype(np.int32)
  low, high = np.asarray(multihost_utils.process_allgather(halves), np.int64).sum(axis=0)
  return low + (high << 31)
