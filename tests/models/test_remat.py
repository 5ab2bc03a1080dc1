"""Rematerialised parts: the same values and gradients, of fewer kept activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax import models
from rc_jax.models import parts
from tests.training.test_train_step import CLASSES, batch, tiny

FROZEN = "stage1"  # also: blocks that normalise with running statistics


def gradient(**fields):
  """Loss, gradients and statistics of a batch, and the residuals that the gradient keeps: shapes and dtypes."""
  network = models.build(tiny(model__dropout=0.1, model__freeze_batch_stats=FROZEN, **fields).model, CLASSES)
  variables = network.init(jax.random.key(0))
  images = batch()["image"]

  def loss(params):
    outputs, statistics = network.train(params, variables.batch_stats, images, jax.random.key(1))
    return jnp.square(outputs.logits).mean() + outputs.features.mean(), statistics

  found = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables.params)
  pullback = jax.eval_shape(lambda params: jax.vjp(lambda p: loss(p)[0], params)[1], variables.params)
  kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback))
  return jax.device_get(found), kept


@pytest.fixture(scope="module")
def plain():
  return gradient()


@pytest.fixture(scope="module")
def saving():
  return gradient(model__remat="stage1, stage4, head")


@pytest.mark.long
def test_values_gradients_and_statistics_are_the_same(plain, saving) -> None:
  for one, other in zip(jax.tree.leaves(plain[0]), jax.tree.leaves(saving[0]), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_fewer_bytes_are_kept(plain, saving) -> None:
  assert saving[1] < 0.9 * plain[1]


def test_blocks_are_rematerialised_and_keep_their_names() -> None:
  network = models.build(tiny(model__remat="backbone,head").model, CLASSES)
  plain = models.build(tiny().model, CLASSES)
  variables, others = network.init(jax.random.key(0)), plain.init(jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, variables, others)

  def total(params):
    return network.train(params, variables.batch_stats, batch()["image"], jax.random.key(1))[0].logits.sum()

  jaxpr = str(jax.make_jaxpr(jax.grad(total))(variables.params))
  # The blocks of the four stages, and the parts of the head.
  assert jaxpr.count("remat2[") + jaxpr.count("checkpoint[") >= 6


@pytest.mark.parametrize("backbone", ["hrnetv2_w18"])
def test_stages_of_other_backbones_may_be_named(backbone: str) -> None:
  found = models.backbones()[backbone]
  names = ",".join(found.stages)
  assert parts.part_paths("model.remat", names, backbone, found.stages)


@pytest.mark.parametrize("part", ["stage9", "stem"])
def test_parts_without_blocks_are_refused(part: str) -> None:
  with pytest.raises(ValueError, match=f"model.remat: is '{part}'; expected parts of a network on"):
    models.build(tiny(model__remat=part).model, CLASSES)
