"""The sum of the gradients of several branches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax.ops.fan_out import fan_out


@pytest.mark.parametrize("branches", [1, 2, 5])
def test_gradients_are_summed_in_float32_and_rounded_once(branches):
  random = np.random.default_rng(0)
  x = jnp.asarray(random.standard_normal((4, 33)), jnp.bfloat16)
  weights = [jnp.asarray(random.standard_normal(x.shape), jnp.bfloat16) for _ in range(branches)]

  def loss(x):
    copies = fan_out(x, branches)
    assert len(copies) == branches
    return sum(
      jnp.sum(copy.astype(jnp.float32) * weight) for copy, weight in zip(copies, weights, strict=True)
    )

  value, gradient = jax.jit(jax.value_and_grad(loss))(x)
  exact = sum(np.asarray(weight, np.float64) for weight in weights)
  np.testing.assert_array_equal(gradient, jnp.asarray(exact, jnp.bfloat16))
  np.testing.assert_allclose(value, (np.asarray(x, np.float64) * exact).sum(), rtol=1e-5)


def test_in_float32_the_sum_is_jaxs_to_the_last_bit():
  random = np.random.default_rng(1)
  x = jnp.asarray(random.standard_normal(1000), jnp.float32)
  weights = [jnp.asarray(random.standard_normal(1000), jnp.float32) for _ in range(5)]

  def loss(copies):
    return sum(jnp.sum(copy * weight) for copy, weight in zip(copies, weights, strict=True))

  plain = jax.jit(jax.grad(lambda x: loss((x,) * 5)))(x)
  np.testing.assert_array_equal(jax.jit(jax.grad(lambda x: loss(fan_out(x, 5))))(x), plain)
