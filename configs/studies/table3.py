"""RegionContrast, Table 3: the size of the memory banks.

  python -m rc_jax.main --mode=study --study=table3:demo

Variants: ``cityscapes`` (the paper's setting), ``camvid`` (reduced to two CPU cores) and ``demo`` (synthetic street
scenes, without files). The smaller sizes of the last two are a third and two thirds of their training set, as the
paper's are. Real data need ``--config.dataset.root`` and ``--config.model.pretrained``, as in the recipe.
"""

import itertools

from rc_jax.study import Claim, Row, Study, recipe_of_variant

SIZES = {"cityscapes": (1000, 2000, 2975), "camvid": (122, 245, 367), "demo": (267, 533, 800)}
# The keys are the image's own centers: the paper's score of this row equals that of intra-image contrast in Table 1.
WITHOUT = "without banks"
PAPER = (77.5, 78.5, 79.1, 79.6)  # Cityscapes val, ResNet-50


def get_study(variant: str = "cityscapes") -> Study:
  """Returns the study on a data set; variants: ``cityscapes``, ``camvid``, ``demo``."""
  recipe = recipe_of_variant("table3", variant)
  without, *scores = PAPER if variant == "cityscapes" else (None, None, None, None)
  banks = tuple(
    Row(f"M = {size}", {"contrast.bank_size": size}, score)
    for size, score in zip(SIZES[variant], scores, strict=True)
  )
  names = [WITHOUT, *(row.name for row in banks)]
  return Study(
    title=f"Size of the memory banks, {variant}",
    source="RegionContrast, Table 3",
    recipe=recipe,
    rows=(Row(WITHOUT, {"contrast.scope": "image", "contrast.bank_size": 0}, without), *banks),
    baseline=WITHOUT,
    seeds=(0, 1, 2, 3, 4),
    claims=tuple(Claim(larger, smaller) for smaller, larger in itertools.pairwise(names)),
  )
