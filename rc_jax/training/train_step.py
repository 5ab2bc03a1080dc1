"""One update: images and labels in, the next state and its metrics out. Pure, and one program on any mesh."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from rc_jax import contrast
from rc_jax.config import Config, uses_contrast
from rc_jax.models import Network
from rc_jax.ops import resample
from rc_jax.train_state import TrainState
from rc_jax.training import losses
from rc_jax.training.objective import _contrast_loss, _pixel_loss

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def make_train_step(
  network: Network,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  config: Config,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Returns the train step of a config; the caller compiles it.

  The loss is Eq. 5 of RegionContrast: ``L = L_pixel + aux_weight L_aux + contrast_weight L_RC``.

  Args:
    network: functions of the network.
    optimizer: turns gradients into updates.
    schedule: learning rate of a step, logged alone (the optimizer applies its own).
    config: a validated config.

  Returns:
    ``step(state, batch) -> (state, metrics)``; batch: ``image [B,H,W,3]`` uint8, ``label [B,H,W]`` uint8 with 255
    ignored; metrics: float32 scalars, and ``bank_fill [N]`` in 0..1 where there is a bank.
  """
  contrast_weight = config.loss.contrast_weight if uses_contrast(config) else 0.0
  seed = config.seed

  def loss_fn(params, state: TrainState, batch: Batch):  # type: ignore[no-untyped-def]
    labels = batch["label"].astype(jnp.int32)
    # The key follows from the step, so that a resumed run drops the same units.
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    outputs, batch_stats = network.train(params, state.batch_stats, batch["image"], rng)

    def upsampled(logits: jax.Array) -> jax.Array:  # [B,h,w,N] -> [B,H,W,N]
      return resample.upsample(logits, (labels.shape[1], labels.shape[2]), network.align_corners)

    loss_pixel = _pixel_loss(upsampled(outputs.logits), labels, config.loss)
    loss_aux = jnp.float32(0.0)  # where neither backbone nor head has anything to supervise
    if outputs.aux_logits is not None:
      loss_aux = losses.cross_entropy(upsampled(outputs.aux_logits), labels)
    loss = loss_pixel + config.loss.aux_weight * loss_aux
    metrics = {"loss_pixel": loss_pixel, "loss_aux": loss_aux, "loss_contrast": jnp.float32(0.0)}
    for branch in outputs.branch_logits:
      loss_branch = _pixel_loss(upsampled(branch), labels, config.loss)
      metrics["loss_branch"] = metrics.get("loss_branch", 0.0) + loss_branch
      loss += config.loss.branch_weight * loss_branch
    if outputs.presence_logits is not None:
      metrics["loss_presence"] = losses.presence_loss(outputs.presence_logits, labels)
      loss += config.loss.presence_weight * metrics["loss_presence"]

    centers = None
    if contrast_weight:
      grid = (outputs.logits.shape[1], outputs.logits.shape[2])
      grid_labels = resample.downsample_labels(labels, grid, network.align_corners)
      centers = contrast.region_centers(
        outputs.features, outputs.logits, grid_labels, method=config.contrast.centers
      )
      loss_contrast, stats = _contrast_loss(centers, state.bank, config.contrast)
      loss = loss + contrast_weight * loss_contrast
      metrics["loss_contrast"] = loss_contrast
      metrics.update({f"contrast_{name}": value for name, value in stats.items()})
    metrics["loss_aux_scaled"] = config.loss.aux_weight * loss_aux
    metrics["loss_contrast_scaled"] = contrast_weight * metrics["loss_contrast"]
    metrics["loss"] = loss
    return loss, (metrics, batch_stats, centers)

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    grads, (metrics, batch_stats, centers) = jax.grad(loss_fn, has_aux=True)(state.params, state, batch)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    bank = state.bank
    if bank is not None:
      # After the loss: a center must not meet itself among its own positives.
      bank = contrast.enqueue(bank, centers)
      metrics["bank_fill"] = bank.count / jnp.float32(bank.capacity)
    params = optax.apply_updates(state.params, updates)
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
