"""Computations that a CPU compiles apart: the same values, and no chain of operations that is computed twice."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax.ops.separate import separate


def blocks(x, kernels, end):
  """Residual blocks, whose ends are read by the next block and by a sum."""
  total = 0.0
  for kernel in kernels:
    x = end(x, x @ kernel)
    total += jnp.square(x).sum()
  return x, total


def add_relu(x, y):
  return jnp.maximum(x + y, 0)


@pytest.fixture(scope="module")
def arrays():
  random = np.random.default_rng(0)
  x = random.standard_normal((64, 32), np.float32)
  return x, list(random.standard_normal((4, 32, 32), np.float32) / 6)


def test_values_are_those_of_the_function(arrays):
  x, kernels = arrays
  expected = x.astype(np.float64)
  for kernel in kernels:
    expected = np.maximum(expected + expected @ kernel.astype(np.float64), 0)
  got, _ = jax.jit(lambda x, kernels: blocks(x, kernels, separate(add_relu)))(x, kernels)
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(
  jax.default_backend() != "cpu", reason="other platforms compile the function in its place"
)
def test_each_block_reads_only_the_end_of_the_one_before(arrays):
  x, kernels = arrays

  def most_operands(end, count):
    program = jax.jit(lambda x, kernels: blocks(x, kernels, end)).lower(x, kernels[:count]).compile()
    fusions = re.findall(r"= f32\[64,32\]\S* fusion\(([^)]*)\), kind=kLoop", program.as_text())
    return max(fusion.count("%") for fusion in fusions)

  # The control: as long as XLA repeats the chain, the last of more blocks reads the products of more blocks.
  assert most_operands(add_relu, 4) > most_operands(add_relu, 3)
  assert most_operands(separate(add_relu), 4) == most_operands(separate(add_relu), 3)


def test_other_platforms_compile_the_function_in_its_place(arrays):
  def step(x, kernels):
    return blocks(x, kernels, separate(add_relu))[0]

  text = {
    platform: jax.jit(step).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
    for platform in ("cpu", "tpu", "cuda")
  }
  assert "inlineable" in text["cpu"]
  assert "inlineable" not in text["tpu"] and "inlineable" not in text["cuda"]
