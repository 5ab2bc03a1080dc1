"""From the keys of published weight files to the names that this project gives to a network's arrays.

The name of an array is its path in the network's trees, joined with dots, with PyTorch's leaf name:
``params["head"]["fuse"]["conv"]["kernel"]`` is ``head.fuse.conv.weight``, ``batch_stats["head"]["fuse"]["bn"]["var"]``
is ``head.fuse.bn.running_var``. The keys show the family of a file. The rules from a family's keys to names stand with
each head and backbone (``rc_jax/models``).
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rc_jax import models
from rc_jax.models.heads.fcn import AUXILIARY_KEY_RULES
from rc_jax.models.network import KeyRules


class Family(NamedTuple):
  """A project whose weight files share key names.

  Attributes:
    parts: first part of a key -> the part of the network. All other keys are the backbone's.
    own_parts: those of ``parts`` that no other project uses.
    fields: fields of ``config.model`` that all its networks have and no shape shows.
    backbone_fields: those that also matter to a backbone alone.
    backbone_start: start of the backbone's keys in its networks.
  """

  parts: Mapping[str, str]
  own_parts: frozenset[str]
  fields: Mapping[str, Any]
  backbone_fields: Mapping[str, Any]
  backbone_start: str


_EPSILON = {"bn_epsilon": 1e-5}

# A file belongs to the first family with evidence among its keys: a first part that no other project uses, or keys that
# the rules of a head match. The first part alone shows little: ``head.fc`` is the ImageNet classifier of some projects,
# and ``decoder`` occurs in many. A head may publish weights in another family, which is recognised where each of its
# rules matches a key.
FAMILIES: dict[str, Family] = {
  "mmsegmentation": Family(
    parts={"decode_head": "head", "auxiliary_head": "aux_head"},
    own_parts=frozenset({"decode_head", "auxiliary_head"}),
    fields={"align_corners": False},
    backbone_fields=_EPSILON,
    backbone_start="backbone.",
  ),
  "regioncontrast": Family(
    parts={"decoder": "head", "auxor": "aux_head"},
    own_parts=frozenset({"auxor"}),
    fields={"align_corners": True},
    backbone_fields=_EPSILON,
    backbone_start="encoder.",
  ),
  "torchvision": Family(
    parts={"classifier": "head", "aux_classifier": "aux_head"},
    own_parts=frozenset({"aux_classifier"}),
    fields={"align_corners": False},
    backbone_fields=_EPSILON,
    backbone_start="backbone.",
  ),
  # Recognised by the names of the network's arrays.
  "rc_jax": Family(
    parts={"head": "head", "aux_head": "aux_head", "projection": "projection"},
    own_parts=frozenset(),
    fields={},
    backbone_fields={},
    backbone_start="backbone.",
  ),
  # A backbone alone, or with parts that no family has.
  "imagenet": Family({}, frozenset(), {}, _EPSILON, backbone_start=""),
  # One of them: its files are recognised as those of "imagenet".
  "timm": Family({}, frozenset(), {}, _EPSILON, backbone_start=""),
}


class KeyMapping(NamedTuple):
  """The keys of a file and the names of their arrays here.

  Attributes:
    family: a key of ``FAMILIES``, or of ``Head.published``.
    head: a key of ``rc_jax.models.HEADS``; None where the file holds no head, or none that is known.
    names: key -> name. A key that no rule matches keeps its own text behind its part, such as
      ``head.?decode_head.lateral.weight``.
    ignored: keys that no network needs, such as the classifier of a network for ImageNet.
  """

  family: str
  head: str | None
  names: dict[str, str]
  ignored: tuple[str, ...]


def map_keys(keys: Iterable[str], known: Collection[str] = ("head.classifier.weight",)) -> KeyMapping:
  """Finds the family and the head of a file by its keys, and the name of each array.

  Args:
    keys: all keys of the file, with or without the prefixes of wrappers (``module.``, ``_orig_mod.``, ``model.``).
    known: names of arrays outside the backbone that show a file of this project, such as those of the network.

  Returns:
    The mapping; two keys may have the same name.
  """
  plain = {key: _without_wrappers(key) for key in keys}
  ignored_pattern = _ignored_pattern()
  ignored = tuple(key for key, text in plain.items() if ignored_pattern.fullmatch(text))
  plain = {key: text for key, text in plain.items() if key not in ignored}
  family, head, rules = _family_and_head(list(plain.values()), known)

  names = {key: apply_rules(rules, text) or _unmatched(text, family) for key, text in plain.items()}
  backbone = {key: name.removeprefix("backbone.") for key, name in names.items() if _is_backbone(name)}
  ours = backbone_names(backbone.values())
  names |= {key: ours[name] for key, name in backbone.items()}
  return KeyMapping(family, head, names, ignored)


def backbone_names(keys: Iterable[str]) -> dict[str, str]:
  """Maps the keys of a backbone alone, without ``backbone.``, to the names of its arrays, with ``backbone.``."""
  keys = list(keys)
  rules = _backbone_rules(keys)
  return {key: f"backbone.{apply_rules(rules, key) or key}" for key in keys}


def _without_wrappers(key: str) -> str:
  """Strips the prefixes that data parallel, compiled and Lightning modules add."""
  key = re.sub(r"(^|(?<=\.))(module|_orig_mod)\.", "", key)
  return re.sub(r"^(model\.)+", "", key)


def _ignored_pattern() -> re.Pattern[str]:
  """Matches counters, and the keys that heads and backbones state as of no use."""
  layers = [layer for backbone in models.backbones().values() for layer in backbone.ignored_layers]
  published = [each for head in models.heads().values() for each in head.published.values()]
  patterns = [r".*\bnum_batches_tracked"]
  patterns += [rf"((backbone|encoder)\.)?{layer}\.(weight|bias|running_mean|running_var)" for layer in layers]
  patterns += [pattern for each in published for pattern in each.ignored_keys]
  return re.compile("|".join(f"(?:{pattern})" for pattern in patterns))


def _unmatched(key: str, family: str) -> str:
  """Names an array whose key no rule matches: a backbone's by its key, any other so that no network has it."""
  start = key.partition(".")[0]
  part = next((each.parts[start] for each in FAMILIES.values() if start in each.parts), None)
  if part is None:
    return "backbone." + re.sub(r"^((backbone|encoder)\.)+", "", key)
  return key if family == "rc_jax" else f"{part}.?{key}"


def _is_backbone(name: str) -> bool:
  return name.startswith("backbone.")


def _family_and_head(keys: Sequence[str], known: Collection[str]) -> tuple[str, str | None, KeyRules]:
  """Returns the family, the head or None, and the rules for the keys outside the backbone."""
  for name, head in models.heads().items():
    for family, published in head.published.items():
      rules = published.key_rules
      if family not in FAMILIES and rules and all(_matches_any(pattern, keys) for pattern, _ in rules):
        return family, name, rules
  for family, description in FAMILIES.items():
    parts = description.parts
    candidates = {
      name: head.published[family].key_rules
      for name, head in models.heads().items()
      if family in head.published
    }
    best = _best_head(candidates, [key for key in keys if parts.get(key.partition(".")[0]) == "head"])
    has_own_part = any(key.partition(".")[0] in description.own_parts for key in keys)
    is_ours = family == "rc_jax" and any(key.partition(".")[0] in parts and key in known for key in keys)
    if best or has_own_part or is_ours or not parts:
      return family, best, (candidates[best] if best else ()) + AUXILIARY_KEY_RULES.get(family, ())
  raise AssertionError("the last family has no parts")


def _best_head(rules_of_heads: Mapping[str, KeyRules], keys: Sequence[str]) -> str | None:
  """Chooses the head whose rules leave the fewest keys unmatched; of equals, the head with the fewest unused rules."""
  scores = {}
  for head, rules in rules_of_heads.items():
    unmatched = sum(apply_rules(rules, key) is None for key in keys)
    unused = sum(not _matches_any(pattern, keys) for pattern, _ in rules)
    scores[head] = (unmatched, unused)
  best = min(scores, key=lambda head: scores[head], default=None)
  return best if best and scores[best][0] < len(keys) / 2 else None


def _matches_any(pattern: str, keys: Iterable[str]) -> bool:
  return any(re.match(pattern, key) for key in keys)


def _backbone_rules(keys: Iterable[str]) -> KeyRules:
  """Returns the rules of the published names that a backbone's keys have; empty where they are this project's."""
  present = set(keys)
  for backbone in models.backbones().values():
    for key, rules in backbone.key_rules.items():
      if key in present:
        return rules
  return ()


def apply_rules(rules: KeyRules, key: str) -> str | None:
  """Returns a key renamed by the first rule that matches its start; None where none does."""
  for pattern, replacement in rules:
    match = re.match(pattern, key)
    if match:
      return match.expand(replacement) + key[match.end() :]
  return None


def array_paths(
  params: Mapping[str, object], batch_stats: Mapping[str, object]
) -> dict[str, tuple[str, ...]]:
  """Maps the name of each array of a network to its path, whose first entry is ``params`` or ``batch_stats``."""
  leaf_names = {
    "params": {"kernel": "weight", "scale": "weight"},
    "batch_stats": {"mean": "running_mean", "var": "running_var"},
  }
  paths: dict[str, tuple[str, ...]] = {}

  def visit(tree: Mapping[str, object], path: tuple[str, ...]) -> None:
    for key, leaf in tree.items():
      if isinstance(leaf, Mapping):
        visit(leaf, (*path, key))
      else:
        name = ".".join([*path[1:], leaf_names[path[0]].get(key, key)])
        paths[name] = (*path, key)

  visit(params, ("params",))
  visit(batch_stats, ("batch_stats",))
  return paths
