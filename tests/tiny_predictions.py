"""Predictions and programs of the smallest network with random weights, as if a checkpoint held them."""

import pathlib
import sys
from unittest import mock

import jax

from rc_jax import checkpoint, evaluate, export, models, predict
from rc_jax.config import Config
from tests.run_tiny import get_config


def tiny_config() -> Config:
  config = get_config()
  config.eval.batch_size = 1
  return config


def _restored(config: Config, seed: int) -> mock._patch:
  network = models.build(config.model, 11)
  variables = network.init(jax.random.key(seed), (49, 65))
  model = checkpoint.Model(step=7 + seed, params=variables.params, batch_stats=variables.batch_stats)
  return mock.patch.multiple(evaluate, restore=lambda network, config, path: model)


def label(
  images: pathlib.Path | None,
  output: pathlib.Path,
  *,
  config: Config | None = None,
  seed: int = 0,
  **options,
) -> int:
  """Runs ``--mode=predict``; returns its exit status."""
  config = config or tiny_config()
  with _restored(config, seed), mock.patch.object(checkpoint, "find", lambda path: pathlib.Path("run/7")):
    return predict.run(config, output.parent, None, images, output=output, **options)


def export_to(
  output: pathlib.Path, *, config: Config | None = None, seed: int = 0, **options
) -> pathlib.Path:
  """Runs ``--mode=export``."""
  config = config or tiny_config()
  with _restored(config, seed), mock.patch.object(checkpoint, "find", lambda path: pathlib.Path("run/7")):
    return export.run(config, output.parent, None, output=output, **options)


if __name__ == "__main__":
  sys.exit(label(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), probabilities=True))
