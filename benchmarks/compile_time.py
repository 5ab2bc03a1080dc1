"""Times tracing and compiling of a recipe's train step.

python -m benchmarks.compile_time --config=configs/cityscapes.py:hrnetv2_w48 [--batch_size=1]
"""

import argparse
import time

import jax
import jax.numpy as jnp

from benchmarks import steps
from rc_jax import data, models, sharding
from rc_jax.config import height_width, load_recipe
from rc_jax.training import initial_state, optimizer
from rc_jax.training.train_step import make_train_step


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", default="configs/cityscapes.py:hrnetv2_w48")
  parser.add_argument("--batch_size", type=int, default=1)
  arguments = parser.parse_args()
  config = load_recipe(arguments.config)
  config.train.batch_size = arguments.batch_size

  info = data.info(config.dataset.name, config.dataset.root)
  network = models.build(config.model, info.num_classes)
  images = steps.TRAINING_IMAGES[info.name]
  state, update_rule = initial_state.initial_state(
    config, network, images, sharding.global_mesh(), fresh=False
  )
  schedule = optimizer.learning_rate(config.optimizer, config.train.steps)
  step = jax.jit(make_train_step(network, update_rule, schedule, config), donate_argnums=0)
  size = (arguments.batch_size, *height_width(config.train.crop_size))
  batch = {
    "image": jax.ShapeDtypeStruct((*size, 3), jnp.uint8),
    "label": jax.ShapeDtypeStruct(size, jnp.uint8),
  }
  started = time.perf_counter()
  lowered = step.lower(state, batch)
  traced = time.perf_counter()
  lowered.compile()
  compiled = time.perf_counter()
  print(f"{arguments.config}: {steps.describe(config)}")
  print(f"traced and lowered in {traced - started:.1f} s, compiled in {compiled - traced:.1f} s")


if __name__ == "__main__":
  main()
