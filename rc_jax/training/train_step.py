"""One update: images and labels in, the next state and its metrics out. Pure, and one program on any mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rc_jax.config import Config
from rc_jax.models import Network, merge, split
from rc_jax.train_state import TrainState
from rc_jax.training.objective import Metrics, contrastive_method, objective

Batch = dict[str, jax.Array]


def make_train_step(
  network: Network,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  config: Config,
  norms: bool = True,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Returns the train step of a config; the caller compiles it.

  ``(params, bank) <- (params + optimizer(grad L(params, bank)), update(bank, keys of the batch))`` with ``L`` of
  `objective`, Eq. 5 of RegionContrast. Parameters in ``network.frozen`` stay as they are.

  Args:
    network: functions of the network.
    optimizer: turns gradients into updates.
    schedule: learning rate of a step, logged alone (the optimizer applies its own).
    config: a validated config.
    norms: whether the metrics have ``gradient_norm``, of all trained parameters together and before clipping, and
      ``parameter_norm``, of all parameters. On a GPU these are several hundred small operations.

  Returns:
    ``step(state, batch) -> (state, metrics)``; batch: ``image [B,H,W,3]`` uint8, ``label [B,H,W]`` uint8 with 255
    ignored, and ``index [B]`` int32, the place of each image in the training set, where ``reads_image_index``; metrics:
    float32 scalars, and ``[N]`` by class from the contrast and its memory banks.

  Raises:
    ValueError: ``contrast.method`` names no method.
  """
  method = contrastive_method(config)

  def loss_fn(
    trained: Any, frozen: Any, state: TrainState, batch: Batch
  ) -> tuple[jax.Array, tuple[Metrics, Any, Any]]:
    labels = batch["label"].astype(jnp.int32)
    # The key follows from the step, so that a resumed run drops the same units.
    rng = jax.random.fold_in(jax.random.key(config.seed), state.step)
    outputs, batch_stats = network.train(merge(trained, frozen), state.batch_stats, batch["image"], rng)
    loss, metrics, keys = objective(outputs, labels, state.bank, config, network.align_corners, state.step)
    return loss, (metrics, batch_stats, keys)

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    # Frozen parameters are no argument of the gradient: nothing is computed backwards below the first trained layer.
    trained, frozen = split(state.params, network.frozen)
    grads, (metrics, batch_stats, keys) = jax.grad(loss_fn, has_aux=True)(trained, frozen, state, batch)
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    params = merge(optax.apply_updates(trained, updates), frozen)
    bank = state.bank
    if method is not None and bank is not None:
      # After the loss: a center must not meet itself among its own positives.
      bank, bank_metrics = method.update(bank, keys, batch.get("index"))
      metrics |= bank_metrics
    if norms:
      metrics["gradient_norm"] = optax.tree.norm(grads)
      metrics["parameter_norm"] = optax.tree.norm(params)
    metrics["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
    next_state = TrainState(
      step=state.step + 1,
      params=params,
      batch_stats=batch_stats,
      opt_state=opt_state,
      bank=bank,
    )
    return next_state, metrics

  return train_step
