"""PSPNet's head against loops and PyTorch's operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax.models.heads.pspnet import PSPHead, average_to_grids
from tests.support.head_checks import assert_learns_in_bfloat16, assert_network_gives, random_stages


def averages(x, side):
  """Cell ``i`` of a side runs from ``floor(i n / side)`` up to ``ceil((i + 1) n / side)``."""
  batch, height, width, channels = x.shape
  y = np.zeros((batch, side, side, channels))
  for i in range(side):
    for j in range(side):
      top, bottom = i * height // side, -((i + 1) * height // -side)
      left, right = j * width // side, -((j + 1) * width // -side)
      y[:, i, j] = x[:, top:bottom, left:right].astype(np.float64).mean((1, 2))
  return y


@pytest.mark.parametrize("size", [(9, 13), (12, 6), (4, 5), (1, 7)])
def test_averages_are_those_of_a_loop(size):
  x = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
  bins = (1, 2, 3, 6)
  for side, ours in zip(bins, jax.jit(average_to_grids, static_argnums=1)(x, bins), strict=True):
    np.testing.assert_allclose(ours, averages(x, side), atol=1e-6)


def test_averages_in_bfloat16_are_exact_before_the_last_rounding():
  # 3.0 in every of 97 x 61 pixels: weights 1/97 in bfloat16, or sums in it, would be off.
  x = jnp.full((1, 97, 61, 2), 3.0, jnp.bfloat16)
  for ours in jax.jit(average_to_grids, static_argnums=1)(x, (1, 2, 3, 6)):
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours.astype(np.float32), 3.0)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(9, 13), (8, 12)])
def test_logits_and_features_equal_the_originals(size, align_corners):
  pytest.importorskip("torch")
  from tests.support import torch_heads

  original = torch_heads.PSP(6, 4, 3, (1, 2, 3, 6), align_corners)
  module = PSPHead(3, 4, align_corners=align_corners)
  torch_heads.assert_same_in_prediction(module, original, random_stages(last=(2, *size, 6)))


def test_gradients_and_statistics_equal_the_originals():
  pytest.importorskip("torch")
  from tests.support import torch_heads

  module = PSPHead(3, 4, bins=(1, 3, 4), dropout=0.0)
  stages = random_stages(last=(3, 9, 7, 6))
  torch_heads.assert_same_in_training(module, torch_heads.PSP(6, 4, 3, (1, 3, 4), False), stages)


def test_learns_in_bfloat16():
  assert_learns_in_bfloat16(PSPHead(3, 8, dtype=jnp.bfloat16), random_stages(last=(2, 9, 6, 5)))


def test_network_reads_its_fields():
  head = assert_network_gives((9, 6), 24, (9, 6), name="pspnet", channels=24, psp_bins=(1, 4))
  assert set(head) == {"bin0", "bin1", "fuse", "classifier"}
  assert head["fuse"]["conv"]["kernel"] == (3, 3, 128 + 2 * 24, 24)
