"""One update: its loss is Eq. 5 of the parts, its bank holds what the batch showed, on one device and on eight."""

import dataclasses
import json
import pathlib
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from rc_jax import contrast, distributed, models, sharding
from rc_jax.costs import hlo_cost
from rc_jax.losses.cross_entropy import cross_entropy
from rc_jax.modes import train
from rc_jax.ops import resample
from rc_jax.train_state import TrainState
from rc_jax.training import initial_state, optimizer
from rc_jax.training.train_step import make_train_step
from tests.support import processes, rounding, run_tiny

CLASSES = 4
CROP = (33, 41)


def tiny(**fields):
  """A config of a network that compiles in seconds; ``section__field=value`` overrides."""
  config = run_tiny.get_config()
  config.model.dropout = 0.0
  config.train.crop_size = CROP
  config.train.batch_size = 8
  config.train.steps = 20
  config.contrast.bank_size = 12
  config.optimizer.head_multiplier = 1.0
  for name, value in fields.items():
    section, field = name.split("__")
    config[section][field] = value
  return config


def batch(seed: int = 0) -> dict[str, jax.Array]:
  """Images whose brightness tells the class of vertical bands, with some pixels ignored."""
  rng = np.random.default_rng(seed)
  bands = np.sort(rng.integers(0, CLASSES, (8, 1, CROP[1])), axis=2) * np.ones((1, CROP[0], 1), int)
  image = np.clip(bands[..., None] * 60 + rng.normal(30, 15, (8, *CROP, 3)), 0, 255).astype(np.uint8)
  label = np.where(rng.random(bands.shape) < 0.05, 255, bands).astype(np.uint8)
  return {"image": jnp.asarray(image), "label": jnp.asarray(label)}


def begin(config):
  network = models.build(config.model, CLASSES)
  mesh = sharding.global_mesh()
  state, update_rule = initial_state.initial_state(config, network, training_images=12, mesh=mesh, fresh=True)
  schedule = optimizer.learning_rate(config.optimizer, config.train.steps)
  return network, state, jax.jit(make_train_step(network, update_rule, schedule, config))


@pytest.fixture(scope="module")
def begun():
  """A network, its first state and its compiled step."""
  return begin(tiny())


@pytest.fixture(scope="module")
def run(begun):
  """Twelve updates on one batch: states and metrics of each."""
  network, state, step = begun
  states, metrics = [state], []
  for _ in range(12):
    state, step_metrics = step(state, batch())
    states.append(state)
    metrics.append(jax.device_get(step_metrics))
  return network, states, metrics


def test_loss_is_the_weighted_sum_of_its_terms(run) -> None:
  network, states, metrics = run
  rng = jax.random.fold_in(jax.random.key(0), 3)

  @jax.jit
  def forward(params: Any, batch_stats: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    outputs, _ = network.train(params, batch_stats, batch()["image"], rng)
    return outputs.logits, outputs.extra["aux"].logits, outputs.features

  logits, aux_logits, features = forward(states[3].params, states[3].batch_stats)
  labels = batch()["label"].astype(jnp.int32)
  pixel = cross_entropy(resample.upsample(logits, CROP), labels)
  aux = cross_entropy(resample.upsample(aux_logits, CROP), labels)
  grid = labels[:, ::8, ::8]  # 33 x 41 at output stride 8: 5 x 6 points, corners aligned
  centers = contrast.region_centers(features, logits, grid)
  rc, _ = contrast.region_contrast_loss(centers, states[3].bank, temperature=0.2)
  assert rc > 0
  np.testing.assert_allclose(metrics[3]["loss"], pixel + 0.4 * aux + 0.1 * rc, rtol=1e-4)
  np.testing.assert_allclose(metrics[3]["loss_contrast"], rc, rtol=1e-4)


def test_the_loss_reads_the_bank_before_the_centers_enter_it(run) -> None:
  _, states, metrics = run
  assert metrics[0]["loss_contrast"] == 0 and metrics[0]["contrast_queries"] == 0
  assert int(states[0].bank.count.sum()) == 0 and int(states[1].bank.count.sum()) > 0
  assert metrics[1]["contrast_queries"] > 0


def test_bank_fill_and_cursor_follow_the_bank(run) -> None:
  _, states, metrics = run
  np.testing.assert_allclose(metrics[4]["bank_fill"], states[5].bank.count / 12)
  np.testing.assert_array_equal(metrics[4]["bank_cursor"], states[5].bank.cursor)


@pytest.mark.long
def test_before_its_start_step_the_contrast_fills_the_bank_and_does_not_count() -> None:
  _, state, step = begin(tiny(contrast__start_step=2))
  _, baseline, step_without = begin(tiny(loss__contrast_weight=0.0))
  metrics = []
  for number in range(3):
    before = jax.tree.map(np.asarray, (state.params, baseline.params))
    state, step_metrics = step(state, batch(number))
    baseline, _ = step_without(baseline, batch(number))
    metrics.append(jax.device_get(step_metrics))
  for number, weight in enumerate((0.0, 0.0, 0.1)):
    found = metrics[number]
    np.testing.assert_allclose(found["loss_contrast_scaled"], weight * found["loss_contrast"], rtol=1e-6)
    terms = found["loss_pixel"] + found["loss_aux_scaled"] + found["loss_contrast_scaled"]
    np.testing.assert_allclose(found["loss"], terms, rtol=1e-6)
  assert metrics[0]["loss_contrast"] == 0 and min(m["loss_contrast"] for m in metrics[1:]) > 0
  # Before the last update both had the same parameters, and the contrast's gradient is the difference after it.
  jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), *before)
  after = [np.asarray(each.params["head"]["fuse"]["conv"]["kernel"]) for each in (state, baseline)]
  assert np.abs(after[0] - after[1]).max() > 1e-5


def test_a_batch_without_labelled_pixels_has_no_pixel_loss_and_is_named(begun, capsys) -> None:
  _, state, step = begun
  after, metrics = step(state, batch() | {"label": jnp.full((8, *CROP), 255, jnp.uint8)})
  assert metrics["loss"] == 0 and not after.bank.count.any()
  assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((after.params, after.batch_stats)))
  part = types.SimpleNamespace(check=lambda: None, take=lambda: None, show=lambda *_: None)
  parts = {"finite": part, "throughput": part, "progress": part}
  parts["config"] = types.SimpleNamespace(train=types.SimpleNamespace(log_every=2))
  train.TrainingRun.log_step(types.SimpleNamespace(**parts), 3, metrics)  # type: ignore[arg-type]
  assert capsys.readouterr().out.startswith(
    "step 3: the pixel loss is 0, as where all pixels of the batch are ignored; check the labels"
  )


def test_a_repeated_batch_is_learned(run) -> None:
  _, _, metrics = run
  assert metrics[-1]["loss_pixel"] < 0.8 * metrics[0]["loss_pixel"]


def test_step_schedule_and_statistics_move(run) -> None:
  _, states, metrics = run
  assert int(states[12].step) == 12
  np.testing.assert_allclose(
    [m["learning_rate"] for m in metrics], [0.01 * (1 - step / 20) ** 0.9 for step in range(12)], rtol=1e-5
  )
  before, after = (jax.tree.leaves(states[i].batch_stats) for i in (0, 1))
  assert all(not np.array_equal(b, a) for b, a in zip(before, after, strict=True))
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(states[1].params))


@pytest.mark.parametrize(
  "fields", [{"contrast__scope": "none"}, {"loss__contrast_weight": 0.0}], ids=["scope", "weight"]
)
def test_the_baseline_has_no_bank_and_no_contrast(fields) -> None:
  config = tiny(**fields)
  network = models.build(config.model, CLASSES)
  state, update_rule = initial_state.initial_state(config, network, 12, sharding.global_mesh(), fresh=True)
  assert state.bank is None
  schedule = optimizer.learning_rate(config.optimizer, 20)
  step = make_train_step(network, update_rule, schedule, config)
  _, metrics = jax.eval_shape(step, state, batch())
  assert "bank_fill" not in metrics and "contrast_queries" not in metrics


@pytest.mark.long
@pytest.mark.parametrize("scope", ["image", "batch"])
def test_other_scopes_contrast_without_a_bank(scope: str) -> None:
  _, state, step = begin(tiny(contrast__scope=scope))
  assert state.bank is None
  _, metrics = step(state, batch())
  assert metrics["loss_contrast"] > 0 and metrics["contrast_queries"] > 0


def save_image_slots(path: pathlib.Path) -> None:
  """Saves the bank and the metrics of two updates whose keys have a slot for each image."""
  config = tiny(contrast__slots="image", contrast__bank_size=0)
  network = models.build(config.model, CLASSES)
  mesh = sharding.global_mesh()
  state, update_rule = initial_state.initial_state(config, network, 12, mesh, fresh=True)
  step = initial_state.jitted_step(config, network, update_rule, state, mesh)
  saved: dict[str, Any] = {"devices": jax.device_count()}
  for number, index in enumerate(([3, 1, 4, 11, 5, 9, 2, 6], [8, 7, 9, 0, 10, 9, 8, 7])):
    images = {name: np.asarray(value) for name, value in batch(number).items()}
    images["index"] = np.asarray(index, np.int32)
    state, metrics = step(state, sharding.put_batch(images, mesh))
    saved |= {
      f"{name}/{number}": value for name, value in metrics.items() if name.startswith(("loss", "bank"))
    }
  np.savez(path, keys=state.bank.keys, valid=state.bank.valid, **saved)


@pytest.mark.long
@pytest.mark.run
def test_each_image_writes_its_slot_on_one_device_and_on_eight(tmp_path: pathlib.Path) -> None:
  saved = []
  for devices in (1, 8):
    path = tmp_path / f"{devices}.npz"
    call = f"t.save_image_slots(pathlib.Path({str(path)!r}))"
    processes.run("-c", f"import pathlib, tests.training.test_train_step as t; {call}", devices=devices)
    saved.append(dict(np.load(path)))
    assert saved[-1]["devices"] == devices
  one, eight = saved
  assert (
    one["valid"].shape == (CLASSES, 256) and not one["valid"][:, 12:].any() and "bank_cursor/1" not in one
  )
  assert one["valid"][:, :12].any(axis=0).all() and one["loss_contrast/1"] > 0 == one["loss_contrast/0"]
  np.testing.assert_array_equal(one["bank_fill/1"], (one["valid"].sum(axis=1) / 12).astype(np.float32))
  # Of two crops of an image the later: images 9, 8 and 7 stand twice in the second batch.
  labels = np.asarray(batch(1)["label"])
  for row, image in ((5, 9), (6, 8), (7, 7)):
    shown = np.isin(np.arange(CLASSES), labels[row, ::8, ::8])
    np.testing.assert_array_equal(one["valid"][:, image], shown)
  np.testing.assert_array_equal(one["valid"], eight["valid"])
  np.testing.assert_allclose(one["keys"], eight["keys"], atol=1e-3)
  np.testing.assert_allclose(one["loss/1"], eight["loss/1"], rtol=1e-3)


@pytest.mark.long
def test_ohem_and_bfloat16_train_in_float32() -> None:
  _, state, step = begin(tiny(loss__pixel="ohem", loss__ohem_min_kept=50, model__dtype="bfloat16"))
  state, metrics = step(state, batch())
  assert np.isfinite(metrics["loss"]) and metrics["loss"].dtype == jnp.float32
  leaves = jax.tree.leaves((state.params, state.batch_stats, state.opt_state))
  assert {leaf.dtype for leaf in leaves if leaf.ndim} == {jnp.dtype("float32")}


RESULTS = ("loss", "statistics", "keys", "momentum")
BATCHES = 5
COPIES = 3  # of each control, each with other signs
ULPS = 64  # moves several values of every batch across a ReLU's corner
LAYOUTS = ((1, 1), (1, 8), (2, 2))  # processes, and devices of each


def filled(bank: contrast.MemoryBank) -> contrast.MemoryBank:
  """Returns the bank with random keys of unit length in some slots of each class, spread as before."""
  rng = np.random.default_rng(5)
  keys = rng.standard_normal(bank.keys.shape).astype(np.float32)
  keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
  count = np.asarray([bank.capacity, 3, 7, bank.capacity], np.int32)
  keys[np.arange(keys.shape[1]) >= count[:, None]] = 0
  cursor = np.asarray([4, 3, 7, bank.capacity - 1], np.int32)

  def like(leaf: jax.Array, value: np.ndarray) -> jax.Array:
    return jax.make_array_from_callback(value.shape, leaf.sharding, value.__getitem__)

  return dataclasses.replace(
    bank, keys=like(bank.keys, keys), cursor=like(bank.cursor, cursor), count=like(bank.count, count)
  )


def save_updates(path: pathlib.Path, control: bool) -> None:
  """Saves the results of updates that all devices of all processes of a run make together.

  ``NAME/BATCH`` for NAME in ``RESULTS``: what one update computes from the same state and each of ``BATCHES``
  batches. ``cursor``, ``count`` and ``last_loss`` after four updates in sequence, which start with empty banks. With
  ``control``, the same with each parameter off by 1 and by ``ULPS`` units in its last place, under
  ``NAME/BATCH/UNITS/COPY``.
  """
  distributed.connect()
  config = tiny(model__dropout=0.1)
  network = models.build(config.model, CLASSES)
  mesh = sharding.global_mesh()
  state, update_rule = initial_state.initial_state(config, network, 12, mesh, fresh=True)
  compiled = initial_state.jitted_step(config, network, update_rule, state, mesh)
  rows = slice(*(8 * (jax.process_index() + i) // jax.process_count() for i in (0, 1)))
  saved: dict[str, Any] = {"devices": jax.device_count()}

  def step(before: TrainState, number: int) -> tuple[TrainState, dict[str, jax.Array]]:
    images = {name: np.asarray(value)[rows] for name, value in batch(number).items()}
    # The step donates its state, which the next batch needs too.
    return compiled(jax.tree.map(jnp.copy, before), sharding.put_batch(images, mesh))

  def gathered(leaf: jax.Array) -> np.ndarray:
    # Gathering compiles a program for each shape.
    return np.asarray(
      leaf if leaf.is_fully_replicated else multihost_utils.process_allgather(leaf, tiled=True)
    )

  def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(gathered(leaf)) for leaf in jax.tree.leaves(tree)])

  def save(before: TrainState, suffix: str) -> None:
    full = dataclasses.replace(before, bank=filled(before.bank))
    for number in range(BATCHES):
      after, metrics = step(full, number)
      assert metrics["loss_contrast"] > 0
      results = (metrics["loss"], after.batch_stats, after.bank.keys, after.opt_state)
      for name, tree in zip(RESULTS, results, strict=True):
        saved[f"{name}/{number}{suffix}"] = flat(tree)
    for number in range(4):
      before, metrics = step(before, number)
    saved[f"last_loss{suffix}"] = flat(metrics["loss"])
    saved[f"cursor{suffix}"], saved[f"count{suffix}"] = flat(before.bank.cursor), flat(before.bank.count)

  save(state, "")
  for ulps in (1, ULPS) if control else ():
    for copy in range(COPIES):
      params = sharding.put_replicated(rounding.off_by_ulps(state.params, ulps, copy), mesh)
      save(dataclasses.replace(state, params=params), f"/{ulps}/{copy}")
  if jax.process_index() == 0:
    np.savez(path, **saved)


@pytest.mark.long
@pytest.mark.run
def test_many_devices_and_processes_compute_what_one_device_does(tmp_path: pathlib.Path) -> None:
  """Other layouts sum in another order, so they may differ from one device by as much as rounding explains.

  The control is the same update on one device with each parameter off by its last bit. Rounding sometimes moves a
  value across a ReLU's corner and with it a finite part of the gradient, in a control as in a layout: so of the
  batches the closest is compared with the typical control, and all with controls that are off by ``ULPS`` units.
  """
  saved = {}
  for number, devices in LAYOUTS:
    path = tmp_path / f"{number}x{devices}.npz"
    call = f"t.save_updates(pathlib.Path({str(path)!r}), control={number * devices == 1})"
    code = f"import pathlib, tests.training.test_train_step as t; {call}"
    processes.run("-c", code, processes=number, devices=devices)
    saved[number, devices] = dict(np.load(path))
    assert saved[number, devices]["devices"] == number * devices
  one = saved.pop((1, 1))

  def controls(name: str, ulps: int) -> list[float]:
    return [rounding.relative_deviation(one[f"{name}/{ulps}/{copy}"], one[name]) for copy in range(COPIES)]

  names = {name: [f"{name}/{number}" for number in range(BATCHES)] for name in RESULTS}
  for layout, many in saved.items():
    for result, batches in names.items():
      deviations = [rounding.relative_deviation(many[name], one[name]) for name in batches]
      typical = np.median([controls(name, 1) for name in batches])
      assert min(deviations) <= 4 * typical + 4 * np.finfo(np.float32).eps, (layout, result, deviations)
      assert max(deviations) <= np.max([controls(name, ULPS) for name in batches]), (
        layout,
        result,
        deviations,
      )
    last = rounding.relative_deviation(many["last_loss"], one["last_loss"])
    assert last <= max(controls("last_loss", ULPS)), (layout, last)
    np.testing.assert_array_equal(many["cursor"], one["cursor"])
    np.testing.assert_array_equal(many["count"], one["count"])


def print_collectives() -> None:
  """Prints, for two sizes of the banks, the messages of the compiled step: kind, number, bytes and the largest."""
  for size in (300, 30_000):
    config = tiny(contrast__bank_size=size)
    network = models.build(config.model, CLASSES)
    mesh = sharding.global_mesh()
    state, update_rule = initial_state.initial_state(config, network, 12, mesh, fresh=True)
    step = make_train_step(network, update_rule, optimizer.learning_rate(config.optimizer, 20), config)
    own = {name: np.asarray(value) for name, value in batch().items()}
    shardings = (sharding.shardings_of(state), sharding.replicated_sharding(mesh))
    compiled = jax.jit(step, donate_argnums=0, out_shardings=shardings).lower(
      state, sharding.put_batch(own, mesh)
    )
    text = compiled.compile(compiler_options={"xla_backend_optimization_level": 0}).as_text()
    print(json.dumps([dataclasses.astuple(one) for one in hlo_cost.read(hlo_cost.parse(text)).collectives]))


@pytest.mark.slow
@pytest.mark.run
def test_no_message_grows_with_the_bank() -> None:
  (printed,) = processes.run(
    "-c", "import tests.training.test_train_step as t; t.print_collectives()", devices=8
  )
  small, large = map(json.loads, printed.splitlines()[-2:])
  assert small == large
  # All but a little are the gradients: statistics, queries (8 x 4 of 16 channels) and metrics.
  network = models.build(tiny().model, CLASSES)
  gradients = 4 * sum(leaf.size for leaf in jax.tree.leaves(network.init(jax.random.key(0)).params))
  assert gradients < sum(size for _, _, size, _ in small) < 1.05 * gradients


def begin_with_one_image(**fields):
  config = tiny(train__batch_size=1, **fields)
  network = models.build(config.model, CLASSES)
  # Of one device: eight would need eight images.
  return initial_state.initial_state(
    config, network, training_images=12, mesh=sharding.local_mesh(), fresh=True
  )


@pytest.mark.parametrize(
  "name, layer",
  [("deeplabv3", "head/aspp/pool/bn"), ("deeplabv3plus", "head/aspp/pool/bn"), ("pspnet", "head/bin0/bn")],
)
def test_statistics_of_one_value_are_refused(name: str, layer: str) -> None:
  fields = {"model__aspp_rates": (12, 24, 36)} if name == "pspnet" else {}
  with pytest.raises(
    ValueError, match=rf"config\.train\.batch_size: is 1, .*BatchNorm {layer} .*2 or more images"
  ):
    begin_with_one_image(model__name=name, **fields)


@pytest.mark.parametrize("name", ["fcn", "encnet", "danet", "ocrnet", "ccnet"])
def test_one_image_trains_a_head_that_pools_to_several_values(name: str) -> None:
  begin_with_one_image(model__name=name, model__aspp_rates=(12, 24, 36))
