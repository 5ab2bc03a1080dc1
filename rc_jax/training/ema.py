"""The exponential moving average of a network's weights."""

import jax
import jax.numpy as jnp

from rc_jax.models import Variables


def update_average(average: Variables, weights: Variables, updates: jax.Array, decay: float) -> Variables:
  """Moves an average towards the weights of a step: ``a <- d a + (1 - d) w`` with ``d = min(decay, (1+t) / (10+t))``.

  The factor is smaller in the first steps, so that the initial values are soon forgotten.

  Args:
    average: parameters and BatchNorm statistics, float32.
    weights: the same trees after ``t`` updates.
    updates: ``t``, int32 scalar, 1 or more.
    decay: in 0..1, below 1.

  Source: ``tf.train.ExponentialMovingAverage`` with ``num_updates``.
  """
  step = updates.astype(jnp.float32)
  share = 1 - jnp.minimum(jnp.float32(decay), (1 + step) / (10 + step))
  # The difference keeps an average of equal values equal to them, bit for bit.
  return jax.tree.map(lambda a, w: a + share * (w - a), average, weights)
