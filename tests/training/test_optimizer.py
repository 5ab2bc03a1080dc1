"""SGD against PyTorch's and against its equations written as a loop in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from rc_jax.training import optimizer

STEPS = 6


def config(**changes):
  return ConfigDict(
    {
      "learning_rate": 0.1,
      "momentum": 0.9,
      "weight_decay": 0.05,
      "power": 0.9,
      "head_multiplier": 10.0,
      "decay_norm_and_bias": True,
      **changes,
    }
  )


def random_params(seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  return {
    "backbone": {"conv": {"kernel": draw(3, 4)}, "norm": {"scale": draw(4), "bias": draw(4)}},
    "head": {"conv": {"kernel": draw(4, 2), "bias": draw(2)}},
    "aux_head": {"backbone": {"kernel": draw(2, 2)}},  # outside: only the top level decides
  }


def gradients(seed=1):
  return [random_params(seed + step) for step in range(STEPS)]


def named(tree):
  return {
    tuple(key.key for key in path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def trajectory(settings):
  """Parameters after each update."""
  params = jax.tree.map(jnp.asarray, random_params())
  transformation = optimizer.sgd(settings, STEPS, params)
  state, update = transformation.init(params), jax.jit(transformation.update)
  seen = []
  for gradient in gradients():
    updates, state = update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    seen.append(named(params))
  return seen


def rate_at(settings, step):
  return settings.learning_rate * (1 - step / STEPS) ** settings.power


def decays(settings, name):
  return settings.decay_norm_and_bias or name[-1] == "kernel"


CASES = [
  {},
  {"decay_norm_and_bias": False},
  {"head_multiplier": 1.0, "momentum": 0.0},
  {"weight_decay": 0.0, "power": 2.0},
]


@pytest.mark.parametrize("changes", CASES)
def test_trajectory_follows_the_equations(changes):
  settings = config(**changes)
  params = {name: leaf.astype(np.float64) for name, leaf in named(random_params()).items()}
  buffers = dict.fromkeys(params, 0.0)
  for step, (found, gradient) in enumerate(zip(trajectory(settings), gradients(), strict=True)):
    for name, g in named(gradient).items():
      decay = settings.weight_decay if decays(settings, name) else 0.0
      buffers[name] = settings.momentum * buffers[name] + g + decay * params[name]
      multiplier = 1.0 if name[0] == "backbone" else settings.head_multiplier
      params[name] = params[name] - multiplier * rate_at(settings, step) * buffers[name]
      np.testing.assert_allclose(found[name], params[name], rtol=1e-5, atol=1e-5, err_msg=f"{step} {name}")


@pytest.mark.parametrize("changes", CASES)
def test_trajectory_is_pytorchs(changes):
  torch = pytest.importorskip("torch")
  settings = config(**changes)
  leaves = {name: torch.nn.Parameter(torch.tensor(leaf)) for name, leaf in named(random_params()).items()}
  groups = [
    {
      "params": [leaf],
      "weight_decay": settings.weight_decay if decays(settings, name) else 0.0,
      "multiplier": 1.0 if name[0] == "backbone" else settings.head_multiplier,
    }
    for name, leaf in leaves.items()
  ]
  sgd = torch.optim.SGD(groups, lr=1.0, momentum=settings.momentum)
  for step, (found, gradient) in enumerate(zip(trajectory(settings), gradients(), strict=True)):
    for group in sgd.param_groups:
      group["lr"] = group["multiplier"] * rate_at(settings, step)
    for name, g in named(gradient).items():
      leaves[name].grad = torch.tensor(g)
    sgd.step()
    for name, leaf in leaves.items():
      np.testing.assert_allclose(found[name], leaf.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_learning_rate_is_poly_at_every_step_and_ends_at_zero():
  schedule = jax.jit(optimizer.learning_rate(config(learning_rate=0.01), 30_000))
  for step in (0, 1, 2, 15_000, 29_999):
    np.testing.assert_allclose(schedule(step), 0.01 * (1 - step / 30_000) ** 0.9, rtol=1e-5)
  assert schedule(30_000) == 0
  assert schedule(30_001) == 0


def test_state_is_a_pytree_of_arrays_that_survives_a_round_trip():
  params = random_params()
  state = optimizer.sgd(config(decay_norm_and_bias=False), STEPS, params).init(params)
  leaves, structure = jax.tree.flatten(state)
  assert all(isinstance(leaf, jax.Array) for leaf in leaves)
  shapes = sorted(leaf.shape for leaf in leaves)
  assert shapes == sorted([leaf.shape for leaf in jax.tree.leaves(params)] + [()])  # buffers, and the step
  # What a checkpoint does: new arrays in the old structure.
  restored = jax.tree.unflatten(structure, [jnp.array(np.asarray(leaf)) for leaf in leaves])
  assert jax.tree.structure(restored) == structure
