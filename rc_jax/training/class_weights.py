"""Class weights of a run: given, or counted once in the labels of the training split and kept in the run's folder."""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rc_jax import distributed, files
from rc_jax.config import Config
from rc_jax.console import Progress, say
from rc_jax.data import Source
from rc_jax.data.label_counts import label_counts
from rc_jax.fields import require

FILE = "class_weights.json"  # in the folder of a run
FORMAT = 1


def with_class_weights(config: Config, workdir: pathlib.Path, source: Source, *, resumes: bool) -> Config:
  """Returns the config that the train step is built from: the numbers of ``loss.class_weights`` are filled in.

  A resumed run reads the numbers of its first start, so that it continues with the same ones to the last bit.

  Args:
    config: a validated config; it is not changed.
    workdir: the run's folder, where the first process writes ``class_weights.json``.
    source: the training split.
    resumes: whether the run has a checkpoint.

  Raises:
    ValueError: there is not one number for each class, a label is damaged, or the file of a resumed run is missing or
      damaged; one line, the same in all processes.
  """
  if config.loss.class_weighting == "none":
    check_number(config, source.info.num_classes)
    return config
  if resumes:
    weights = _in_first_process(lambda: _read(workdir, source.info.class_names))
  else:
    record = _counted(config, source)
    weights = [entry["weight"] for entry in record["classes"]]
    if jax.process_index() == 0:
      files.atomic_write_text(workdir / FILE, json.dumps(record, indent=1) + "\n")
  return with_numbers(config, weights)


def with_numbers(config: Config, weights: Sequence[float]) -> Config:
  """Returns a copy of a config in which ``loss.class_weights`` holds these numbers."""
  filled = config.copy_and_resolve_references()
  filled.loss.class_weights = tuple(map(float, weights))
  return filled


def with_uncounted_weights(config: Config, num_classes: int) -> Config:
  """Returns the config of a step that is compiled and does not train: weights that would be counted are 1.

  Raises:
    ValueError: there is not one number for each class; one line.
  """
  check_number(config, num_classes)
  return config if config.loss.class_weighting == "none" else with_numbers(config, [1.0] * num_classes)


def check_number(config: Config, num_classes: int) -> None:
  """Refuses ``loss.class_weights`` that are not one number for each class.

  Raises:
    ValueError: one line.
  """
  weights = config.loss.class_weights
  expected = (
    f"{num_classes} numbers, one for each class of {config.dataset.name}, in the order of its classes"
  )
  require(len(weights) in (0, num_classes), "loss.class_weights", tuple(weights), expected)


def median_frequency_weights(
  pixels: Sequence[int], pixels_of_images: Sequence[int], *, square_root: bool = False
) -> list[float]:
  """Computes ``median of the frequencies / frequency`` of each class.

  The frequency of a class is its share of the labelled pixels of the images that show it. The median is over the
  classes that occur. A class that does not occur has weight 1, that of the median.

  Args:
    pixels: of each class, over all images.
    pixels_of_images: of each class, the labelled pixels of the images that show it.
    square_root: returns the square roots of the weights.

  Returns:
    ``N`` numbers that float32 represents exactly.

  Source: Eigen and Fergus, Predicting Depth, Surface Normals and Semantic Labels (ICCV 2015), section 6.3.

  >>> median_frequency_weights([10, 40, 0], [100, 100, 0])
  [2.5, 0.625, 1.0]
  """
  shown = np.asarray(pixels) > 0
  frequencies = np.divide(pixels, pixels_of_images, out=np.ones(len(pixels)), where=shown)
  weights = np.ones(len(pixels))
  if shown.any():
    weights[shown] = np.median(frequencies[shown]) / frequencies[shown]
  weights = np.sqrt(weights) if square_root else weights
  return [float(weight) for weight in weights.astype(np.float32)]


def _counted(config: Config, source: Source) -> dict[str, Any]:
  """Counts the labels of the training split; every process counts its part of them."""
  indices = range(jax.process_index(), len(source), jax.process_count())
  skip = config.dataset.on_error == "skip"
  progress = Progress(f"counting the classes of {config.dataset.train_split}", len(indices), unit="labels")
  pixels = np.zeros(source.info.num_classes, np.int64)
  pixels_of_images = pixels.copy()
  error = ""
  try:
    for counts in label_counts(source, indices, skip_unreadable=skip):
      pixels += counts
      pixels_of_images += np.where(counts > 0, counts.sum(), 0)
      progress.advance(1)
  except (ValueError, OSError) as caught:
    # The other processes wait for these counts.
    error = str(caught)
  progress.close()
  parts = _gathered({"error": error, "counts": [pixels.tolist(), pixels_of_images.tolist()]})
  for part in parts:
    if part["error"]:
      raise ValueError(part["error"])
  pixels, pixels_of_images = np.sum([part["counts"] for part in parts], axis=0)
  weighting = config.loss.class_weighting
  weights = median_frequency_weights(
    pixels, pixels_of_images, square_root=weighting == "sqrt_median_frequency"
  )
  columns = zip(source.info.class_names, pixels.tolist(), pixels_of_images.tolist(), weights, strict=True)
  absent = [name for name, shown in zip(source.info.class_names, pixels, strict=True) if not shown]
  if absent:
    say(f"class weights: no label shows {', '.join(absent[:5])}{', ...' if absent[5:] else ''}; weight 1")
  return {
    "format": FORMAT,
    "class_weighting": weighting,
    "split": config.dataset.train_split,
    "images": len(source),
    "classes": [
      {"name": name, "pixels": of_class, "pixels_of_images": of_images, "weight": weight}
      for name, of_class, of_images, weight in columns
    ],
  }


def _read(workdir: pathlib.Path, class_names: Sequence[str]) -> list[float]:
  """Returns the weights that a run recorded at its first start.

  Raises:
    ValueError: the file is missing or damaged, or has other classes; one line.
  """
  path = workdir / FILE
  remedy = "restore it, because other weights would change the run, or train in another --workdir"
  if not path.is_file():
    raise ValueError(f"{path}: missing; this run counted its class weights at its first start; {remedy}")
  record = files.read_json_object(path, lambda: remedy)
  entries = record.get("classes")
  if not isinstance(entries, list) or not all(map(_is_entry, entries)):
    raise ValueError(f"{path}: has no list classes with a name and a weight of 0 or more each; {remedy}")
  names = [entry["name"] for entry in entries]
  if names != list(class_names):
    raise ValueError(
      f"{path}: has the weights of {len(names)} other classes, expected those of the run; {remedy}"
    )
  return [float(entry["weight"]) for entry in entries]


def _is_entry(entry: Any) -> bool:
  if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
    return False
  weight = entry.get("weight")
  return isinstance(weight, int | float) and not isinstance(weight, bool) and 0 <= weight < np.inf


def _in_first_process(read: Callable[[], list[float]]) -> list[float]:
  """Returns the weights that the first process reads: other hosts may not see its folder."""
  found: dict[str, Any] = {}
  if jax.process_index() == 0:
    try:
      found = {"weights": read()}
    except (ValueError, OSError) as error:
      found = {"error": str(error)}
  first = _gathered(found)[0]
  if "error" in first:
    raise ValueError(first["error"])
  return list(first["weights"])


def _gathered(value: dict[str, Any]) -> list[dict[str, Any]]:
  """Returns the values of all processes."""
  if jax.process_count() == 1:
    return [value]
  return [json.loads(content) for content in distributed.allgather_bytes(json.dumps(value).encode())]
