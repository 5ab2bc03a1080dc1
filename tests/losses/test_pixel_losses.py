"""Focal loss, Dice, Lovász-softmax, label smoothing, class weights and sums against PyTorch and loops in float64."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax import losses, sharding
from rc_jax.config import Config, defaults, validate
from rc_jax.losses import upsampled
from rc_jax.models import ExtraOutput, Outputs
from rc_jax.ops import resample
from rc_jax.training.objective import pixel_terms
from tests.support import processes

B, H, W, N = 2, 6, 7, 5
WEIGHTS = (0.5, 2.0, 0.0, 1.0, 3.5)

Oracle = Callable[[np.ndarray, np.ndarray], float]


def random_inputs(seed: int = 0, scale: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
  """Logits, and labels that lack class 3 and hold values that are no class."""
  rng = np.random.default_rng(seed)
  logits = (scale * rng.normal(size=(B, H, W, N))).astype(np.float32)
  labels = rng.choice([0, 1, 2, 4, 9, 255], size=(B, H, W)).astype(np.int32)
  labels[1][labels[1] == 2] = 255  # the second image does not show class 2
  return logits, labels


def softmax(z: np.ndarray) -> np.ndarray:
  powers = np.exp(z - z.max(axis=-1, keepdims=True))
  return powers / powers.sum(axis=-1, keepdims=True)


def counted_pixels(logits: np.ndarray, labels: np.ndarray) -> list[tuple[np.ndarray, int]]:
  """Probabilities and label of each pixel that counts."""
  probabilities = softmax(logits.astype(np.float64))
  return [(probabilities[i], int(labels[i])) for i in np.ndindex(*labels.shape) if labels[i] < N]


def focal(logits: np.ndarray, labels: np.ndarray, gamma: float = 2.0, weights: tuple = (1.0,) * N) -> float:
  total = divisor = 0.0
  for p, y in counted_pixels(logits, labels):
    total -= weights[y] * (1 - p[y]) ** gamma * np.log(p[y])
    divisor += weights[y]
  return total / divisor


def smoothed(logits: np.ndarray, labels: np.ndarray, smoothing: float, weights: tuple = (1.0,) * N) -> float:
  total = divisor = 0.0
  for p, y in counted_pixels(logits, labels):
    total -= (1 - smoothing) * weights[y] * np.log(p[y])
    total -= smoothing / N * sum(weights[c] * np.log(p[c]) for c in range(N))
    divisor += weights[y]
  return total / divisor


def ohem(logits: np.ndarray, labels: np.ndarray, weights: tuple = (1.0,) * N) -> float:
  """With a threshold of 0.3 and 5 pixels to keep."""
  pixels = sorted(counted_pixels(logits, labels), key=lambda pixel: pixel[0][pixel[1]])
  kept = [(p, y) for place, (p, y) in enumerate(pixels) if place < 5 or p[y] <= 0.3]
  return sum(-weights[y] * np.log(p[y]) for p, y in kept) / sum(weights[y] for _, y in kept)


def dice(logits: np.ndarray, labels: np.ndarray, smooth: float = 0.0) -> float:
  of_classes = []
  for c in range(N):
    intersection = probabilities = shown = 0.0
    for p, y in counted_pixels(logits, labels):
      intersection += p[c] * (y == c)
      probabilities += p[c]
      shown += y == c
    if shown:
      of_classes.append(1 - (2 * intersection + smooth) / (probabilities + shown + smooth))
  return float(np.mean(of_classes))


def lovasz(logits: np.ndarray, labels: np.ndarray) -> float:
  """Eq. 9 of Berman et al.: errors in decreasing order, times the steps of the Jaccard loss of growing sets."""
  pixels = counted_pixels(logits, labels)
  of_classes = []
  for c in range(N):
    truth = {k for k, (_, y) in enumerate(pixels) if y == c}
    if not truth:
      continue
    errors = [1 - p[c] if y == c else p[c] for p, y in pixels]
    wrong: set[int] = set()
    before = loss = 0.0
    for k in sorted(range(len(pixels)), key=lambda k: -errors[k]):
      wrong.add(k)
      # The prediction is the truth with these pixels turned: Eq. 6.
      jaccard = len(wrong) / len(truth | wrong)
      loss += errors[k] * (jaccard - before)
      before = jaccard
    of_classes.append(loss)
  return float(np.mean(of_classes))


def lovasz_per_image(logits: np.ndarray, labels: np.ndarray) -> float:
  images = [lovasz(z[None], y[None]) for z, y in zip(logits, labels, strict=True) if (y < N).any()]
  return float(np.mean(images))


def derivative(oracle: Oracle, logits: np.ndarray, labels: np.ndarray, index: tuple[int, ...]) -> float:
  """By one logit, from two values."""
  values, step = [], 1e-5
  for sign in (1, -1):
    moved = logits.astype(np.float64)
    moved[index] += sign * step
    values.append(oracle(moved, labels))
  return (values[0] - values[1]) / (2 * step)


CASES: dict[str, tuple[Callable[..., jax.Array], Oracle]] = {
  "focal": (losses.focal_loss, focal),
  "focal, gamma 0.5, weighted": (
    lambda z, y: losses.focal_loss(z, y, 0.5, class_weights=WEIGHTS),
    lambda z, y: focal(z, y, 0.5, WEIGHTS),
  ),
  "smoothed": (
    lambda z, y: losses.cross_entropy(z, y, label_smoothing=0.1),
    lambda z, y: smoothed(z, y, 0.1),
  ),
  "weighted": (
    lambda z, y: losses.cross_entropy(z, y, class_weights=WEIGHTS),
    lambda z, y: smoothed(z, y, 0, WEIGHTS),
  ),
  "ohem, weighted": (
    lambda z, y: losses.ohem_cross_entropy(z, y, 0.3, 5, class_weights=WEIGHTS),
    lambda z, y: ohem(z, y, WEIGHTS),
  ),
  "dice": (losses.dice_loss, dice),
  "dice, smooth": (lambda z, y: losses.dice_loss(z, y, 1.0), lambda z, y: dice(z, y, 1.0)),
  "lovasz": (losses.lovasz_softmax, lovasz),
  "lovasz of images": (lambda z, y: losses.lovasz_softmax(z, y, True), lovasz_per_image),
}


@functools.cache
def value_and_gradient(name: str) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """One compiled program for all tests of a case."""
  compiled: Callable[..., tuple[jax.Array, jax.Array]] = jax.jit(jax.value_and_grad(CASES[name][0]))
  return compiled


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_equal_those_of_a_loop_over_pixels(name: str) -> None:
  oracle = CASES[name][1]
  logits, labels = random_inputs()
  found, gradient = value_and_gradient(name)(logits, labels)
  assert found.dtype == jnp.float32 and found.shape == ()
  np.testing.assert_allclose(found, oracle(logits, labels), rtol=1e-5)
  indices = np.random.default_rng(1).permutation(list(np.ndindex(*logits.shape)))[:30].tolist()
  expected = [derivative(oracle, logits, labels, tuple(index)) for index in indices]
  np.testing.assert_allclose([gradient[tuple(index)] for index in indices], expected, atol=1e-6)
  np.testing.assert_array_equal(np.asarray(gradient)[labels >= N], 0)


@pytest.mark.parametrize("name", CASES)
def test_pixels_that_do_not_count_and_extreme_logits(name: str) -> None:
  logits, labels = random_inputs(2)
  loss, oracle = value_and_gradient(name), CASES[name][1]
  labels[1] = 255
  np.testing.assert_allclose(loss(logits, labels)[0], oracle(logits[:1], labels[:1]), rtol=1e-5)
  assert all(np.isfinite(each).all() for each in loss(1000 * logits, labels))
  found, gradient = loss(logits, np.full_like(labels, 255))
  assert found == 0
  np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_logits_are_summed_in_float32(name: str) -> None:
  logits, labels = random_inputs(3)
  rounded = jnp.asarray(logits, jnp.bfloat16)
  found, gradient = value_and_gradient(name)(rounded, labels)
  assert gradient.dtype == jnp.bfloat16
  np.testing.assert_allclose(found, CASES[name][1](np.asarray(rounded, np.float32), labels), rtol=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_with_weights_and_smoothing_is_pytorchs(weights: Any, smoothing: float) -> None:
  torch = pytest.importorskip("torch")
  logits, labels = random_inputs(5)
  labels[labels == 9] = 255
  leaf = torch.from_numpy(logits).double().requires_grad_()
  expected = torch.nn.functional.cross_entropy(
    leaf.permute(0, 3, 1, 2),
    torch.from_numpy(labels).long(),
    weight=None if weights is None else torch.tensor(weights, dtype=torch.float64),
    ignore_index=255,
    label_smoothing=smoothing,
  )
  expected.backward()
  found, gradient = jax.value_and_grad(
    lambda z: losses.cross_entropy(z, labels, class_weights=weights, label_smoothing=smoothing)
  )(logits)
  np.testing.assert_allclose(found, expected.item(), rtol=1e-5)
  np.testing.assert_allclose(gradient, leaf.grad.numpy(), atol=1e-6)


def test_lovasz_of_many_pixels_is_exact() -> None:
  """Differences of Jaccard losses in float32 would have no digit left here."""
  rng = np.random.default_rng(6)
  labels = (rng.random((1, 150, 200)) < 0.3).astype(np.int32)
  logits = rng.normal(size=(*labels.shape, 2)).astype(np.float32)
  found, gradient = jax.value_and_grad(losses.lovasz_softmax)(logits, labels)
  probabilities, total = softmax(logits.astype(np.float64)).reshape(-1, 2), 0.0
  d_probabilities = np.zeros_like(probabilities)
  for c in range(2):
    truth = labels.ravel() == c
    errors = np.where(truth, 1 - probabilities[:, c], probabilities[:, c])
    order = np.argsort(-errors)
    wrong = np.arange(1, len(errors) + 1)
    union = truth.sum() + np.cumsum(~truth[order])
    steps = np.diff(wrong / union, prepend=0)
    total += (errors[order] * steps).sum() / 2
    d_probabilities[order, c] = np.where(truth[order], -1, 1) * steps / 2
  inner = (probabilities * d_probabilities).sum(axis=1, keepdims=True)
  expected = probabilities * (d_probabilities - inner)
  np.testing.assert_allclose(found, total, rtol=1e-5)
  # Pixels whose neighbours in the order have the same error in float32 may swap places.
  error = np.abs(gradient.reshape(-1, 2) - expected) / np.abs(expected).max()
  assert np.quantile(error, 0.99) < 1e-4 and error.mean() < 1e-5


def compare_devices() -> None:
  """Compares losses over the batch, and their gradients, on one device with those on all 8."""
  assert jax.device_count() == 8
  rng = np.random.default_rng(7)
  logits = rng.normal(size=(8, 5, 6, 4)).astype(np.float32)
  labels = rng.choice([0, 1, 3, 255], size=(8, 5, 6)).astype(np.int32)
  mesh = sharding.global_mesh()
  whole, by_image = sharding.replicated_sharding(mesh), jax.NamedSharding(mesh, jax.P(sharding.DATA_AXIS))

  def all_losses(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    values = jnp.stack(
      [
        losses.dice_loss(logits, labels),
        losses.lovasz_softmax(logits, labels),
        losses.lovasz_softmax(logits, labels, per_image=True),
        losses.cross_entropy(logits, labels, class_weights=WEIGHTS[:4], label_smoothing=0.1),
      ]
    )
    return (values * jnp.arange(1, 5)).sum(), values

  both = jax.value_and_grad(all_losses, has_aux=True)
  (_, expected), expected_gradient = jax.jit(both)(logits, labels)
  spread = jax.device_put((logits, labels), by_image)
  (_, found), gradient = jax.jit(both, out_shardings=((whole, whole), by_image))(*spread)
  assert len(gradient.sharding.device_set) == 8
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  np.testing.assert_allclose(gradient, expected_gradient, atol=1e-8)


@pytest.mark.run
@pytest.mark.long
def test_losses_over_the_batch_are_the_same_on_8_devices() -> None:
  code = "from tests.losses import test_pixel_losses; test_pixel_losses.compare_devices()"
  processes.run("-c", code, devices=8)


def loss_config(**fields: Any) -> Config:
  config = defaults()
  config.dataset.name = "synthetic"
  config.loss.update(fields)
  return config


@pytest.mark.parametrize(
  ("fields", "direct"),
  [
    ({"class_weights": WEIGHTS}, lambda z, y: losses.cross_entropy(z, y, class_weights=WEIGHTS)),
    (
      {"class_weights": WEIGHTS, "label_smoothing": 0.2},
      lambda z, y: losses.cross_entropy(z, y, class_weights=WEIGHTS, label_smoothing=0.2),
    ),
    (
      {"pixel": "focal", "focal_gamma": 1.5, "class_weights": WEIGHTS},
      lambda z, y: losses.focal_loss(z, y, 1.5, class_weights=WEIGHTS),
    ),
    (
      {"pixel": "ohem", "ohem_min_kept": 7, "class_weights": WEIGHTS},
      lambda z, y: losses.ohem_cross_entropy(z, y, 0.7, 7, class_weights=WEIGHTS),
    ),
    ({"pixel": "lovasz", "lovasz_per_image": True}, lambda z, y: losses.lovasz_softmax(z, y, True)),
    (
      {"pixel": "ce+0.5*dice", "dice_smooth": 2.0, "class_weights": WEIGHTS},
      lambda z, y: losses.cross_entropy(z, y, class_weights=WEIGHTS) + 0.5 * losses.dice_loss(z, y, 2.0),
    ),
    (
      {"pixel": "2*ce + .25*focal"},
      lambda z, y: 2 * losses.cross_entropy(z, y) + losses.focal_loss(z, y) / 4,
    ),
  ],
  ids=lambda value: str(value) if isinstance(value, dict) else "",  # a function's text is its address
)
def test_a_config_builds_the_loss_of_its_fields(
  fields: dict[str, Any], direct: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arrays, **forms: forms["cuda"](*arrays))
  config = loss_config(**fields)
  validate(config)
  rng = np.random.default_rng(8)
  logits = rng.normal(size=(2, 4, 5, N)).astype(np.float32)
  labels = rng.choice([0, 1, 4, 255], size=(2, 13, 17)).astype(np.int32)

  def of_upsampled(z: jax.Array) -> jax.Array:
    return direct(resample.upsample(z, (13, 17), True), labels)

  def of_config(z: jax.Array) -> jax.Array:
    (term,) = pixel_terms(Outputs(z, z), jnp.asarray(labels), config.loss, True)
    return term.value

  found, gradient = jax.jit(jax.value_and_grad(of_config))(logits)
  expected, expected_gradient = jax.jit(jax.value_and_grad(of_upsampled))(logits)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


def test_the_auxiliary_head_has_the_class_weights_too() -> None:
  logits, labels = random_inputs(9)
  outputs = Outputs(
    jnp.asarray(logits), logits, {"aux": ExtraOutput(jnp.asarray(logits), "aux", losses.cross_entropy)}
  )
  config = loss_config(class_weights=WEIGHTS, label_smoothing=0.1)
  pixel, aux = pixel_terms(outputs, jnp.asarray(labels), config.loss, True)
  np.testing.assert_allclose(pixel.value, smoothed(logits, labels, 0.1, WEIGHTS), rtol=1e-5)
  np.testing.assert_allclose(aux.value, smoothed(logits, labels, 0, WEIGHTS), rtol=1e-5)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    *(
      ({"pixel": text}, "expected 'ce', 'ohem', 'focal', 'dice', 'lovasz' or a sum of these such as")
      for text in ("", "ce+", "ce+ce", "0*ce", "ce-dice", "1..2*ce", "ce*0.5", "1e999*ce", "dise")
    ),
    ({"class_weights": (1.0, -1.0)}, "expected () or a number of 0 or more for each class, not all 0"),
    ({"class_weights": (0.0, 0.0)}, "not all 0"),
    ({"class_weights": (1.0, float("nan"))}, "not all 0"),
    ({"class_weighting": "auto"}, "'median_frequency'"),
    ({"class_weighting": "median_frequency", "class_weights": (1.0,)}, "which counts the weights"),
    ({"pixel": "dice", "class_weights": (1.0,)}, "it is read only with loss.pixel=ce or ohem or focal"),
    ({"pixel": "dice+lovasz", "class_weighting": "median_frequency"}, "it is read only with loss.pixel=ce"),
    ({"pixel": "focal", "label_smoothing": 0.1}, "it is read only with loss.pixel=ce"),
    ({"label_smoothing": 1.0}, "0 or more, below 1"),
    ({"dice_smooth": 1.0}, "it is read only with loss.pixel=dice"),
  ],
  ids=str,
)
def test_wrong_fields_are_refused_in_one_line(fields: dict[str, Any], message: str) -> None:
  with pytest.raises(ValueError, match=r"config\.loss") as caught:
    validate(loss_config(**fields))
  assert message in str(caught.value) and "\n" not in str(caught.value)


def test_weights_that_are_not_counted_yet_and_wrong_numbers_are_refused() -> None:
  config = loss_config(class_weighting="median_frequency")
  validate(config)
  with pytest.raises(ValueError, match=r"config\.loss\.class_weights: is \(\); expected the weights that"):
    losses.build_pixel_loss(config.loss, True)
  logits, labels = random_inputs()
  with pytest.raises(ValueError, match=r"class_weights must be \[N\] for .* got \(3,\) and \(2, 6, 7, 5\)"):
    losses.focal_loss(logits, labels, class_weights=(1.0, 2.0, 3.0))


def test_a_sum_of_reductions_upsamples_no_logits_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
  def refuse(*unused: Any) -> None:
    raise AssertionError("the logits were upsampled")

  monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arrays, **forms: forms["cuda"](*arrays))
  monkeypatch.setattr(upsampled, "_plain", refuse)
  monkeypatch.setattr(resample, "upsample", refuse)
  config = loss_config(pixel="ce+focal", class_weights=WEIGHTS)
  logits, labels = random_inputs()
  assert losses.build_pixel_loss(config.loss, True)(jnp.asarray(logits), jnp.asarray(labels)) > 0
