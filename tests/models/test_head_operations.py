"""The operations inside heads against loops in float64: attention, encoding, object regions, pyramid pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax.models.heads import ccnet, danet, encnet, ocrnet, pspnet


def normal(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def softmax(values):
  """Over all of an array, in float64."""
  values = np.asarray(values, np.float64)
  weights = np.exp(values - values.max())
  return weights / weights.sum()


# CCNet


def criss_cross(query, key, value):
  """Over every pixel's row and column, itself once."""
  query, key, value = (np.asarray(array, np.float64) for array in (query, key, value))
  batch, height, width, _ = query.shape
  mixed = np.zeros(value.shape)
  for b, y, x in np.ndindex(batch, height, width):
    cross = sorted({(row, x) for row in range(height)} | {(y, column) for column in range(width)})
    weights = softmax([query[b, y, x] @ key[b][place] for place in cross])
    mixed[b, y, x] = sum(w * value[b][place] for w, place in zip(weights, cross, strict=True))
  return mixed


@pytest.mark.parametrize("size", [(5, 7), (6, 4), (1, 5), (5, 1), (1, 1)])
def test_criss_cross_attention_equals_a_loop(size):
  arrays = normal(2, *size, 3), normal(2, *size, 3, seed=1), normal(2, *size, 4, seed=2)
  ours = jax.jit(ccnet.attend_criss_cross)(*arrays)
  assert ours.shape == (2, *size, 4)
  np.testing.assert_allclose(ours, criss_cross(*arrays), atol=2e-6)


def test_criss_cross_attention_sums_in_float32_under_bfloat16():
  query, key = (jnp.asarray(4 + normal(1, 3, 90, 2, seed=seed) / 8, jnp.bfloat16) for seed in (0, 1))
  value = jnp.asarray(1 + normal(1, 3, 90, 2, seed=2), jnp.bfloat16)
  ours = ccnet.attend_criss_cross(query, key, value)
  assert ours.dtype == jnp.float32
  # Only the weights are rounded to 8 bits, each by itself: a mean of 92 of them is better than one.
  np.testing.assert_allclose(ours, criss_cross(query, key, value), atol=2e-3)


def test_criss_cross_attention_makes_no_array_of_all_pairs():
  height, width = 8, 24
  shapes = [jax.ShapeDtypeStruct((1, height, width, c), jnp.float32) for c in (2, 2, 4)]

  def forward_and_backward(*arrays):
    mixed, backward = jax.vjp(ccnet.attend_criss_cross, *arrays)
    return backward(mixed)

  compiled = jax.jit(forward_and_backward).lower(*shapes).compile()
  assert f"f32[1,{height},{width},{height + width}]" in compiled.as_text()
  assert compiled.memory_analysis().temp_size_in_bytes < 4 * (height * width) ** 2


# DANet


def test_position_attention_equals_a_loop():
  query, key, value = 2 * normal(2, 6, 4), normal(2, 9, 4, seed=1), normal(2, 9, 3, seed=2)
  expected = np.zeros((2, 6, 3))
  for b, i in np.ndindex(2, 6):
    weights = softmax([query[b, i].astype(np.float64) @ k for k in key[b]])
    expected[b, i] = sum(w * v for w, v in zip(weights, value[b], strict=True))
  np.testing.assert_allclose(jax.jit(danet.attend)(query, key, value), expected, atol=1e-6)


def test_channel_attention_equals_a_loop():
  x = normal(2, 11, 4)
  expected = np.zeros((2, 11, 4))
  for b, i in np.ndindex(2, 4):
    channels = x[b].T.astype(np.float64)
    weights = softmax([-channels[i] @ other for other in channels])
    expected[b, :, i] = sum(w * other for w, other in zip(weights, channels, strict=True))
  np.testing.assert_allclose(jax.jit(danet.attend_channels)(x), expected, atol=1e-6)


def test_dual_attention_sums_in_float32_under_bfloat16():
  # Similarities near 300 lie 2 apart in bfloat16; a sum of 2048 equal weights in bfloat16 stops at 256.
  query, key = jnp.full((1, 3, 1), 17.25, jnp.bfloat16), jnp.full((1, 2048, 1), 17.25, jnp.bfloat16)
  key = key.at[0, :1024].set(17.125)
  value = (jnp.arange(2048) >= 1024).astype(jnp.bfloat16)[None, :, None]
  share = 1 / (1 + np.exp(-17.25 * 0.125))
  np.testing.assert_allclose(danet.attend(query, key, value), share, rtol=5e-3)
  x = jnp.asarray(np.full((1, 1000, 3), (0.5, 0.5, 0.503)), jnp.bfloat16)  # products 250, 250, 251.5
  exact = np.asarray(x[0], np.float64)
  expected = np.array([softmax(row) for row in -exact.T @ exact]) @ exact[0]
  ours = danet.attend_channels(x)
  assert ours.dtype == jnp.float32
  np.testing.assert_allclose(ours[0, 0], expected, rtol=1e-3)


def test_the_backward_pass_of_position_attention_keeps_no_array_of_all_pairs():
  _, backward = jax.vjp(danet.attend, normal(1, 64, 2), normal(1, 64, 2), normal(1, 64, 4))
  assert max(leaf.size for leaf in jax.tree.leaves(backward)) <= 64 * 4


# EncNet


def encoded(x, codewords, smoothing):
  """Position by position, codeword by codeword."""
  x, codewords, smoothing = (np.asarray(array, np.float64) for array in (x, codewords, smoothing))
  sums = np.zeros((len(x), *codewords.shape))
  for image, image_sum in zip(x, sums, strict=True):
    for feature in image:
      residuals = [feature - codeword for codeword in codewords]
      weights = softmax([s * (r @ r) for s, r in zip(smoothing, residuals, strict=True)])
      for k, residual in enumerate(residuals):
        image_sum[k] += weights[k] * residual
  return sums


@pytest.mark.parametrize("place", [0, 100])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_encoding_equals_a_loop(dtype, place):
  # Far from 0, squares are 10,000 times the distances: expanded there, float32 would keep three digits.
  x, codewords = jnp.asarray(place + normal(2, 35, 6), dtype), place + normal(4, 6, seed=1)
  smoothing = -np.random.default_rng(2).random(4, np.float32)
  ours = jax.jit(encnet.encode)(x, codewords, smoothing)
  assert ours.dtype == jnp.float32
  expected = encoded(x, codewords, smoothing)
  np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_encoding_at_its_real_width_with_initial_codewords():
  # 512 channels behind a ReLU, codewords close together near 0: each assignment depends on small differences.
  random = np.random.default_rng(0)
  x = np.maximum(normal(1, 117, 512), 0)
  codewords = random.uniform(-1, 1, (32, 512)).astype(np.float32) / 128
  smoothing = -random.random(32, np.float32) / 100
  expected = encoded(x, codewords, smoothing)
  ours = jax.jit(encnet.encode)(x, codewords, smoothing)
  np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_encoding_makes_no_array_of_all_residuals():
  positions, codes, channels = 64, 8, 32
  shapes = [(2, positions, channels), (codes, channels), (codes,)]

  def forward_and_backward(*arrays):
    sums, backward = jax.vjp(encnet.encode, *arrays)
    return backward(sums)

  structs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  memory = jax.jit(forward_and_backward).lower(*structs).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 4 * 2 * positions * codes * channels


# OCRNet


def object_regions(pixels, logits):
  batch, _, _, classes = logits.shape
  regions = np.zeros((batch, classes, pixels.shape[-1]))
  for b, k in np.ndindex(batch, classes):
    weights = softmax(logits[b, :, :, k])
    for i, j in np.ndindex(weights.shape):
      regions[b, k] += weights[i, j] * pixels[b, i, j]
  return regions


def object_attention(queries, keys, values):
  context = np.zeros(queries.shape)
  for b, i, j in np.ndindex(queries.shape[:3]):
    products = [float(queries[b, i, j] @ key) / keys.shape[-1] ** 0.5 for key in keys[b].astype(np.float64)]
    for weight, value in zip(softmax(products), values[b], strict=True):
      context[b, i, j] += weight * value
  return context


def drawn(*shapes, scale=1.0):
  random = np.random.default_rng(0)
  return [scale * random.standard_normal(shape).astype(np.float32) for shape in shapes]


def test_object_regions_and_attention_equal_loops():
  pixels, logits = drawn((2, 5, 7, 4), (2, 5, 7, 3), scale=2.0)
  expected = object_regions(pixels, logits)
  np.testing.assert_allclose(ocrnet.gather_regions(pixels, logits), expected, atol=1e-5)
  given = drawn((2, 5, 7, 6), (2, 3, 6), (2, 3, 6), scale=2.0)
  np.testing.assert_allclose(ocrnet.attend(*given), object_attention(*given), atol=1e-5)


def test_object_regions_and_attention_sum_in_float32_under_bfloat16():
  # Over 65 x 65 pixels a sum in bfloat16 would stop growing at 256 equal terms.
  pixels, logits = drawn((1, 65, 65, 4), (1, 65, 65, 3))
  pixels = jnp.asarray(pixels + 2, jnp.bfloat16)
  regions = ocrnet.gather_regions(pixels, logits)
  assert regions.dtype == jnp.bfloat16
  expected = object_regions(np.asarray(pixels, np.float32), logits)
  np.testing.assert_allclose(regions.astype(np.float32), expected, rtol=2**-8)
  # Large products: with their softmax in bfloat16 the small differences between them would be lost.
  queries, keys, values = (
    jnp.asarray(x, jnp.bfloat16) for x in drawn((1, 5, 7, 64), (1, 19, 64), (1, 19, 64))
  )
  context = ocrnet.attend(16 * queries, keys, values)
  assert context.dtype == jnp.bfloat16
  given = (np.asarray(x, np.float32) for x in (16 * queries, keys, values))
  np.testing.assert_allclose(context.astype(np.float32), object_attention(*given), atol=0.02)


# PSPNet


def averages(x, side):
  """Cell ``i`` of a side runs from ``floor(i n / side)`` up to ``ceil((i + 1) n / side)``."""
  batch, height, width, channels = x.shape
  y = np.zeros((batch, side, side, channels))
  for i, j in np.ndindex(side, side):
    top, bottom = i * height // side, -((i + 1) * height // -side)
    left, right = j * width // side, -((j + 1) * width // -side)
    y[:, i, j] = x[:, top:bottom, left:right].astype(np.float64).mean((1, 2))
  return y


@pytest.mark.parametrize("size", [(9, 13), (12, 6), (4, 5), (1, 7)])
def test_averages_equal_a_loop(size):
  x = normal(2, *size, 3)
  bins = (1, 2, 3, 6)
  for side, ours in zip(bins, jax.jit(pspnet.average_to_grids, static_argnums=1)(x, bins), strict=True):
    np.testing.assert_allclose(ours, averages(x, side), atol=1e-6)


def test_averages_in_bfloat16_are_exact_before_the_last_rounding():
  # 3.0 in every of 97 x 61 pixels: weights 1/97 in bfloat16, or sums in it, would be off.
  x = jnp.full((1, 97, 61, 2), 3.0, jnp.bfloat16)
  for ours in jax.jit(pspnet.average_to_grids, static_argnums=1)(x, (1, 2, 3, 6)):
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours.astype(np.float32), 3.0)
