"""Weights from elsewhere, with an account of every array.

| in the file, under our names (``rc_jax/weight_names.py``) | in the network |
|---|---|
| ``backbone.layer1.0.conv1.weight [O,I,k,k]`` | ``params["backbone"]["layer1"]["0"]["conv1"]["kernel"] [k,k,I,O]`` |
| ``backbone.layer1.0.bn1.weight``, ``.bias`` | ``params["backbone"]["layer1"]["0"]["bn1"]["scale"]``, ``["bias"]`` |
| ``backbone.layer1.0.bn1.running_mean``, ``.running_var`` | ``batch_stats[...]["bn1"]["mean"]``, ``["var"]`` |
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from rc_jax.config import Config
from rc_jax.models import Variables
from rc_jax.weights import architecture, file_formats, key_names

PARTS = ("backbone", "head", "aux_head", "projection")


@dataclasses.dataclass(frozen=True)
class Report:
  """What became of each array; names are the file's, those of ``missing`` ours.

  Attributes:
    path: the file.
    architecture: what the file holds, for example ``"resnet50 with a plain 7x7 stem"``.
    matched: arrays now in the network.
    transposed: those of ``matched`` that changed their order of axes, such as convolutions, ``OIHW -> HWIO``.
    reordered: those of ``matched`` whose input channels changed their order.
    folded: biases of convolutions that were subtracted from the mean of the BatchNorm behind.
    left_out: arrays of the file that the requested part has no place for, such as a classifier ``fc``.
    missing: arrays of the requested part that the file lacks; they keep their fresh values.
    expected: fields of ``config.model`` that no shape tells, as the file's family has them.
    different: those of them that the config has otherwise.
  """

  path: str
  architecture: str
  matched: tuple[str, ...]
  transposed: tuple[str, ...]
  reordered: tuple[str, ...]
  folded: tuple[str, ...]
  left_out: tuple[str, ...]
  missing: tuple[str, ...]
  expected: tuple[str, ...]
  different: tuple[str, ...]

  def summary(self) -> str:
    """Says all of it in one line; names, too, of what is missing or left out."""
    missing = f"{len(self.missing)} missing" + (f" ({', '.join(self.missing)})" if self.missing else "")
    # A classifier and one counter for each BatchNorm are in most files: the counters are worth a number alone.
    counters = [name for name in self.left_out if name.endswith("num_batches_tracked")]
    others = [name for name in self.left_out if name not in counters]
    named = ", ".join(others + ([f"{len(counters)} num_batches_tracked"] if counters else []))
    left_out = f"{len(self.left_out)} left out" + (f" ({named})" if named else "")
    changed = f"{len(self.transposed)} of them transposed"
    for what, which in (("with input channels reordered", self.reordered), ("folded", self.folded)):
      changed += f", {len(which)} {what} ({', '.join(which)})" if which else ""
    line = f"{self.path}: {self.architecture}; {len(self.matched)} arrays matched, {changed}; {left_out}; {missing}"
    if self.expected:
      line += f"; such weights expect {' '.join(self.expected)}"
    if self.different:
      line += f"; WARNING: the config has {' '.join(self.different)}"
    return line


def load(path: str, variables: Variables, config_model: Config) -> tuple[Variables, Report]:
  """Fills a network, or its backbone, with the weights of a file.

  Args:
    path: a file that ``file_formats.read`` reads, under the names of any family of ``key_names.translate``.
    variables: of the network.
    config_model: what the network was built from; its ``pretrained_part`` is ``"backbone"`` or ``"all"``.

  Returns:
    Variables that hold the file's values in float32; what is outside the requested part is as it was. And the report.

  Raises:
    FileNotFoundError: no such file.
    ValueError: the file is none of the formats; holds another architecture, another shape or a value that is not
      finite; lacks an array of the requested part, or has one that fits nowhere; or PyTorch is needed and missing.
  """
  part = config_model.pretrained_part
  arrays = {name: _float32(array) for name, array in file_formats.read(path).items()}
  names = key_names.translate(arrays)
  _refuse_twice(path, names.ours)
  trees = {"params": variables.params, "batch_stats": variables.batch_stats}
  leaves = key_names.our_names(**trees)
  network = {name: _torch_shape(where[-1], _at(trees, where).shape) for name, where in leaves.items()}
  found = {ours: arrays[name].shape for name, ours in names.ours.items()}
  fields = _refuse_other_architecture(path, names, found, network, part)

  requested = {name for name in network if part == "all" or name.startswith("backbone.")}
  file_name = {ours: name for name, ours in names.ours.items()}
  folded = {
    ours: norm
    for ours in found
    if ours not in network and _requests(part, ours) and (norm := _norm_behind(ours, network))
  }
  parts_of_network = {name.partition(".")[0] for name in network}
  has_auxiliary = any(ours.startswith("aux_head.") for ours in found)
  stray = [
    file_name[ours]
    for ours in found
    if ours not in network
    and ours not in folded
    and _requests(part, ours)
    # An auxiliary head serves training alone; a network without one has no use for the file's.
    and not (ours.startswith("aux_head.") and "aux_head" not in parts_of_network)
  ]
  missing = [name for name in sorted(requested) if name not in found]
  refused = [
    name
    for name in missing
    if not name.startswith("projection.") and (has_auxiliary or not name.startswith("aux_head."))
  ]
  described = architecture.describe(fields, architecture.classes(found)) if fields else "a network"
  for name in sorted(requested & found.keys()):
    if found[name] != network[name] and not (found[name] in ((), (1,)) and network[name] in ((), (1,))):
      raise ValueError(
        f"model.pretrained: {path} has {file_name[name]} of shape {found[name]}, expected {network[name]}: "
        f"it seems to be a variant of {described} that is not built here"
      )
  if refused:
    raise ValueError(
      f"model.pretrained: {path} holds {described}, but lacks {_listed(refused)}: give a complete file"
    )
  if stray:
    raise ValueError(
      f"model.pretrained: {path} seems to hold {described}, but has {_listed(stray)}, which this network has "
      "no place for: it is a variant that is not built here"
    )

  matched = [name for name, ours in names.ours.items() if ours in requested]
  for name in [*matched, *(file_name[ours] for ours in folded)]:
    if not np.isfinite(arrays[name]).all():
      raise ValueError(f"model.pretrained: {path} has NaN or infinity in {name}: give an undamaged file")
  values = {names.ours[name]: arrays[name] for name in matched}
  reordered = _pool_last(names, values)
  for ours, norm in folded.items():
    values[norm] = values[norm] - arrays[file_name[ours]]
  filled = {
    leaves[ours]: _our_axes(leaves[ours][-1], array).reshape(_at(trees, leaves[ours]).shape)
    for ours, array in values.items()
  }
  expected = architecture.family_fields(names.family, fields, part)
  used = {*matched, *(file_name[ours] for ours in folded)}
  report = Report(
    path=str(path),
    architecture=described,
    matched=tuple(matched),
    transposed=tuple(name for name in matched if leaves[names.ours[name]][-1] == "kernel"),
    reordered=tuple(file_name[ours] for ours in reordered),
    folded=tuple(file_name[ours] for ours in folded),
    left_out=tuple(name for name in arrays if name not in used),
    missing=tuple(missing),
    expected=tuple(f"{field}={_shown(value)}" for field, value in expected.items()),
    different=tuple(
      f"model.{field}={_shown(config_model[field])}"
      for field, value in expected.items()
      if _shown(config_model[field]) != _shown(value)
    ),
  )
  return Variables(
    _fill(variables.params, filled, ("params",)), _fill(variables.batch_stats, filled, ("batch_stats",))
  ), report


def _refuse_other_architecture(
  path: str,
  names: key_names.Names,
  found: architecture.Shapes,
  network: architecture.Shapes,
  part: str,
) -> dict[str, Any]:
  """Returns the fields that the file's arrays tell, where they are those of the network."""
  ours = architecture.fields_from_shapes(key_names.translate(network), network)
  held = architecture.fields_from_shapes(names, found)
  if "backbone" not in held and "backbone" in ours:
    listed = ", ".join([*names.ours, *names.harmless][:3]) or "nothing"
    raise ValueError(
      f"model.pretrained: {path} holds no ResNet or HRNet: expected names like layer1.0.conv1.weight, found {listed}"
    )
  if "backbone" not in ours:
    return held
  of_part = ("backbone", "stem") if part == "backbone" else tuple(ours)
  different = {field: held[field] for field in of_part if field in held and held[field] != ours.get(field)}
  held_classes, our_classes = architecture.classes(found), architecture.classes(network)
  words = f"model.pretrained: {path} holds {architecture.describe(held, held_classes)}"
  shown = {field: value for field, value in ours.items() if field in of_part}
  but = f"but the network is {architecture.describe(shown, our_classes)}"
  if different and not architecture.is_built(held["backbone"]):
    raise ValueError(f"{words}, {but}: give a file of {ours['backbone']}")
  alone = "set model.pretrained_part=backbone to import the backbone alone"
  if part == "all" and "name" in ours and "name" not in held:
    unknown = [name.partition("?")[2] for name in names.ours.values() if "?" in name]
    without = f"and a head that is not built here ({unknown[0]})" if unknown else "and no head"
    raise ValueError(f"{words} {without}: {alone}")
  if different:
    fields = " ".join(f"model.{field}={_shown(value)}" for field, value in different.items())
    also = f", and {alone}" if part == "all" and held_classes != our_classes else ""
    raise ValueError(f"{words}, {but}: set {fields}{also}, or give a file of {ours['backbone']}")
  if part == "all" and held_classes != our_classes:
    raise ValueError(f"{words}, {but}: {alone}")
  return held


def _refuse_twice(path: str, ours: Mapping[str, str]) -> None:
  seen = set()
  for name in ours.values():
    if name in seen:
      plain = name.removeprefix("backbone.")
      raise ValueError(
        f"model.pretrained: {path} has {plain} twice, under different prefixes: give one network"
      )
    seen.add(name)


def _requests(part: str, name: str) -> bool:
  return part == "all" or name.startswith("backbone.")


def _norm_behind(bias: str, network: Mapping[str, Any]) -> str | None:
  """Returns the name of the mean of the BatchNorm right behind a convolution whose bias the network has not."""
  layer, _, leaf = bias.rpartition(".")
  if leaf != "bias" or f"{layer}.weight" not in network:
    return None
  *path, last = layer.split(".")
  candidates = [re.sub(r"^conv", "bn", last), f"{last}_bn"]
  if last.isdigit():
    candidates.append(str(int(last) + 1))
  means = [".".join([*path, norm, "running_mean"]) for norm in candidates if norm != last]
  return next((mean for mean in means if mean in network), None)


def _pool_last(names: key_names.Names, values: dict[str, np.ndarray]) -> list[str]:
  """Moves the input channels of ASPP's pooled branch to the end, in place; returns what it changed."""
  fuse, pool = "head.fuse.conv.weight", "head.aspp.pool.conv.weight"
  if (names.family, names.head) not in key_names.POOLED_FIRST or fuse not in values:
    return []
  values[fuse] = np.roll(values[fuse], -values[pool].shape[0], axis=1)
  return [fuse]


def _float32(array: np.ndarray) -> np.ndarray:
  # 8-byte and unsigned kinds are counters; every other dtype here, bfloat16 included, is a float of some width.
  return array if array.dtype.kind in "iub" else array.astype(np.float32)


def _torch_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  if leaf != "kernel":
    return tuple(shape)
  return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else tuple(shape[::-1])


def _our_axes(leaf: str, array: np.ndarray) -> np.ndarray:
  if leaf != "kernel":
    return array
  return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _at(trees: Mapping[str, Any], path: Iterable[str]) -> Any:
  node: Any = trees
  for key in path:
    node = node[key]
  return node


def _fill(
  tree: Mapping[str, Any], filled: Mapping[tuple[str, ...], np.ndarray], path: tuple[str, ...]
) -> dict[str, Any]:
  """Replaces leaves; a part of the tree without any is the same object as before."""
  result: dict[str, Any] = {}
  for key, leaf in tree.items():
    here = (*path, key)
    if not any(where[: len(here)] == here for where in filled):
      result[key] = leaf
    elif isinstance(leaf, Mapping):
      result[key] = _fill(leaf, filled, here)
    else:
      result[key] = jnp.asarray(filled[here])
  return result


def _shown(value: Any) -> str:
  return "(" + ",".join(map(str, value)) + ")" if isinstance(value, list | tuple) else str(value)


def _listed(names: Sequence[str]) -> str:
  shown = ", ".join(names[:12])
  return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "")
