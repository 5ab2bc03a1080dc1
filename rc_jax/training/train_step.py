"""One update: images and labels in, the next state and its metrics out. Pure, and one program on any mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rc_jax import losses
from rc_jax.config import Config
from rc_jax.models import Network, Variables, merge, split
from rc_jax.train_state import TrainState
from rc_jax.training.ema import update_average
from rc_jax.training.objective import Metrics, contrastive_method, objective

Batch = dict[str, jax.Array]

# Metrics that count what the batch shows.
COUNTS = ("contrast_queries",)
# Metrics that are means over these queries.
MEANS_OVER_QUERIES = ("contrast_positive_similarity", "contrast_negative_similarity")


def make_train_step(
  network: Network,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  config: Config,
  norms: bool = True,
  unrolled: bool = True,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Returns the train step of a config; the caller compiles it.

  ``(params, bank) <- (params + optimizer(grad L(params, bank)), update(bank, keys of the batch))`` with ``L`` of
  `objective`, Eq. 5 of RegionContrast. Parameters in ``network.frozen`` stay as they are.

  With ``train.microbatches = k`` above 1, ``L`` is the mean of the losses of ``k`` parts of the batch, computed one
  after another. Each part reads the bank of the steps before, and the keys of all parts are then written in the order
  of the batch, as without parts. BatchNorm normalises each part by its own statistics, and moves its running statistics
  ``k`` times. Each part of a loss that is a mean over pixels counts by the pixels of the part, so that the mean is over
  all pixels of the batch. The contrastive loss and other losses are those of each part, and all parts count the same.

  Args:
    network: functions of the network.
    optimizer: turns gradients into updates.
    schedule: learning rate of a step, logged alone (the optimizer applies its own).
    config: a validated config.
    norms: whether the metrics have ``gradient_norm``, of all trained parameters together and before clipping, and
      ``parameter_norm``, of all parameters. On a GPU these are several hundred small operations.
    unrolled: whether the parts of a batch are written out in the program, in place of a loop. In a loop, a CPU computes
      convolutions about 20 times slower.

  Returns:
    ``step(state, batch) -> (state, metrics)``; batch: ``image [B,H,W,3]`` uint8, ``label [B,H,W]`` uint8 with 255
    ignored, and ``index [B]`` int32, the place of each image in the training set, where ``reads_image_index``; metrics:
    float32 scalars, and ``[N]`` by class from the contrast and its memory banks.

  Raises:
    ValueError: ``contrast.method`` names no method.
  """
  method = contrastive_method(config)
  parts: int = config.train.microbatches

  def loss_fn(
    trained: Any,
    frozen: Any,
    state: TrainState,
    batch: Batch,
    rng: jax.Array,
    pixel_share: jax.Array | None = None,
  ) -> tuple[jax.Array, tuple[Metrics, Any, Any]]:
    labels = batch["label"].astype(jnp.int32)
    outputs, batch_stats = network.train(merge(trained, frozen), state.batch_stats, batch["image"], rng)
    loss, metrics, keys = objective(
      outputs, labels, state.bank, config, network.align_corners, state.step, pixel_share
    )
    return loss, (metrics, batch_stats, keys)

  gradient = jax.grad(loss_fn, has_aux=True)

  def gradient_of_parts(
    trained: Any, frozen: Any, state: TrainState, batch: Batch, rng: jax.Array
  ) -> tuple[Any, tuple[Metrics, Any, Any]]:
    def one_part(
      carry: tuple[Any, Any], inputs: tuple[jax.Array, jax.Array, Batch]
    ) -> tuple[tuple[Any, Any], Any]:
      total, batch_stats = carry
      number, pixel_share, part = inputs
      before = dataclasses.replace(state, batch_stats=batch_stats)
      grads, (metrics, batch_stats, keys) = gradient(
        trained, frozen, before, part, jax.random.fold_in(rng, number), pixel_share
      )
      return (jax.tree.map(jnp.add, total, grads), batch_stats), (metrics, keys)

    zeros = jax.tree.map(jnp.zeros_like, trained)
    batches = jax.tree.map(lambda array: _in_parts(array, parts), batch)
    weights = config.loss.class_weights or None
    pixel_shares = losses.pixel_shares(batches["label"].astype(jnp.int32), network.num_classes, weights)
    inputs = (jnp.arange(parts), pixel_shares, batches)
    scan = _unrolled_scan if unrolled else jax.lax.scan
    (total, batch_stats), (metrics, keys) = scan(one_part, (zeros, state.batch_stats), inputs)
    grads = jax.tree.map(lambda leaf: leaf / parts, total)
    images = batch["label"].shape[0] // parts
    for leaf in jax.tree.leaves(keys):
      if leaf.shape[1:2] != (images,):
        raise ValueError(
          f"config.train.microbatches: is {parts}, but contrast.method={config.contrast.method} has keys of the shape "
          f"{leaf.shape[1:]} for {images} images, which cannot be joined; expected arrays [B,...], or microbatches=1"
        )
    keys = jax.tree.map(_in_order_of_the_batch, keys)
    return grads, (_over_parts(metrics), batch_stats, keys)

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    # Frozen parameters are no argument of the gradient: nothing is computed backwards below the first trained layer.
    trained, frozen = split(state.params, network.frozen)
    # The key follows from the step, so that a resumed run drops the same units.
    rng = jax.random.fold_in(jax.random.key(config.seed), state.step)
    compute = gradient if parts == 1 else gradient_of_parts
    grads, (metrics, batch_stats, keys) = compute(trained, frozen, state, batch, rng)
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    params = merge(optax.apply_updates(trained, updates), frozen)
    bank = state.bank
    if method is not None and bank is not None:
      # After the loss: otherwise a center would be among its own positives. RegionContrast reads the bank in the
      # forward pass alone, so behind the barrier keys are written in place; without it, a GPU copies a small bank.
      bank, keys, _ = jax.lax.optimization_barrier((bank, keys, metrics["loss"]))
      bank, bank_metrics = method.update(bank, keys, batch.get("index"))
      metrics |= bank_metrics
    if norms:
      metrics["gradient_norm"] = optax.tree.norm(grads)
      metrics["parameter_norm"] = optax.tree.norm(params)
    metrics["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
    ema = state.ema
    if ema is not None:
      ema = update_average(ema, Variables(params, batch_stats), state.step + 1, config.train.ema_decay)
    next_state = TrainState(
      step=state.step + 1,
      params=params,
      batch_stats=batch_stats,
      opt_state=opt_state,
      bank=bank,
      ema=ema,
    )
    return next_state, metrics

  return train_step


def _unrolled_scan(
  function: Callable[[Any, Any], tuple[Any, Any]], carry: Any, inputs: Any
) -> tuple[Any, Any]:
  """Computes as ``jax.lax.scan``, without a loop in the program; each call starts when the one before has ended."""
  outputs = []
  for number in range(jax.tree.leaves(inputs)[0].shape[0]):
    part = jax.tree.map(lambda array, number=number: array[number], inputs)
    carry, part = jax.lax.optimization_barrier((carry, part))
    carry, output = function(carry, part)
    outputs.append(output)
  return carry, jax.tree.map(lambda *arrays: jnp.stack(arrays), *outputs)


def _in_parts(array: jax.Array, parts: int) -> jax.Array:
  """Splits ``[B,...]`` into ``[parts,B/parts,...]``: image ``i`` goes to part ``i % parts``.

  A batch is spread over devices in blocks, and each device thus keeps its images.
  """
  return array.reshape(array.shape[0] // parts, parts, *array.shape[1:]).swapaxes(0, 1)


def _in_order_of_the_batch(array: jax.Array) -> jax.Array:
  """Joins ``[parts,B/parts,...]`` to ``[B,...]``, the inverse of `_in_parts`."""
  return array.swapaxes(0, 1).reshape(-1, *array.shape[2:])


def _over_parts(metrics: Metrics) -> Metrics:
  """Returns the metrics of a batch from those of its parts, ``[parts,...]``.

  Counts are summed. Means over queries are weighted by the queries of each part. Values by class are means over the
  parts that have one. All others are means over the parts.
  """
  queries = metrics.get("contrast_queries")

  def of_batch(name: str, values: jax.Array) -> jax.Array:
    if name in COUNTS:
      return values.sum(axis=0)
    if name in MEANS_OVER_QUERIES and queries is not None:
      return (values * queries).sum(axis=0) / jnp.maximum(queries.sum(axis=0), 1)
    return jnp.nanmean(values, axis=0) if values.ndim > 1 else values.mean(axis=0)

  return {name: of_batch(name, values) for name, values in metrics.items()}
