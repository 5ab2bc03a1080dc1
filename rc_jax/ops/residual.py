"""The end of a residual block."""

import jax
import jax.numpy as jnp

from rc_jax.ops.separate import separate


@jax.custom_vjp
def add_relu(x: jax.Array, y: jax.Array) -> jax.Array:
  """Returns ``max(x + y, 0)`` of two arrays of one shape and dtype."""
  return separate(_add_relu)(x, y)


def _add_relu(x: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.maximum(x + y, 0)


def _forward(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
  result = add_relu(x, y)
  return result, result


def _backward(result: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
  masked = separate(_masked)(result, gradient)
  return masked, masked


def _masked(result: jax.Array, gradient: jax.Array) -> jax.Array:
  return jnp.where(result > 0, gradient, 0)


add_relu.defvjp(_forward, _backward)
