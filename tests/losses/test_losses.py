"""Losses against PyTorch and loops over pixels in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rc_jax.losses.cross_entropy import cross_entropy
from rc_jax.losses.ohem import kth_smallest, ohem_cross_entropy
from rc_jax.losses.presence import presence_loss

B, H, W, N = 2, 7, 9, 5


def random_inputs(seed=0):
  rng = np.random.default_rng(seed)
  logits = (2 * rng.normal(size=(B, H, W, N))).astype(np.float32)
  return logits, rng.choice([0, 1, 2, 3, 4, 255], size=(B, H, W)).astype(np.uint8)


def pixel_oracle(logits, labels, ignore_label=255):
  """(loss, probability of the true class, where) of every pixel that counts, in float64."""
  pixels = []
  for index in np.ndindex(*labels.shape):
    label, z = int(labels[index]), np.asarray(logits[index], np.float64)
    if 0 <= label < len(z) and label != ignore_label:
      probability = np.exp(z[label]) / np.exp(z).sum()
      pixels.append((-np.log(probability), probability, index))
  return pixels


def mean_and_gradient(pixels, logits, labels):
  """The mean of the pixels' losses, and its gradient by the logits: (softmax - one hot) / number."""
  gradient = np.zeros(logits.shape)
  for _, _, index in pixels:
    z = np.asarray(logits[index], np.float64)
    gradient[index] = np.exp(z) / np.exp(z).sum()
    gradient[index][int(labels[index])] -= 1
  number = max(len(pixels), 1)
  return sum(loss for loss, _, _ in pixels) / number, gradient / number


def ohem_oracle(logits, labels, threshold, min_kept):
  pixels = pixel_oracle(logits, labels)
  by_hardness = sorted(probability for _, probability, _ in pixels)
  k = min(min_kept, len(pixels))
  if k:
    threshold = max(threshold, by_hardness[k - 1] * (1 + 1e-9))
  return mean_and_gradient([pixel for pixel in pixels if pixel[1] <= threshold], logits, labels)


def assert_matches(found, expected):
  loss, gradient = found
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, expected[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(gradient, expected[1], atol=1e-6)


def test_cross_entropy_is_pytorchs():
  torch = pytest.importorskip("torch")
  logits, labels = random_inputs(4)
  leaf = torch.from_numpy(logits).double().requires_grad_()
  expected = torch.nn.functional.cross_entropy(
    leaf.permute(0, 3, 1, 2), torch.from_numpy(labels).long(), ignore_index=255
  )
  expected.backward()
  found = jax.value_and_grad(cross_entropy)(logits, labels)
  assert_matches(found, (expected.item(), leaf.grad.numpy()))


cross_entropy_and_gradient = jax.jit(jax.value_and_grad(cross_entropy))
ohem_and_gradient = jax.jit(jax.value_and_grad(ohem_cross_entropy))

any_labels = hnp.arrays(
  np.int32, (B, H, W), elements=st.sampled_from([-1, 0, 1, 2, 3, 4, 5, 254, 255, 2**31 - 1])
)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(labels=any_labels, seed=st.integers(0, 1000))
def test_cross_entropy_of_any_labels(labels, seed):
  logits, _ = random_inputs(seed)
  assert_matches(
    cross_entropy_and_gradient(logits, labels),
    mean_and_gradient(pixel_oracle(logits, labels), logits, labels),
  )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
  labels=any_labels,
  seed=st.integers(0, 1000),
  threshold=st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0]),
  min_kept=st.sampled_from([0, 1, 7, 40, B * H * W, 10**6]),
)
def test_ohem_of_any_labels(labels, seed, threshold, min_kept):
  logits, _ = random_inputs(seed)
  found = ohem_and_gradient(logits, labels, threshold, min_kept)
  assert_matches(found, ohem_oracle(logits, labels, threshold, min_kept))


def test_kth_smallest_tells_neighbouring_floats_apart():
  rng = np.random.default_rng(9)
  values = np.concatenate([0.3 + np.arange(40) * np.spacing(np.float32(0.3)), [0, 1e-30, 0.9, 1, 1]])
  values = rng.permutation(values.astype(np.float32))
  counted = rng.random(len(values)) < 0.8
  for k in (1, 2, 7, 20, counted.sum() - 1, counted.sum()):
    assert kth_smallest(values, counted, k) == np.sort(values[counted])[k - 1]


@pytest.mark.parametrize("min_kept", [1, 10, 60])
def test_ohem_keeps_exactly_min_kept_when_all_are_easy(min_kept):
  logits, labels = random_inputs(5)
  _, gradient = ohem_value_and_gradient(logits, labels, threshold=0.0, min_kept=min_kept)
  assert (np.abs(gradient).sum(-1) > 0).sum() == min_kept


def ohem_value_and_gradient(logits, labels, **options):
  return jax.value_and_grad(lambda z: ohem_cross_entropy(z, labels, **options))(logits)


def test_ohem_keeps_all_that_tie():
  logits, labels = random_inputs(6)
  logits[:] = logits[0, 0, 0]  # as many different probabilities as classes
  hardest = int(np.argmin(logits[0, 0, 0]))
  _, gradient = ohem_value_and_gradient(logits, labels, threshold=0.0, min_kept=1)
  np.testing.assert_array_equal(np.abs(gradient).sum(-1) > 0, labels == hardest)


def test_ohem_survives_certainty():
  """Probabilities of exactly 0 and 1, where the search over bits begins and ends."""
  labels = np.zeros((1, 2, 2), np.uint8)
  sure, wrong = [200.0, 0.0], [0.0, 200.0]
  for logits, expected in (([sure] * 4, 0.0), ([wrong] * 4, 200.0), ([wrong, sure, sure, sure], 200.0)):
    logits = np.asarray(logits, np.float32).reshape(1, 2, 2, 2)
    loss, gradient = ohem_value_and_gradient(logits, labels, threshold=0.7, min_kept=1)
    np.testing.assert_allclose(loss, expected)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("loss", [cross_entropy, ohem_cross_entropy])
def test_no_pixel_that_counts_is_zero_with_zero_gradient(loss):
  logits, labels = random_inputs(7)
  value, gradient = jax.value_and_grad(loss)(logits, np.full_like(labels, 255))
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("loss", [cross_entropy, ohem_cross_entropy])
def test_bfloat16_logits_are_summed_in_float32(loss):
  logits, labels = random_inputs(8)
  rounded = jnp.asarray(logits, jnp.bfloat16)
  expected = mean_and_gradient(pixel_oracle(rounded.astype(jnp.float32), labels), logits, labels)[0]
  np.testing.assert_allclose(loss(rounded, labels), expected, rtol=1e-5)
  with_zero_ignored = [p for p in pixel_oracle(rounded.astype(jnp.float32), labels, 0)]
  expected = np.mean([p[0] for p in with_zero_ignored])
  np.testing.assert_allclose(loss(rounded, labels, ignore_label=0), expected, rtol=1e-5)


def test_mistakes_are_named():
  logits, labels = random_inputs()
  for loss in (cross_entropy, ohem_cross_entropy):
    with pytest.raises(ValueError, match=r"\(2, 3, 9\) and \(2, 7, 9, 5\)"):
      loss(logits, labels[:, :3])
  with pytest.raises(ValueError, match="min_kept must not be negative, got -1"):
    ohem_cross_entropy(logits, labels, min_kept=-1)
  with pytest.raises(ValueError, match=r"\(2, 7, 9\) and \(2, 7, 9, 5\)"):
    presence_loss(logits, labels)


def test_presence_loss_is_binary_cross_entropy_of_a_loops_presence():
  random = np.random.default_rng(8)
  labels = random.integers(0, 4, (3, 5, 6)).astype(np.uint8)
  labels[0][labels[0] == 2], labels[1] = 255, 255  # the second image holds nothing at all
  logits = 3 * random.standard_normal((3, 7)).astype(np.float32)
  logits[2, :2] = 200, -200  # no overflow
  total = 0.0
  for b, n in np.ndindex(3, 7):
    z = float(logits[b, n])
    total += max(-z if n in labels[b] else z, 0) + np.log1p(np.exp(-abs(z)))
  np.testing.assert_allclose(presence_loss(logits, labels), total / 21, rtol=1e-6)
  zeroed = presence_loss(logits[:, :4], labels, ignore_label=3)
  np.testing.assert_allclose(zeroed, presence_loss(logits[:, :4], np.where(labels == 3, 255, labels)))
