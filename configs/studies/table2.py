"""RegionContrast, Table 2: the pixel weights of region centers, with cross entropy as the baseline.

  python -m rc_jax.main --mode=study --study=table2:demo

Variants: ``cityscapes`` (the paper's setting), ``camvid`` (reduced to two CPU cores) and ``demo`` (synthetic street
scenes, without files). Real data need ``--config.dataset.root`` and ``--config.model.pretrained``, as in the recipe.
"""

from rc_jax.study import Claim, Row, Study, recipe_of_variant

CE, AVERAGE, EP_HP, WEIGHTED = "CE", "direct average", "EP + HP", "weighted EP + HP"
PAPER = {CE: 76.4, AVERAGE: 78.2, EP_HP: 78.8, WEIGHTED: 79.6}  # Cityscapes val, ResNet-50


def get_study(variant: str = "cityscapes") -> Study:
  """Returns the study on a data set; variants: ``cityscapes``, ``camvid``, ``demo``."""
  recipe = recipe_of_variant("table2", variant)
  paper = PAPER if variant == "cityscapes" else {}
  return Study(
    title=f"Weights of region centers, {variant}",
    source="RegionContrast, Table 2",
    recipe=recipe,
    rows=(
      Row(CE, {"contrast.scope": "none"}, paper.get(CE)),
      Row(AVERAGE, {"contrast.centers": "average"}, paper.get(AVERAGE)),
      Row(EP_HP, {"contrast.centers": "ep_hp"}, paper.get(EP_HP)),
      Row(WEIGHTED, {"contrast.centers": "dynamic"}, paper.get(WEIGHTED)),
    ),
    baseline=CE,
    seeds=(0, 1, 2, 3, 4),
    claims=(Claim(AVERAGE, CE), Claim(EP_HP, AVERAGE), Claim(WEIGHTED, EP_HP)),
  )
