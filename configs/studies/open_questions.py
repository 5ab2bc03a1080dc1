"""Settings that the paper leaves open, each changed alone, beside the rows of its Tables 1 to 3.

  python -m rc_jax.main --mode=study --study=open_questions:demo

Variants: ``demo`` (synthetic street scenes, without files), ``camvid`` (reduced to two CPU cores) and ``cityscapes``.
The row ``RegionContrast`` is the paper's method with the defaults of docs/decisions.md: weighted centers, banks of the
size of the training set, temperature 0.2, weight 0.1. This row and the intra-image contrast are compared with cross
entropy, and every other setting with this row.
"""

from rc_jax.study import Claim, Row, Study, recipe_of_variant

# Slots: a third of the training set, as the paper's 1000 of 2975.
SMALL_BANKS = {"cityscapes": 1000, "camvid": 122, "demo": 267}
# A quarter of the steps.
WARM_UP = {"cityscapes": 7500, "camvid": 200, "demo": 250}
CE, INTRA, INTER = "CE", "intra-image", "RegionContrast"
AVERAGE, EP_HP = "direct average", "EP + HP"


def get_study(variant: str = "demo") -> Study:
  """Returns the study on a data set; variants: ``demo``, ``camvid``, ``cityscapes``."""
  recipe = recipe_of_variant("open_questions", variant)
  small, start = SMALL_BANKS[variant], WARM_UP[variant]
  channels = 64 if variant == "demo" else 256
  return Study(
    title=f"Settings that the paper leaves open, {variant}",
    source="RegionContrast, Tables 1 to 3",
    recipe=recipe,
    rows=(
      Row(CE, {"contrast.scope": "none"}),
      Row(INTRA, {"contrast.scope": "image"}),
      Row(INTER, baseline=CE),
      Row(AVERAGE, {"contrast.centers": "average"}, baseline=INTER),
      Row(EP_HP, {"contrast.centers": "ep_hp"}, baseline=INTER),
      Row(f"M = {small}", {"contrast.bank_size": small}, baseline=INTER),
      Row("temperature 0.07", {"contrast.temperature": 0.07}, baseline=INTER),
      Row("temperature 0.5", {"contrast.temperature": 0.5}, baseline=INTER),
      Row("weight 0.3", {"loss.contrast_weight": 0.3}, baseline=INTER),
      Row("weight 1", {"loss.contrast_weight": 1.0}, baseline=INTER),
      Row(f"from step {start} on", {"contrast.start_step": start}, baseline=INTER),
      Row("before the ReLU", {"model.contrast_features": "linear"}, baseline=INTER),
      Row("projection of one layer", {"model.embedding_channels": channels}, baseline=INTER),
      Row(
        "projection of two layers",
        {"model.embedding_channels": channels, "model.embedding_layers": 2},
        baseline=INTER,
      ),
      Row("slots of images", {"contrast.slots": "image", "contrast.bank_size": 0}, baseline=INTER),
    ),
    baseline=CE,
    seeds=(0, 1, 2, 3, 4),
    claims=(
      Claim(INTRA, CE),
      Claim(INTER, CE),
      Claim(INTER, INTRA),
      Claim(EP_HP, AVERAGE),
      Claim(INTER, EP_HP),
      Claim(INTER, f"M = {small}"),
    ),
  )
