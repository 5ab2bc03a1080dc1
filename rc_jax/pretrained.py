"""Backbone weights from PyTorch's files, with an account of every array.

| in the file (torchvision's names) | in the network, below ``["backbone"]`` |
|---|---|
| ``layer1.0.conv1.weight [O,I,k,k]`` | ``params["layer1"]["0"]["conv1"]["kernel"] [k,k,I,O]`` |
| ``layer1.0.bn1.weight``, ``.bias`` | ``params["layer1"]["0"]["bn1"]["scale"]``, ``["bias"]`` |
| ``layer1.0.bn1.running_mean``, ``.running_var`` | ``batch_stats["layer1"]["0"]["bn1"]["mean"]``, ``["var"]`` |

The same rule holds for every other name, the deep stem's ``conv1.0`` to ``conv1.6`` included.
"""

import dataclasses
import pathlib
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from rc_jax.models import Variables
from rc_jax.models.resnet import RESNETS, Layout

# What wrappers (data parallel, compiled, a whole segmentation model) put before the backbone's own names.
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.")

# The deep stem under the names that other releases give it: (a key that only they have, their name -> ours).
DEEP_STEMS = (
  ("stem.0.weight", {f"stem.{i}": f"conv1.{i}" for i in (0, 1, 3, 4, 6)} | {"stem.7": "bn1"}),
  (
    "conv3.weight",
    {
      "conv1": "conv1.0",
      "bn1": "conv1.1",
      "conv2": "conv1.3",
      "bn2": "conv1.4",
      "conv3": "conv1.6",
      "bn3": "bn1",
    },
  ),
)

PARAMETERS = {"kernel": "weight", "scale": "weight", "bias": "bias"}
STATISTICS = {"mean": "running_mean", "var": "running_var"}


@dataclasses.dataclass(frozen=True)
class Report:
  """What became of each array; names are the file's, without prefixes.

  Attributes:
    path: the file.
    architecture: what the file holds, for example ``"resnet50 with a plain 7x7 stem"``.
    matched: arrays now in the network.
    transposed: those of ``matched`` that changed their order of axes: the convolutions, ``OIHW -> HWIO``.
    left_out: arrays of the file that the backbone has no place for, such as the classifier ``fc``.
    missing: arrays of the backbone that the file lacks; they keep their fresh values.
  """

  path: str
  architecture: str
  matched: tuple[str, ...]
  transposed: tuple[str, ...]
  left_out: tuple[str, ...]
  missing: tuple[str, ...]

  def summary(self) -> str:
    """Says all of it in one line; names, too, of what is missing or left out."""
    missing = f"{len(self.missing)} missing" + (f" ({', '.join(self.missing)})" if self.missing else "")
    # A classifier and one counter for each BatchNorm are in most files: the counters are worth a number alone.
    counters = [name for name in self.left_out if name.endswith("num_batches_tracked")]
    others = [name for name in self.left_out if name not in counters]
    named = ", ".join(others + ([f"{len(counters)} num_batches_tracked"] if counters else []))
    left_out = f"{len(self.left_out)} left out" + (f" ({named})" if named else "")
    return (
      f"{self.path}: {self.architecture}; {len(self.matched)} arrays matched, {len(self.transposed)} of them "
      f"transposed; {left_out}; {missing}"
    )


def load_backbone(path: str, variables: Variables) -> tuple[Variables, Report]:
  """Fills the backbone with the weights of a file.

  Args:
    path: a ``.npz`` or ``.safetensors`` file, or a ``.pth`` that ``torch.save`` wrote (needs PyTorch); its
      contents decide, whatever its extension. Arrays have torchvision's names, with or without a wrapper's
      prefix, in any float dtype.
    variables: of a network with a ResNet backbone.

  Returns:
    Variables whose ``params["backbone"]`` and ``batch_stats["backbone"]`` hold the file's values in float32;
    everything else is as it was. And the report.

  Raises:
    FileNotFoundError: no such file.
    ValueError: the file is none of the formats, holds another architecture, another shape or a value that is not
      finite, or PyTorch is needed and missing.
  """
  arrays = _rename(_read(path), path)
  trees = {"params": variables.params["backbone"], "batch_stats": variables.batch_stats["backbone"]}
  expected = {name: leaf.shape for name, leaf in _torch_names(trees).items()}
  shapes = {
    name: tuple(a.shape[i] for i in (2, 3, 1, 0)) if a.ndim == 4 else a.shape for name, a in arrays.items()
  }
  held = _architecture(shapes)
  if held is None:
    found = ", ".join(list(arrays)[:3]) or "nothing"
    raise ValueError(
      f"model.pretrained: {path} holds no ResNet: expected names like layer1.0.conv1.weight, found {found}"
    )
  wanted = _architecture(expected)
  assert wanted is not None, "a network of rc_jax.models with a ResNet backbone"
  if held.name != wanted.name:
    raise ValueError(
      f"model.pretrained: {path} holds {held}, but the network is {wanted}: "
      f"set model.backbone={held.name}, or give a file of {wanted.name}"
      if held.name in RESNETS
      else f"model.pretrained: {path} holds {held}, but the network is {wanted}: give a file of {wanted.name}"
    )
  if held.deep_stem != wanted.deep_stem:
    raise ValueError(
      f"model.pretrained: {path} holds {held}, but the network is {wanted}: "
      f"set model.stem={'64-64-128' if held.deep_stem else '7x7'}"
    )
  for name in expected.keys() & arrays.keys():
    if shapes[name] != expected[name]:
      raise ValueError(
        f"model.pretrained: {path} has {name} of shape {shapes[name]} (axes as in the network), "
        f"expected {expected[name]}: it seems to be a variant of {wanted.name} that is not built here"
      )
    if not np.isfinite(arrays[name]).all():
      raise ValueError(f"model.pretrained: {path} has NaN or infinity in {name}: give an undamaged file")

  def fill(tree: Mapping[str, Any], leaf_names: Mapping[str, str], prefix: str) -> dict[str, Any]:
    filled: dict[str, Any] = {}
    for key, leaf in tree.items():
      name = f"{prefix}{leaf_names.get(key, '')}"
      if isinstance(leaf, Mapping):
        filled[key] = fill(leaf, leaf_names, f"{prefix}{key}.")
      elif name not in arrays:
        filled[key] = leaf
      else:
        array = arrays[name]
        filled[key] = jnp.asarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array)
    return filled

  matched = tuple(name for name in arrays if name in expected)
  report = Report(
    path=str(path),
    architecture=str(held),
    matched=matched,
    transposed=tuple(name for name in matched if arrays[name].ndim == 4),
    left_out=tuple(name for name in arrays if name not in expected),
    missing=tuple(name for name in expected if name not in arrays),
  )
  params = variables.params | {"backbone": fill(trees["params"], PARAMETERS, "")}
  batch_stats = variables.batch_stats | {"backbone": fill(trees["batch_stats"], STATISTICS, "")}
  return Variables(params, batch_stats), report


@dataclasses.dataclass(frozen=True)
class _Architecture:
  name: str
  deep_stem: bool

  def __str__(self) -> str:
    return f"{self.name} with {'the deep stem of three 3x3' if self.deep_stem else 'a plain 7x7 stem'}"


def _architecture(shapes: Mapping[str, tuple[int, ...]]) -> _Architecture | None:
  """Tells a ResNet from its names and shapes (``HWIO``); None where there is none."""
  blocks = []
  for stage in (1, 2, 3, 4):
    found = [re.match(rf"layer{stage}\.(\d+)\.conv1\.weight$", name) for name in shapes]
    blocks.append(max((int(match[1]) + 1 for match in found if match), default=0))
  width = shapes.get("layer1.0.conv1.weight")
  if not all(blocks) or width is None:
    return None
  layout = Layout((blocks[0], blocks[1], blocks[2], blocks[3]), "layer1.0.conv3.weight" in shapes, width[-1])
  name = next((name for name, known in RESNETS.items() if known == layout), None)
  if name is None:
    kind = "bottleneck" if layout.bottleneck else "basic"
    name = f"a ResNet of {'-'.join(map(str, blocks))} {kind} blocks, {layout.width} channels wide"
  return _Architecture(name, "conv1.0.weight" in shapes)


def _torch_names(trees: Mapping[str, Any]) -> dict[str, Any]:
  """Maps the name each leaf has in a file to the leaf."""
  names: dict[str, Any] = {}

  def visit(tree: Mapping[str, Any], leaf_names: Mapping[str, str], prefix: str) -> None:
    for key, leaf in tree.items():
      if isinstance(leaf, Mapping):
        visit(leaf, leaf_names, f"{prefix}{key}.")
      else:
        names[prefix + leaf_names[key]] = leaf

  visit(trees["params"], PARAMETERS, "")
  visit(trees["batch_stats"], STATISTICS, "")
  return names


def _rename(arrays: Mapping[str, np.ndarray], path: str) -> dict[str, np.ndarray]:
  """Strips prefixes, brings the deep stem's names to ours, and makes float16 and its like float32."""
  renamed: dict[str, np.ndarray] = {}
  for name, array in arrays.items():
    while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
      name = name[len(prefix) :]
    if name in renamed:
      raise ValueError(
        f"model.pretrained: {path} has {name} twice, under different prefixes: give one backbone"
      )
    # 8-byte and unsigned kinds are counters; every other dtype here, bfloat16 included, is a float of some width.
    renamed[name] = array if array.dtype.kind in "iub" else array.astype(np.float32)
  for key, stem in DEEP_STEMS:
    if key in renamed:
      split = {name: name.rpartition(".") for name in renamed}
      renamed = {
        f"{stem[layer]}.{leaf}" if layer in stem else name: renamed[name]
        for name, (layer, _, leaf) in split.items()
      }
  return renamed


def _read(path: str) -> dict[str, np.ndarray]:
  """Reads all arrays of a file, in whichever of the three formats it is."""
  file = pathlib.Path(path)
  if not file.is_file():
    raise FileNotFoundError(f"model.pretrained: {path} is not a file: give a .npz, .safetensors or .pth file")
  with file.open("rb") as opened:
    start = opened.read(9)
  try:
    if zipfile.is_zipfile(file):
      with zipfile.ZipFile(file) as archive:
        numpy_file = all(name.endswith(".npy") for name in archive.namelist())
      if numpy_file:
        with np.load(file, allow_pickle=False) as loaded:
          return {name: loaded[name] for name in loaded.files}
      return _read_torch(file)
    if start[8:] == b"{":
      return dict(safetensors.numpy.load_file(file))
    if start[:1] == b"\x80":  # a pickle: torch.save before PyTorch 1.6
      return _read_torch(file)
  except ImportError as error:
    raise ValueError(
      f"model.pretrained: reading {path} needs the package torch, which is not installed: "
      "pip install torch, or convert the file to .safetensors or .npz"
    ) from error
  except Exception as error:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise ValueError(f"model.pretrained: {path} cannot be read, it may be damaged: {reason}") from error
  raise ValueError(
    f"model.pretrained: {path} is neither .npz, .safetensors nor .pth, by its first bytes {start[:4]!r}"
  )


def _read_torch(file: pathlib.Path) -> dict[str, np.ndarray]:
  import torch  # optional: only this format needs it

  # weights_only: a pickle may otherwise run any code.
  state = torch.load(file, map_location="cpu", weights_only=True)
  for wrapper in ("state_dict", "model"):
    if isinstance(state.get(wrapper), Mapping):
      state = state[wrapper]
  tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
  return {name: (t.float() if t.is_floating_point() else t).numpy() for name, t in tensors.items()}
