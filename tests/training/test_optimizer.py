"""Optimizers and schedules against PyTorch's, and SGD against its equations written as a loop in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rc_jax import config as config_module
from rc_jax import models
from rc_jax.training import optimizer
from tests.support import run_tiny

STEPS = 6


# Of ``random_params``.
STAGES = {"stem": ("conv",), "stage1": ("norm",)}


def config(**changes):
  settings = config_module.defaults().optimizer
  settings.learning_rate, settings.weight_decay = 0.1, 0.05
  settings.update(changes)
  return settings


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


def trajectory(settings, dtype=np.float32):
  """Parameters after each update."""
  params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), random_params())
  transformation = optimizer.build(settings, STEPS, params, STAGES)
  state, update = transformation.init(params), jax.jit(transformation.update)
  seen = []
  for gradient in gradients():
    updates, state = update(jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), gradient), state, params)
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


def pytorchs_trajectory(settings, multipliers, dtype):
  """Parameters after each update of the ``torch.optim`` optimizer, whose norms are clipped by PyTorch too."""
  torch = pytest.importorskip("torch")
  leaves = {
    name: torch.nn.Parameter(torch.tensor(leaf.astype(dtype)))
    for name, leaf in named(random_params()).items()
  }
  groups = [
    {
      "params": [leaf],
      "weight_decay": settings.weight_decay if decays(settings, name) else 0.0,
      "multiplier": multipliers(name),
    }
    for name, leaf in leaves.items()
  ]
  if settings.name == "adamw":
    betas = (settings.beta1, settings.beta2)
    rule = torch.optim.AdamW(groups, lr=1.0, betas=betas, eps=settings.epsilon)
  else:
    rule = torch.optim.SGD(groups, lr=1.0, momentum=settings.momentum)
  for step, gradient in enumerate(gradients()):
    for group in rule.param_groups:
      group["lr"] = group["multiplier"] * rate_at(settings, step)
    for name, g in named(gradient).items():
      leaves[name].grad = torch.tensor(g.astype(dtype))
    if settings.clip_norm:
      torch.nn.utils.clip_grad_norm_(leaves.values(), settings.clip_norm)
    rule.step()
    yield {name: leaf.detach().numpy().copy() for name, leaf in leaves.items()}


def head_multiplier(settings):
  return lambda name: 1.0 if name[0] == "backbone" else settings.head_multiplier


@pytest.mark.parametrize("changes", [*CASES, {"clip_norm": 2.0}, {"clip_norm": 1e3}])
def test_trajectory_is_pytorchs(changes):
  settings = config(**changes)
  expected = pytorchs_trajectory(settings, head_multiplier(settings), np.float32)
  for found, params in zip(trajectory(settings), expected, strict=True):
    for name, leaf in params.items():
      np.testing.assert_allclose(found[name], leaf, rtol=1e-5, atol=1e-5)


ADAMW = {"name": "adamw", "learning_rate": 0.01}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"decay_norm_and_bias": False, "beta1": 0.5, "beta2": 0.9, "epsilon": 1e-3},
    {"head_multiplier": 1.0, "weight_decay": 0.0, "clip_norm": 0.5},
  ],
)
def test_adamw_is_pytorchs(changes, dtype):
  settings = config(**ADAMW, **changes)
  # The learning rate is float32, and PyTorch adds 1e-6 to a norm that it clips by.
  rtol = 1e-5 if dtype == np.float32 else 1e-6 if settings.clip_norm else 1e-7
  with jax.enable_x64(dtype == np.float64):
    found = trajectory(settings, dtype)
  expected = pytorchs_trajectory(settings, head_multiplier(settings), dtype)
  for ours, params in zip(found, expected, strict=True):
    for name, leaf in params.items():
      assert ours[name].dtype == leaf.dtype
      np.testing.assert_allclose(ours[name], leaf, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("changes", [{}, ADAMW])
def test_layer_decay_scales_the_learning_rate_of_each_stage(changes):
  settings = config(layer_decay=0.5, **changes)

  def multiplier(name):
    # Two stages: the last has one factor, the stem two.
    return {"conv": 0.25, "norm": 0.5}[name[1]] if name[0] == "backbone" else settings.head_multiplier

  expected = pytorchs_trajectory(settings, multiplier, np.float32)
  for found, params in zip(trajectory(settings), expected, strict=True):
    for name, leaf in params.items():
      np.testing.assert_allclose(found[name], leaf, rtol=1e-5, atol=1e-5)


def test_layer_decay_refuses_a_module_outside_the_stages():
  with pytest.raises(ValueError, match=r"layer_decay: is 0\.5, .* module norm belongs to no stage"):
    optimizer.build(config(layer_decay=0.5), STEPS, random_params(), {"stem": ("conv",)})


@pytest.mark.parametrize(
  "backbone", [run_tiny.BACKBONE, pytest.param("hrnetv2_tiny", marks=pytest.mark.long)]
)
def test_each_module_of_a_backbone_belongs_to_one_stage(backbone):
  config = run_tiny.get_config()
  config.model.update(
    {"backbone": backbone, "name": "fcn", "output_stride": 8 if backbone == run_tiny.BACKBONE else 4}
  )
  network = models.build(config.model, 3)
  params = network.init(jax.random.key(0)).params
  modules = [module for stage in network.stages.values() for module in stage]
  assert sorted(modules) == sorted(params["backbone"])
  assert list(network.stages) == ["stem", "stage1", "stage2", "stage3", "stage4"]


def test_names_of_the_config_are_those_of_the_tables():
  assert tuple(optimizer.OPTIMIZERS) == config_module.OPTIMIZERS
  assert tuple(optimizer.SCHEDULES) == config_module.SCHEDULES


@pytest.mark.parametrize("name", config_module.SCHEDULES)
def test_schedules_with_warm_up_are_pytorchs(name):
  """PyTorch's ``LinearLR`` chained with ``PolynomialLR`` or ``CosineAnnealingLR``, in a loop of 40 steps."""
  torch = pytest.importorskip("torch")
  steps, warmup = 40, 8
  rule = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
  schedulers = torch.optim.lr_scheduler
  main = {
    "poly": lambda: schedulers.PolynomialLR(rule, steps, power=0.9),
    "cosine": lambda: schedulers.CosineAnnealingLR(rule, steps),
  }[name]()
  linear = schedulers.LinearLR(rule, 1 / warmup, total_iters=warmup - 1)
  chained = schedulers.ChainedScheduler([main, linear])
  found = jax.jit(
    optimizer.learning_rate(config(learning_rate=0.3, schedule=name, warmup_steps=warmup), steps)
  )
  for step in range(steps):
    np.testing.assert_allclose(found(step), rule.param_groups[0]["lr"], rtol=1e-5)
    rule.step()
    chained.step()
  assert found(steps) == 0 == found(steps + 1)


def test_learning_rate_is_poly_at_every_step_and_ends_at_zero():
  schedule = jax.jit(optimizer.learning_rate(config(learning_rate=0.01), 30_000))
  for step in (0, 1, 2, 15_000, 29_999):
    np.testing.assert_allclose(schedule(step), 0.01 * (1 - step / 30_000) ** 0.9, rtol=1e-5)
  assert schedule(30_000) == 0
  assert schedule(30_001) == 0


def test_state_is_a_pytree_of_arrays_that_survives_a_round_trip():
  params = random_params()
  state = optimizer.build(config(decay_norm_and_bias=False), STEPS, params, {}).init(params)
  leaves, structure = jax.tree.flatten(state)
  assert all(isinstance(leaf, jax.Array) for leaf in leaves)
  shapes = sorted(leaf.shape for leaf in leaves)
  assert shapes == sorted([leaf.shape for leaf in jax.tree.leaves(params)] + [()])  # buffers, and the step
  # What a checkpoint does: new arrays in the old structure.
  restored = jax.tree.unflatten(structure, [jnp.array(np.asarray(leaf)) for leaf in leaves])
  assert jax.tree.structure(restored) == structure
