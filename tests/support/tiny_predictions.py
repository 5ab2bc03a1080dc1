"""Predictions and exported programs of networks with random weights, which take the place of a checkpoint."""

import contextlib
import functools
import pathlib
import sys
from collections.abc import Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from rc_jax import data, distributed, models
from rc_jax.config import Config
from rc_jax.models import Network, Outputs, Variables
from rc_jax.modes import export, predict
from rc_jax.weights import checkpoint
from tests.support.run_tiny import get_config


def tiny_config() -> Config:
  """Returns the config of the smallest network, with batches of one image."""
  config = get_config()
  config.eval.batch_size = 1
  return config


@functools.cache
def tiny_variables(seed: int = 0) -> Variables:
  """Returns random weights of ``tiny_config``'s network."""
  network = models.build(tiny_config().model, 11)
  return network.init(jax.random.key(seed), (49, 65))


def color_network(classes: int = 11) -> Network:
  """Returns a network that mixes the colours of every fourth pixel, and compiles fast."""

  def forward(params, batch_stats, images):
    logits = images[:, ::4, ::4].astype(jnp.float32) @ params["kernel"]
    return Outputs(logits, logits)

  def unused(*args, **kwargs):
    raise AssertionError("inference needs prediction alone")

  return Network(unused, unused, forward, classes, classes, True)


def color_variables(seed: int = 0, classes: int = 11) -> Variables:
  """Returns random weights of ``color_network``."""
  kernel = np.random.default_rng(seed).normal(0, 0.02, (3, classes)).astype(np.float32)
  return Variables({"kernel": jnp.asarray(kernel)}, {"unread": jnp.zeros(2)})


def label(
  images: pathlib.Path | None,
  output: pathlib.Path,
  *,
  seed: int = 0,
  dataset: str = "synthetic",
  window: int = 0,
  **options,
) -> int:
  """Runs ``--mode=predict`` with ``color_network``; returns its exit status."""
  config = tiny_config()
  config.dataset.name = dataset
  config.eval.crop_size = (window, window) if window else ()
  classes = data.info(dataset, "").num_classes
  with _checkpoint_of(color_network(classes), color_variables(seed, classes), 7 + seed):
    return predict.run(config, output.parent, None, images, output=output, **options)


def label_tiny(images: pathlib.Path, output: pathlib.Path, **options) -> int:
  """Runs ``--mode=predict`` with the smallest network; returns its exit status."""
  with _checkpoint_of(None, tiny_variables(), 7):
    return predict.run(tiny_config(), output.parent, None, images, output=output, **options)


def export_tiny(output: pathlib.Path, **options) -> pathlib.Path:
  """Runs ``--mode=export`` with the smallest network."""
  with _checkpoint_of(None, tiny_variables(), 7):
    return export.run(tiny_config(), output.parent, None, output=output, **options)


@contextlib.contextmanager
def _checkpoint_of(network: Network | None, variables: Variables, step: int) -> Iterator[None]:
  """Takes the place of a checkpoint, and of the config's network unless ``network`` is None."""
  model = checkpoint.Model(step, *variables)
  patches = {
    "rc_jax.weights.restore.restore": lambda network, config, path, classes: model,
    "rc_jax.weights.checkpoint.find": lambda path: pathlib.Path("run/checkpoints/7"),
  }
  if network is not None:
    patches["rc_jax.models.build"] = lambda config, classes: network
  with contextlib.ExitStack() as stack:
    for name, value in patches.items():
      stack.enter_context(mock.patch(name, value))
    yield


if __name__ == "__main__":
  distributed.connect()
  options = dict(option.split("=") for option in sys.argv[3:])
  sys.exit(label(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), probabilities=True, **options))
