"""From the names of this project's arrays to the keys of a family: the rules of the importers, inverted.

A rule is stated once, with the head or backbone that it is for. Read forwards it imports, read backwards it exports.
"""

import re
from collections.abc import Collection
from typing import NamedTuple

from rc_jax import models
from rc_jax.fields import Config
from rc_jax.models.heads.fcn import AUXILIARY_BIASES, AUXILIARY_KEY_RULES
from rc_jax.models.network import KeyRules
from rc_jax.weights import key_names

# The families that networks are exported to. The backbones of "imagenet" are those of timm.
FAMILIES = tuple(family for family in key_names.FAMILIES if family != "imagenet")


class ExportedNames(NamedTuple):
  """The keys of a network's arrays in a family.

  Attributes:
    keys: name -> key.
    zeros: keys of biases that the family's network has and this project's has not -> name of the convolution's weight.
    left_out: names of arrays without a place in the family: the projection, which training alone reads; all but the
      backbone in a family of backbones.
  """

  keys: dict[str, str]
  zeros: dict[str, str]
  left_out: tuple[str, ...]


def exported_names(names: Collection[str], family: str, model: Config) -> ExportedNames:
  """Returns the keys of a network's arrays in the files of a family.

  Args:
    names: of all arrays of the network, as ``key_names.array_paths`` has them.
    family: one of ``FAMILIES``.
    model: ``config.model`` of the network.

  Raises:
    ValueError: the family has no such network; one line that names the families that have it.
  """
  exported = _names_or_problem(names, family, model)
  if isinstance(exported, str):
    others = [
      other for other in FAMILIES if isinstance(_names_or_problem(names, other, model), ExportedNames)
    ]
    raise ValueError(f"--as={family}: {exported}; this network can be exported as {', '.join(others)}")
  return exported


def inverted(rules: KeyRules) -> KeyRules:
  """Returns the rules that rename back.

  Raises:
    ValueError: a pattern is more than plain text and groups.

  >>> inverted(((r"decode_head\\.convs\\.(\\d+)\\.", r"head.conv\\1."),))
  (('head\\\\.conv(\\\\d+)\\\\.', 'decode_head.convs.\\\\1.'),)
  """
  return tuple(_inverted(pattern, replacement) for pattern, replacement in rules)


def _inverted(pattern: str, replacement: str) -> tuple[str, str]:
  *pieces, last = re.split(r"\(([^()]*)\)", pattern)
  texts, groups = [*pieces[::2], last], pieces[1::2]
  parts = re.split(r"\\(\d+)", replacement)
  order = [int(number) for number in parts[1::2]]
  is_plain = not any(re.search(r"(?<!\\)[.*+?\[\]{}|^$()]", text) for text in texts)
  if not is_plain or sorted(order) != list(range(1, len(groups) + 1)):
    raise ValueError(
      f"the rule {pattern!r} -> {replacement!r} cannot be inverted: write it as plain text and groups"
    )
  ours = [f"({groups[int(part) - 1]})" if i % 2 else re.escape(part) for i, part in enumerate(parts)]
  theirs = re.sub(r"\\(.)", r"\1", texts[0])
  for number, text in enumerate(texts[1:], start=1):
    theirs += f"\\{order.index(number) + 1}" + re.sub(r"\\(.)", r"\1", text)
  return "".join(ours), theirs


def _names_or_problem(names: Collection[str], family: str, model: Config) -> ExportedNames | str:
  """Returns the keys, or a clause that says what the family lacks."""
  if family == "rc_jax":
    return ExportedNames({name: name for name in names}, {}, ())
  description = key_names.FAMILIES[family]
  backbone_rules = models.backbones()[model.backbone].family_rules(family, model)
  if backbone_rules is None:
    stem = f" with model.stem={model.stem}" if models.reads("model.stem", model.name, model.backbone) else ""
    return f"{family} has no backbone {model.backbone}{stem} and model.output_stride={model.output_stride}"
  backwards = inverted(backbone_rules)
  start = "backbone."
  keys = {}
  for name in names:
    if name.startswith(start):
      plain = name.removeprefix(start)
      keys[name] = description.backbone_start + (key_names.apply_rules(backwards, plain) or plain)
  others = [name for name in names if name not in keys]
  if not description.parts:
    return _checked(family, names, ExportedNames(keys, {}, tuple(others)))

  published = models.heads()[model.name].published.get(family)
  if published is None:
    return f"{family} has no head {model.name}"
  head_rules = inverted(published.key_rules)
  rules = head_rules + inverted(AUXILIARY_KEY_RULES.get(family, ()))
  training_only = tuple(name for name in others if name.startswith("projection."))
  renamed = {name: key_names.apply_rules(rules, name) for name in others if name not in training_only}
  unknown = sorted(name for name, key in renamed.items() if key is None)
  if unknown:
    return f"the head {model.name} of {family} has no {unknown[0].rpartition('.')[0]}"
  for (_, ours), (backwards_pattern, _) in zip(published.key_rules, head_rules, strict=True):
    is_used = any(re.match(backwards_pattern, name) for name in renamed)
    if not is_used and not ours.startswith(published.optional):
      return f"the head {model.name} of {family} has {ours.rstrip('.')}, which this network lacks"
  keys |= {name: key for name, key in renamed.items() if key is not None}
  name_of = {key: name for name, key in keys.items()}
  layers = {bias: f"{bias.rpartition('.')[0]}.weight" for bias in AUXILIARY_BIASES.get(family, ())}
  zeros = {bias: name_of[weight] for bias, weight in layers.items() if weight in name_of}
  return _checked(family, names, ExportedNames(keys, zeros, training_only))


def _checked(family: str, names: Collection[str], exported: ExportedNames) -> ExportedNames | str:
  """Returns the names if an import reads them back, else a clause."""
  read = key_names.map_keys(exported.keys.values(), names).names
  for name, key in exported.keys.items():
    if read.get(key) != name:
      return f"its key {key} for {name} would be read as {read.get(key, 'nothing')}"
  return exported
