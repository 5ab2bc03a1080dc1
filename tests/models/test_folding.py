"""BatchNorm folded into convolutions: predictions equal those without folding, for every network."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax import models
from rc_jax.config import load_recipe
from rc_jax.models import folding
from rc_jax.models.backbones.resnet import Block
from rc_jax.models.layers import BatchNorm, Conv, ConvNormRelu, SeparableConvNormRelu


def random_like(tree, seed=0):
  """Positive values of the size of trained statistics; every leaf has its own."""
  leaves, structure = jax.tree.flatten(tree)
  rng = np.random.default_rng(seed)
  drawn = [jnp.asarray(rng.uniform(0.3, 1.5, leaf.shape), jnp.float32) for leaf in leaves]
  return jax.tree.unflatten(structure, drawn)


def random_variables(module, x):
  variables = module.init(jax.random.key(0), x, train=True)
  draw = random_like(variables)
  draw["params"] = jax.tree.map(
    lambda leaf: leaf - 0.9 if leaf.ndim > 1 else leaf, draw["params"]
  )  # kernels of both signs
  return draw


def folded_output(module, variables, x):
  def run():
    return module.apply(variables, x, train=False)

  folded = folding.folded_convs(run, variables)
  with folding.folding(folded):
    computed_before = run()
  with folding.folding({}):
    np.testing.assert_array_equal(run(), computed_before)
  return computed_before, folded


MODULES = {
  "conv": ConvNormRelu(5, 3, 2),
  "separable": SeparableConvNormRelu(5, 3, 2),
  "bottleneck": Block(4, True, 2, 1, 1, "3x3", jnp.float32, 0.9, 1e-3),
  "basic": Block(4, False, 1, 2, 2, "3x3", jnp.float32, 0.9, 1e-3),
}
FOLDED = {"conv": 1, "separable": 2, "bottleneck": 4, "basic": 3}


@pytest.mark.parametrize("name", list(MODULES))
def test_a_module_predicts_the_same(name):
  module = MODULES[name]
  x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 9, 8, 6)), jnp.float32)
  variables = random_variables(module, x)
  expected = module.apply(variables, x, train=False)
  found, folded = folded_output(module, variables, x)
  assert len(folded) == FOLDED[name]
  assert float(jnp.abs(expected).max()) > 0.1
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5 * float(jnp.abs(expected).max()))


def test_a_norm_of_another_array_is_left_alone():
  class Sum(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      y = Conv(6, 3, name="conv")(x)
      biased = Conv(6, 1, use_bias=True, name="biased")(x)
      return BatchNorm(name="bn")(y + x, train) + BatchNorm(name="bn2")(biased, train)

  x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 5, 4, 6)), jnp.float32)
  variables = random_variables(Sum(), x)
  found, folded = folded_output(Sum(), variables, x)
  assert folded == {}
  np.testing.assert_array_equal(found, Sum().apply(variables, x, train=False))


def test_weights_behind_a_transformation_of_flax_are_folded_in_place():
  class Remat(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      return nn.remat(ConvNormRelu, static_argnums=2)(6, 3, name="inner")(x, train)

  x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 5, 4, 6)), jnp.float32)
  variables = random_variables(Remat(), x)
  found, folded = folded_output(Remat(), variables, x)
  assert folded == {}
  np.testing.assert_allclose(found, Remat().apply(variables, x, train=False), rtol=2e-5, atol=2e-5)


def test_weights_belong_to_their_modules_in_whatever_order_these_are_called():
  class Two(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      first, second = ConvNormRelu(6, 3, name="first"), ConvNormRelu(6, 3, name="second")
      # The order depends on the size of the image.
      order = (first, second) if x.shape[1] > 6 else (second, first)
      return order[1](order[0](x, train), train)

  large, small = (
    jnp.asarray(np.random.default_rng(1).standard_normal((1, n, n, 6)), jnp.float32) for n in (8, 4)
  )
  variables = random_variables(Two(), large)
  folded = folding.folded_convs(lambda: Two().apply(variables, large, train=False), variables)
  assert len(folded) == 2
  with folding.folding(folded):
    found = Two().apply(variables, small, train=False)
  expected = Two().apply(variables, small, train=False)
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5 * float(jnp.abs(expected).max()))


@pytest.mark.long
@pytest.mark.parametrize(("backbone", "output_stride"), [("resnet_tiny", 8), ("hrnetv2_w18", 4)])
def test_a_network_has_no_norm_left(backbone, output_stride):
  config = load_recipe("configs/demo.py")
  config.model.backbone, config.model.output_stride = backbone, output_stride
  network = models.build(config.model, 11)
  variables = network.init(jax.random.key(0))
  traced = jax.make_jaxpr(network.predict)(*variables, jnp.zeros((1, 65, 65, 3), jnp.uint8))
  rsqrts = [e for e in traced.jaxpr.eqns if e.primitive.name == "rsqrt"]
  norms = [leaf for path, leaf in jax.tree.leaves_with_path(variables.batch_stats) if path[-1].key == "var"]
  auxiliary = len(jax.tree.leaves(variables.batch_stats.get("aux_head", {}))) // 2
  # One of each norm, all of vectors: none divides a map.
  assert len(rsqrts) == len(norms) - auxiliary
  assert all(len(e.outvars[0].aval.shape) == 1 for e in rsqrts)
  subtractions = [e for e in traced.jaxpr.eqns if e.primitive.name == "sub" and e.outvars[0].aval.ndim == 4]
  assert len(subtractions) <= 1  # of the mean colour
