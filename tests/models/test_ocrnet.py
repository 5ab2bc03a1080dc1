"""OCRNet's head against loops and PyTorch's operations."""

import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax.models.heads.ocrnet import OCRHead, attend, gather_regions
from tests.support.head_checks import assert_learns_in_bfloat16, assert_network_gives, random_stages


def softmax(x):
  weights = np.exp(x - x.max())
  return weights / weights.sum()


def loop_regions(pixels, logits):
  batch, _, _, classes = logits.shape
  regions = np.zeros((batch, classes, pixels.shape[-1]))
  for b in range(batch):
    for k in range(classes):
      weights = softmax(logits[b, :, :, k].astype(np.float64))
      for i, j in np.ndindex(weights.shape):
        regions[b, k] += weights[i, j] * pixels[b, i, j]
  return regions


def loop_attention(queries, keys, values):
  context = np.zeros(queries.shape)
  for b, i, j in np.ndindex(queries.shape[:3]):
    products = [float(queries[b, i, j] @ key) / keys.shape[-1] ** 0.5 for key in keys[b].astype(np.float64)]
    for weight, value in zip(softmax(np.array(products)), values[b], strict=True):
      context[b, i, j] += weight * value
  return context


def drawn(*shapes, scale=1.0):
  random = np.random.default_rng(0)
  return [scale * random.standard_normal(shape).astype(np.float32) for shape in shapes]


def test_regions_and_attention_are_those_of_loops():
  pixels, logits = drawn((2, 5, 7, 4), (2, 5, 7, 3), scale=2.0)
  np.testing.assert_allclose(gather_regions(pixels, logits), loop_regions(pixels, logits), atol=1e-5)
  queries, keys, values = drawn((2, 5, 7, 6), (2, 3, 6), (2, 3, 6), scale=2.0)
  np.testing.assert_allclose(attend(queries, keys, values), loop_attention(queries, keys, values), atol=1e-5)


def test_regions_and_attention_in_bfloat16_sum_in_float32():
  """Over 65 x 65 pixels a sum in bfloat16 would stop growing at 256 equal terms."""
  pixels, logits = drawn((1, 65, 65, 4), (1, 65, 65, 3))
  pixels = jnp.asarray(pixels + 2, jnp.bfloat16)
  regions = gather_regions(pixels, logits)
  assert regions.dtype == jnp.bfloat16
  expected = loop_regions(np.asarray(pixels, np.float32), logits)
  np.testing.assert_allclose(regions.astype(np.float32), expected, rtol=2**-8)
  # Large products: with their softmax in bfloat16 the small differences between them would be lost.
  queries, keys, values = (
    jnp.asarray(x, jnp.bfloat16) for x in drawn((1, 5, 7, 64), (1, 19, 64), (1, 19, 64))
  )
  context = attend(16 * queries, keys, values)
  assert context.dtype == jnp.bfloat16
  given = (np.asarray(x, np.float32) for x in (16 * queries, keys, values))
  np.testing.assert_allclose(context.astype(np.float32), loop_attention(*given), atol=0.02)


@pytest.mark.parametrize("size", [(9, 13), (8, 6)])
@pytest.mark.parametrize("middle", [True, False])
def test_outputs_equal_the_originals(size, middle):
  pytest.importorskip("torch")
  from tests.support import torch_heads

  original = torch_heads.OCR((5 if middle else None, 6), 8, 4, 7, 3, False)
  module = OCRHead(3, 8, key_channels=4, coarse_channels=7)
  stages = random_stages(None, (2, *size, 5) if middle else None, (2, *size, 6))
  torch_heads.assert_same_in_prediction(module, original, stages)


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_finer_middle_stage_is_resampled(align_corners):
  pytest.importorskip("torch")
  from tests.support import torch_heads

  original = torch_heads.OCR((5, 6), 8, 4, 7, 3, align_corners)
  module = OCRHead(3, 8, key_channels=4, coarse_channels=7, align_corners=align_corners)
  stages = random_stages(None, (2, 9, 13, 5), (2, 5, 7, 6))
  torch_heads.assert_same_in_prediction(module, original, stages)


@pytest.mark.parametrize("middle", [True, False])
def test_gradients_and_statistics_equal_the_originals(middle):
  pytest.importorskip("torch")
  from tests.support import torch_heads

  original = torch_heads.OCR((5 if middle else None, 6), 8, 4, 7, 3, False)
  module = OCRHead(3, 8, key_channels=4, coarse_channels=7, dropout=0.0)
  stages = random_stages(None, (3, 7, 8, 5) if middle else None, (3, 7, 8, 6))
  torch_heads.assert_same_in_training(module, original, stages)


def test_learns_in_bfloat16():
  module = OCRHead(3, 8, key_channels=4, coarse_channels=7, dtype=jnp.bfloat16)
  assert_learns_in_bfloat16(module, random_stages(None, (2, 9, 6, 5), (2, 9, 6, 6)))


def test_network_reads_its_fields():
  fields = {"name": "ocrnet", "channels": 24, "aux_channels": 10, "ocr_key_channels": 8}
  head = assert_network_gives((9, 6), 24, (9, 6), **fields)
  assert head["coarse"]["conv0"]["conv"]["kernel"] == (3, 3, 64, 10)
  assert head["query0"]["conv"]["kernel"] == head["value"]["conv"]["kernel"] == (1, 1, 24, 8)
  # At output stride 32 stage 3, and with it the coarse prediction, is twice as fine as stage 4.
  assert_network_gives((3, 2), 24, (5, 3), output_stride=32, **fields)
