"""Region centers against the equations written as loops over pixels in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rc_jax import contrast

B, H, W, C, N = 2, 4, 5, 6, 4
METHODS = ("average", "ep_hp", "dynamic")


def oracle(features, logits, labels, method, ignore_label=255):
  """Vectors [B,N,C] and present [B,N] in float64, pixel by pixel."""
  features, logits = np.asarray(features, np.float64), np.asarray(logits, np.float64)
  batch, height, width, channels = features.shape
  num_classes = logits.shape[-1]
  vectors, present = np.zeros((batch, num_classes, channels)), np.zeros((batch, num_classes), bool)
  for b in range(batch):
    sums, weights = np.zeros((num_classes, channels)), np.zeros(num_classes)
    for y in range(height):
      for x in range(width):
        truth, z = int(labels[b, y, x]), logits[b, y, x]
        if truth == ignore_label or not 0 <= truth < num_classes:
          continue
        predicted = int(np.argmax(z))
        doubt = sum(np.exp(z[j] - z[predicted]) for j in range(num_classes) if j != predicted)
        doubt = doubt / (1 + doubt)
        if method == "average":
          region, weight = predicted, 1.0
        else:
          region, weight = truth, doubt if method == "dynamic" and predicted == truth else 1.0
        sums[region] += weight * features[b, y, x]
        weights[region] += weight
    for n in range(num_classes):
      length = np.sqrt((sums[n] ** 2).sum())
      if weights[n] > 0 and length > 0:
        vectors[b, n], present[b, n] = sums[n] / length, True
  return vectors, present


def oracle_gradient(features, logits, labels, method, cotangent):
  """d sum(cotangent * vectors) / d features, by central differences in float64."""
  features = np.array(features, np.float64)
  gradient = np.zeros_like(features)
  for index in np.ndindex(*features.shape):
    kept, change = features[index], []
    for step in (1e-6, -1e-6):
      features[index] = kept + step
      change.append((oracle(features, logits, labels, method)[0] * cotangent).sum())
    features[index] = kept
    gradient[index] = (change[0] - change[1]) / 2e-6
  return gradient


def random_inputs(seed=0, dtype=np.float32):
  rng = np.random.default_rng(seed)
  features = jnp.asarray(rng.normal(size=(B, H, W, C)), dtype)
  logits = (3 * rng.normal(size=(B, H, W, N))).astype(np.float32)
  labels = rng.choice([0, 1, 2, 3, 255], size=(B, H, W)).astype(np.uint8)
  return features, logits, labels


def confident_inputs(margins):
  """All pixels are class 1, predicted as class 1, each by its own margin over every other class."""
  features, _, labels = random_inputs(5)
  margins = np.resize(np.asarray(margins, np.float32), (B, H, W))
  logits = np.where(np.arange(N) == 1, 0, -margins[..., None])
  return features, logits.astype(np.float32), np.ones_like(labels)


def gradient_of(cotangent, features, logits, labels, method):
  def total(features):
    return (contrast.region_centers(features, logits, labels, method).vectors * cotangent).sum()

  return jax.grad(total)(features)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_centers_follow_the_equations(method, dtype):
  features, logits, labels = random_inputs(1, dtype)
  centers = contrast.region_centers(features, logits, labels, method=method)
  vectors, present = oracle(features.astype(jnp.float32), logits, labels, method)
  assert centers.vectors.dtype == jnp.float32
  assert centers.present.dtype == bool
  np.testing.assert_allclose(centers.vectors, vectors, atol=1e-5)
  np.testing.assert_array_equal(centers.present, present)


@pytest.mark.parametrize("method", METHODS)
def test_gradient_follows_the_equations(method):
  features, logits, labels = random_inputs(2)
  cotangent = np.random.default_rng(3).normal(size=(B, N, C)).astype(np.float32)
  found = gradient_of(cotangent, features, logits, labels, method)
  np.testing.assert_allclose(found, oracle_gradient(features, logits, labels, method, cotangent), atol=1e-5)


def test_no_gradient_reaches_the_logits():
  features, logits, labels = random_inputs(4)

  def total(logits):
    return (contrast.region_centers(features, logits, labels).vectors * features[0, 0, 0]).sum()

  assert not jax.grad(total)(logits).any()


@pytest.mark.parametrize("offset", [1.0, 17.0, 40.0, 80.0])
def test_confidence_near_one_keeps_its_digits(offset):
  """From a margin of 17 on ``1 - c`` is 0 when taken as a difference in float32."""
  inputs = confident_inputs(offset + np.linspace(0, 2, B * H * W))
  centers = contrast.region_centers(*inputs)
  vectors, present = oracle(*inputs, "dynamic")
  np.testing.assert_allclose(centers.vectors, vectors, atol=1e-5)
  np.testing.assert_array_equal(centers.present, present)


def test_weights_at_the_end_of_float32_still_make_a_unit_center_and_its_gradient():
  inputs = confident_inputs([87.0, 87.2])  # exp(-87.34) is the smallest normal float32
  cotangent = np.random.default_rng(6).normal(size=(B, N, C)).astype(np.float32)
  vectors, _ = oracle(*inputs, "dynamic")
  # Rounding exp at its end costs digits of the weights themselves.
  np.testing.assert_allclose(contrast.region_centers(*inputs).vectors, vectors, atol=1e-4)
  found = gradient_of(cotangent, *inputs, "dynamic")
  np.testing.assert_allclose(found, oracle_gradient(*inputs, "dynamic", cotangent), atol=1e-3)


def test_a_class_of_confidence_1_is_absent_only_under_dynamic():
  inputs = confident_inputs([200.0])
  cotangent = np.ones((B, N, C), np.float32)
  centers = contrast.region_centers(*inputs)
  assert not centers.present.any()
  assert not centers.vectors.any()
  np.testing.assert_array_equal(gradient_of(cotangent, *inputs, "dynamic"), 0)
  assert contrast.region_centers(*inputs, method="ep_hp").present[:, 1].all()


def test_one_hard_positive_outweighs_a_learned_region():
  features, logits, labels = confident_inputs([30.0])
  logits[0, 0, 0] = [5, 0, 0, 0]  # predicted 0, in truth 1
  centers = contrast.region_centers(features, logits, labels)
  expected = features[0, 0, 0] / np.linalg.norm(features[0, 0, 0])
  np.testing.assert_allclose(centers.vectors[0, 1], expected, atol=1e-6)


def test_average_has_centers_of_classes_that_are_predicted_but_not_true():
  features, logits, _ = random_inputs(7)
  labels = np.full((B, H, W), 2, np.uint8)
  predicted = (np.argmax(logits, -1).reshape(B, -1, 1) == np.arange(N)).any(axis=1)
  np.testing.assert_array_equal(
    contrast.region_centers(features, logits, labels, method="average").present, predicted
  )
  present = contrast.region_centers(features, logits, labels, method="ep_hp").present
  np.testing.assert_array_equal(present, np.tile([False, False, True, False], (B, 1)))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
  method=st.sampled_from(METHODS),
  seed=st.integers(0, 1000),
  labels=hnp.arrays(np.int32, (B, H, W), elements=st.sampled_from([-7, 0, 1, 2, 3, 4, 254, 255, 2**31 - 1])),
)
def test_any_labels(method, seed, labels):
  features, logits, _ = random_inputs(seed)
  centers = contrast.region_centers(features, logits, labels, method=method)
  vectors, present = oracle(features, logits, labels, method)
  np.testing.assert_allclose(centers.vectors, vectors, atol=1e-5)
  np.testing.assert_array_equal(centers.present, present)


@pytest.mark.parametrize("method", METHODS)
def test_pixels_that_count_nowhere_may_hold_anything(method):
  features, logits, labels = random_inputs(8)
  hidden = labels == 255
  other_features, other_logits, _ = random_inputs(9)
  features_2 = jnp.where(hidden[..., None], other_features, features)
  logits_2 = np.where(hidden[..., None], other_logits, logits)
  labels_2 = np.where(hidden, N, labels)
  before = contrast.region_centers(features, logits, labels, method=method)
  after = contrast.region_centers(features_2, logits_2, labels_2, method=method)
  np.testing.assert_array_equal(before.vectors, after.vectors)
  np.testing.assert_array_equal(before.present, after.present)
  cotangent = np.ones((B, N, C), np.float32)
  assert not np.asarray(gradient_of(cotangent, features, logits, labels, method))[hidden].any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ignore_label", [0, -1])
def test_other_ignore_labels(method, ignore_label):
  features, logits, labels = random_inputs(10)
  centers = contrast.region_centers(features, logits, labels, method=method, ignore_label=ignore_label)
  vectors, present = oracle(features, logits, labels, method, ignore_label)
  np.testing.assert_allclose(centers.vectors, vectors, atol=1e-5)
  np.testing.assert_array_equal(centers.present, present)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e38])
def test_length_of_features_does_not_matter(scale):
  features, logits, labels = random_inputs(11)
  cotangent = np.random.default_rng(12).normal(size=(B, N, C)).astype(np.float32)
  scaled = features * np.float32(scale)
  vectors, present = oracle(features, logits, labels, "dynamic")
  centers = contrast.region_centers(scaled, logits, labels)
  np.testing.assert_allclose(centers.vectors, vectors, atol=1e-5)
  np.testing.assert_array_equal(centers.present, present)
  assert np.isfinite(gradient_of(cotangent, scaled, logits, labels, "dynamic")).all()


def test_features_that_vanish_or_cancel_make_no_center_and_no_nan():
  _, logits, labels = random_inputs(13)
  sign = np.where(np.arange(W - 1) % 2, 1.0, -1.0)[:, None]
  cancelling = np.ones((B, H, W - 1, C), np.float32) * sign.astype(np.float32)
  cancelling = np.concatenate([cancelling, np.zeros((B, H, 1, C), np.float32)], axis=2)
  for features in (np.zeros((B, H, W, C), np.float32), cancelling):
    one_class = np.ones_like(labels)
    centers = contrast.region_centers(features, logits, one_class, method="ep_hp")
    assert not centers.present.any()
    assert not centers.vectors.any()
    gradient = gradient_of(np.ones((B, N, C), np.float32), features, logits, one_class, "ep_hp")
    np.testing.assert_array_equal(gradient, 0)


def test_images_do_not_mix_and_jit_changes_nothing():
  features, logits, labels = random_inputs(14)
  together = jax.jit(contrast.region_centers)(features, logits, labels)
  for b in range(B):
    alone = contrast.region_centers(features[b : b + 1], logits[b : b + 1], labels[b : b + 1])
    np.testing.assert_allclose(together.vectors[b], alone.vectors[0], atol=1e-6)
    np.testing.assert_array_equal(together.present[b], alone.present[0])


def test_mistakes_are_named():
  features, logits, labels = random_inputs()
  with pytest.raises(ValueError, match=r"'mean'.*average, ep_hp, dynamic"):
    contrast.region_centers(features, logits, labels, method="mean")
  with pytest.raises(ValueError, match=r"\(2, 4, 5, 6\) and \(2, 2, 5, 4\)"):
    contrast.region_centers(features, logits[:, :2], labels)
  with pytest.raises(ValueError, match=r"\(2, 4, 2\) and \(2, 4, 5, 4\)"):
    contrast.region_centers(features, logits, labels[:, :, :2])
  with pytest.raises(ValueError, match="integers, got float32"):
    contrast.region_centers(features, logits, labels.astype(np.float32))
