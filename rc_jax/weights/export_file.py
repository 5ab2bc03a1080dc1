"""Writes the weights of a network as a ``.safetensors`` file that another project's network loads."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import safetensors.numpy

import rc_jax
from rc_jax import files, models
from rc_jax.fields import Config
from rc_jax.models import Variables
from rc_jax.weights import architecture
from rc_jax.weights.exported_names import exported_names
from rc_jax.weights.key_names import FAMILIES
from rc_jax.weights.saved_weights import Record, record_metadata
from rc_jax.weights.torch_arrays import torch_arrays


@dataclasses.dataclass(frozen=True)
class ExportReport:
  """What a file of weights holds.

  Attributes:
    arrays: their number.
    left_out: names of arrays of the network that the family has no place for.
    different: fields of ``config.model`` that the family's networks have with another value, ``align_corners=True``;
      arrays do not show them, so the other network must be built with them.
  """

  arrays: int
  left_out: tuple[str, ...]
  different: tuple[str, ...]


def write_weights(
  path: pathlib.Path,
  family: str,
  variables: Variables,
  config_model: Config,
  step: int,
  dataset: str,
  class_names: Sequence[str],
) -> ExportReport:
  """Writes the weights of a network with the names, axes and channel order of a family.

  The file's metadata hold ``rc_jax_version``, ``family``, ``step``, ``dataset``, and as JSON ``class_names`` and the
  fields of ``config.model``. ``model.pretrained`` reads the file back to equal arrays.

  Args:
    path: of the file.
    family: one of ``exported_names.FAMILIES``.
    variables: of the network, on this process's devices.
    config_model: ``config.model`` of the network.
    step: of the training.
    dataset: name of the data set.
    class_names: in the order of the classifier's outputs.

  Raises:
    ValueError: the family has no such network; one line that names the families that have it.
    OSError: the file cannot be written; one line.
  """
  ours = torch_arrays(variables)
  exported = exported_names(ours.keys(), family, config_model)
  published = models.heads()[config_model.name].published.get(family)
  arrays = {name: ours[name] for name in exported.keys}
  if published is not None:
    shifts = published.input_shift({name: array.shape for name, array in arrays.items()})
    arrays |= {name: np.roll(arrays[name], shift, axis=1) for name, shift in shifts.items()}
  by_key = {key: arrays[name] for name, key in exported.keys.items()}
  by_key |= {key: np.zeros(len(ours[name]), np.float32) for key, name in exported.zeros.items()}

  fields = json.loads(json.dumps(config_model.to_dict()))
  metadata = record_metadata(Record(fields, tuple(class_names))) | {
    "rc_jax_version": rc_jax.__version__,
    "family": family,
    "step": str(step),
    "dataset": dataset,
  }
  # The library writes bytes as they lie in memory: a transposed view would lose its order.
  contiguous = {key: np.ascontiguousarray(by_key[key]) for key in sorted(by_key)}
  files.make_folder(path.parent)
  with files.atomic_write(path) as file:
    file.write(safetensors.numpy.save(contiguous, metadata))
  return ExportReport(len(by_key), exported.left_out, _different(family, ours, config_model))


def _different(family: str, arrays: dict[str, np.ndarray], config_model: Config) -> tuple[str, ...]:
  shapes = {name: array.shape for name, array in arrays.items()}
  held = architecture.from_shapes(shapes, config_model.name)
  part = "all" if FAMILIES[family].parts else "backbone"
  expected = architecture.family_fields(family, held, part)
  return tuple(
    f"{name}={_shown(config_model[name])} (there {_shown(value)})"
    for name, value in sorted(expected.items())
    if _shown(config_model[name]) != _shown(value)
  )


def _shown(value: Any) -> str:
  return "(" + ",".join(map(str, value)) + ")" if isinstance(value, list | tuple) else str(value)
