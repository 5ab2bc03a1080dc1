"""One array as the input of several branches."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def fan_out(x: jax.Array, branches: int) -> tuple[jax.Array, ...]:
  """Returns ``x`` once for each of ``branches``, whose gradients are summed in float32 and rounded once.

  JAX adds up the gradients of several uses one by one, each sum rounded to the dtype of ``x``. A GPU writes
  most of those sums to memory and reads them again.

  Args:
    x: any shape, any float dtype.
    branches: at least 1.
  """
  return (x,) * branches


def _forward(x: jax.Array, branches: int) -> tuple[tuple[jax.Array, ...], None]:
  return fan_out(x, branches), None


def _backward(branches: int, _: None, gradients: tuple[jax.Array, ...]) -> tuple[jax.Array]:
  # From the last to the first, as JAX: with float32, the sum is the same to the last bit.
  total = gradients[-1].astype(jnp.float32)
  for gradient in gradients[-2::-1]:
    total = total + gradient.astype(jnp.float32)
  return (total.astype(gradients[0].dtype),)


fan_out.defvjp(_forward, _backward)
