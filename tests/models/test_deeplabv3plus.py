"""DeepLabV3+'s head against PyTorch's operations."""

import jax.numpy as jnp
import pytest

from rc_jax.models.heads.deeplabv3plus import DeepLabV3PlusHead
from tests.support.head_checks import assert_learns_in_bfloat16, assert_network_gives, random_stages


@pytest.mark.parametrize(
  ("separable", "project", "align_corners"),
  [(True, False, False), (False, True, True)],
)
@pytest.mark.parametrize(("early", "last"), [((13, 18), (7, 9)), ((8, 12), (4, 6)), ((6, 5), (6, 5))])
def test_logits_and_features_equal_the_originals(early, last, separable, project, align_corners):
  pytest.importorskip("torch")
  from tests.support import torch_heads

  rates = (1, 3, 8)  # 8: wider than the grid, only its center tap reads pixels
  original = torch_heads.DeepLabV3Plus((5, 6, 3), 4, 3, rates, project, separable, align_corners)
  module = DeepLabV3PlusHead(
    3, 4, rates, project=project, early_channels=3, separable=separable, align_corners=align_corners
  )
  stages = random_stages((2, *early, 5), None, (2, *last, 6))
  torch_heads.assert_same_in_prediction(module, original, stages)


@pytest.mark.parametrize("separable", [True, False])
def test_gradients_and_statistics_equal_the_originals(separable):
  pytest.importorskip("torch")
  from tests.support import torch_heads

  original = torch_heads.DeepLabV3Plus((5, 6, 3), 4, 3, (2, 4), False, separable, False)
  module = DeepLabV3PlusHead(3, 4, (2, 4), early_channels=3, separable=separable, dropout=0.0)
  stages = random_stages((3, 11, 14, 5), None, (3, 6, 7, 6))
  torch_heads.assert_same_in_training(module, original, stages)


def test_learns_in_bfloat16():
  module = DeepLabV3PlusHead(3, 8, (2, 4), early_channels=6, dtype=jnp.bfloat16)
  assert_learns_in_bfloat16(module, random_stages((2, 17, 12, 4), None, (2, 9, 6, 5)))


def test_network_reads_its_fields_and_predicts_on_the_finest_grid():
  fields = {"name": "deeplabv3plus", "channels": 24, "aspp_rates": (2, 4), "early_channels": 6}
  head = assert_network_gives((17, 12), 24, (9, 6), **fields)
  assert head["aspp"]["rate1"]["depthwise"]["kernel"] == (3, 3, 1, 128)
  assert head["refine0"]["depthwise"]["kernel"] == (3, 3, 1, 30)
  head = assert_network_gives((17, 12), 24, (9, 6), separable=False, aspp_project=True, **fields)
  assert head["aspp"]["rate1"]["conv"]["kernel"] == (3, 3, 128, 24)
  assert head["aspp"]["project"]["conv"]["kernel"] == (1, 1, 4 * 24, 24) and "fuse" not in head
