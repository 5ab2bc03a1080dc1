"""Imports published weights, or those of a run, and reports what became of every array."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rc_jax import models
from rc_jax.config import Config
from rc_jax.files import one_line
from rc_jax.models import Variables
from rc_jax.models.network import Shapes
from rc_jax.weights import architecture, key_names, saved_weights, weight_sets
from rc_jax.weights.torch_arrays import filled, torch_shapes, transposed_names


@dataclasses.dataclass(frozen=True)
class Report:
  """What became of each array. Names are the file's keys; those of ``missing`` are the network's.

  Attributes:
    path: of the file.
    weight_set: name of the set of weights in the file, see ``weight_sets``.
    architecture: of the file, for example ``"resnet50 with stem 7x7"``.
    matched: arrays now in the network.
    transposed: those of ``matched`` whose axes were transposed, such as convolutions, ``OIHW -> HWIO``.
    reordered: those of ``matched`` whose input channels were reordered.
    folded: biases of convolutions that were subtracted from the mean of the BatchNorm behind.
    left_out: arrays of the file that the requested part has no use for, such as a classifier ``fc``; not those of
      other sets of weights.
    of_classes: arrays of the file that are not taken because they depend on its classes, such as classifiers; those of
      the network keep their initial values.
    other_classes: how the classes of the file differ; empty where no difference is known.
    missing: arrays of the requested part that the file lacks; they keep their initial values.
    expected: fields of ``config.model`` that the file's family has and no shape shows.
    different: those of ``expected`` that have another value in the config.
  """

  path: str
  weight_set: str
  architecture: str
  matched: tuple[str, ...]
  transposed: tuple[str, ...]
  reordered: tuple[str, ...]
  folded: tuple[str, ...]
  left_out: tuple[str, ...]
  of_classes: tuple[str, ...]
  other_classes: str
  missing: tuple[str, ...]
  expected: tuple[str, ...]
  different: tuple[str, ...]

  def summary(self) -> str:
    """Returns a line for the log, with the names of arrays that are missing or left out."""
    missing = f"{len(self.missing)} missing" + (f" ({', '.join(self.missing)})" if self.missing else "")
    # Most files hold a counter for each BatchNorm: their number is enough.
    counters = [name for name in self.left_out if name.endswith("num_batches_tracked")]
    others = [name for name in self.left_out if name not in counters]
    named = ", ".join(
      ([_listed(others)] if others else []) + ([f"{len(counters)} num_batches_tracked"] if counters else [])
    )
    left_out = f"{len(self.left_out)} left out" + (f" ({named})" if named else "")
    changed = f"{len(self.transposed)} of them transposed"
    for verb, names in (("with input channels reordered", self.reordered), ("folded", self.folded)):
      changed += f", {len(names)} {verb} ({', '.join(names)})" if names else ""
    source = self.path if self.weight_set == weight_sets.TOP else f"{self.path}, {self.weight_set}"
    line = (
      f"{source}: {self.architecture}; {len(self.matched)} arrays matched, {changed}; {left_out}; {missing}"
    )
    if self.of_classes:
      line += f"; not taken, because of other classes ({self.other_classes}): {_listed(self.of_classes)}"
    if self.expected:
      line += f"; such weights expect {' '.join(self.expected)}"
    if self.different:
      line += f"; WARNING: the config has {' '.join(self.different)}"
    return line


def load(
  path: str,
  variables: Variables,
  config_model: Config,
  class_names: Sequence[str] = (),
  other_classes: bool = False,
) -> tuple[Variables, Report]:
  """Fills a network, or its backbone, with the weights of a file or a run.

  Args:
    path: a file that ``file_formats.read`` reads, with the keys of any family of ``key_names.map_keys``; or a run's
      folder (its newest step), or the folder of one step.
    variables: of the network.
    config_model: ``config.model`` of the network; its ``pretrained_part`` is ``"backbone"`` or ``"all"``, and its
      ``pretrained_key`` names one of several sets of weights.
    class_names: of the network's classes, which are compared with those of a run or of an exported file; empty:
      unknown.
    other_classes: whether weights for other classes are taken, without the arrays that depend on the classes.

  Returns:
    Variables that hold the file's values in float32, and the report. Variables outside the requested part are those of
    the argument.

  Raises:
    FileNotFoundError: no such file.
    ValueError: the file is none of the formats; holds several sets of weights, and none is chosen; holds another
      architecture, another shape, an array of integers or a value that is not finite; lacks an array of the requested
      part, or has one that the network lacks; was made for other classes, and these are refused; or PyTorch is needed
      and missing.
  """
  part = config_model.pretrained_part
  network = torch_shapes(variables)
  saved = saved_weights.read(path)
  path = saved.path
  chosen, mapping = _chosen_set(saved, config_model, network)
  _refuse_duplicates(path, mapping.names)
  shapes = {name: chosen.arrays[key].shape for key, name in mapping.names.items()}
  held = _refuse_other_architecture(path, mapping, shapes, network, part, other_classes)
  their_names = saved.record.class_names if saved.record else ()
  theirs = held.num_classes or len(their_names) or None
  ours = architecture.from_shapes(network).num_classes or len(class_names) or None
  differences = _class_differences(theirs, their_names, ours, class_names) if part == "all" else ""
  if differences and not other_classes:
    raise ValueError(
      f"model.pretrained: {path} was trained on other classes ({differences}): give weights of these"
    )
  of_classes = frozenset[str]()
  if differences:
    of_classes = _arrays_of_classes(shapes, network, config_model, theirs, ours)
  dropped = {key for key, name in mapping.names.items() if name in of_classes}
  mapping = mapping._replace(names={key: name for key, name in mapping.names.items() if key not in dropped})
  shapes = {name: shape for name, shape in shapes.items() if name not in of_classes}
  network = {name: shape for name, shape in network.items() if name not in of_classes}
  _refuse_other_arrays(path, mapping, held, shapes, network, part)

  key_of = {name: key for key, name in mapping.names.items()}
  folded = _folded_biases(shapes, network, part)
  matched = [key for key, name in mapping.names.items() if name in network and _is_requested(part, name)]
  used = {*matched, *(key_of[name] for name in folded)}
  arrays = {key: _float32(path, key, mapping.names[key], chosen.arrays[key]) for key in sorted(used)}
  values = {mapping.names[key]: arrays[key] for key in matched}
  reordered = _reordered(mapping, values)
  values |= reordered
  for name, mean in folded.items():
    values[mean] = values[mean] - arrays[key_of[name]]
  if saved.record is None:
    expected = architecture.family_fields(mapping.family, held, part)
  else:
    expected = architecture.recorded_fields(saved.record.model, held, config_model, part)
  transposed = transposed_names(variables)
  report = Report(
    path=str(path),
    weight_set=chosen.name,
    architecture=held.describe(),
    matched=tuple(matched),
    transposed=tuple(key for key in matched if mapping.names[key] in transposed),
    reordered=tuple(key_of[name] for name in reordered),
    folded=tuple(key_of[name] for name in folded),
    left_out=(*(key for key in chosen.arrays if key not in used | dropped), *chosen.outside),
    of_classes=tuple(sorted(dropped)),
    other_classes=differences,
    missing=tuple(_missing(shapes, network, part)),
    expected=tuple(f"{field}={_shown(value)}" for field, value in expected.items()),
    different=tuple(
      f"model.{field}={_shown(config_model[field])}"
      for field, value in expected.items()
      if _shown(config_model[field]) != _shown(value)
    ),
  )
  return filled(variables, values), report


def _chosen_set(
  saved: saved_weights.SavedWeights, config_model: Config, network: Shapes
) -> tuple[weight_sets.WeightSet, key_names.KeyMapping]:
  """Returns the arrays to import and the names of their keys."""
  head = saved.record.model.get("name") if saved.record else None
  head = head if isinstance(head, str) and head in models.HEADS else None
  if saved.is_ours and not config_model.pretrained_key:
    chosen = weight_sets.WeightSet(weight_sets.TOP, saved.arrays, ())
    return chosen, key_names.KeyMapping("rc_jax", head, {name: name for name in saved.arrays}, ())
  chosen = weight_sets.choose(saved.path, saved.arrays, config_model.pretrained_key, network)
  full_key = {chosen.plain(key): key for key in chosen.arrays}
  mapping = key_names.map_keys(full_key, network)
  names = {full_key[key]: name for key, name in mapping.names.items()}
  return chosen, mapping._replace(names=names, head=mapping.head or head)


def _class_differences(
  theirs: int | None, their_names: Sequence[str], ours: int | None, our_names: Sequence[str]
) -> str:
  """Describes how the classes of a file differ from the network's; empty where no difference is known."""
  if theirs != ours:
    return f"{theirs} classes, here {ours}"
  if not their_names or not our_names:
    return ""
  pairs = enumerate(zip(our_names, their_names, strict=False))
  found = [f"class {i}: {one_line(there, 60)}, here {here}" for i, (here, there) in pairs if here != there]
  more = f", and {len(found) - 1} more" if len(found) > 1 else ""
  return found[0] + more if found else ""


def _arrays_of_classes(
  shapes: Shapes, network: Shapes, config_model: Config, theirs: int | None, ours: int | None
) -> frozenset[str]:
  """Returns the names of the arrays whose shape the number of classes decides, such as classifiers."""
  if ours is not None and ours == theirs:
    # No number in these shapes stands for the classes alone: a network of one class more shows which do.
    theirs = ours + 1
    shapes = torch_shapes(models.build(config_model, theirs).init(jax.random.key(0)))

  def depends(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    if len(one) != len(other) or one == other:
      return False
    return all(a == b or (a, b) == (ours, theirs) for a, b in zip(one, other, strict=True))

  return frozenset(
    name
    for name in network
    if not name.startswith("backbone.") and depends(network[name], shapes.get(name, ()))
  )


def _refuse_other_architecture(
  path: str,
  mapping: key_names.KeyMapping,
  shapes: Shapes,
  network: Shapes,
  part: str,
  other_classes: bool,
) -> architecture.Architecture:
  """Returns the architecture of the file, where it is that of the network."""
  ours = architecture.from_shapes(network)
  held = architecture.from_shapes(shapes, mapping.head)
  if ours.backbone and not held.backbone:
    kernels = (name for name, shape in network.items() if name.startswith("backbone.") and len(shape) == 4)
    example = next(kernels, "none").removeprefix("backbone.")
    listed = ", ".join([*mapping.names, *mapping.ignored][:3]) or "nothing"
    raise ValueError(
      f"model.pretrained: {path} holds no backbone that is known; expected names like {example}, found {listed}: "
      f"give a file of {ours.backbone['backbone']}"
    )
  if not ours.backbone:
    return held
  compared = ours.backbone if part == "backbone" else ours.fields
  different = {
    field: held.fields[field]
    for field, value in compared.items()
    if field in held.fields and held.fields[field] != value
  }
  words = f"model.pretrained: {path} holds {held.describe()}"
  but = f"but the network is {(ours._replace(head={}) if part == 'backbone' else ours).describe()}"
  if different and not held.is_built:
    raise ValueError(f"{words}, {but}: give a file of {ours.backbone['backbone']}")
  alone = "set model.pretrained_part=backbone to import the backbone alone"
  if part == "all" and ours.head and not held.head:
    unknown = [name.partition("?")[2] for name in mapping.names.values() if "?" in name]
    without = f"and a head that is not built here ({unknown[0]})" if unknown else "and no head"
    raise ValueError(f"{words} {without}: {alone}")
  has_other_classes = part == "all" and not other_classes and held.num_classes != ours.num_classes
  if different:
    fields = " ".join(f"model.{field}={_shown(value)}" for field, value in different.items())
    also = f", and {alone}" if has_other_classes else ""
    raise ValueError(f"{words}, {but}: set {fields}{also}, or give a file of {ours.backbone['backbone']}")
  if has_other_classes:
    raise ValueError(f"{words}, {but}: {alone}")
  return held


def _refuse_other_arrays(
  path: str,
  mapping: key_names.KeyMapping,
  held: architecture.Architecture,
  shapes: Shapes,
  network: Shapes,
  part: str,
) -> None:
  """Refuses arrays of other shapes, missing arrays, and arrays that the network lacks."""
  key_of = {name: key for key, name in mapping.names.items()}
  scalar = ((), (1,))
  for name in sorted(network.keys() & shapes.keys()):
    is_same = shapes[name] == network[name] or (shapes[name] in scalar and network[name] in scalar)
    if _is_requested(part, name) and not is_same:
      raise ValueError(
        f"model.pretrained: {path} has {key_of[name]} of shape {shapes[name]}, expected {network[name]}: "
        f"it seems to be a variant of {held.describe()} that is not built here"
      )
  # A file without an auxiliary head, or of a network that had no projection, is complete nevertheless.
  optional = ("projection.",) if _has_auxiliary_head(shapes) else ("projection.", "aux_head.")
  missing = [name for name in _missing(shapes, network, part) if not name.startswith(optional)]
  if missing:
    raise ValueError(
      f"model.pretrained: {path} holds {held.describe()}, but lacks {_listed(missing)}: give a complete file"
    )
  folded = _folded_biases(shapes, network, part)
  unknown = [
    key_of[name]
    for name in shapes
    if name not in network
    and name not in folded
    and _is_requested(part, name)
    # An auxiliary head serves training alone; a network without one has no use for the file's.
    and not (name.startswith("aux_head.") and not _has_auxiliary_head(network))
  ]
  if unknown:
    raise ValueError(
      f"model.pretrained: {path} seems to hold {held.describe()}, but has {_listed(unknown)}, which this network "
      "lacks: it is a variant that is not built here"
    )


def _refuse_duplicates(path: str, names: Mapping[str, str]) -> None:
  seen = set()
  for name in names.values():
    if name in seen:
      plain = name.removeprefix("backbone.")
      raise ValueError(
        f"model.pretrained: {path} has {plain} twice, under different prefixes: give one network"
      )
    seen.add(name)


def _missing(shapes: Shapes, network: Shapes, part: str) -> list[str]:
  """Lists the arrays of the requested part that a file lacks."""
  return [name for name in sorted(network) if _is_requested(part, name) and name not in shapes]


def _has_auxiliary_head(names: Iterable[str]) -> bool:
  return any(name.startswith("aux_head.") for name in names)


def _is_requested(part: str, name: str) -> bool:
  return part == "all" or name.startswith("backbone.")


def _folded_biases(shapes: Shapes, network: Shapes, part: str) -> dict[str, str]:
  """Maps biases that the network lacks to the mean of the BatchNorm behind, from which they can be subtracted."""
  return {
    name: mean
    for name in shapes
    if name not in network and _is_requested(part, name) and (mean := _mean_behind(name, network))
  }


def _mean_behind(bias: str, network: Shapes) -> str | None:
  """Returns the mean of the BatchNorm right behind a convolution; None where ``bias`` is no such convolution's."""
  layer, _, leaf = bias.rpartition(".")
  if leaf != "bias" or f"{layer}.weight" not in network:
    return None
  *path, last = layer.split(".")
  candidates = [re.sub(r"^conv", "bn", last), f"{last}_bn"]
  if last.isdigit():
    candidates.append(str(int(last) + 1))
  means = [".".join([*path, norm, "running_mean"]) for norm in candidates if norm != last]
  return next((mean for mean in means if mean in network), None)


def _reordered(mapping: key_names.KeyMapping, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the arrays whose channels the file's family orders otherwise, in this project's order."""
  published = models.heads()[mapping.head].published.get(mapping.family) if mapping.head else None
  if published is None:
    return {}
  shifts = published.input_shift({name: array.shape for name, array in values.items()})
  return {name: np.roll(values[name], -shift, axis=1) for name, shift in shifts.items()}


def _float32(path: str, key: str, name: str, array: np.ndarray) -> np.ndarray:
  """Returns an array's values in float32, or raises where they cannot be weights."""
  is_float = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
  if not is_float or array.dtype.itemsize < 2:
    why = (
      "a quantised export, whose scales are elsewhere" if array.dtype.itemsize == 1 else "no array of weights"
    )
    raise ValueError(
      f"model.pretrained: {path} has {key} of dtype {array.dtype}, expected a float of 16, 32 or 64 bits: it seems to "
      f"be {why}; give the original weights"
    )
  with np.errstate(over="ignore"):  # a float64 above float32's range becomes infinite, and is refused
    values = array.astype(np.float32)
  if not np.isfinite(values).all():
    raise ValueError(f"model.pretrained: {path} has NaN or infinity in {key}: give an undamaged file")
  if name.endswith(".running_var") and (values < 0).any():
    raise ValueError(f"model.pretrained: {path} has negative variances in {key}: give an undamaged file")
  # Sparse files and interrupted copies read as zeros; biases and scales may be zeros in good files.
  if (array.ndim == 4 or name.endswith(".running_var")) and not values.any():
    raise ValueError(
      f"model.pretrained: {path} has only zeros in {key}, as where a copy was interrupted: give an undamaged file"
    )
  return values


def _shown(value: Any) -> str:
  return "(" + ",".join(map(str, value)) + ")" if isinstance(value, list | tuple) else str(value)


def _listed(names: Sequence[str]) -> str:
  shown = ", ".join(names[:12])
  return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "")
