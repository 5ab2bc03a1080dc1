"""Resampling against PyTorch's and against a search for the nearest pixel."""

import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax.ops import resample

B, N = 2, 5
SIZES = [((5, 7), (33, 49)), ((4, 6), (9, 13)), ((1, 3), (4, 1)), ((9, 5), (3, 5)), ((97, 3), (769, 17))]


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_upsample_equals_pytorchs(source, target, align_corners):
  torch = pytest.importorskip("torch")
  x = np.random.default_rng(0).normal(size=(B, *source, N)).astype(np.float32)
  inputs = torch.from_numpy(x).permute(0, 3, 1, 2).double()
  expected = torch.nn.functional.interpolate(inputs, target, mode="bilinear", align_corners=align_corners)
  ours = resample.upsample(x, target, align_corners)
  assert ours.dtype == jnp.float32
  np.testing.assert_allclose(ours, expected.permute(0, 2, 3, 1).numpy(), atol=2e-6)


def test_upsample_keeps_corners_and_lines():
  x = np.random.default_rng(1).normal(size=(1, 4, 5, 3)).astype(np.float32)
  np.testing.assert_array_equal(resample.upsample(x, (13, 21))[:, ::4, ::5], x)
  plane = np.arange(4.0)[:, None] + 10 * np.arange(5.0)
  expected = np.linspace(0, 3, 13)[:, None] + 10 * np.linspace(0, 4, 21)
  np.testing.assert_allclose(
    resample.upsample(plane[None, ..., None], (13, 21))[0, ..., 0], expected, atol=1e-5
  )


def test_upsample_keeps_bfloat16_within_its_rounding():
  x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 7, 5, 3)), jnp.bfloat16)
  ours = resample.upsample(x, (17, 11), align_corners=False)
  assert ours.dtype == jnp.bfloat16
  expected = resample.upsample(x.astype(jnp.float32), (17, 11), align_corners=False)
  np.testing.assert_allclose(ours.astype(jnp.float32), expected, atol=3 * 2**-8)


@pytest.mark.parametrize("align_corners", [True, False])
def test_upsample_does_not_scale_all_channels_of_a_pixel_in_bfloat16(align_corners):
  x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (1, 6, 3, 512)), jnp.bfloat16)
  ours = np.float64(resample.upsample(x, (97, 17), align_corners))
  exact = np.float64(resample.upsample(x.astype(jnp.float32), (97, 17), align_corners))
  # Roundings of single values cancel in the mean. Weights that sum to 1.002 move it by 0.002 along each side.
  np.testing.assert_allclose(ours.mean(axis=-1), exact.mean(axis=-1), rtol=1e-3)


@pytest.mark.parametrize(("source", "target"), [(6, 97), (64, 128), (7, 5), (1, 3)])
def test_rounded_weights_are_neighbours_of_the_weights_and_sum_to_1(source, target):
  weights = resample.interpolation(source, target)
  rounded = resample.rounded_weights(weights, jnp.bfloat16)
  assert rounded.dtype == jnp.bfloat16
  rounded = rounded.astype(np.float64)
  np.testing.assert_array_equal(rounded.sum(axis=1), 1)
  assert rounded.min() >= 0 and np.abs(rounded - weights).max() < 2**-8
  assert resample.rounded_weights(weights, jnp.float32).tobytes() == weights.tobytes()


def test_downsample_labels_takes_the_pixels_under_the_features():
  labels = np.random.default_rng(2).integers(0, 255, size=(B, 33, 49)).astype(np.uint8)
  ours = resample.downsample_labels(labels, (5, 7))
  assert ours.dtype == jnp.uint8
  np.testing.assert_array_equal(ours, labels[:, ::8, ::8])
  # Upsampled with aligned corners, a feature lies on the pixel whose label it was given.
  np.testing.assert_array_equal(
    resample.upsample(ours[..., None], (33, 49))[:, ::8, ::8, 0], labels[:, ::8, ::8]
  )


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("source", "target"), [((12, 10), (5, 4)), ((96, 5), (12, 5)), ((6, 1), (1, 1))])
def test_downsample_labels_takes_the_nearest(source, target, align_corners):
  labels = np.random.default_rng(3).integers(0, 255, size=(1, *source))

  def nearest(i, n, m):
    place = i * (n - 1) / max(m - 1, 1) if align_corners else (i + 0.5) * n / m - 0.5
    return min(range(n), key=lambda j: (abs(j - place), -j))

  rows, columns = ([nearest(i, n, m) for i in range(m)] for n, m in zip(source, target, strict=True))
  ours = resample.downsample_labels(labels, target, align_corners)
  np.testing.assert_array_equal(ours, labels[:, rows][:, :, columns])


def test_wrong_shapes_are_named():
  with pytest.raises(ValueError, match=r"\(7, 9, 5\)"):
    resample.upsample(np.zeros((7, 9, 5)), (3, 3))
  with pytest.raises(ValueError, match=r"\(7, 9\)"):
    resample.downsample_labels(np.zeros((7, 9), int), (3, 3))
