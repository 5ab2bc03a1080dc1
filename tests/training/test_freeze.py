"""Frozen parts: parameters keep every bit, statistics normalise and stay, gradients are not computed."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax import models, sharding
from rc_jax.config import validate
from rc_jax.models import parts
from rc_jax.training import initial_state
from tests.support import processes
from tests.training.test_train_step import CLASSES, batch, tiny

FREEZE = {"model__freeze": "stem, stage1", "model__freeze_batch_stats": "stem"}
ADAMW = {"optimizer__name": "adamw", "optimizer__learning_rate": 0.01, "optimizer__weight_decay": 0.1}
OTHERS = {"optimizer__schedule": "cosine", "optimizer__warmup_steps": 3, "optimizer__clip_norm": 0.5}


def begin(**fields):
  """The state of step 0 and the step, not yet compiled."""
  config = tiny(**fields)
  network = models.build(config.model, CLASSES)
  mesh = sharding.global_mesh()
  state, update_rule = initial_state.initial_state(config, network, 12, mesh, fresh=True)
  return network, state, initial_state.jitted_step(config, network, update_rule, state, mesh)


def run(**fields):
  """States of step 0 and of step 2, and the metrics of the first step, on the host."""
  _, state, step = begin(**fields)
  before = jax.device_get(state)
  state, metrics = step(state, batch(0))
  metrics = jax.device_get(metrics)
  state, _ = step(state, batch(1))
  return before, jax.device_get(state), metrics


def moved(before, after):
  """Paths of arrays -> whether any bit differs."""
  pairs = jax.tree.map(lambda one, other: one.tobytes() != other.tobytes(), before, after)
  return {tuple(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(pairs)}


@pytest.fixture(scope="module")
def frozen():
  return run(**FREEZE, **ADAMW, **OTHERS)


def test_frozen_parameters_keep_every_bit_and_all_others_move(frozen) -> None:
  before, after, _ = frozen
  names = moved(before.params, after.params)
  expected = {name: name[:2] not in {("backbone", m) for m in ("conv1", "bn1", "layer1")} for name in names}
  assert names == expected and not all(expected.values())


def test_statistics_are_frozen_apart_from_parameters(frozen) -> None:
  before, after, _ = frozen
  names = moved(before.batch_stats, after.batch_stats)
  assert names == {name: name[:2] not in {("backbone", m) for m in ("conv1", "bn1")} for name in names}
  assert names["backbone", "layer1", "0", "bn1", "mean"]  # parameters frozen, statistics not


def test_frozen_parameters_have_no_optimizer_state(frozen) -> None:
  before, after, _ = frozen
  names = moved(before.params, after.params)
  leaves = jax.tree_util.tree_leaves_with_path(before.params)
  size = sum(leaf.size for path, leaf in leaves if names[tuple(key.key for key in path)])
  assert (
    sum(leaf.size for leaf in jax.tree.leaves(after.opt_state) if leaf.ndim) == 2 * size
  )  # AdamW's two means


@pytest.mark.long
def test_gradients_of_other_parameters_are_those_without_freezing() -> None:
  """SGD without weight decay, so that the change in the first step is the gradient."""
  fields = {"optimizer__weight_decay": 0.0, "contrast__scope": "none"}
  changes = []
  for freeze in ("", "stage1, stage3"):  # a frozen stage behind a trained one passes its gradient on
    _, state, step = begin(model__freeze=freeze, **fields)
    before = jax.device_get(state.params)
    after, _ = step(state, batch())
    changes.append(jax.tree.map(lambda a, b: np.asarray(a) - b, after.params, before))
  full, rest = changes
  for stage in ("layer1", "layer3"):
    assert all(not leaf.any() for leaf in jax.tree.leaves(rest["backbone"].pop(stage)))
    full["backbone"].pop(stage)
  jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7), full, rest)


def test_frozen_statistics_normalise_in_training() -> None:
  config = tiny(model__freeze_batch_stats="backbone,head")
  network = models.build(config.model, CLASSES)
  params, batch_stats = network.init(jax.random.key(0))
  rng = np.random.default_rng(1)
  batch_stats = jax.tree.map(
    lambda leaf: jnp.asarray(rng.uniform(0.5, 2, leaf.shape), jnp.float32), batch_stats
  )
  images = batch()["image"]
  outputs, after = jax.jit(network.train)(params, batch_stats, images, jax.random.key(0))
  predicted = jax.jit(network.predict)(params, batch_stats, images)
  np.testing.assert_allclose(outputs.logits, predicted.logits, rtol=1e-4, atol=1e-4)
  changed = moved(jax.device_get(batch_stats), jax.device_get(after))
  assert {name[0] for name, change in changed.items() if change} == {"aux_head"}


class FlaxNorms(nn.Module):
  """Flax's BatchNorm with the choice as an attribute, as an argument by name and by position."""

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = nn.BatchNorm(use_running_average=not train, name="attribute")(x)
    x = nn.BatchNorm(name="keyword")(x, use_running_average=not train)
    x = nn.BatchNorm(name="position")(x, not train)
    return nn.BatchNorm(use_running_average=not train, name="free")(x)


def test_statistics_of_flaxs_own_batch_norm_are_frozen_too() -> None:
  x = jnp.asarray(np.random.default_rng(2).normal(3, 2, (5, 4)), jnp.float32)
  variables = FlaxNorms().init(jax.random.key(0), x, train=True)
  with parts.frozen_statistics((("attribute",), ("keyword",), ("position",))):
    _, updates = FlaxNorms().apply(variables, x, train=True, mutable=["batch_stats"])
  names = moved(*jax.device_get((dict(variables["batch_stats"]), dict(updates["batch_stats"]))))
  assert {name[0] for name, change in names.items() if change} == {"free"}


@pytest.mark.long
def test_gradients_of_frozen_first_stages_are_not_computed() -> None:
  def flops(**fields):
    _, state, step = begin(contrast__scope="none", **fields)
    return step.lower(state, batch()).cost_analysis()["flops"]

  forward_and_backward, forward = flops(), flops(model__freeze="backbone,head")
  freeze = flops(model__freeze="stem,stage1,stage2")
  assert forward < freeze < 0.9 * forward_and_backward, (forward, freeze, forward_and_backward)


@pytest.mark.parametrize("field", ["freeze", "freeze_batch_stats"])
@pytest.mark.parametrize(
  ("backbone", "text", "valid"),
  [
    ("resnet50", "stem,stage5", "stem, stage1, stage2, stage3, stage4, backbone, head"),
    ("hrnetv2_w18", "layer1", "stem, stage1, stage2, stage3, stage4, backbone, head"),
    ("mine", "stem", "backbone, head"),
  ],
)
def test_names_of_no_part_are_refused(monkeypatch, field: str, backbone: str, text: str, valid: str) -> None:
  monkeypatch.setitem(models.BACKBONES, "mine", lambda model: None)
  config = tiny()
  config.model.backbone, config.model[field] = backbone, text
  with pytest.raises(
    ValueError, match=rf"^config\.model\.{field}: is '{text}'; .* on {backbone}, .*: {valid}$"
  ):
    validate(config)


def test_a_network_with_nothing_to_train_is_refused() -> None:
  fields = {"model__backbone": "hrnetv2_tiny", "model__output_stride": 4, "model__name": "fcn"}
  with pytest.raises(ValueError, match=r"config\.model\.freeze: .* no parameter is left to train"):
    begin(model__freeze="backbone,head", **fields)


def test_a_batch_of_one_value_is_normalised_by_frozen_statistics() -> None:
  config = tiny(train__batch_size=1, model__freeze_batch_stats="head")
  network = models.build(config.model, CLASSES)
  initial_state.initial_state(config, network, 12, sharding.local_mesh(), fresh=True)


def save_updates(path: pathlib.Path) -> None:
  """Saves the parameters before and after three updates with all options."""
  _, state, step = begin(**FREEZE, **ADAMW, **OTHERS, optimizer__layer_decay=0.5)
  mesh = sharding.global_mesh()
  saved = {"devices": jax.device_count()}
  for number in range(4):
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get((state.params, state.batch_stats)))
    saved |= {f"{jax.tree_util.keystr(name)}/{number}": leaf for name, leaf in leaves}
    images = {name: np.asarray(value) for name, value in batch(number).items()}
    state, metrics = step(state, sharding.put_batch(images, mesh))
    saved[f"gradient_norm/{number}"] = metrics["gradient_norm"]
  np.savez(path, **saved)


@pytest.mark.long
@pytest.mark.run
def test_eight_devices_train_as_one_with_all_options(tmp_path: pathlib.Path) -> None:
  saved = []
  for devices in (1, 8):
    path = tmp_path / f"{devices}.npz"
    call = f"t.save_updates(pathlib.Path({str(path)!r}))"
    processes.run("-c", f"import pathlib, tests.training.test_freeze as t; {call}", devices=devices)
    saved.append(dict(np.load(path)))
    assert saved[-1].pop("devices") == devices
  one, eight = saved
  assert one["gradient_norm/1"] > 0.5  # so that it is clipped
  for name, value in one.items():
    # AdamW divides by the root of a gradient's mean square, which magnifies the rounding of small gradients.
    np.testing.assert_allclose(eight[name], value, rtol=0.02, atol=2e-3, err_msg=name)
    if name.startswith(("[0]['backbone']['conv1']", "[0]['backbone']['bn1']", "[0]['backbone']['layer1']")):
      np.testing.assert_array_equal(eight[name], value)
