"""DANet's head against loops in float64 and PyTorch's operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax.models.heads.danet import DANetHead, attend, attend_channels
from tests.support.attention_checks import assert_learns_in_bfloat16, network_outputs


def normal(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def softmax(values):
  weights = [np.exp(value - max(values)) for value in values]
  return np.array(weights) / sum(weights)


def test_position_attention_is_that_of_a_loop():
  query, key, value = 2 * normal(2, 6, 4), normal(2, 9, 4, seed=1), normal(2, 9, 3, seed=2)
  expected = np.zeros((2, 6, 3))
  for image in range(2):
    for i in range(6):
      weights = softmax([query[image, i].astype(np.float64) @ k for k in key[image]])
      expected[image, i] = sum(w * v for w, v in zip(weights, value[image], strict=True))
  ours = jax.jit(attend)(query, key, value)
  np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_channel_attention_is_that_of_a_loop():
  x = normal(2, 11, 4)
  expected = np.zeros((2, 11, 4))
  for image in range(2):
    columns = x[image].T.astype(np.float64)
    for i in range(4):
      weights = softmax([-columns[i] @ other for other in columns])
      expected[image, :, i] = sum(w * other for w, other in zip(weights, columns, strict=True))
  np.testing.assert_allclose(jax.jit(attend_channels)(x), expected, atol=1e-6)


def test_softmax_and_sums_are_float32_under_bfloat16():
  # Similarities near 300 lie 2 apart in bfloat16; of 2048 equal weights in bfloat16 a sum stops at 256.
  query, key = jnp.full((1, 3, 1), 17.25, jnp.bfloat16), jnp.full((1, 2048, 1), 17.25, jnp.bfloat16)
  key = key.at[0, :1024].set(17.125)
  value = (jnp.arange(2048) >= 1024).astype(jnp.bfloat16)[None, :, None]
  share = 1 / (1 + np.exp(-17.25 * 0.125))
  np.testing.assert_allclose(attend(query, key, value), share, rtol=5e-3)
  x = jnp.asarray(np.full((1, 1000, 3), (0.5, 0.5, 0.503)), jnp.bfloat16)  # products 250, 250, 251.5
  exact = np.asarray(x[0], np.float64)
  expected = np.array([softmax(list(row)) for row in -exact.T @ exact]) @ exact[0]
  ours = attend_channels(x)
  assert ours.dtype == jnp.float32
  np.testing.assert_allclose(ours[0, 0], expected, rtol=1e-3)


def test_the_backward_pass_keeps_no_array_of_all_pairs():
  _, backward = jax.vjp(attend, normal(1, 64, 2), normal(1, 64, 2), normal(1, 64, 4))
  assert max(leaf.size for leaf in jax.tree.leaves(backward)) <= 64 * 4


def test_logits_and_features_equal_the_originals():
  pytest.importorskip("torch")
  from tests.support import torch_attention

  original = torch_attention.DANet(6, 8, 3, 4)
  torch_attention.assert_same_in_prediction(DANetHead(4, 8, 3), original, normal(2, 5, 8, 6))


def test_outputs_gradients_and_statistics_of_training_equal_the_originals():
  pytest.importorskip("torch")
  from tests.support import torch_attention

  original = torch_attention.DANet(6, 8, 3, 4)
  torch_attention.assert_same_in_training(DANetHead(4, 8, 3, dropout=0.0), original, normal(3, 5, 4, 6))


def test_head_learns_in_bfloat16_from_scales_that_start_at_0():
  params = assert_learns_in_bfloat16(DANetHead(5, 16, 4, dtype=jnp.bfloat16))
  for branch in ("position", "channel"):
    assert params[branch]["attention"]["gamma"].shape == () and params[branch]["attention"]["gamma"] == 0


def test_network_says_what_losses_need():
  outputs = network_outputs(name="danet", danet_key_channels=4)
  assert outputs.features.shape == (*outputs.logits.shape[:3], 16)
  branches = [outputs.extra[name] for name in ("branch0", "branch1")]
  assert [branch.logits.shape for branch in branches] == [outputs.logits.shape] * 2
