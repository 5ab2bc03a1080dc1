"""CCNet's head against loops in float64 and PyTorch's operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax.models.heads.ccnet import CCNetHead, attend_criss_cross
from tests.support.attention_checks import assert_learns_in_bfloat16, network_outputs


def normal(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def criss_cross(query, key, value):
  """Over every pixel's row and column, itself once, in float64."""
  query, key, value = (np.asarray(array, np.float64) for array in (query, key, value))
  batch, height, width, _ = query.shape
  mixed = np.zeros(value.shape)
  for b in range(batch):
    for y in range(height):
      for x in range(width):
        cross = {(row, x) for row in range(height)} | {(y, column) for column in range(width)}
        weights = {place: np.exp(query[b, y, x] @ key[b][place]) for place in cross}
        mixed[b, y, x] = sum(w * value[b][place] for place, w in weights.items()) / sum(weights.values())
  return mixed


@pytest.mark.parametrize("size", [(5, 7), (6, 4), (1, 5), (5, 1), (1, 1)])
def test_attention_is_that_of_a_loop(size):
  arrays = normal(2, *size, 3), normal(2, *size, 3, seed=1), normal(2, *size, 4, seed=2)
  ours = jax.jit(attend_criss_cross)(*arrays)
  assert ours.shape == (2, *size, 4)
  np.testing.assert_allclose(ours, criss_cross(*arrays), atol=2e-6)


def test_softmax_and_sums_are_float32_under_bfloat16():
  query, key = (jnp.asarray(4 + normal(1, 3, 90, 2, seed=seed) / 8, jnp.bfloat16) for seed in (0, 1))
  value = jnp.asarray(1 + normal(1, 3, 90, 2, seed=2), jnp.bfloat16)
  ours = attend_criss_cross(query, key, value)
  assert ours.dtype == jnp.float32
  # Only the weights are rounded to 8 bits, each by itself: a mean of 92 of them is better than one.
  np.testing.assert_allclose(ours, criss_cross(query, key, value), atol=2e-3)


def test_no_array_holds_all_pairs_of_pixels():
  height, width, channels = 8, 24, 4
  shapes = [jax.ShapeDtypeStruct((1, height, width, c), jnp.float32) for c in (2, 2, channels)]

  def both(*arrays):
    mixed, backward = jax.vjp(attend_criss_cross, *arrays)
    return backward(mixed)

  text = jax.jit(both).lower(*shapes).compile().as_text()
  assert f"f32[1,{height},{width},{height + width}]" in text
  assert (
    jax.jit(both).lower(*shapes).compile().memory_analysis().temp_size_in_bytes < 4 * (height * width) ** 2
  )


@pytest.mark.parametrize(("size", "recurrence"), [((5, 7), 2), ((4, 3), 1)])
def test_logits_and_features_equal_the_originals(size, recurrence):
  pytest.importorskip("torch")
  from tests.support import torch_attention

  original = torch_attention.CCNet(6, 16, recurrence, 4)
  module = CCNetHead(4, 16, recurrence)
  torch_attention.assert_same_in_prediction(module, original, normal(2, *size, 6))


def test_outputs_gradients_and_statistics_of_training_equal_the_originals():
  pytest.importorskip("torch")
  from tests.support import torch_attention

  original = torch_attention.CCNet(6, 16, 2, 4)
  torch_attention.assert_same_in_training(CCNetHead(4, 16, 2, dropout=0.0), original, normal(3, 5, 4, 6))


def test_head_learns_in_bfloat16_from_a_scale_that_starts_at_0():
  params = assert_learns_in_bfloat16(CCNetHead(5, 16, dtype=jnp.bfloat16))
  assert params["attention"]["gamma"].shape == () and params["attention"]["gamma"] == 0


def test_network_says_what_losses_need():
  outputs = network_outputs(name="ccnet", ccnet_recurrence=3)
  assert outputs.features.shape == (*outputs.logits.shape[:3], 16)
