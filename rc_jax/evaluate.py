"""Scores a network on a split: one confusion matrix, one JSON file; the loop and ``--mode=eval`` alike."""

import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from rc_jax import checkpoint, data, inference, metrics, models, sharding
from rc_jax.config import Config, as_dict, different_network, square
from rc_jax.run_log import Progress, say

Results = dict[str, Any]
Evaluator = Callable[[Any, Any, Callable[[], None] | None], tuple[Results, np.ndarray]]


def make_evaluator(network: models.Network, source: data.Source, config: Config) -> Evaluator:
  """Returns a function that scores weights on a source; compiled programs live as long as it does.

  Args:
    network: functions of the network.
    source: images with labels.
    config: reads ``eval`` and ``data.threads``.

  Returns:
    ``evaluate(params, batch_stats, poll) -> (results, confusion)``. ``params`` and ``batch_stats`` are replicated
    arrays; ``poll`` (or None) is called between batches and may raise to stop. ``results``: ``miou``, ``iou``
    ``{class: value or None}``, ``pixel_accuracy``, ``mean_accuracy`` in 0..1, ``scales``, ``flip``, ``images``;
    ``confusion [N,N]`` int64, rows truth, columns prediction, over the whole split on every process.
  """
  info = source.info
  mesh = sharding.local_mesh()
  batch_size = config.eval.batch_size * mesh.devices.size
  predict = inference.make_predictor(network, config.eval)

  def count(params: Any, batch_stats: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    predictions = jnp.argmax(predict(params, batch_stats, images), axis=-1)
    return metrics.confusion_matrix(predictions, labels.astype(jnp.int32), info.num_classes)

  spread, whole = sharding.batched(mesh), sharding.replicated(mesh)
  compiled = jax.jit(count, in_shardings=(whole, whole, spread, spread), out_shardings=whole)

  def evaluate(
    params: Any, batch_stats: Any, poll: Callable[[], None] | None = None
  ) -> tuple[Results, np.ndarray]:
    params, batch_stats = sharding.local_copy((params, batch_stats))
    confusion = np.zeros((info.num_classes, info.num_classes), np.int64)
    examples = data.evaluation_examples(
      source,
      host_index=jax.process_index(),
      host_count=jax.process_count(),
      threads=config.data.threads,
    )
    progress = Progress("scoring", len(source), unit="images")
    waiting: list[jax.Array] = []
    for images, labels, counted in _same_size_batches(examples, batch_size, info.ignore_label):
      # One batch stays in flight, so that decoding and computing overlap.
      # Put by hand: where other processes are, arrays of the host are not taken for those of its devices alone.
      waiting.append(compiled(params, batch_stats, *jax.device_put((images, labels), spread)))
      if len(waiting) > 1:
        confusion += np.asarray(waiting.pop(0), np.int64)
      progress.advance(counted * jax.process_count())
      if poll is not None:
        poll()
    for part in waiting:
      confusion += np.asarray(part, np.int64)
    if jax.process_count() > 1:
      confusion = _sum_over_processes(confusion)
    progress.close()

    if not confusion.any():
      raise ValueError(
        f"{info.name}/{config.eval.split}: has no labelled pixel to score; choose a split with labels"
      )
    scores = metrics.scores(confusion, info.absent_class)
    scores["iou"] = dict(zip(info.class_names, scores["iou"], strict=True))
    results: Results = {
      **scores,
      "split": config.eval.split,
      "images": len(source),
      "scales": list(config.eval.scales),
      "flip": config.eval.flip,
      "crop_size": list(config.eval.crop_size),
      "stride": list(config.eval.stride),
    }
    return results, confusion

  return evaluate


def write(workdir: pathlib.Path, results: Results, confusion: np.ndarray, step: int) -> pathlib.Path:
  """Writes ``workdir/eval/<split>.json`` and ``<split>_confusion.npy``; returns the JSON's path."""
  folder = workdir / "eval"
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f"{results['split']}.json"
  # Whole or not at all: somebody may be reading the one before.
  partial = folder / f"{results['split']}.part"
  with partial.open("wb") as file:
    np.save(file, confusion)
  os.replace(partial, folder / f"{results['split']}_confusion.npy")
  partial.write_text(json.dumps({"step": step, **results}, indent=2) + "\n")
  os.replace(partial, path)
  return path


def run(config: Config, workdir: pathlib.Path, checkpoint_path: pathlib.Path | None) -> Results:
  """Scores a checkpoint on ``config.eval.split`` and prints the table: ``--mode=eval``.

  Args:
    config: a validated config.
    workdir: where results go, and where the newest checkpoint is looked for.
    checkpoint_path: a run, or one step of it; None: the newest of ``workdir``.

  Returns:
    The results, as written to ``workdir/eval/<split>.json``.

  Raises:
    FileNotFoundError: no checkpoint, or no data.
    ValueError: the checkpoint holds another network.
  """
  source = data.load(config.dataset.name, config.dataset.root, config.eval.split)
  network = models.build(config.model, source.info.num_classes)
  restored = restore(network, config, checkpoint_path or workdir)
  say(f"scoring step {restored.step} on {len(source)} images of {config.dataset.name}/{config.eval.split}")
  start = time.monotonic()
  results, confusion = make_evaluator(network, source, config)(restored.params, restored.batch_stats, None)
  seconds = time.monotonic() - start
  if jax.process_index() == 0:
    path = write(workdir, results, confusion, restored.step)
    say(table(results))
    say(f"{len(source) / seconds:.2f} images/s, compilation included; written to {path}")
  return {"step": restored.step, **results}


def restore(network: models.Network, config: Config, path: pathlib.Path) -> checkpoint.Model:
  """Restores the model of a checkpoint for the config's network; see ``checkpoint.restore_model``.

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: the run that saved it has another network, or another data set; dilations, say, change no shape.
  """
  folder = checkpoint.find(path)
  run_config = folder.parents[1] / "config.json"
  if run_config.is_file():
    found = different_network(as_dict(config), json.loads(run_config.read_text()))
    if found:
      raise ValueError(
        f"{folder}: was trained as another network ({'; '.join(found)}); use that run's --config"
      )
  template = network.init(jax.random.key(0), image_size=square(config.train.crop_size))
  template = sharding.put_replicated(template, sharding.global_mesh())
  return checkpoint.restore_model(folder, template.params, template.batch_stats)


def table(results: Results) -> str:
  """Returns the per-class table for the screen, values in percent."""
  width = max(len(name) for name in results["iou"])
  lines = [f"  {name:<{width}}  {_percent(value)}" for name, value in results["iou"].items()]
  lines.append(f"  {'mIoU':<{width}}  {_percent(results['miou'])}")
  lines.append(f"  {'pixel accuracy':<{width}}  {_percent(results['pixel_accuracy'])}")
  lines.append(f"  {'mean accuracy':<{width}}  {_percent(results['mean_accuracy'])}")
  return "\n".join(lines)


def _percent(value: float | None) -> str:
  return "    -" if value is None else f"{100 * value:5.1f}"


def _same_size_batches(
  examples: Iterator[dict[str, Any]], batch_size: int, ignore_label: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
  """Groups neighbours of one size; short groups are filled with pixels that count nowhere.

  A fixed batch size compiles one program an image size, however many images have it.
  """
  group: list[dict[str, Any]] = []

  def batch() -> tuple[np.ndarray, np.ndarray, int]:
    missing = batch_size - len(group)
    images = [example["image"] for example in group] + [group[0]["image"]] * missing
    labels = [example["label"] for example in group]
    labels += [np.full_like(group[0]["label"], ignore_label)] * missing
    return np.stack(images), np.stack(labels), len(group)

  for example in examples:
    if group and (len(group) == batch_size or example["image"].shape != group[0]["image"].shape):
      yield batch()
      group = []
    group.append(example)
  if group:
    yield batch()


def _sum_over_processes(confusion: np.ndarray) -> np.ndarray:
  # Two int32 halves: JAX has no int64 by default, and a split's pixels do not fit 32 bits.
  halves = np.stack([confusion & 0x7FFFFFFF, confusion >> 31]).astype(np.int32)
  low, high = np.asarray(multihost_utils.process_allgather(halves), np.int64).sum(axis=0)
  return low + (high << 31)
