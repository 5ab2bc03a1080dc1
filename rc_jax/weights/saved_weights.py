"""Reads weights to start from, and what is recorded about them, from a file, a run or one step of it."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rc_jax import class_table, files
from rc_jax.models import Variables
from rc_jax.weights import checkpoint, file_formats
from rc_jax.weights.torch_arrays import torch_arrays

CONFIG = "config.json"  # in the folder of a run
_TREES = ("params", "batch_stats")


class Record(NamedTuple):
  """What a run, or a file that ``--mode=export`` wrote, states about its network.

  Attributes:
    model: fields of ``config.model``, as JSON knows them; empty where nothing is recorded.
    class_names: in the order of the classifier's outputs; empty where they are not recorded.
  """

  model: Mapping[str, Any]
  class_names: tuple[str, ...]


class SavedWeights(NamedTuple):
  """Arrays that are not imported yet.

  Attributes:
    path: of the file, or of the folder of one step.
    arrays: by the keys of the file; those of a run by the names of ``key_names``. All have PyTorch's axes.
    is_ours: whether ``arrays`` have the names of ``key_names`` for certain.
    record: None for published files.
  """

  path: str
  arrays: dict[str, np.ndarray]
  is_ours: bool
  record: Record | None


def read(path: str) -> SavedWeights:
  """Reads all arrays.

  Args:
    path: a file of weights, a run's folder (its newest step), or the folder of one step.

  Raises:
    FileNotFoundError: there is no such file, or the folder holds no checkpoint.
    ValueError: a file is damaged or of another format; one line.
  """
  if pathlib.Path(path).is_dir():
    return _read_run(pathlib.Path(path))
  arrays = file_formats.read(path)
  metadata = file_formats.read_metadata(path)
  is_program = all(key.startswith(tuple(f"{tree}/" for tree in _TREES)) for key in arrays)
  if arrays and is_program:
    arrays = torch_arrays(Variables(*(_nested(arrays, tree) for tree in _TREES)))
  return SavedWeights(path, arrays, bool(arrays) and is_program, _record_of_metadata(path, metadata))


def record_metadata(record: Record) -> dict[str, str]:
  """Returns a record as the metadata of a ``.safetensors`` file, which holds text alone."""
  return {"class_names": json.dumps(record.class_names), "model": json.dumps(dict(record.model))}


def _read_run(path: pathlib.Path) -> SavedWeights:
  try:
    folder = checkpoint.find(path)
    model = checkpoint.read_model(folder)
  except FileNotFoundError as error:
    raise FileNotFoundError(
      f"model.pretrained: {path} is a folder without a checkpoint: give a run's folder, one step of its "
      f"{checkpoint.FOLDER}/, or a .npz, .safetensors or .pth file"
    ) from error
  except ValueError as error:
    text = str(error).replace("--checkpoint=", "--config.model.pretrained=")
    raise ValueError(f"model.pretrained: {text}") from error
  run = folder.parents[1]
  fields: Mapping[str, Any] = {}
  class_names: tuple[str, ...] = ()
  if (run / CONFIG).is_file():
    recorded = files.read_json_object(run / CONFIG, lambda: "restore the file, or remove it")
    fields = recorded["model"] if isinstance(recorded.get("model"), dict) else {}
  if (run / class_table.FILE).is_file():
    table = files.read_json_object(run / class_table.FILE, lambda: "restore the file, or remove it")
    defect = class_table.table_defect(table)
    if defect:
      raise ValueError(f"{run / class_table.FILE}: {defect}; restore the file, or remove it")
    class_names = tuple(table["class_names"])
  arrays = torch_arrays(Variables(model.params, model.batch_stats))
  return SavedWeights(str(folder), arrays, True, Record(fields, class_names))


def _record_of_metadata(path: str, metadata: Mapping[str, str]) -> Record | None:
  if "rc_jax_version" not in metadata:
    return None
  try:
    model, names = json.loads(metadata["model"]), json.loads(metadata["class_names"])
  except (ValueError, KeyError, RecursionError) as error:
    raise ValueError(
      f"model.pretrained: {path} has damaged metadata ({files.one_line(error)}): export it again"
    ) from error
  if not isinstance(model, dict) or not isinstance(names, list):
    raise ValueError(f"model.pretrained: {path} has damaged metadata: export it again")
  return Record(model, tuple(map(str, names)))


def _nested(arrays: Mapping[str, np.ndarray], tree: str) -> dict[str, Any]:
  """Returns one tree of the arrays that ``--mode=export --weights=beside`` writes: ``params/backbone/...``."""
  nested: dict[str, Any] = {}
  for key, array in arrays.items():
    first, *middle, leaf = key.split("/")
    if first == tree:
      node = nested
      for part in middle:
        node = node.setdefault(part, {})
      node[leaf] = array
  return nested
