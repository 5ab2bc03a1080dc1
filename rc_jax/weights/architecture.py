"""What a file's arrays tell about ``config.model``, and what its family leaves untold."""

import re
from collections.abc import Mapping
from typing import Any

from rc_jax.models.backbones import hrnet, resnet
from rc_jax.models.backbones.hrnet import HRNETS
from rc_jax.models.backbones.resnet import RESNETS
from rc_jax.weights.key_names import Names

Shapes = Mapping[str, tuple[int, ...]]  # our name -> shape with PyTorch's axes, ``[out,in,k,k]``

# A head's own part, in files that have our names.
_MARKS = (
  ("head.position.", "danet"),
  ("head.attention.", "ccnet"),
  ("head.encoding.", "encnet"),
  ("head.coarse.", "ocrnet"),
  ("head.early.", "deeplabv3plus"),
  ("head.bin0.", "pspnet"),
  ("head.aspp.", "deeplabv3"),
  ("head.conv0.", "fcn"),
)

# What the networks of a family compute and no shape tells.
_FAMILIES: dict[str, dict[str, Any]] = {
  "imagenet": {"stride_on": "3x3", "ceil_pool": False},
  "torchvision": {
    "stride_on": "3x3",
    "ceil_pool": False,
    "align_corners": False,
    "output_stride": 8,
    "multi_grid": 1,
    "aspp_rates": (12, 24, 36),
  },
  "mmsegmentation": {
    "stride_on": "3x3",
    "ceil_pool": False,
    "align_corners": False,
    "output_stride": 8,
    "multi_grid": 1,
    "hrnet_upsample": "bilinear-twice",
    "aspp_rates": (12, 24, 36),
    "psp_bins": (1, 2, 3, 6),
    "ccnet_recurrence": 2,
  },
  "regioncontrast": {
    "stride_on": "3x3",
    "ceil_pool": True,
    "align_corners": True,
    "output_stride": 8,
    "multi_grid": (2, 2, 4),
    "aspp_rates": (12, 24, 36),
  },
}


def fields_from_shapes(names: Names, shapes: Shapes) -> dict[str, Any]:
  """Infers fields of ``config.model`` from names and shapes.

  Args:
    names: of the file, or of a network of ours.
    shapes: of its arrays.

  Returns:
    Field -> value; no ``backbone`` where there is none that is known by name; ``stem`` of ResNets alone.
  """
  fields = _backbone(shapes)
  head = names.head or next((head for mark, head in _MARKS if any(n.startswith(mark) for n in shapes)), None)
  classifier = shapes.get("head.classifier.weight")
  if head is None or classifier is None:
    return fields
  fields |= {"name": head, "channels": classifier[1]}
  auxiliary = "head.coarse.classifier.weight" if head == "ocrnet" else "aux_head.classifier.weight"
  if auxiliary in shapes and not ("stem" not in fields and head == "ocrnet"):
    fields["aux_channels"] = shapes[auxiliary][1]
  if head in ("deeplabv3", "deeplabv3plus"):
    fields["aspp_project"] = "head.aspp.project.conv.weight" in shapes
  if head == "deeplabv3plus":
    fields["early_channels"] = shapes.get("head.early.conv.weight", (0,))[0]
    fields["separable"] = "head.refine0.depthwise.weight" in shapes
  if head == "fcn":
    fields["fcn_convs"] = len({m[0] for name in shapes if (m := re.match(r"head\.conv\d+\.", name))})
    fields["fcn_concat_input"] = "head.fuse.conv.weight" in shapes
    first = shapes.get("head.conv0.conv.weight") or shapes.get("head.fuse.conv.weight")
    if first:
      fields["fcn_kernel_size"] = first[-1]
  if head == "ocrnet":
    fields["ocr_key_channels"] = shapes.get("head.query0.conv.weight", (0,))[0]
  if head == "danet":
    fields["danet_key_channels"] = shapes.get("head.position.attention.query.weight", (0,))[0]
  if head == "encnet":
    fields["encnet_codes"] = shapes.get("head.encoding.codewords", (0,))[0]
  return fields


def classes(shapes: Shapes) -> int | None:
  """Returns ``N`` of the head's classifier; None where there is none."""
  classifier = shapes.get("head.classifier.weight")
  return classifier[0] if classifier else None


def family_fields(family: str, fields: Mapping[str, Any], part: str) -> dict[str, Any]:
  """Returns what the networks of a family compute and no shape tells, as fields of ``config.model``.

  Args:
    family: of the file.
    fields: what its shapes tell.
    part: ``"backbone"`` or ``"all"``, what is imported.
  """
  layout = RESNETS.get(fields.get("backbone", ""))
  of_backbone = {"bn_epsilon"}
  of_rest: set[str] = {"align_corners"}
  if layout is not None:
    of_backbone |= {"stride_on"} if layout.bottleneck else set()
    # Deep stems of ImageNet's come with either pooling.
    of_backbone |= {"ceil_pool"} if family != "imagenet" or fields.get("stem") == "7x7" else set()
    of_rest |= {"output_stride", "multi_grid"}
  else:
    of_rest |= {"hrnet_upsample"}
  heads = {
    "deeplabv3": {"aspp_rates"},
    "deeplabv3plus": {"aspp_rates"},
    "pspnet": {"psp_bins"},
    "ccnet": {"ccnet_recurrence"},
  }
  of_rest |= heads.get(fields.get("name", ""), set())
  wanted = of_backbone | (of_rest if part == "all" else set())
  family_fields = {"bn_epsilon": 1e-5} | _FAMILIES[family] if family in _FAMILIES else {}
  expected = {field: value for field, value in family_fields.items() if field in wanted}
  if expected.get("multi_grid") == 1 and layout is not None:
    expected["multi_grid"] = (1,) * layout.blocks[3]
  return expected


def is_built(backbone: str) -> bool:
  """Tells a name that ``model.backbone`` takes from a description of one that is not built here."""
  return backbone in RESNETS or backbone in HRNETS


def _backbone(shapes: Shapes) -> dict[str, Any]:
  """Tells a ResNet or an HRNet from its shapes; the name of one that is not built here is a description."""
  if "backbone.stage2.0.branches.0.0.conv1.weight" in shapes:
    return {"backbone": _hrnet(shapes)}
  blocks = []
  for stage in (1, 2, 3, 4):
    found = [re.match(rf"backbone\.layer{stage}\.(\d+)\.conv1\.weight$", name) for name in shapes]
    blocks.append(max((int(match[1]) + 1 for match in found if match), default=0))
  first = shapes.get("backbone.layer1.0.conv1.weight")
  if not all(blocks) or first is None:
    return {}
  bottleneck = "backbone.layer1.0.conv3.weight" in shapes
  layout = resnet.Layout((blocks[0], blocks[1], blocks[2], blocks[3]), bottleneck, first[0])
  name = next((name for name, known in RESNETS.items() if known == layout), None)
  if name is None:
    kind = "bottleneck" if bottleneck else "basic"
    name = f"a ResNet of {'-'.join(map(str, blocks))} {kind} blocks, {layout.width} channels wide"
  convolutions = [shapes.get(f"backbone.conv1.{i}.weight", (0,))[0] for i in (0, 3, 6)]
  stem = "7x7"
  if any(convolutions):
    # Relative to the width: that of all published ResNets is 64.
    stem = "-".join(str(64 * channels // layout.width) for channels in convolutions)
  return {"backbone": name, "stem": stem}


def _hrnet(shapes: Shapes) -> str:
  def number(pattern: str) -> int:
    found = [re.match(rf"backbone\.{pattern}", name) for name in shapes]
    return max((int(match[1]) + 1 for match in found if match), default=0)

  modules = tuple(number(rf"stage{stage}\.(\d+)\.") for stage in (2, 3, 4))
  width = shapes["backbone.stage2.0.branches.0.0.conv1.weight"][0]
  layout = hrnet.Layout(
    width,
    modules=(modules[0], modules[1], modules[2]),
    blocks=number(r"stage2\.0\.branches\.0\.(\d+)\."),
    stem=shapes.get("backbone.conv1.weight", (0,))[0],
  )
  name = next((name for name, known in HRNETS.items() if known == layout), None)
  return name or f"an HRNet of {'-'.join(map(str, modules))} modules, {width} channels wide"


def describe(fields: Mapping[str, Any], num_classes: int | None) -> str:
  """Says in a clause which network it is: ``"pspnet on resnet50 with the deep stem 32-32-64, 19 classes"``."""
  words = str(fields.get("backbone", "a backbone of its own"))
  if "stem" in fields:
    stem = fields["stem"]
    words += " with a plain 7x7 stem" if stem == "7x7" else f" with the deep stem {stem}"
  if "name" in fields:
    words = f"{fields['name']} on {words}, {num_classes} classes"
  return words
