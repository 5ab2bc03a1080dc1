"""What the contrastive loss adds to a training step: one step of a recipe with it and without, in turn.

  python -m benchmarks.contrast_share --config=configs/cityscapes.py [--rounds=10] [--batch_size=1]

The banks are full, as after an epoch. Ratios above 1 are the cost.
"""

import argparse
import dataclasses
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from rc_jax import data, models, optimizer, sharding, train
from rc_jax.config import Config, square
from rc_jax.train_step import make_train_step

# Sizes of the training sets, for banks of `bank_size = 0`: a benchmark needs no data.
TRAINING_IMAGES = {"cityscapes": 2975, "camvid": 367, "synthetic": 400}


def recipe(path: str) -> Config:
  """Loads ``FILE[:VARIANT]``."""
  file, _, variant = path.partition(":")
  spec = importlib.util.spec_from_file_location("recipe", pathlib.Path(file))
  assert spec and spec.loader, f"{file}: no such recipe"
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config: Config = module.get_config(variant) if variant else module.get_config()
  return config


def steps(config: Config, scope: str):  # type: ignore[no-untyped-def]
  """Returns a function that makes one update and returns its metrics."""
  config = config.copy_and_resolve_references()
  config.contrast.scope = scope
  info = data.info(config.dataset.name)
  network = models.build(config.model, info.num_classes)
  mesh = sharding.global_mesh()
  state, update_rule = train.initial_state(config, network, TRAINING_IMAGES[info.name], mesh, fresh=False)
  if state.bank is not None:
    keys = jax.random.normal(jax.random.key(1), state.bank.keys.shape)
    full = dataclasses.replace(
      state.bank,
      keys=(keys / jnp.linalg.norm(keys, axis=-1, keepdims=True)).astype(state.bank.keys.dtype),
      count=jnp.full_like(state.bank.count, state.bank.keys.shape[1]),
    )
    state = dataclasses.replace(state, bank=sharding.put_replicated(full, mesh))
  rng = np.random.default_rng(0)
  size = (config.train.batch_size, *square(config.train.crop_size))
  # Blocks of a class, so that an image holds regions; noise would put every class into every image.
  blocks = rng.integers(0, info.num_classes, (size[0], 4, 4))
  label = np.kron(blocks, np.ones((1, -(-size[1] // 4), -(-size[2] // 4))))[:, : size[1], : size[2]]
  batch = sharding.put_batch(
    {"image": rng.integers(0, 256, (*size, 3), np.uint8), "label": label.astype(np.uint8)}, mesh
  )
  schedule = optimizer.learning_rate(config.optimizer, config.train.steps)
  step = jax.jit(make_train_step(network, update_rule, schedule, config), donate_argnums=0)
  step = step.lower(state, batch).compile()
  holder = [state]

  def one_step():  # type: ignore[no-untyped-def]
    holder[0], metrics = step(holder[0], batch)
    return metrics

  return one_step


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", default="configs/demo.py")
  parser.add_argument("--rounds", type=int, default=10)
  parser.add_argument("--batch_size", type=int, default=0, help="default: the recipe's")
  parser.add_argument("--crop_size", type=int, default=0, help="default: the recipe's")
  arguments = parser.parse_args()
  config = recipe(arguments.config)
  config.train.batch_size = arguments.batch_size or config.train.batch_size
  if arguments.crop_size:
    config.train.crop_size = (arguments.crop_size,)
  candidates = {
    "cross entropy alone": steps(config, "none"),
    "RegionContrast": steps(config, config.contrast.scope),
  }
  size = " x ".join(map(str, square(config.train.crop_size)))
  print(
    f"{arguments.config}: batch {config.train.batch_size}, crop {size}, on {jax.device_count()} x "
    f"{jax.devices()[0].device_kind}, {arguments.rounds} rounds"
  )
  print(timing.table(timing.in_turn(candidates, arguments.rounds), reference="cross entropy alone"))


if __name__ == "__main__":
  main()
