"""Fresh values: their distributions, and what they depend on."""

import math

import jax
import numpy as np
import pytest

from rc_jax import models
from rc_jax.models.initial_values import initial_values
from tests.models.test_segmenter import config


def shapes(**leaves):
  return {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in leaves.items()}


def test_distributions_are_pytorchs():
  values = initial_values(
    jax.random.key(0),
    {"conv": shapes(kernel=(3, 3, 64, 128)), "classifier": shapes(kernel=(1, 1, 512, 150), bias=(150,))},
  )
  kernel = np.asarray(values["conv"]["kernel"])
  assert kernel.std() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.02)
  assert abs(kernel.mean()) < 1e-3
  bound = 1 / math.sqrt(512)
  for leaf in values["classifier"].values():
    assert np.abs(leaf).max() <= bound
    assert np.std(leaf) == pytest.approx(bound / math.sqrt(3), rel=0.1)
  norm = initial_values(jax.random.key(0), {"bn": shapes(scale=(4,), bias=(4,), mean=(4,), var=(4,))})["bn"]
  assert [float(norm[name].sum()) for name in ("scale", "bias", "mean", "var")] == [4, 0, 0, 4]


def test_values_depend_on_the_key_and_the_path_alone():
  network = models.build(config(), 5)
  one, same, other = (
    network.init(jax.random.key(seed), size) for seed, size in ((0, (33, 33)), (0, (64, 97)), (1, (33, 33)))
  )
  assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), one, same)))
  layers = one.params["backbone"]["layer1"]
  assert (layers["0"]["conv2"]["kernel"] != layers["1"]["conv1"]["kernel"]).all()
  assert (layers["0"]["conv1"]["kernel"] != other.params["backbone"]["layer1"]["0"]["conv1"]["kernel"]).all()
  # Neither the number of classes nor the head changes a backbone of the same key.
  wider = models.build(config(), 7).init(jax.random.key(0))
  np.testing.assert_array_equal(
    layers["0"]["conv1"]["kernel"], wider.params["backbone"]["layer1"]["0"]["conv1"]["kernel"]
  )
