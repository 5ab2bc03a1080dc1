"""The names that others give to a network's arrays, brought to ours.

Our name of an array is its path in the network's trees, joined with dots and ending as PyTorch's:
``params["head"]["fuse"]["conv"]["kernel"]`` is ``head.fuse.conv.weight``, ``batch_stats["head"]["fuse"]["bn"]["var"]``
is ``head.fuse.bn.running_var``. A file's names tell which family it comes from; a family's rules tell our names.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

# (pattern, replacement): a pattern is matched at the start of a name; the first that matches replaces what it matched,
# and the rest of the name follows.
Rules = tuple[tuple[str, str], ...]

_AUXILIARY: Rules = (
  (r"auxiliary_head\.convs\.(\d+)\.", r"aux_head.conv\1."),
  (r"auxiliary_head\.conv_cat\.", "aux_head.fuse."),
  (r"auxiliary_head\.conv_seg\.", "aux_head.classifier."),
)

# A depthwise separable convolution's parts.
_SEPARABLE: Rules = (
  (r"depthwise_conv\.conv\.", "depthwise."),
  (r"depthwise_conv\.bn\.", "depthwise_bn."),
  (r"pointwise_conv\.", "pointwise."),
)

# Below ``decode_head.``, a head of ``rc_jax.models.HEADS`` each. Which of them a file holds is found by trying all.
MMSEGMENTATION_HEADS: dict[str, Rules] = {
  "ccnet": (
    (r"decode_head\.convs\.0\.", "head.before."),
    (r"decode_head\.convs\.1\.", "head.after."),
    (r"decode_head\.cca\.(query|key|value)_conv\.", r"head.attention.\1."),
    (r"decode_head\.cca\.gamma\.scale", "head.attention.gamma"),
    (r"decode_head\.conv_cat\.", "head.fuse."),
    (r"decode_head\.conv_seg\.", "head.classifier."),
  ),
  "danet": (
    (r"decode_head\.pam_in_conv\.", "head.position.before."),
    (r"decode_head\.pam_out_conv\.", "head.position.after."),
    (r"decode_head\.pam_conv_seg\.", "head.position.classifier."),
    (r"decode_head\.pam\.gamma\.scale", "head.position.attention.gamma"),
    (r"decode_head\.cam_in_conv\.", "head.channel.before."),
    (r"decode_head\.cam_out_conv\.", "head.channel.after."),
    (r"decode_head\.cam_conv_seg\.", "head.channel.classifier."),
    (r"decode_head\.cam\.gamma\.scale", "head.channel.attention.gamma"),
    (r"decode_head\.pam\.(query|key|value)_project\.", r"head.position.attention.\1."),
    (r"decode_head\.conv_seg\.", "head.classifier."),
  ),
  "deeplabv3": (
    (r"decode_head\.image_pool\.1\.", "head.aspp.pool."),
    (r"decode_head\.aspp_modules\.0\.", "head.aspp.conv1x1."),
    (r"decode_head\.aspp_modules\.1\.", "head.aspp.rate0."),
    (r"decode_head\.aspp_modules\.2\.", "head.aspp.rate1."),
    (r"decode_head\.aspp_modules\.3\.", "head.aspp.rate2."),
    (r"decode_head\.bottleneck\.", "head.fuse."),
    (r"decode_head\.conv_seg\.", "head.classifier."),
  ),
  "deeplabv3plus": (
    (r"decode_head\.image_pool\.1\.", "head.aspp.pool."),
    (r"decode_head\.aspp_modules\.0\.", "head.aspp.conv1x1."),
    *(
      (rf"decode_head\.aspp_modules\.{i + 1}\.{theirs}", f"head.aspp.rate{i}.{ours}")
      for i in range(3)
      for theirs, ours in _SEPARABLE
    ),
    (r"decode_head\.bottleneck\.", "head.fuse."),
    (r"decode_head\.c1_bottleneck\.", "head.early."),
    *(
      (rf"decode_head\.sep_bottleneck\.(\d+)\.{theirs}", rf"head.refine\1.{ours}")
      for theirs, ours in _SEPARABLE
    ),
    (r"decode_head\.conv_seg\.", "head.classifier."),
  ),
  "encnet": (
    (r"decode_head\.bottleneck\.", "head.reduce."),
    (r"decode_head\.enc_module\.encoding_project\.", "head.project."),
    (r"decode_head\.enc_module\.encoding\.0\.codewords", "head.encoding.codewords"),
    (r"decode_head\.enc_module\.encoding\.0\.scale", "head.encoding.smoothing"),
    (r"decode_head\.enc_module\.encoding\.1\.", "head.encoding.bn."),
    (r"decode_head\.enc_module\.fc\.0\.", "head.gate."),
    (r"decode_head\.se_layer\.", "head.presence."),
    (r"decode_head\.conv_seg\.", "head.classifier."),
  ),
  "fcn": (
    (r"decode_head\.convs\.(\d+)\.", r"head.conv\1."),
    (r"decode_head\.conv_cat\.", "head.fuse."),
    (r"decode_head\.conv_seg\.", "head.classifier."),
  ),
  # A cascade: the coarse prediction's head, then the one that refines it.
  "ocrnet": (
    (r"decode_head\.0\.convs\.(\d+)\.", r"head.coarse.conv\1."),
    (r"decode_head\.0\.conv_seg\.", "head.coarse.classifier."),
    (r"decode_head\.1\.bottleneck\.", "head.pixels."),
    (r"decode_head\.1\.object_context_block\.query_project\.(\d+)\.", r"head.query\1."),
    (r"decode_head\.1\.object_context_block\.key_project\.(\d+)\.", r"head.key\1."),
    (r"decode_head\.1\.object_context_block\.value_project\.", "head.value."),
    (r"decode_head\.1\.object_context_block\.out_project\.", "head.out."),
    (r"decode_head\.1\.object_context_block\.bottleneck\.", "head.fuse."),
    (r"decode_head\.1\.conv_seg\.", "head.classifier."),
  ),
  "pspnet": (
    (r"decode_head\.psp_modules\.(\d+)\.1\.", r"head.bin\1."),
    (r"decode_head\.bottleneck\.", "head.fuse."),
    (r"decode_head\.conv_seg\.", "head.classifier."),
  ),
}

# These concatenate ASPP's pooled branch before the others, ours comes last: (family, head).
POOLED_FIRST = (
  ("mmsegmentation", "deeplabv3"),
  ("mmsegmentation", "deeplabv3plus"),
  ("regioncontrast", "deeplabv3"),
)

_REGIONCONTRAST: Rules = (
  (r"decoder\.aspp\.conv1\.1\.", "head.aspp.pool.conv."),
  (r"decoder\.aspp\.conv1\.2\.", "head.aspp.pool.bn."),
  (r"decoder\.aspp\.conv2\.0\.", "head.aspp.conv1x1.conv."),
  (r"decoder\.aspp\.conv2\.1\.", "head.aspp.conv1x1.bn."),
  (r"decoder\.aspp\.conv3\.0\.", "head.aspp.rate0.conv."),
  (r"decoder\.aspp\.conv3\.1\.", "head.aspp.rate0.bn."),
  (r"decoder\.aspp\.conv4\.0\.", "head.aspp.rate1.conv."),
  (r"decoder\.aspp\.conv4\.1\.", "head.aspp.rate1.bn."),
  (r"decoder\.aspp\.conv5\.0\.", "head.aspp.rate2.conv."),
  (r"decoder\.aspp\.conv5\.1\.", "head.aspp.rate2.bn."),
  (r"decoder\.head\.0\.", "head.fuse.conv."),
  (r"decoder\.head\.1\.", "head.fuse.bn."),
  (r"decoder\.final\.", "head.classifier."),
  (r"auxor\.aux\.0\.", "aux_head.conv0.conv."),
  (r"auxor\.aux\.1\.", "aux_head.conv0.bn."),
  (r"auxor\.aux\.4\.", "aux_head.classifier."),
)

_TORCHVISION_AUXILIARY: Rules = (
  (r"aux_classifier\.0\.", "aux_head.conv0.conv."),
  (r"aux_classifier\.1\.", "aux_head.conv0.bn."),
  (r"aux_classifier\.4\.", "aux_head.classifier."),
)

_TORCHVISION_FCN: Rules = (
  (r"classifier\.0\.", "head.conv0.conv."),
  (r"classifier\.1\.", "head.conv0.bn."),
  (r"classifier\.4\.", "head.classifier."),
)

_TORCHVISION_DEEPLABV3: Rules = (
  (r"classifier\.0\.convs\.0\.0\.", "head.aspp.conv1x1.conv."),
  (r"classifier\.0\.convs\.0\.1\.", "head.aspp.conv1x1.bn."),
  (r"classifier\.0\.convs\.1\.0\.", "head.aspp.rate0.conv."),
  (r"classifier\.0\.convs\.1\.1\.", "head.aspp.rate0.bn."),
  (r"classifier\.0\.convs\.2\.0\.", "head.aspp.rate1.conv."),
  (r"classifier\.0\.convs\.2\.1\.", "head.aspp.rate1.bn."),
  (r"classifier\.0\.convs\.3\.0\.", "head.aspp.rate2.conv."),
  (r"classifier\.0\.convs\.3\.1\.", "head.aspp.rate2.bn."),
  (r"classifier\.0\.convs\.4\.1\.", "head.aspp.pool.conv."),
  (r"classifier\.0\.convs\.4\.2\.", "head.aspp.pool.bn."),
  (r"classifier\.0\.project\.0\.", "head.aspp.project.conv."),
  (r"classifier\.0\.project\.1\.", "head.aspp.project.bn."),
  (r"classifier\.1\.", "head.fuse.conv."),
  (r"classifier\.2\.", "head.fuse.bn."),
  (r"classifier\.4\.", "head.classifier."),
)

# The deep stem of a ResNet under the names that other releases give it.
_STEM_LIST: Rules = (
  (r"stem\.([01346])\.", r"conv1.\1."),
  (r"stem\.7\.", "bn1."),
)
_STEM_SEPARATE: Rules = (
  (r"conv1\.", "conv1.0."),
  (r"bn1\.", "conv1.1."),
  (r"conv2\.", "conv1.3."),
  (r"bn2\.", "conv1.4."),
  (r"conv3\.", "conv1.6."),
  (r"bn3\.", "bn1."),
)

# What files hold beside a network: counters, ImageNet's classifiers, the banks of the authors' code.
_HARMLESS = re.compile(
  r".*\bnum_batches_tracked$|decoder\.(queue|ptr)\d+$"
  r"|((backbone|encoder)\.)?(fc|classifier|incre_modules\..*|downsamp_modules\..*|final_layer\..*)"
  r"\.(weight|bias|running_mean|running_var)$"
)


class Names(NamedTuple):
  """What a file's names say.

  Attributes:
    family: ``"mmsegmentation"``, ``"torchvision"``, ``"regioncontrast"``, ``"rc_jax"``, or ``"imagenet"`` for a
      backbone alone.
    head: a key of ``rc_jax.models.HEADS``; None where the file holds no head, or none that is known.
    ours: the file's name -> our name; what no rule knows has the name of its part and its own, such as
      ``head.?decode_head.lateral.weight``.
    harmless: names of the file that no network has a place for, and that none needs.
  """

  family: str
  head: str | None
  ours: dict[str, str]
  harmless: tuple[str, ...]


def translate(names: Iterable[str]) -> Names:
  """Finds a file's family by its names, and our name of each array.

  Args:
    names: all names of the file, with or without the prefixes of wrappers (``module.``, ``_orig_mod.``, ``model.``).

  Returns:
    What they say; two names of the file may come to the same name of ours.
  """
  bare = {name: _without_wrappers(name) for name in names}
  harmless = tuple(name for name, plain in bare.items() if _HARMLESS.match(plain))
  bare = {name: plain for name, plain in bare.items() if name not in harmless}
  family, head, rules = _family(bare.values())

  backbone = {
    name: re.sub(r"^((backbone|encoder)\.)+", "", plain)
    for name, plain in bare.items()
    if _part(plain) == "backbone"
  }
  stem: Rules = ()
  if "stem.0.weight" in backbone.values():
    stem = _STEM_LIST
  elif "conv3.weight" in backbone.values():
    stem = _STEM_SEPARATE

  ours = {}
  for name, plain in bare.items():
    if name in backbone:
      ours[name] = "backbone." + (_replaced(backbone[name], stem) or backbone[name])
    elif family == "rc_jax":
      ours[name] = plain
    else:
      ours[name] = _replaced(plain, rules) or f"{_part(plain)}.?{plain}"
  return Names(family, head, ours, harmless)


def _without_wrappers(name: str) -> str:
  """Strips what data parallel, compiled and Lightning modules put in front."""
  name = re.sub(r"(^|(?<=\.))(module|_orig_mod)\.", "", name)
  return re.sub(r"^(model\.)+", "", name)


def _part(name: str) -> str:
  """Tells the part of a network, our top-level name, that a name belongs to."""
  if re.match(r"(auxiliary_head|auxor|aux_classifier|aux_head)\.", name):
    return "aux_head"
  if re.match(r"(decode_head|decoder|classifier|head)\.", name):
    return "head"
  return "projection" if name.startswith("projection.") else "backbone"


def _family(names: Iterable[str]) -> tuple[str, str | None, Rules]:
  heads = [name for name in names if _part(name) != "backbone"]
  starts = {name.partition(".")[0] for name in heads}
  if "decode_head" in starts:
    head = _best_head([name for name in heads if name.startswith("decode_head.")])
    return "mmsegmentation", head, _AUXILIARY + (MMSEGMENTATION_HEADS[head] if head else ())
  if starts & {"decoder", "auxor"}:
    return "regioncontrast", "deeplabv3", _REGIONCONTRAST
  if starts & {"classifier", "aux_classifier"}:
    deeplab = any(name.startswith("classifier.0.convs.") for name in heads)
    rules = _TORCHVISION_DEEPLABV3 if deeplab else _TORCHVISION_FCN
    return "torchvision", "deeplabv3" if deeplab else "fcn", rules + _TORCHVISION_AUXILIARY
  if "head" in starts:
    return "rc_jax", None, ()
  return "imagenet", None, ()


def _best_head(names: Sequence[str]) -> str | None:
  """Chooses the head whose rules leave the fewest names over, then the one that has the fewest rules to spare."""
  scores = {}
  for head, rules in MMSEGMENTATION_HEADS.items():
    unknown = sum(_replaced(name, rules) is None for name in names)
    spare = sum(not any(re.match(pattern, name) for name in names) for pattern, _ in rules)
    scores[head] = (unknown, spare)
  best = min(scores, key=lambda head: scores[head])
  return best if scores[best][0] < len(names) / 2 else None


def _replaced(name: str, rules: Rules) -> str | None:
  for pattern, replacement in rules:
    match = re.match(pattern, name)
    if match:
      return match.expand(replacement) + name[match.end() :]
  return None


def our_names(params: Mapping[str, object], batch_stats: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
  """Maps our name of each array to its path, whose first entry is ``params`` or ``batch_stats``."""
  leaf_names = {
    "params": {"kernel": "weight", "scale": "weight"},
    "batch_stats": {"mean": "running_mean", "var": "running_var"},
  }
  found: dict[str, tuple[str, ...]] = {}

  def visit(tree: Mapping[str, object], path: tuple[str, ...]) -> None:
    for key, leaf in tree.items():
      if isinstance(leaf, Mapping):
        visit(leaf, (*path, key))
      else:
        name = ".".join([*path[1:], leaf_names[path[0]].get(key, key)])
        found[name] = (*path, key)

  visit(params, ("params",))
  visit(batch_stats, ("batch_stats",))
  return found
