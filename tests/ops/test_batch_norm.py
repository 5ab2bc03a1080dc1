"""BatchNorm against PyTorch's, and its statistics against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax.models.layers import BatchNorm
from rc_jax.ops import batch_norm
from rc_jax.ops.batch_norm import normalize


def random_variables(channels):
  random = np.random.default_rng(3)
  draw = lambda low, high: random.uniform(low, high, channels).astype(np.float32)  # noqa: E731
  return {
    "params": {"scale": draw(0.5, 1.5), "bias": draw(-1, 1)},
    "batch_stats": {"mean": draw(-1, 1), "var": draw(0.5, 2)},
  }


@pytest.mark.parametrize("shape", [(2, 5, 4, 6), (3, 1, 1, 6)])  # the second: n is 3, so n / (n - 1) shows
@pytest.mark.parametrize("momentum", [0.9, 0.6])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_training_and_prediction_equal_pytorchs(shape, momentum, residual, relu):
  torch = pytest.importorskip("torch")
  x = np.random.default_rng(0).normal(2, 3, shape).astype(np.float32)
  dy = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
  variables = random_variables(shape[-1])
  original = torch.nn.BatchNorm2d(shape[-1], eps=1e-3, momentum=1 - momentum)
  with torch.no_grad():
    original.weight.copy_(torch.tensor(variables["params"]["scale"]))
    original.bias.copy_(torch.tensor(variables["params"]["bias"]))
    original.running_mean.copy_(torch.tensor(variables["batch_stats"]["mean"]))
    original.running_var.copy_(torch.tensor(variables["batch_stats"]["var"]))
  original = original.double()
  inputs = torch.tensor(x).permute(0, 3, 1, 2).double().requires_grad_()
  added = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
  added_inputs = torch.tensor(added).permute(0, 3, 1, 2).double().requires_grad_()

  def theirs(inputs):
    outputs = original(inputs) + added_inputs if residual else original(inputs)
    return outputs.relu() if relu else outputs

  outputs = theirs(inputs)
  outputs.backward(torch.tensor(dy).permute(0, 3, 1, 2).double())

  layer = BatchNorm(momentum, 1e-3)

  def train(params, x, added):
    options = (True, added if residual else None, relu)
    y, updates = layer.apply({**variables, "params": params}, x, *options, mutable=["batch_stats"])
    return y, updates["batch_stats"]

  y, gradients, batch_stats = jax.vjp(train, variables["params"], x, added, has_aux=True)
  d_params, dx, d_added = gradients(dy)
  close = lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5)  # noqa: E731
  close(y, outputs.detach().permute(0, 2, 3, 1))
  close(dx, inputs.grad.permute(0, 2, 3, 1))
  if residual:
    close(d_added, added_inputs.grad.permute(0, 2, 3, 1))
  close(d_params["scale"], original.weight.grad)
  close(d_params["bias"], original.bias.grad)
  close(batch_stats["mean"], original.running_mean)
  close(batch_stats["var"], original.running_var)

  original.eval()
  options = (False, added if residual else None, relu)
  predicted = layer.apply({**variables, "batch_stats": batch_stats}, x, *options)
  close(predicted, theirs(inputs.detach()).detach().permute(0, 2, 3, 1))


@pytest.mark.parametrize("shift", [0.0, 95.0])
def test_statistics_of_a_channel_far_from_zero_keep_their_digits(shift):
  x = (np.random.default_rng(0).standard_normal((4, 32, 32, 8)) + 100).astype(np.float32)
  ones = jnp.ones(8)
  _, mean, var = normalize(x, ones, 0 * ones, shift * ones, None, False, 1e-5)
  exact = x.astype(np.float64)
  np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6)
  # Moments about a point cost float32 a factor (mean - point)^2 / var of its 1e-7: 1e4 about 0, 25 about 95.
  np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=2e-5 if shift else 1e-2)


def test_outputs_keep_bfloat16_and_statistics_are_float32():
  x = jnp.asarray(np.random.default_rng(0).normal(1, 2, (4, 16, 16, 3)), jnp.bfloat16)
  variables = random_variables(3)
  y, updates = BatchNorm().apply(variables, x, True, mutable=["batch_stats"])
  assert y.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("float32")}
  exact = np.asarray(x, np.float64)
  expected = 0.9 * variables["batch_stats"]["mean"] + 0.1 * exact.mean((0, 1, 2))
  np.testing.assert_allclose(updates["batch_stats"]["mean"], expected, rtol=1e-5, atol=1e-5)
  assert BatchNorm().apply(variables, x, False).dtype == jnp.bfloat16


def test_one_value_for_each_channel_gives_no_nan():
  x = jnp.full((1, 1, 1, 3), 2.0)
  value, gradient = jax.value_and_grad(
    lambda x: BatchNorm().apply(random_variables(3), x, True, mutable=["batch_stats"])[0].sum()
  )(x)
  assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("shape", [(1, 1, 1, 6), (1, 6)])
def test_one_value_changes_no_statistics(shape):
  x = np.random.default_rng(0).normal(2, 3, shape).astype(np.float32)
  variables = random_variables(shape[-1])
  y, updates = BatchNorm(0.9, 1e-3).apply(variables, x, True, mutable=["batch_stats"])
  np.testing.assert_allclose(y, np.broadcast_to(variables["params"]["bias"], shape), rtol=1e-6)
  for name, value in variables["batch_stats"].items():
    np.testing.assert_array_equal(updates["batch_stats"][name], value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_by_sign_equal_those_by_the_kept_result(dtype):
  rng = np.random.default_rng(0)
  x, dy = (jnp.asarray(rng.normal(1, 2, (2, 7, 5, 6)), dtype) for _ in range(2))
  scale, bias, shift = (jnp.asarray(rng.normal(0, 1, 6), jnp.float32) for _ in range(3))

  def output(x, scale, bias):
    return normalize(x, scale, bias, shift, None, True, 1e-5)[0]

  y, pull = jax.vjp(output, x, scale, bias)
  assert 0.2 < float((y > 0).mean()) < 0.8
  dx, d_scale, d_bias = pull(dy)
  _, mean, var = normalize(x, scale, bias, shift, None, True, 1e-5)
  inverse = jax.lax.rsqrt(var + 1e-5)
  offset = bias - mean * inverse * scale
  found = batch_norm.gradients_by_sign(dy, x, y, scale, offset, mean, inverse)
  tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"rtol": 1e-2, "atol": 1e-2}
  np.testing.assert_allclose(np.asarray(found[0], np.float32), np.asarray(dx, np.float32), **tolerance)
  assert found[0].dtype == x.dtype
  np.testing.assert_array_equal(found[1], dy)
  np.testing.assert_allclose(found[2], d_scale, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(found[3], d_bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 7, 5, 6), (3, 6), (4, 1, 1, 6)])
def test_sums_by_rows_equal_sums_at_once(shape):
  first, second = (np.random.default_rng(seed).standard_normal(shape).astype(np.float32) for seed in (0, 1))
  axes = tuple(range(len(shape) - 1))
  for found, array in zip(batch_norm.sums_by_rows(first, second), (first, second), strict=True):
    np.testing.assert_allclose(found, array.astype(np.float64).sum(axes), rtol=1e-5, atol=1e-6)
