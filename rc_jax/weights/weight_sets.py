"""Chooses one of the sets of weights that a file holds, such as raw weights and their moving average.

A set is named by what its keys have in common: ``state_dict.teacher`` is the set of
``state_dict.teacher.backbone.conv1.weight``. The name of the keys without such a start is ``.``.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rc_jax.models.network import Arrays
from rc_jax.weights import architecture, key_names

TOP = "."

# Keys of the network's state dict in checkpoints: of mmengine and Lightning, of others, of RegionContrast's authors.
# They count where no backbone is known.
STATES = ("state_dict", "model", "model_state", "model_state_dict")

# The fewest arrays of a backbone: shorter groups of keys, such as blocks, need not be examined.
_FEWEST = 12

# What moving averages are called in published files.
_AVERAGE = re.compile(r"ema|teacher|average|swa|momentum", re.IGNORECASE)


# The end of what a backbone's keys have in common, where the keys of a head differ.
_BACKBONE = re.compile(r"(^|\.)(?:(?:backbone|encoder)\.(?:(?:module|_orig_mod)\.)*)+$")


class WeightSet(NamedTuple):
  """One set of weights of a file.

  Attributes:
    name: what the set's keys have in common, without the last dot; ``TOP``: nothing.
    arrays: key -> array; keys are without ``state_dict.`` or another of ``STATES`` at their start.
    outside: full keys of the file that belong to no set.
  """

  name: str
  arrays: dict[str, np.ndarray]
  outside: tuple[str, ...]

  def plain(self, key: str) -> str:
    """Returns a key of ``arrays`` without the name of the set."""
    return key if self.name == TOP else key.removeprefix(_without_state(f"{self.name}."))


def choose(path: str, arrays: Arrays, wanted: str, known: Collection[str]) -> WeightSet:
  """Returns the set of weights of a file, or one of several.

  Args:
    path: of the file, for messages.
    arrays: of the file, by their full keys.
    wanted: name of the set; empty where the file is expected to hold one.
    known: names of the arrays of the network that the weights are for.

  Raises:
    ValueError: the file holds several sets, and none is wanted; or none of the wanted name.
  """
  arrays = _with_dots(arrays)
  names = _set_names(arrays, known)
  if wanted and wanted not in names and not any(key.startswith(f"{wanted}.") for key in arrays):
    held = ", ".join(names) if names else "none that is known"
    raise ValueError(f"model.pretrained_key: is {wanted!r}, but the sets of weights in {path} are: {held}")
  if not wanted and len(names) > 1:
    sizes = {name: len(_of(name, arrays, names)) for name in names}
    listed = ", ".join(f"{name} ({size} arrays)" for name, size in sizes.items())
    average = next((name for name in names if _AVERAGE.search(name)), names[0])
    raise ValueError(
      f"model.pretrained: {path} holds {len(names)} sets of weights: {listed}: choose one, for example with "
      f"model.pretrained_key={average}"
    )
  name = wanted or (names[0] if names else TOP)
  chosen = _of(name, arrays, names)
  outside = arrays.keys() - chosen.keys()
  for other in names:
    outside -= _of(other, arrays, names).keys()
  if name != TOP:
    chosen = {_without_state(key): array for key, array in chosen.items()}
  return WeightSet(name, chosen, tuple(key for key in arrays if key in outside))


def _without_state(key: str) -> str:
  first, _, rest = key.partition(".")
  return rest if first in STATES else key


def _of(name: str, arrays: Arrays, names: Sequence[str]) -> dict[str, np.ndarray]:
  """Returns the arrays of a set; other sets in it, such as ``ema`` in ``TOP``, are left out."""
  start = "" if name == TOP else f"{name}."
  inner = tuple(f"{other}." for other in names if other not in (name, TOP) and other.startswith(start))
  return {
    key: array
    for key, array in arrays.items()
    if key.startswith(start) and not (inner and key.startswith(inner))
  }


def _with_dots(arrays: Arrays) -> dict[str, np.ndarray]:
  """Renames the buffers of mmcv's EMAHook, ``ema_backbone_conv1_weight``, to ``ema.backbone.conv1.weight``."""
  plain = {key.replace(".", "_"): key for key in arrays}
  return {
    f"ema.{plain[key[4:]]}" if key.startswith("ema_") and key[4:] in plain else key: array
    for key, array in arrays.items()
  }


def _set_names(arrays: Arrays, known: Collection[str]) -> list[str]:
  """Names the sets in the file's order: each is what the keys of one backbone have in common."""
  groups: dict[str, list[str]] = {}
  for key in arrays:
    for prefix in _prefixes(key):
      groups.setdefault(prefix, []).append(key)
  found: dict[str, None] = {}
  claimed: set[str] = set()
  # Where ``backbone.layer1`` and ``layer1`` are backbones, the keys of the first are no part of the second.
  for prefix in sorted(groups, key=lambda prefix: -prefix.count(".") if prefix else 1):
    keys = [key for key in groups[prefix] if key not in claimed]
    if len(keys) >= _FEWEST and _is_backbone({key[len(prefix) :]: arrays[key].shape for key in keys}):
      found[_BACKBONE.sub(r"\1", prefix).rstrip(".") or TOP] = None
      claimed |= set(keys)
  order = list(groups)
  names = sorted(found, key=lambda name: order.index("" if name == TOP else f"{name}."))
  return names or _sets_of_unknown_backbones(arrays, known)


def _prefixes(key: str) -> Iterable[str]:
  """Lists the starts of a key that end at a dot, the empty one first."""
  yield ""
  for match in re.finditer(r"\.", key):
    yield key[: match.end()]


def _is_backbone(shapes: Mapping[str, tuple[int, ...]]) -> bool:
  names = key_names.backbone_names(shapes)
  return bool(architecture.backbone_from_shapes({names[key]: shape for key, shape in shapes.items()}))


def _sets_of_unknown_backbones(arrays: Arrays, known: Collection[str]) -> list[str]:
  """Names the sets of a file without a backbone that is known: the usual key of checkpoints, and others like it."""
  firsts: dict[str, dict[str, tuple[int, ...]]] = {}
  for key, array in arrays.items():
    first, _, rest = key.partition(".")
    firsts.setdefault(first, {})[rest] = array.shape
  if any(name in known for name in arrays):
    return [TOP]
  state = next((name for name in STATES if name in firsts), None)
  return [name for name, shapes in firsts.items() if shapes == firsts[state]] if state else []
