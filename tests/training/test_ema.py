"""The moving average of the weights: its formula, its place in the step and in checkpoints, and who reads it."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax import models, sharding
from rc_jax.models import Variables
from rc_jax.train_state import TrainState
from rc_jax.training import initial_state
from rc_jax.training.ema import update_average
from rc_jax.weights import checkpoint
from rc_jax.weights.checkpoint import Checkpoints
from tests.support.train_states import small_state
from tests.training.test_train_step import CLASSES, batch, tiny


def averages_by_loop(weights: list[np.ndarray], decay: float) -> np.ndarray:
  """The average after all updates, in float64; ``weights``: before the first update, and after each."""
  average = np.float64(weights[0])
  for t, value in enumerate(weights[1:], start=1):
    share = min(decay, (1 + t) / (10 + t))
    average = share * average + (1 - share) * np.float64(value)
  return average


def test_average_follows_a_loop_in_float64() -> None:
  rng = np.random.default_rng(0)
  weights = [rng.normal(size=(3, 4)).astype(np.float32) for _ in range(30)]
  average = Variables({"head": jnp.asarray(weights[0])}, {"head": jnp.asarray(2 * weights[0])})
  for t, value in enumerate(weights[1:], start=1):
    new = Variables({"head": jnp.asarray(value)}, {"head": jnp.asarray(2 * value)})
    average = update_average(average, new, jnp.int32(t), 0.6)  # above 0.6 from step 13 on
  expected = averages_by_loop(weights, 0.6)
  np.testing.assert_allclose(average.params["head"], expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(average.batch_stats["head"], 2 * expected, rtol=1e-5, atol=1e-6)


def test_average_of_equal_values_keeps_every_bit() -> None:
  value = Variables(jnp.asarray(np.random.default_rng(1).normal(size=1000), jnp.float32), jnp.zeros(3))
  average = update_average(value, value, jnp.int32(5), 0.999)
  np.testing.assert_array_equal(average.params, value.params)


@pytest.fixture(scope="module")
def states() -> list[TrainState]:
  """The states before and after three updates, with an average and a frozen stem."""
  config = tiny(train__ema_decay=0.25, model__freeze="stem")
  network = models.build(config.model, CLASSES)
  mesh = sharding.global_mesh()
  state, update_rule = initial_state.initial_state(config, network, 12, mesh, fresh=True)
  step = initial_state.jitted_step(config, network, update_rule, state, mesh)
  found = [jax.device_get(state)]
  for number in range(3):
    state, _ = step(state, batch(number))
    found.append(jax.device_get(state))
  return found


def test_step_averages_parameters_and_statistics(states) -> None:
  for name in ("params", "batch_stats"):
    series = [jax.tree.leaves(getattr(state, name)) for state in states]
    averages = jax.tree.leaves(getattr(states[-1].ema, name))
    assert len(averages) == len(series[0]) > 10
    for leaf, average in enumerate(averages):
      expected = averages_by_loop([leaves[leaf] for leaves in series], 0.25)
      np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-6)
  frozen = jax.tree.leaves(states[0].params["backbone"]["bn1"])
  for one, other in zip(frozen, jax.tree.leaves(states[-1].ema.params["backbone"]["bn1"]), strict=True):
    np.testing.assert_array_equal(one, other)


def test_averages_are_scored_by_choice(states) -> None:
  last = states[-1]
  assert last.scored_weights(True)[0] is last.ema.params
  assert last.scored_weights(False) == (last.params, last.batch_stats)
  without = dataclasses.replace(last, ema=None)
  assert without.scored_weights(True) == (last.params, last.batch_stats)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, TrainState]:
  """A run's folder with one checkpoint, and the state in it."""
  workdir, state = tmp_path_factory.mktemp("run"), small_state(step=3)
  double = jax.tree.map(lambda leaf: 2 * leaf, (state.params, state.batch_stats))
  state = dataclasses.replace(state, ema=Variables(*double))
  with Checkpoints(workdir) as checkpoints:
    checkpoints.save(state, {"position": 1})
  return workdir, state


def test_checkpoint_holds_the_average(saved) -> None:
  workdir, state = saved
  template = dataclasses.replace(small_state(step=0, seed=9), ema=Variables(state.params, state.batch_stats))
  restored, _ = Checkpoints(workdir).restore(template)
  assert isinstance(restored.ema, Variables)
  jax.tree.map(np.testing.assert_array_equal, restored, state)


@pytest.mark.parametrize("ema", [True, False])
def test_model_of_a_checkpoint_is_its_average_by_choice(saved, ema: bool) -> None:
  workdir, state = saved
  model = checkpoint.restore_model(workdir, state.params, state.batch_stats, ema)
  expected = state.scored_weights(ema)
  jax.tree.map(np.testing.assert_array_equal, (model.params, model.batch_stats), expected)


def test_other_runs_start_from_the_average(saved) -> None:
  workdir, state = saved
  jax.tree.map(np.testing.assert_array_equal, checkpoint.read_model(workdir).params, state.ema.params)


def test_damaged_average_is_found(saved, tmp_path: pathlib.Path) -> None:
  workdir, state = saved
  copy = tmp_path / "run"
  copy.mkdir()
  (workdir / "checkpoints").rename(copy / "checkpoints")
  try:
    (file,) = [
      path for path in (copy / "checkpoints" / "3" / "ema" / "d").iterdir() if path.stat().st_size > 100
    ]
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"3: is damaged .ema/d/.* does not fit its checksum"):
      checkpoint.restore_model(copy, state.params, state.batch_stats)
    # The weights themselves are whole.
    checkpoint.restore_model(copy, state.params, state.batch_stats, ema=False)
    file.write_bytes(content)
  finally:
    (copy / "checkpoints").rename(workdir / "checkpoints")


def test_checkpoint_without_average_gives_its_weights(tmp_path: pathlib.Path) -> None:
  state = small_state(step=1)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(state, {"position": 1})
  model = checkpoint.restore_model(tmp_path, state.params, state.batch_stats)
  jax.tree.map(np.testing.assert_array_equal, model.params, state.params)
