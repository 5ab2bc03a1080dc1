"""Trained networks in Python: ``rc_jax.load`` and ``rc_jax.train``.

>>> import rc_jax
>>> model = rc_jax.load("runs/camvid")  # doctest: +SKIP
>>> labels = model.predict("street.png")  # doctest: +SKIP
"""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
import safetensors.numpy
from absl import flags
from jax import export as jax_export

from rc_jax import data, files, models, sharding
from rc_jax.class_table import FILE as CLASS_TABLE
from rc_jax.class_table import MERGED, table_defect
from rc_jax.config import Config, expand_home, load_recipe, set_field, validate
from rc_jax.inference.batched import BatchedPredictor
from rc_jax.modes import export
from rc_jax.modes import train as train_mode
from rc_jax.weights import checkpoint, restore

Size: TypeAlias = tuple[int, int]
ImageLike: TypeAlias = str | os.PathLike[str] | np.ndarray
Predicted: TypeAlias = tuple[np.ndarray, np.ndarray | None]

# Compiled programs that a model keeps: one for each size of an image and number of images in a call.
_KEPT_PROGRAMS = 16


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentationModel:
  """A trained network with its classes.

  Attributes:
    dataset: name of the data set that it was trained on.
    class_names: ``N`` names; labels are indices into them.
    palette: uint8 ``[N,3]``, the RGB colour of each class.
    label_ids: int ``[N]``, the data set's id of each class: ``label_ids[labels]`` holds the values of the files that
      ``--mode=predict`` writes.
    step: of the training; 0 for a file of weights.
    compute: from images uint8 ``[H,W,3]`` to the labels and, if asked for, the probabilities of each.
  """

  dataset: str
  class_names: tuple[str, ...]
  palette: np.ndarray
  label_ids: np.ndarray
  step: int
  compute: Callable[[Sequence[np.ndarray], bool], list[Predicted]] = dataclasses.field(repr=False)

  def predict(self, images: ImageLike | Sequence[ImageLike]) -> Any:
    """Labels one image or several, as ``--mode=predict`` does.

    Args:
      images: a file, or uint8 RGB ``[H,W,3]``; a list of these, of any sizes; or uint8 ``[B,H,W,3]``.

    Returns:
      uint8 ``[H,W]``, indices into ``class_names``; a list of these for a list; ``[B,H,W]`` for ``[B,H,W,3]``.

    Raises:
      ValueError: an image has another shape or dtype, cannot be read, or has not the size of an exported program.
      FileNotFoundError: there is no such file.
    """
    return _as_given(images, [labels for labels, _ in self.compute(pixels_of(images), False)])

  def probabilities(self, images: ImageLike | Sequence[ImageLike]) -> Any:
    """Returns the probabilities of the classes, float32 ``[H,W,N]`` that sum to 1; otherwise as ``predict``."""
    computed = [probabilities for _, probabilities in self.compute(pixels_of(images), True)]
    return _as_given(images, computed)


def load(
  path: str | os.PathLike[str],
  config: Config | str | None = None,
  fields: Mapping[str, Any] | None = None,
) -> SegmentationModel:
  """Loads a trained network.

  Args:
    path: a run's folder (its newest step), the folder of one step, a folder that ``--mode=export`` wrote, or a file of
      weights.
    config: a config, or a recipe such as ``"camvid"``; None: the config of the run. A file of weights needs it.
    fields: values that replace those of the config, by path: ``{"eval.scales": (0.75, 1.0), "eval.flip": True}``.

  Raises:
    FileNotFoundError: there is no such file, or the folder holds no checkpoint.
    ValueError: the weights are damaged or of another network, or a field has a wrong value; one line.
  """
  path = pathlib.Path(path).expanduser()
  if (path / export.METADATA).is_file():
    if config is not None or fields:
      raise ValueError(
        f"{path}: is an exported program, in which all settings are fixed; leave out config and fields"
      )
    return _load_program(path)
  if not path.exists():
    raise FileNotFoundError(f"{path}: no such file or folder; expected a run, an export or a file of weights")
  if path.is_file():
    if config is None:
      raise ValueError(f"{path}: is a file of weights, which needs config=, such as the name of a recipe")
    run = None
  else:
    path = checkpoint.find(path)
    run = path.parents[1]
  if config is None:
    assert run is not None
    chosen = restore.config_of_run(run)
  else:
    chosen = _config(config)
  _replace(chosen, fields or {})
  info = _info_of_run(run, chosen)
  network = models.build(chosen.model, info.num_classes)
  restored = restore.restore(network, chosen, path, info.table())
  weights = sharding.local_copy((restored.params, restored.batch_stats))
  return SegmentationModel(
    dataset=info.name,
    class_names=info.class_names,
    palette=info.palette,
    label_ids=info.label_ids,
    step=restored.step,
    compute=_NetworkPrograms(network, chosen.eval, weights),
  )


def train(config: Config | str, workdir: str | os.PathLike[str]) -> int:
  """Trains a config in a folder, or continues the training there, as ``--mode=train`` does.

  A script that calls this with ``data.workers`` above 0 needs ``if __name__ == "__main__":``, because the processes
  that read images import the script.

  Args:
    config: of ``rc_jax.config.defaults()`` or ``load_recipe``, changed; or a recipe such as ``"camvid"``.
    workdir: the run's folder, created where absent.

  Returns:
    0 when the training is finished; 143 after SIGTERM and 130 after Ctrl-C, with the state saved.

  Raises:
    ValueError: the config, the data or the folder's run do not fit each other; one line.
    FileNotFoundError: data or weights are missing; one line.
  """
  chosen = _config(config)
  validate(chosen)
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain passes absl's flags to the processes that read images
  return train_mode.run(chosen, pathlib.Path(workdir).expanduser())


def pixels_of(images: ImageLike | Sequence[ImageLike]) -> list[np.ndarray]:
  """Returns the pixels of one image or several, uint8 ``[H,W,3]`` each.

  >>> [image.shape for image in pixels_of(np.zeros((2, 4, 6, 3), np.uint8))]
  [(4, 6, 3), (4, 6, 3)]
  """
  several: Any = [images] if _is_one(images) else images
  return [_pixels(image) for image in several]


def _is_one(images: Any) -> bool:
  return not isinstance(images, list | tuple) and not (isinstance(images, np.ndarray) and images.ndim == 4)


def _as_given(images: Any, results: list[Any]) -> Any:
  """Returns results in the form of the argument: one, a list or an array."""
  if _is_one(images):
    return results[0]
  return np.stack(results) if isinstance(images, np.ndarray) and results else results


def _pixels(image: Any) -> np.ndarray:
  if isinstance(image, str | os.PathLike):
    path = pathlib.Path(image).expanduser()
    if not path.is_file():
      raise FileNotFoundError(f"{path}: no such file; expected an image")
    return data.read_image(path)
  pixels = np.asarray(image)
  if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
    raise ValueError(
      f"an image is {pixels.dtype} of shape {pixels.shape}; expected uint8 RGB of shape (H, W, 3) with values of "
      "0..255, or the path of a file"
    )
  return pixels


def _config(config: Config | str) -> Config:
  chosen = load_recipe(config) if isinstance(config, str) else config
  chosen = chosen.copy_and_resolve_references()
  expand_home(chosen)
  return chosen


def _replace(config: Config, fields: Mapping[str, Any]) -> None:
  for field, value in fields.items():
    try:
      set_field(config, field, value)
    except (KeyError, AttributeError, TypeError) as error:
      raise ValueError(
        f"fields: {field}={value!r} does not fit the config ({files.one_line(error)})"
      ) from error
  validate(config)


def _info_of_run(run: pathlib.Path | None, config: Config) -> data.DatasetInfo:
  """Returns the classes that a run records, so that its data set need not be there; else those of the data set."""
  path = run / CLASS_TABLE if run else None
  if path is None or not path.is_file():
    return data.info(config.dataset.name, config.dataset.root, config.dataset.classes)
  table = files.read_json_object(path, lambda: "restore the file, or remove it")
  defect = table_defect(table)
  if defect:
    raise ValueError(f"{path}: {defect}; restore the file, or remove it")
  return data.DatasetInfo(
    name=config.dataset.name,
    class_names=tuple(table["class_names"]),
    palette=np.array(table["palette"], np.uint8),
    label_ids=np.array(table["label_ids"]),
    ignore_label=table["ignore_label"],
    merged_ids={int(own_id): label for own_id, label in table.get(MERGED, {}).items()},
  )


class _NetworkPrograms:
  """Labels images with the programs of ``--mode=predict``, and keeps those of the latest sizes."""

  def __init__(self, network: models.Network, config_eval: Config, weights: tuple[Any, Any]):
    self._network = network
    self._config_eval = config_eval
    self._weights = weights
    self._predictors: collections.OrderedDict[tuple[Size, int] | None, BatchedPredictor] = (
      collections.OrderedDict()
    )

  def __call__(self, images: Sequence[np.ndarray], probabilities: bool) -> list[Predicted]:
    sizes: list[Size] = [image.shape[:2] for image in images]
    by_size = sorted(range(len(images)), key=lambda row: sizes[row])
    groups: dict[Size | None, list[int]] = {}
    if self._config_eval.crop_size:  # windows of images of several sizes share a program
      groups[None] = by_size
    else:
      groups |= {size: [row for row in by_size if sizes[row] == size] for size in dict.fromkeys(sizes)}
    results: dict[int, Predicted] = {}
    for size, rows in groups.items():
      predictor = self._predictor(size, len(rows))
      for batch in predictor.batches((row, images[row]) for row in rows):
        on_devices, floats_on_devices = predictor.predict(*self._weights, batch, probabilities)
        labels = np.asarray(on_devices)
        floats = None if floats_on_devices is None else np.asarray(floats_on_devices)
        for i, (row, image) in enumerate(zip(batch.keys, batch.images, strict=True)):
          height, width = image.shape[:2]
          results[row] = (
            labels[i, :height, :width],
            None if floats is None else floats[i, :height, :width],
          )
    return [results[row] for row in range(len(images))]

  def _predictor(self, size: Size | None, count: int) -> BatchedPredictor:
    """Returns the predictor for so many images of a size; None: for windows of any."""
    largest = int(self._config_eval.batch_size) * len(jax.local_devices())
    key = None if size is None else (size, min(count, largest))
    if key not in self._predictors:
      counts = None if key is None else dict([key])
      self._predictors[key] = BatchedPredictor(self._network, self._config_eval, count_of_size=counts)
    self._predictors.move_to_end(key)
    if len(self._predictors) > _KEPT_PROGRAMS:
      self._predictors.popitem(last=False)
    return self._predictors[key]


def _load_program(folder: pathlib.Path) -> SegmentationModel:
  """Loads a folder of ``--mode=export``."""
  metadata = files.read_json_object(folder / export.METADATA, lambda: "export the run again")
  if metadata.get("format") != 1:
    raise ValueError(
      f"{folder / export.METADATA}: format {metadata.get('format')}, expected 1: export the run again"
    )
  program = jax_export.deserialize(bytearray((folder / export.PROGRAM).read_bytes()))
  arguments: tuple[Any, ...] = ()
  if metadata["weights"] == export.WEIGHTS:
    arguments = (jax.device_put(safetensors.numpy.load_file(folder / export.WEIGHTS)),)
  call = jax.jit(program.call)
  rows, height, width, _ = metadata["input"]["shape"]
  has_probabilities = len(metadata["outputs"]) > 1

  def compute(images: Sequence[np.ndarray], probabilities: bool) -> list[Predicted]:
    if probabilities and not has_probabilities:
      raise ValueError(f"{folder}: the program returns labels alone: export it with --probabilities")
    for image in images:
      if image.shape[:2] != (height, width):
        found = f"{image.shape[0]} x {image.shape[1]}"
        raise ValueError(
          f"{folder}: the program reads images of {height} x {width} pixels (height x width), found {found}: resize "
          "them, export another size, or load the run"
        )
    results: list[Predicted] = []
    size = len(images) if rows == "any" else int(rows)
    for start in range(0, len(images), size or 1):
      chunk = images[start : start + size]
      stacked = np.zeros((size, height, width, 3), np.uint8)
      stacked[: len(chunk)] = chunk
      outputs = call(*arguments, stacked)
      labels, floats = outputs if has_probabilities else (outputs, None)
      labels, floats = np.asarray(labels), None if floats is None else np.asarray(floats)
      results += [(labels[i], None if floats is None else floats[i]) for i in range(len(chunk))]
    return results

  return SegmentationModel(
    dataset=metadata["dataset"],
    class_names=tuple(metadata["class_names"]),
    palette=np.array(metadata["palette"], np.uint8),
    label_ids=np.array(metadata["label_ids"]),
    step=metadata["trained"]["step"],
    compute=compute,
  )


__all__ = ["SegmentationModel", "load", "pixels_of", "train"]
