"""RegionContrast, Table 1: cross entropy, with the contrast within images, and with the contrast among all images.

  python -m rc_jax.main --mode=study --study=table1:demo

Variants: ``cityscapes`` (DeepLabV3 on ResNet-50, the paper's setting), ``camvid`` (reduced to two CPU cores) and
``demo`` (synthetic street scenes, without files).
"""

from rc_jax.study import Claim, Row, Study

CE, INTRA, INTER = "CE", "CE + intra-image", "CE + inter-image"


def get_study(variant: str = "cityscapes") -> Study:
  """Returns the study of a data set."""
  recipes = {"cityscapes": "cityscapes", "camvid": "camvid:cpu", "demo": "demo"}
  if variant not in recipes:
    raise ValueError(
      f"configs/studies/table1.py:{variant}: no such variant; expected one of {', '.join(recipes)}"
    )
  paper = (76.4, 77.5, 79.6) if variant == "cityscapes" else (None, None, None)
  return Study(
    title=f"Table 1 on {variant}",
    source="RegionContrast, Table 1",
    recipe=recipes[variant],
    rows=(
      Row(CE, {"contrast.scope": "none"}, paper[0]),
      Row(INTRA, {"contrast.scope": "image"}, paper[1]),
      Row(INTER, {"contrast.scope": "bank"}, paper[2]),
    ),
    baseline=CE,
    seeds=tuple(range(5)),
    claims=(Claim(INTRA, CE), Claim(INTER, CE), Claim(INTER, INTRA)),
  )
