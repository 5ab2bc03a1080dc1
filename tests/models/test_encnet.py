"""EncNet's head against loops in float64 and PyTorch's operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax.models import Stages
from rc_jax.models.heads.encnet import EncNetHead, encode
from tests.support.attention_checks import assert_learns_in_bfloat16, network_outputs


def normal(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def encoded(x, codewords, smoothing):
  """Position by position, codeword by codeword, in float64."""
  x, codewords, smoothing = (np.asarray(array, np.float64) for array in (x, codewords, smoothing))
  sums = np.zeros((len(x), *codewords.shape))
  for image, sum_ in zip(x, sums, strict=True):
    for feature in image:
      residuals = [feature - codeword for codeword in codewords]
      exponents = np.array([s * (r @ r) for s, r in zip(smoothing, residuals, strict=True)])
      weights = np.exp(exponents - exponents.max())
      for k, residual in enumerate(residuals):
        sum_[k] += weights[k] / weights.sum() * residual
  return sums


@pytest.mark.parametrize("place", [0, 100])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_encoding_is_that_of_a_loop(dtype, place):
  # Far from 0, squares are 10,000 times the distances: expanded there, float32 would keep three digits.
  x, codewords = jnp.asarray(place + normal(2, 35, 6), dtype), place + normal(4, 6, seed=1)
  smoothing = -np.random.default_rng(2).random(4, np.float32)
  ours = jax.jit(encode)(x, codewords, smoothing)
  assert ours.dtype == jnp.float32
  expected = encoded(x, codewords, smoothing)
  np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_encoding_of_a_fresh_network_at_its_real_width():
  # 512 channels behind a ReLU, codewords close together near 0: each assignment hangs on small differences.
  random = np.random.default_rng(0)
  x = np.maximum(normal(1, 117, 512), 0)
  codewords = random.uniform(-1, 1, (32, 512)).astype(np.float32) / 128
  smoothing = -random.random(32, np.float32) / 100
  expected = encoded(x, codewords, smoothing)
  ours = jax.jit(encode)(x, codewords, smoothing)
  np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_no_array_holds_all_residuals():
  positions, codes, channels = 64, 8, 32
  shapes = [(2, positions, channels), (codes, channels), (codes,)]

  def both(*arrays):
    sums, backward = jax.vjp(encode, *arrays)
    return backward(sums)

  structs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  memory = jax.jit(both).lower(*structs).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 4 * 2 * positions * codes * channels


def test_logits_and_features_equal_the_originals():
  pytest.importorskip("torch")
  from tests.support import torch_attention

  original = torch_attention.EncNet(6, 8, 5, 4)
  torch_attention.assert_same_in_prediction(EncNetHead(4, 8, 5), original, normal(2, 5, 8, 6))


def test_outputs_gradients_and_statistics_of_training_equal_the_originals():
  pytest.importorskip("torch")
  from tests.support import torch_attention

  original = torch_attention.EncNet(6, 8, 5, 4)
  torch_attention.assert_same_in_training(EncNetHead(4, 8, 5, dropout=0.0), original, normal(3, 5, 4, 6))


def test_fresh_codewords_and_smoothing_are_the_authors():
  x = normal(1, 3, 3, 6)
  module = EncNetHead(4, 64, codes=100)
  params = jax.jit(lambda key: module.init(key, Stages(x, None, x), True))(jax.random.key(0))["params"]
  codewords, smoothing = (np.asarray(params["encoding"][name]) for name in ("codewords", "smoothing"))
  assert codewords.shape == (100, 64) and smoothing.shape == (100,)
  bound = 1 / 80  # 1 / sqrt(K C)
  assert 0.99 * bound < codewords.max() < bound and -bound <= codewords.min() < -0.99 * bound
  assert -1 <= smoothing.min() < -0.9 and -0.1 < smoothing.max() <= 0


def test_head_learns_in_bfloat16():
  assert_learns_in_bfloat16(EncNetHead(5, 16, codes=6, dtype=jnp.bfloat16))


def test_network_says_what_losses_need():
  outputs = network_outputs(name="encnet", encnet_codes=6)
  assert outputs.features.shape == (*outputs.logits.shape[:3], 16)
  assert outputs.extra["presence"].logits.shape == (2, outputs.logits.shape[3])
