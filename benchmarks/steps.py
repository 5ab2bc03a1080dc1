"""The train step of a recipe as a function to time, without a data set."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from rc_jax import contrast, data, models, sharding
from rc_jax.config import Config, height_width, reads_image_index
from rc_jax.training import initial_state, optimizer
from rc_jax.training.train_step import make_train_step

# Sizes of the training sets, which decide the banks' sizes where `bank_size` is 0.
TRAINING_IMAGES = {"cityscapes": 2975, "ade20k": 20_210, "camvid": 367, "synthetic": 800}


Bank = TypeVar("Bank", contrast.MemoryBank, contrast.ImageMemoryBank)


def full_bank(bank: Bank, seed: int = 1) -> Bank:
  """Fills a bank with random unit vectors, class by class, because a second bank may not fit."""
  slots, dim = bank.keys.shape[1:]

  def fill(keys: jax.Array, n: jax.Array) -> jax.Array:
    rows = jax.random.normal(jax.random.fold_in(jax.random.key(seed), n), (slots, dim))
    rows *= (jnp.arange(slots) < bank.capacity)[:, None] / jnp.linalg.norm(rows, axis=-1, keepdims=True)
    return keys.at[n].set(rows.astype(keys.dtype))

  fill = jax.jit(fill, donate_argnums=0, out_shardings=bank.keys.sharding)
  keys = bank.keys
  for n in range(keys.shape[0]):
    keys = fill(keys, n)
  if isinstance(bank, contrast.ImageMemoryBank):
    valid = jnp.broadcast_to(jnp.arange(slots) < bank.capacity, bank.valid.shape)
    return dataclasses.replace(bank, keys=keys, valid=jax.device_put(valid, bank.valid.sharding))
  return dataclasses.replace(bank, keys=keys, count=jnp.full_like(bank.count, bank.capacity))


def made_up_batch(config: Config, num_classes: int) -> dict[str, np.ndarray]:
  """Returns random images with labels in blocks, so that an image shows regions of several classes.

  Noise would put every class into every image.
  """
  rng = np.random.default_rng(0)
  size = (config.train.batch_size, *height_width(config.train.crop_size))
  blocks = rng.integers(0, num_classes, (size[0], 4, 4))
  label = np.kron(blocks, np.ones((1, -(-size[1] // 4), -(-size[2] // 4))))[:, : size[1], : size[2]]
  batch = {"image": rng.integers(0, 256, (*size, 3), np.uint8), "label": label.astype(np.uint8)}
  if reads_image_index(config):
    images = TRAINING_IMAGES[config.dataset.name]
    batch["index"] = (np.arange(config.train.batch_size) % images).astype(np.int32)
  return batch


def one_step(config: Config) -> Callable[[], Any]:
  """Returns a compiled function that makes one update with full banks and random images, and returns its metrics."""
  info = data.info(config.dataset.name, config.dataset.root)
  network = models.build(config.model, info.num_classes)
  mesh = sharding.global_mesh()
  state, update_rule = initial_state.initial_state(
    config, network, TRAINING_IMAGES[info.name], mesh, fresh=False
  )
  if state.bank is not None:
    state = dataclasses.replace(state, bank=full_bank(state.bank))
  batch = sharding.put_batch(made_up_batch(config, info.num_classes), mesh)
  schedule = optimizer.learning_rate(config.optimizer, config.train.steps)
  step = jax.jit(make_train_step(network, update_rule, schedule, config), donate_argnums=0)
  step = step.lower(state, batch).compile()
  holder = [state]

  def update() -> Any:
    holder[0], metrics = step(holder[0], batch)
    return metrics

  return update


def describe(config: Config) -> str:
  """Returns batch size, crop size, devices and jax version, as text."""
  size = " x ".join(map(str, height_width(config.train.crop_size)))
  kind = jax.devices()[0].device_kind
  return (
    f"batch {config.train.batch_size}, crop {size}, on {jax.device_count()} x {kind}, jax {jax.__version__}"
  )
