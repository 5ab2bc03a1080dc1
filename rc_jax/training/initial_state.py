"""Where a run begins: the state of step 0 on the mesh, and the step that trains it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rc_jax import contrast, models, sharding
from rc_jax.config import Config, height_width, reads_banks
from rc_jax.console import say
from rc_jax.train_state import TrainState
from rc_jax.training import optimizer
from rc_jax.training.train_step import make_train_step
from rc_jax.weights import pretrained


def initial_state(
  config: Config, network: models.Network, training_images: int, mesh: Any, fresh: bool
) -> tuple[TrainState, Any]:
  """Returns the state of step 0, on the mesh, and the optimizer that its ``opt_state`` belongs to.

  Every device holds all of it but for the banks, whose slots are spread over the devices.

  Args:
    config: a validated config.
    network: functions of the network.
    training_images: size of the training set, which ``contrast.bank_size=0`` stands for.
    mesh: the global mesh.
    fresh: False where a checkpoint will replace the values, so that weights need not be imported.

  Raises:
    ValueError: the weights file does not fit the network.
    FileNotFoundError: there is no such weights file.
  """
  variables = network.init(jax.random.key(config.seed), image_size=height_width(config.train.crop_size))
  if config.model.pretrained and fresh:
    variables, imported = pretrained.load(config.model.pretrained, variables, config.model)
    say(imported.summary())
  update_rule = optimizer.sgd(config.optimizer, config.train.steps, variables.params)
  state = fresh_state(config, network, variables, update_rule, training_images, mesh)
  # The banks are born where they belong.
  rest = sharding.put_replicated(dataclasses.replace(state, bank=None), mesh)
  return dataclasses.replace(rest, bank=state.bank), update_rule


def fresh_state(
  config: Config,
  network: models.Network,
  variables: models.Variables,
  update_rule: Any,
  training_images: int,
  mesh: Any,
) -> TrainState:
  """Returns the state of step 0 with the banks on the mesh; may be traced. Arguments as for ``initial_state``."""
  bank = None
  if reads_banks(config):
    bank = contrast.MemoryBank.create(
      num_classes=network.num_classes,
      capacity=config.contrast.bank_size or training_images,
      dim=network.channels,
      dtype=jnp.dtype(config.contrast.bank_dtype),
      mesh=mesh,
      axis=sharding.DATA_AXIS,
    )
  return TrainState(
    step=jnp.int32(0),
    params=variables.params,
    batch_stats=variables.batch_stats,
    opt_state=update_rule.init(variables.params),
    bank=bank,
  )


def jitted_step(
  config: Config, network: models.Network, update_rule: Any, state: TrainState, mesh: Any
) -> Any:
  """Returns the train step as it runs, not yet compiled; ``state`` tells by its shardings where arrays stay."""
  schedule = optimizer.learning_rate(config.optimizer, config.train.steps)
  return jax.jit(
    make_train_step(network, update_rule, schedule, config),
    donate_argnums=0,
    # Named, not left to the compiler: the compiled step is fed its own output.
    out_shardings=(sharding.shardings_of(state), sharding.replicated(mesh)),
  )
