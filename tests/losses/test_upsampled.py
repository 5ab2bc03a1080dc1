"""Cross entropy of upsampled logits against loops over pixels in float64, in the form of each platform."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax import losses
from rc_jax.config import load_recipe
from rc_jax.losses import upsampled
from rc_jax.losses.cross_entropy import cross_entropy
from rc_jax.losses.ohem import ohem_cross_entropy
from rc_jax.ops import resample

SIZES = [
  ((7, 9), (49, 65)),  # as training: 8 (n - 1) + 1
  ((6, 5), (41, 33)),
  ((3, 4), (24, 30)),  # no multiple
  ((5, 4), (5, 4)),
  ((8, 9), (4, 5)),  # smaller than the grid
  ((1, 1), (6, 7)),
  ((2, 1), (3, 5)),
]


def one_axis(source: int, target: int, align_corners: bool) -> np.ndarray:
  """The weights of linear interpolation, pixel by pixel."""
  weights = np.zeros((target, source))
  for i in range(target):
    if align_corners:
      position = i * (source - 1) / max(target - 1, 1)
    else:
      position = min(max((i + 0.5) * source / target - 0.5, 0), source - 1)
    left = int(position)
    weights[i, left] += 1 - (position - left)
    weights[i, min(left + 1, source - 1)] += position - left
  return weights


def oracle(
  logits: np.ndarray, labels: np.ndarray, cotangent: np.ndarray, align_corners: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Losses of the pixels, and the gradient by the logits of their sum weighted by ``cotangent``."""
  rows = one_axis(logits.shape[1], labels.shape[1], align_corners)
  columns = one_axis(logits.shape[2], labels.shape[2], align_corners)
  found, gradient = np.zeros(labels.shape), np.zeros(logits.shape)
  for index in np.ndindex(*labels.shape):
    image, y, x = index
    if labels[index] >= logits.shape[3]:
      continue
    weights = np.outer(rows[y], columns[x])
    z = (weights[..., None] * logits[image].astype(np.float64)).sum(axis=(0, 1))
    probability = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    found[index] = -np.log(probability[labels[index]])
    surplus = probability.copy()
    surplus[labels[index]] -= 1
    gradient[image] += cotangent[index] * weights[..., None] * surplus
  return found, gradient


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("grid", "size"), SIZES)
@pytest.mark.parametrize("form", ["gpu", "of this platform"])
def test_losses_and_gradients_equal_a_loop_over_pixels(form, grid, size, align_corners) -> None:
  rng = np.random.default_rng(0)
  logits = (3 * rng.normal(size=(2, *grid, 5))).astype(np.float32)
  labels = rng.choice([0, 1, 2, 3, 4, 7, 255], size=(2, *size)).astype(np.int32)
  cotangent = rng.normal(size=labels.shape).astype(np.float32)

  def weighted(logits: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    if form == "gpu":
      per_pixel, counted = upsampled.cross_entropy_recomputed(logits, labels, align_corners), labels < 5
    else:
      per_pixel, counted = upsampled.upsampled_cross_entropy_per_pixel(logits, labels, align_corners)
    return (per_pixel * cotangent).sum(), (per_pixel, counted)

  gradient, (per_pixel, counted) = jax.jit(jax.grad(weighted, has_aux=True))(jnp.asarray(logits))
  np.testing.assert_array_equal(counted, labels < 5)
  expected, expected_gradient = oracle(logits, labels, cotangent, align_corners)
  np.testing.assert_allclose(per_pixel, expected, rtol=1e-5, atol=2e-6)
  np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-5 * abs(expected_gradient).max())


def test_extreme_logits_stay_finite() -> None:
  logits = jnp.asarray([[[[1e4, 0.0], [0.0, 1e4]]]])  # [1,1,2,2]
  labels = jnp.asarray([[[0, 1, 1, 1, 0]]])
  loss = jax.jit(jax.value_and_grad(lambda x: upsampled.cross_entropy_recomputed(x, labels, True).sum()))
  found, gradient = loss(logits)
  np.testing.assert_allclose(found, 0 + 5000 + np.log(2) + 0 + 1e4, rtol=1e-6)
  assert np.isfinite(gradient).all()


def test_gradients_keep_the_dtype_of_the_logits() -> None:
  logits = jnp.ones((1, 3, 3, 4), jnp.bfloat16)
  labels = jnp.zeros((1, 9, 9), jnp.int32)
  loss = jax.jit(jax.grad(lambda x: upsampled.cross_entropy_recomputed(x, labels, True).sum()))
  gradient = loss(logits)
  assert gradient.dtype == jnp.bfloat16


@pytest.mark.parametrize("pixel", list(losses.PIXEL_LOSSES))
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("form", ["cuda", "default"])
def test_each_pixel_loss_on_a_grid_equals_that_of_upsampled_logits(
  pixel, align_corners, form, monkeypatch
) -> None:
  monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arrays, **forms: forms[form](*arrays))
  config_loss = load_recipe("configs/cityscapes.py").loss
  config_loss.pixel = pixel
  rng = np.random.default_rng(1)
  logits = jnp.asarray(2 * rng.normal(size=(2, 4, 5, 6)), jnp.float32)
  labels = jnp.asarray(rng.choice([0, 2, 5, 255], size=(2, 25, 33)), jnp.int32)
  direct = {
    "ce": cross_entropy,
    "ohem": functools.partial(ohem_cross_entropy, threshold=0.7, min_kept=config_loss.ohem_min_kept),
    "focal": losses.focal_loss,
    "dice": losses.dice_loss,
    "lovasz": losses.lovasz_softmax,
  }[pixel]
  expected = jax.jit(lambda: direct(resample.upsample(logits, (25, 33), align_corners), labels))()
  found = jax.jit(losses.build_pixel_loss(config_loss, align_corners))(logits, labels)
  np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
  with pytest.raises(ValueError, match=r"labels must be \[B,H,W\] for logits \[B,h,w,N\]"):
    upsampled.upsampled_cross_entropy_per_pixel(jnp.ones((2, 3, 3, 4)), jnp.ones((3, 9, 9), jnp.int32))
