"""RegionContrast, Table 1: cross entropy, with the contrast within images, and with the contrast among all images.

  python -m rc_jax.main --mode=study --study=table1:demo

Variants: ``cityscapes`` (the paper's setting), ``camvid`` (reduced to two CPU cores) and ``demo`` (synthetic street
scenes, without files). Real data need ``--config.dataset.root`` and ``--config.model.pretrained``, as in the recipe.
"""

from rc_jax.study import Claim, Row, Study, recipe_of_variant

CE, INTRA, INTER = "CE", "CE + intra-image", "CE + inter-image"
PAPER = {CE: 76.4, INTRA: 77.5, INTER: 79.6}  # Cityscapes val, ResNet-50


def get_study(variant: str = "cityscapes") -> Study:
  """Returns the study on a data set; variants: ``cityscapes``, ``camvid``, ``demo``."""
  recipe = recipe_of_variant("table1", variant)
  paper = PAPER if variant == "cityscapes" else {}
  return Study(
    title=f"Contrast within and among images, {variant}",
    source="RegionContrast, Table 1",
    recipe=recipe,
    rows=(
      Row(CE, {"contrast.scope": "none"}, paper.get(CE)),
      Row(INTRA, {"contrast.scope": "image"}, paper.get(INTRA)),
      Row(INTER, {"contrast.scope": "bank"}, paper.get(INTER)),
    ),
    baseline=CE,
    seeds=(0, 1, 2, 3, 4),
    claims=(Claim(INTRA, CE), Claim(INTER, CE), Claim(INTER, INTRA)),
  )
