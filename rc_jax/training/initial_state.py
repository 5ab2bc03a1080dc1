"""The state of step 0 on the devices, and the compiled step that trains it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh

from rc_jax import data, models, sharding
from rc_jax.config import Config, height_width
from rc_jax.console import say
from rc_jax.train_state import ShardedBank, TrainState
from rc_jax.training import optimizer
from rc_jax.training.objective import Metrics, contrastive_method
from rc_jax.training.train_step import Batch, make_train_step
from rc_jax.weights import pretrained

# A kernel [k,k,in,out] lies in memory as [out,k,k,in].
KERNEL_LAYOUT = Layout(major_to_minor=(3, 0, 1, 2))


def initial_state(
  config: Config, network: models.Network, training_images: int, mesh: Mesh, fresh: bool
) -> tuple[TrainState, optax.GradientTransformationExtraArgs]:
  """Returns the state of step 0, on the mesh, and the optimizer that its ``opt_state`` belongs to.

  Every device holds all of it except the slots of memory banks, which are spread over the devices.

  Args:
    config: a validated config.
    network: functions of the network.
    training_images: size of the training set, which ``contrast.bank_size=0`` stands for.
    mesh: the global mesh.
    fresh: False where a checkpoint will replace the values, so that weights need not be imported.

  Raises:
    ValueError: the weights to start from do not fit the network; the batch is too small for its BatchNorm; there is no
      such contrastive method.
    FileNotFoundError: there are no such weights.
  """
  variables = network.init(jax.random.key(config.seed), image_size=height_width(config.train.crop_size))
  if config.model.pretrained and fresh:
    names = data.info(config.dataset.name, config.dataset.root, config.dataset.classes).class_names
    variables, imported = pretrained.load(
      config.model.pretrained, variables, config.model, names, other_classes=True
    )
    say(imported.summary())
  trained, _ = models.split(variables.params, network.frozen)
  update_rule = optimizer.build(config.optimizer, config.train.steps, trained, network.stages)
  state = fresh_state(config, network, variables, update_rule, training_images, mesh)
  if not isinstance(state.bank, ShardedBank):
    return sharding.put_replicated(state, mesh), update_rule
  # A sharded bank was allocated on the mesh: one device may not hold it.
  replicated = sharding.put_replicated(dataclasses.replace(state, bank=None), mesh)
  return dataclasses.replace(replicated, bank=state.bank), update_rule


def fresh_state(
  config: Config,
  network: models.Network,
  variables: models.Variables,
  update_rule: optax.GradientTransformation,
  training_images: int,
  mesh: Mesh,
) -> TrainState:
  """Returns the state of step 0, of which only a sharded bank is on the mesh; may be traced.

  Args:
    config: a validated config.
    network: functions of the network.
    variables: the network's initial or imported values.
    update_rule: the optimizer.
    training_images: size of the training set.
    mesh: the global mesh.

  Raises:
    ValueError: the batch is too small for the network's BatchNorm; there is no such contrastive method.
  """
  _check_statistics(config, network, variables)
  method = contrastive_method(config)
  bank = None
  if method is not None:
    bank = method.init(network.num_classes, network.channels, training_images, mesh, sharding.DATA_AXIS)
  return TrainState(
    step=jnp.int32(0),
    params=variables.params,
    batch_stats=variables.batch_stats,
    opt_state=update_rule.init(models.split(variables.params, network.frozen)[0]),
    bank=bank,
    # Copies: the step donates each buffer once.
    ema=jax.tree.map(jnp.copy, variables) if config.train.ema_decay else None,
  )


def _check_statistics(config: Config, network: models.Network, variables: models.Variables) -> None:
  """Refuses a batch of which a BatchNorm would see one value for each channel, as PyTorch does.

  The batch is the global one: devices that hold one image each share their statistics.
  """
  if config.train.batch_size > config.train.microbatches:
    return  # two images are two values, and tracing takes seconds
  images = jax.ShapeDtypeStruct((1, *height_width(config.train.crop_size), 3), jnp.uint8)

  def trace() -> None:
    jax.eval_shape(network.train, *variables, images, jax.eval_shape(lambda: jax.random.key(0)))

  names = [
    name
    for name in models.norms_of_one_value(trace)
    if not models.lies_in(tuple(name.split("/")), network.frozen_statistics)
  ]
  if names:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    parts = config.train.microbatches
    each = f" in {parts} parts (train.microbatches)" if parts > 1 else ""
    expected = f"{2 * parts} or more images" if parts > 1 else "2 or more images"
    raise ValueError(
      f"config.train.batch_size: is {config.train.batch_size}{each}, and the BatchNorm {names[0]}{more} would get one "
      f"value for each channel, which has no variance; expected {expected} over all devices, or a head that pools no "
      "map to one value, such as model.name=fcn"
    )


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
  """Returns the shardings that a state has in training, in the same tree.

  Args:
    state: arrays, or shapes alone.
    mesh: the global mesh.
  """
  replicated = sharding.replicated_sharding(mesh)
  shardings: TrainState = jax.tree.map(lambda leaf: replicated, state)
  if isinstance(state.bank, ShardedBank):
    shardings = dataclasses.replace(shardings, bank=state.bank.shardings())
  return shardings


def state_formats(state: TrainState, mesh: Mesh) -> TrainState:
  """Returns the shardings of a state in training, with the layouts that its arrays have on GPUs.

  A GPU's convolutions read kernels ``[k,k,in,out]`` as ``[out,k,k,in]``. In JAX's usual layout, each step would
  transpose them, their gradients and their updates.

  Args:
    state: arrays, or shapes alone.
    mesh: the global mesh.

  Returns:
    A tree of ``NamedSharding``, and of ``Format`` where the layout is not the usual one.
  """
  shardings = state_shardings(state, mesh)
  if not sharding.on_gpus(mesh):
    return shardings

  def format_of(leaf: Any, where: Any) -> Any:
    return Format(KERNEL_LAYOUT, where) if leaf.ndim == 4 and leaf.shape[2] > 1 else where

  return dataclasses.replace(
    shardings,
    params=jax.tree.map(format_of, state.params, shardings.params),
    opt_state=jax.tree.map(format_of, state.opt_state, shardings.opt_state),
    ema=jax.tree.map(format_of, state.ema, shardings.ema),
  )


def in_training_formats(state: TrainState, mesh: Mesh) -> TrainState:
  """Returns a state with the layouts of `state_formats`; its buffers are donated."""
  if not sharding.on_gpus(mesh):
    return state
  formats = state_formats(state, mesh)
  placed: TrainState = jax.jit(lambda state: state, donate_argnums=0, out_shardings=formats)(state)
  return placed


def jitted_step(
  config: Config,
  network: models.Network,
  update_rule: optax.GradientTransformation,
  state: TrainState,
  mesh: Mesh,
  norms: bool = True,
) -> Any:
  """Returns ``jax.jit`` of the train step of `make_train_step`, not yet compiled, with the mesh in context.

  Args:
    config: a validated config.
    network: functions of the network.
    update_rule: the optimizer.
    state: arrays or shapes, with the formats of `state_formats`; the step returns a state with the same formats. Its
      buffers are donated.
    mesh: the global mesh.
    norms: as for `make_train_step`.
  """
  schedule = optimizer.learning_rate(config.optimizer, config.train.steps)
  on_cpu = mesh.devices.flat[0].platform == "cpu"
  step = make_train_step(network, update_rule, schedule, config, norms, unrolled=on_cpu)

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    # The convolutions' gradients read the mesh (``ops/device_sums.py``).
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return step(state, batch)

  return jax.jit(
    train_step,
    donate_argnums=0,
    # Stated, not left to the compiler: the result of the compiled step is its next argument.
    out_shardings=(state_formats(state, mesh), sharding.replicated_sharding(mesh)),
    compiler_options=sharding.compiler_options(mesh),
  )
