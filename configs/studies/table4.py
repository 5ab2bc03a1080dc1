"""RegionContrast, Table 4: three networks, each with cross entropy and with RegionContrast.

  python -m rc_jax.main --mode=study --study=table4:demo

Variants: ``cityscapes`` (the paper's networks), ``camvid`` (reduced to two CPU cores) and ``demo`` (synthetic street
scenes, without files); the last two take three heads on one backbone. Real data need ``--config.dataset.root``, and
``cityscapes`` and ``camvid`` ImageNet weights for their backbones, which ``WEIGHTS`` below or your own file names.
"""

from rc_jax.study import Claim, Row, Study, recipe_of_variant

HEADS = {
  "DeepLabV3": {"model.name": "deeplabv3"},
  "DeepLabV3+": {"model.name": "deeplabv3plus"},
  # FCN reads no rates: a value of the recipe other than the default would be refused.
  "FCN": {"model.name": "fcn", "model.aspp_rates": (12, 24, 36)},
}
NETWORKS = {
  "DeepLabV3 ResNet-50": {"model.backbone": "resnet50"},
  "DeepLabV3 ResNet-101": {"model.backbone": "resnet101"},
  "HRNetV2-W48": {
    "model.name": "fcn",
    "model.backbone": "hrnetv2_w48",
    "model.output_stride": 4,
    "model.channels": 720,
    "model.fcn_kernel_size": 1,
    "model.embedding_channels": 256,
  },
}
# Files of ImageNet weights by network, ``{"HRNetV2-W48": "hrnet_w48.safetensors"}``; none: random values, or those of
# ``--config.model.pretrained`` for all.
WEIGHTS: dict[str, str] = {}
PAPER = {  # Cityscapes val
  "DeepLabV3 ResNet-50": (76.4, 79.6),
  "DeepLabV3 ResNet-101": (79.0, 81.3),
  "HRNetV2-W48": (80.4, 81.9),
}


def get_study(variant: str = "cityscapes") -> Study:
  """Returns the study on a data set; variants: ``cityscapes``, ``camvid``, ``demo``."""
  recipe = recipe_of_variant("table4", variant)
  networks, paper = (NETWORKS, PAPER) if variant == "cityscapes" else (HEADS, {})
  rows = []
  for name, fields in networks.items():
    if name in WEIGHTS:
      fields = {**fields, "model.pretrained": WEIGHTS[name]}
    without, with_contrast = paper.get(name, (None, None))
    rows += [
      Row(f"{name}, CE", {**fields, "contrast.scope": "none"}, without),
      Row(f"{name}, RegionContrast", fields, with_contrast, baseline=f"{name}, CE"),
    ]
  return Study(
    title=f"Networks, {variant}",
    # The other variants have other networks than the paper's table.
    source="RegionContrast, Table 4" if variant == "cityscapes" else "",
    recipe=recipe,
    rows=tuple(rows),
    baseline=rows[0].name,
    seeds=(0, 1, 2, 3, 4),
    claims=tuple(Claim(f"{name}, RegionContrast", f"{name}, CE") for name in networks),
  )
