"""Runs of a network that compiles fast, with config, classes and checkpoints as training leaves them."""

import json
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax import data, sharding
from rc_jax.class_table import write_class_table
from rc_jax.config import Config, as_dict
from rc_jax.models import Network, Outputs, Variables
from rc_jax.train_state import TrainState
from rc_jax.weights.checkpoint import Checkpoints
from tests.support import run_tiny

STRIDE = 4
CHANNELS = {"deeplabv3": 8, "deeplabv3plus": 6}  # of the features, by the name of the head


def mixing_network(config_model: Config, num_classes: int) -> Network:
  """Takes the place of ``models.build``: features and logits mix the colours of every fourth pixel.

  With ``model.contrast_features=linear``, the logits are of the positive features, as behind a ReLU.
  """
  channels = CHANNELS[config_model.name]

  def init(rng: jax.Array, image_size: tuple[int, int]) -> Variables:
    keys = jax.random.split(rng)
    features = 0.02 * jax.random.normal(keys[0], (3, channels))
    classifier = jax.random.normal(keys[1], (channels, num_classes))
    return Variables({"features": features, "classifier": classifier}, {"unread": jnp.zeros(2)})

  def predict(params, batch_stats, images):
    pixels = images[:, ::STRIDE, ::STRIDE].astype(jnp.float32) - 100
    features = pixels @ params["features"]
    read = jax.nn.relu(features) if config_model.contrast_features == "linear" else features
    return Outputs(read @ params["classifier"], features)

  def unused(*args, **kwargs):
    raise AssertionError("nothing is trained")

  return Network(init, unused, predict, num_classes, channels, True, grid_stride=STRIDE)


def use_small_runs(monkeypatch: pytest.MonkeyPatch, images: int) -> None:
  """Makes ``models.build`` return ``mixing_network``, and ``data.load`` only the first images of a split."""
  load = data.load
  monkeypatch.setattr("rc_jax.models.build", mixing_network)
  monkeypatch.setattr(
    "rc_jax.data.load", lambda *args, **kwargs: data.Subset(load(*args, **kwargs), range(images))
  )


def save_run(
  folder: pathlib.Path,
  *,
  seed: int = 0,
  head: str = "deeplabv3",
  steps: Sequence[int] = (7,),
  ema: bool = False,
  **contrast,
) -> Config:
  """Writes a run of ``mixing_network`` on the synthetic streets; returns its config.

  Args:
    folder: of the run.
    seed: of the weights.
    head: its name, on which the channels depend.
    steps: of its checkpoints, whose weights differ.
    ema: whether the checkpoints hold moving averages: the weights of the seed after this one.
    contrast: fields of ``config.contrast``.
  """
  config = run_tiny.get_config()
  config.model.name = head
  config.contrast.update(contrast)
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(as_dict(config)))
  info = data.info(config.dataset.name, config.dataset.root)
  write_class_table(folder, info.table())
  network = mixing_network(config.model, info.num_classes)
  with Checkpoints(folder, keep=len(steps)) as checkpoints:
    for step in steps:
      variables = network.init(jax.random.key(100 * seed + step), (49, 65))
      average = network.init(jax.random.key(100 * (seed + 1) + step), (49, 65)) if ema else None
      state = TrainState(jnp.int32(step), *variables, {"momentum": jnp.zeros(1)}, None, average)
      checkpoints.save(sharding.put_replicated(state, sharding.global_mesh()), {"next_batch": step})
  return config


def weights_of(config: Config, seed: int, step: int, num_classes: int) -> dict[str, np.ndarray]:
  """The parameters that ``save_run`` has written, as NumPy arrays."""
  variables = mixing_network(config.model, num_classes).init(jax.random.key(100 * seed + step), (49, 65))
  return {name: np.asarray(value) for name, value in variables.params.items()}
