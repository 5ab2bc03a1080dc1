"""Gradients in bfloat16: no reduction over pixels is in bfloat16, apart from those inside convolutions and products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax import models
from rc_jax.config import defaults
from rc_jax.models.backbones.hrnet import UPSAMPLINGS, FuseLayer
from rc_jax.models.heads.aspp import ASPP
from rc_jax.models.layers import Conv, DepthwiseConv
from tests.support.head_checks import CLASSES, compiled_once

NETWORKS = [
  *({"name": head} for head in models.HEADS),
  {"name": "fcn", "embedding_channels": 8},
  {"name": "fcn", "embedding_channels": 8, "embedding_layers": 2},
  pytest.param(
    {"name": "ocrnet", "backbone": "hrnetv2_w18", "output_stride": 4},
    marks=pytest.mark.long,
    id="hrnetv2_w18",
  ),
]
SUMS = ("reduce_sum", "cumsum", "scatter-add", "reduce_window_sum")


def equations(jaxpr):
  """Yields the equations of a jaxpr and of those inside it."""
  for equation in jaxpr.eqns:
    yield equation
    for parameter in equation.params.values():
      for each in parameter if isinstance(parameter, tuple | list) else [parameter]:
        inner = getattr(each, "jaxpr", each)
        if hasattr(inner, "eqns"):
          yield from equations(inner)


def bfloat16_sums(function, *arguments):
  """Lists the sums of bfloat16 values of a function: primitive, shape, and the module that makes it."""
  sums = []
  for equation in equations(jax.make_jaxpr(function)(*arguments).jaxpr):
    name = equation.primitive.name
    if name not in SUMS:
      continue
    values, result = equation.invars[0].aval, equation.outvars[0].aval
    # Over axes of length 1, nothing is added.
    if values.dtype == jnp.bfloat16 and (name != "reduce_sum" or values.size > result.size):
      sums.append((name, values.shape, str(equation.source_info.name_stack)))
  return sums


def test_a_sum_in_bfloat16_is_found():
  def gradient(x):
    return jax.jit(jax.grad(lambda y: (jnp.broadcast_to(y, (4, 8)) * x).astype(jnp.float32).sum()))(x[0])

  assert [sum[:2] for sum in bfloat16_sums(gradient, jnp.ones((4, 8), jnp.bfloat16))] == [
    ("reduce_sum", (4, 8))
  ]
  assert bfloat16_sums(gradient, jnp.ones((4, 8), jnp.float32)) == []
  assert bfloat16_sums(lambda x: jax.lax.reduce_sum(x, (0,)), jnp.ones((1, 8), jnp.bfloat16)) == []


@pytest.mark.parametrize("fields", NETWORKS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_no_network_sums_in_bfloat16(fields):
  model = defaults().model
  tiny = {"backbone": "resnet_tiny", "multi_grid": (1, 1), "ceil_pool": False, "channels": 24}
  model.update(tiny | {"dtype": "bfloat16"} | fields)
  if "hrnet" in model.backbone:
    model.update({"multi_grid": (1, 2, 4), "ceil_pool": True})
  network = models.build(model, CLASSES)
  params, batch_stats = network.init(jax.random.key(0), (64, 64))
  images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.uint8)

  def loss(params, batch_stats, images):
    outputs, _ = network.train(params, batch_stats, images, jax.random.key(0))
    arrays = [outputs.logits, outputs.features, *(each.logits for each in outputs.extra.values())]
    return sum(jnp.square(array.astype(jnp.float32)).mean() for array in arrays)

  assert bfloat16_sums(jax.grad(loss), params, batch_stats, images) == []


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_no_exchange_of_an_hrnet_sums_in_bfloat16(upsampling):
  module = FuseLayer(0, upsampling, True, jnp.bfloat16, 0.9, 1e-5)
  maps = [jax.ShapeDtypeStruct((1, 16 // 2**i, 16 // 2**i, 4 * 2**i), jnp.bfloat16) for i in range(3)]
  variables = jax.eval_shape(lambda maps: module.init(jax.random.key(0), maps, False), maps)

  def loss(maps, variables):
    return jnp.square(module.apply(variables, maps, False).astype(jnp.float32)).sum()

  assert bfloat16_sums(jax.grad(loss), maps, variables) == []


def float64_error(computed, exact):
  """Returns the norm of an error relative to the norm of the exact values."""
  return np.linalg.norm(np.asarray(computed, np.float64) - exact) / np.linalg.norm(exact)


def test_the_gradient_of_a_bias_is_exact_to_float32():
  weights = jnp.asarray(np.random.default_rng(0).normal(0.05, 1, (2, 64, 64, 8)), jnp.bfloat16)
  module = Conv(8, 1, use_bias=True, dtype=jnp.bfloat16)
  x = jnp.ones((2, 64, 64, 3), jnp.bfloat16)
  params = module.init(jax.random.key(0), x)

  def loss(params):
    return jnp.sum(module.apply(params, x).astype(jnp.float32) * weights)

  gradient = compiled_once(jax.grad(loss), params)["params"]["bias"]
  # A sum in bfloat16 is wrong by 0.01.
  assert float64_error(gradient, np.asarray(weights, np.float64).sum((0, 1, 2))) < 1e-6


def test_the_gradient_of_a_depthwise_kernel_is_exact_to_float32_on_cpus():
  random = np.random.default_rng(0)
  x, weights = (jnp.asarray(random.normal(0.2, 1, (2, 16, 16, 4)), jnp.bfloat16) for _ in range(2))
  module = DepthwiseConv(1, dtype=jnp.bfloat16)
  params = module.init(jax.random.key(0), x)

  def loss(params):
    return jnp.sum(module.apply(params, x).astype(jnp.float32) * weights)

  gradient = compiled_once(jax.grad(loss), params)["params"]["kernel"]
  assert gradient.dtype == jnp.float32
  exact = (np.asarray(x, np.float64) * np.asarray(weights, np.float64)).sum((0, 1, 2))
  assert float64_error(gradient[0, 0, 0], exact) < 1e-6


def test_the_gradient_through_the_mean_of_aspp_is_rounded_once():
  random = np.random.default_rng(0)
  features = 4
  module = ASPP(features, rates=(), dtype=jnp.bfloat16)
  x = jnp.asarray(random.standard_normal((1, 64, 64, 3)), jnp.bfloat16)
  variables = jax.jit(lambda key: module.init(key, x, False))(jax.random.key(0))
  kernel = jnp.asarray(random.standard_normal((1, 1, 3, features)), jnp.float32)
  params = variables["params"]
  weights = jnp.asarray(random.normal(0.05, 1, (1, 64, 64, features)), jnp.bfloat16)

  def loss(bias):
    pool = {"conv": {"kernel": kernel}, "bn": params["pool"]["bn"] | {"bias": bias}}
    given = {"params": params | {"pool": pool}, "batch_stats": variables["batch_stats"]}
    branches = module.apply(given, x, False)
    return jnp.sum(branches[..., features:].astype(jnp.float32) * weights)

  gradient = compiled_once(jax.grad(loss), jnp.full(features, 10.0))
  # One rounding to bfloat16 is at most 2**-9. A sum in bfloat16 is wrong by 0.01.
  assert float64_error(gradient, np.asarray(weights, np.float64).sum((0, 1, 2))) <= 2**-9
