"""A batch in parts: gradients, statistics, metrics and the order of keys, by the parts computed one by one."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax import contrast, models, sharding
from rc_jax.config import validate
from rc_jax.contrast.method import RegionContrast
from rc_jax.losses import cross_entropy
from rc_jax.train_state import TrainState
from rc_jax.training import initial_state, optimizer
from rc_jax.training.objective import contrastive_method, objective
from rc_jax.training.train_step import _over_parts, make_train_step
from tests.support import processes
from tests.training.test_train_step import CLASSES, batch, tiny

FIELDS = {"train__microbatches": 2, "train__ema_decay": 0.9, "model__remat": "backbone"}


def begin(**fields):
  config = tiny(**fields)
  validate(config)
  network = models.build(config.model, CLASSES)
  mesh = sharding.global_mesh()
  state, update_rule = initial_state.initial_state(config, network, 12, mesh, fresh=True)
  step = initial_state.jitted_step(config, network, update_rule, state, mesh)
  return config, network, update_rule, state, step


@pytest.fixture(scope="module")
def updates():
  """The parts of a run, its state after one update, and that and the metrics after two."""
  config, network, update_rule, state, step = begin(train__microbatches=2)
  first, _ = step(state, batch(0))
  before = jax.device_get(first)
  after, metrics = step(first, batch(1))
  return config, network, update_rule, before, jax.device_get(after), jax.device_get(metrics)


def by_hand(config, network, state, images):
  """Mean gradient, statistics, metrics and bank from the two parts, computed one after the other."""
  gradients, metrics, keys, statistics = [], [], [], state.batch_stats
  labelled = np.asarray(images["label"]) != 255

  def loss(params, statistics, image, label, share):
    outputs, stats = network.train(params, statistics, image, jax.random.key(0))
    options = (config, network.align_corners, state.step, share)
    value, found, key = objective(outputs, label.astype(jnp.int32), state.bank, *options)
    return value, (found, stats, key)

  derivative = jax.jit(jax.grad(loss, has_aux=True))
  for part in (slice(0, None, 2), slice(1, None, 2)):
    shown = (images["image"][part], images["label"][part])
    share = jnp.float32(2 * labelled[part].sum() / labelled.sum())
    gradient, (found, statistics, key) = derivative(state.params, statistics, *shown, share)
    gradients.append(gradient)
    metrics.append(found)
    keys.append(key)
  # Back in the order of the batch: image 0 of each part, image 1 of each part.
  joined = jax.tree.map(lambda a, b: jnp.stack([a, b], 1).reshape(-1, *a.shape[1:]), *keys)
  bank, _ = contrastive_method(config).update(state.bank, joined, None)
  return jax.tree.map(lambda a, b: (a + b) / 2, *gradients), statistics, metrics, bank


@pytest.mark.long
def test_step_is_that_of_its_parts(updates) -> None:
  config, network, update_rule, before, after, metrics = updates
  gradient, statistics, found, bank = by_hand(config, network, before, batch(1))
  change, _ = update_rule.update(gradient, before.opt_state, before.params)
  expected = jax.tree.map(jnp.add, before.params, change)
  close = {"rtol": 2e-4, "atol": 2e-5}
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), after.params, expected)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), after.batch_stats, statistics)
  np.testing.assert_allclose(after.bank.keys, bank.keys, **close)
  np.testing.assert_array_equal(after.bank.cursor, bank.cursor)
  np.testing.assert_array_equal(after.bank.count, bank.count)
  for name in ("loss", "loss_pixel", "loss_aux", "loss_contrast"):
    np.testing.assert_allclose(metrics[name], (found[0][name] + found[1][name]) / 2, rtol=1e-4)
  assert found[0]["contrast_queries"] > 0
  for name in ("contrast_positive_similarity", "contrast_negative_similarity"):
    weights = [part["contrast_queries"] for part in found]
    expected = np.average([part[name] for part in found], weights=weights)
    np.testing.assert_allclose(metrics[name], expected, rtol=1e-4, atol=1e-6)
  assert metrics["contrast_queries"] == found[0]["contrast_queries"] + found[1]["contrast_queries"]
  by_class = np.stack([part["contrast_positive_similarity_by_class"] for part in found])
  np.testing.assert_allclose(
    metrics["contrast_positive_similarity_by_class"], np.nanmean(by_class, axis=0), rtol=1e-4
  )


def train_linear(images: dict[str, jax.Array], **fields) -> tuple[np.ndarray, dict[str, jax.Array]]:
  """The gradient of a network of one linear layer, as its first update shows it, and the metrics.

  Without BatchNorm, nothing but the means of the losses depends on the parts.
  """
  plain = {"optimizer__momentum": 0.0, "optimizer__weight_decay": 0.0, "optimizer__learning_rate": 1.0}
  config = tiny(contrast__scope="none", **plain, **fields)
  validate(config)

  def run(params, batch_stats, shown, rng):
    features = shown.astype(jnp.float32) / 255
    logits = features @ params["head"]["kernel"]
    return models.Outputs(logits, features, {"aux": models.ExtraOutput(-logits, "aux", cross_entropy)}), {}

  network = models.Network(None, run, None, num_classes=CLASSES, channels=3, align_corners=True)
  params = {"head": {"kernel": jnp.asarray(np.random.default_rng(5).normal(size=(3, CLASSES)), jnp.float32)}}
  update_rule = optimizer.build(config.optimizer, config.train.steps, params, {})
  state = TrainState(jnp.int32(0), params, {}, update_rule.init(params), bank=None)
  schedule = optimizer.learning_rate(config.optimizer, config.train.steps)
  after, metrics = jax.jit(make_train_step(network, update_rule, schedule, config))(state, images)
  return np.asarray(params["head"]["kernel"] - after.params["head"]["kernel"]), metrics


def unevenly_labelled() -> dict[str, jax.Array]:
  """A batch of whose two parts the second has few labelled pixels, in one image."""
  images = batch(2)
  label = np.asarray(images["label"]).copy()
  label[3::2] = 255
  label[1, 4:] = 255
  return {"image": images["image"], "label": jnp.asarray(label)}


def cross_entropy_of_pixels(kernel: np.ndarray, images, weights: np.ndarray) -> tuple[float, np.ndarray]:
  """Cross entropy over all labelled pixels of the batch, and its gradient, in float64."""
  label = np.asarray(images["label"])
  x, y = np.asarray(images["image"])[label != 255] / 255, label[label != 255]  # [P,3], [P]
  powers = np.exp(x @ np.float64(kernel))
  p = powers / powers.sum(axis=1, keepdims=True)
  share = weights[y] / weights[y].sum()
  return -(share * np.log(p[np.arange(len(y)), y])).sum(), x.T @ (share[:, None] * (p - np.eye(CLASSES)[y]))


@pytest.mark.parametrize("weights", [(), (0.5, 3.0, 0.0, 1.0)])
def test_cross_entropy_of_parts_is_the_mean_over_the_pixels_of_the_batch(weights) -> None:
  images = unevenly_labelled()
  gradient, metrics = train_linear(images, train__microbatches=2, loss__class_weights=weights)
  kernel = np.random.default_rng(5).normal(size=(3, CLASSES)).astype(np.float32)
  numbers = np.asarray(weights or np.ones(CLASSES))
  pixel, d_pixel = cross_entropy_of_pixels(kernel, images, numbers)
  aux, d_aux = cross_entropy_of_pixels(-kernel, images, numbers)
  np.testing.assert_allclose([metrics["loss_pixel"], metrics["loss_aux"]], [pixel, aux], rtol=1e-5)
  np.testing.assert_allclose(metrics["loss"], pixel + 0.4 * aux, rtol=1e-5)
  np.testing.assert_allclose(gradient, d_pixel - 0.4 * d_aux, rtol=1e-4, atol=1e-5)


def test_other_losses_of_parts_are_means_over_pixels_or_over_parts() -> None:
  images = unevenly_labelled()
  of_batch, expected = train_linear(images, loss__pixel="focal")
  gradient, metrics = train_linear(images, train__microbatches=2, loss__pixel="focal")
  np.testing.assert_allclose(gradient, of_batch, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(metrics["loss_pixel"], expected["loss_pixel"], rtol=1e-5)

  _, metrics = train_linear(images, train__microbatches=2, loss__pixel="focal+0.5*dice")
  parts = [{name: array[start::2] for name, array in images.items()} for start in (0, 1)]
  dice = np.mean([train_linear(part, loss__pixel="dice")[1]["loss_pixel"] for part in parts])
  np.testing.assert_allclose(metrics["loss_pixel"], expected["loss_pixel"] + 0.5 * dice, rtol=1e-5)


def test_parts_without_a_labelled_pixel_have_no_loss_and_no_gradient() -> None:
  images = batch(3) | {"label": jnp.full((8, *batch(3)["label"].shape[1:]), 255, jnp.uint8)}
  gradient, metrics = train_linear(images, train__microbatches=2)
  assert metrics["loss"] == 0 and not gradient.any()


@pytest.mark.long
def test_loop_computes_what_the_unrolled_program_does(updates) -> None:
  _, _, _, before, after, metrics = updates
  config, network, update_rule, _, _ = begin(train__microbatches=2)
  schedule = optimizer.learning_rate(config.optimizer, config.train.steps)
  step = jax.jit(make_train_step(network, update_rule, schedule, config, unrolled=False))
  looped, looped_metrics = step(before, batch(1))
  np.testing.assert_allclose(metrics["loss"], looped_metrics["loss"], rtol=1e-5)
  np.testing.assert_array_equal(after.bank.cursor, looped.bank.cursor)
  one, other = (jax.tree.leaves(state.params) for state in (after, looped))
  for a, b in zip(one, other, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_metrics_of_parts_are_those_of_their_pixels_and_queries() -> None:
  by_class = jnp.asarray([[0.5, jnp.nan, jnp.nan], [0.25, 0.75, jnp.nan]])
  found = _over_parts(
    {
      "contrast_positive_similarity_by_class": by_class,
      "contrast_queries": jnp.asarray([0.0, 6.0]),
      "contrast_positive_similarity": jnp.asarray([0.0, 0.8]),  # 0 where there is no query
      "loss": jnp.asarray([1.0, jnp.nan]),
    }
  )
  np.testing.assert_array_equal(found["contrast_positive_similarity_by_class"], [0.375, 0.75, np.nan])
  assert found["contrast_queries"] == 6 and found["contrast_positive_similarity"] == np.float32(0.8)
  assert np.isnan(found["loss"])  # a loss that is not finite must be seen


def test_keys_without_images_are_refused(monkeypatch) -> None:
  def without_images(self, features, logits, labels, bank):
    contrast_of_batch = loss(self, features, logits, labels, bank)
    return contrast_of_batch._replace(keys=jnp.zeros((3, 16)))

  loss = RegionContrast.loss
  monkeypatch.setattr(RegionContrast, "loss", without_images)
  *_, state, step = begin(train__microbatches=2)
  with pytest.raises(
    ValueError, match=r"train.microbatches: is 2, but contrast.method=region has keys of the shape"
  ):
    jax.eval_shape(step, state, batch(0))


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"train__microbatches": 3}, "train.microbatches: is 3; expected a divisor of train.batch_size, 8"),
    ({"train__microbatches": 0}, "train.microbatches: is 0; expected"),
  ],
)
def test_parts_divide_the_batch(fields: dict[str, int], message: str) -> None:
  with pytest.raises(ValueError, match=message):
    validate(tiny(**fields))


def test_parts_of_one_image_have_no_statistics() -> None:
  with pytest.raises(ValueError, match=r"batch_size: is 8 in 8 parts .*expected 16 or more images"):
    begin(train__microbatches=8)


def test_devices_divide_each_part() -> None:
  mesh = sharding.global_mesh()
  sharding.check_batch(8, mesh, 2)
  with pytest.raises(
    ValueError, match=r"6 images over 1 devices in 4 parts .train.microbatches.; expected 4 or 8"
  ):
    sharding.check_batch(6, mesh, 4)


def save_updates(path: pathlib.Path) -> None:
  """Saves bank, averages and losses of two updates with all that saves memory."""
  *_, state, step = begin(**FIELDS)
  losses = []
  for number in range(2):
    images = {name: np.asarray(value) for name, value in batch(number).items()}
    state, metrics = step(state, sharding.put_batch(images, sharding.global_mesh()))
    losses.append(metrics["loss"])
  flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.ema.params)])
  bank: contrast.MemoryBank = state.bank
  np.savez(path, losses=losses, ema=flat, cursor=bank.cursor, count=bank.count, devices=jax.device_count())


@pytest.mark.long
@pytest.mark.run
def test_four_devices_compute_the_parts_of_one(tmp_path: pathlib.Path) -> None:
  saved = []
  for devices in (1, 4):
    path = tmp_path / f"{devices}.npz"
    call = f"t.save_updates(pathlib.Path({str(path)!r}))"
    processes.run("-c", f"import pathlib, tests.training.test_microbatches as t; {call}", devices=devices)
    saved.append(dict(np.load(path)))
    assert saved[-1]["devices"] == devices
  one, four = saved
  np.testing.assert_array_equal(one["cursor"], four["cursor"])
  np.testing.assert_array_equal(one["count"], four["count"])
  np.testing.assert_allclose(one["losses"], four["losses"], rtol=1e-3)
  np.testing.assert_allclose(one["ema"], four["ema"], rtol=1e-2, atol=1e-3)
