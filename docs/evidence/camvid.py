"""Cross entropy against RegionContrast on CamVid: the study of docs/evidence.md.

  rc_jax --mode=study --study=docs/evidence/camvid.py --config.dataset.root=CAMVID \
      --config.model.pretrained=resnet50_imagenet.npz
"""

from rc_jax.study import Claim, Row, Study

CE, CONTRAST = "CE", "RegionContrast"


def get_study() -> Study:
  """Returns the study; the recipe is ``camvid:cpu`` as it is."""
  return Study(
    title="Cross entropy and RegionContrast on CamVid",
    source="RegionContrast, Table 1",
    recipe="camvid:cpu",
    rows=(Row(CE, {"contrast.scope": "none"}), Row(CONTRAST, {"contrast.scope": "bank"})),
    baseline=CE,
    seeds=(0, 1, 2),
    claims=(Claim(CONTRAST, CE),),
  )
