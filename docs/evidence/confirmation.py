"""The effect of temperature 0.07 at new seeds: the study of docs/evidence.md.

  rc_jax --mode=study --study=docs/evidence/confirmation.py --parallel=2

The seeds 0 to 4 suggested that temperature 0.07 gains (+1.71 points, the largest of fourteen differences). The eight
new seeds and the two claims were fixed before the first run. The first claim is the main one.
"""

from rc_jax.study import Claim, Row, Study

CE, CONTRAST, LOWER = "CE", "RegionContrast", "temperature 0.07"


def get_study() -> Study:
  """Returns the study; the recipe is ``demo`` as it is."""
  return Study(
    title="Temperature 0.07 at new seeds",
    source="docs/evidence.md",
    recipe="demo",
    rows=(
      Row(CE, {"contrast.scope": "none"}),
      Row(CONTRAST, {"contrast.scope": "bank"}),
      Row(LOWER, {"contrast.scope": "bank", "contrast.temperature": 0.07}),
    ),
    baseline=CE,
    seeds=(5, 6, 7, 8, 9, 10, 11, 12),
    claims=(Claim(LOWER, CE), Claim(CONTRAST, CE)),
  )
