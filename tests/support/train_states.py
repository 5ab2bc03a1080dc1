"""A small state of a training run, to save and to read."""

import jax.numpy as jnp
import numpy as np
import optax

from rc_jax import contrast
from rc_jax.train_state import TrainState


def small_state(step: int, seed: int = 0, dtype: str = "float32", with_bank: bool = True) -> TrainState:
  """Returns a state of two layers with random values, equal for equal arguments.

  Args:
    step: of the state.
    seed: of the values.
    dtype: of the bank's keys.
    with_bank: whether there is a memory bank.
  """
  rng = np.random.default_rng(seed)
  params = {
    "backbone": {"kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)},
    "head": {"bias": jnp.asarray(rng.normal(size=4), jnp.float32)},
  }
  bank = contrast.MemoryBank(
    keys=jnp.asarray(rng.normal(size=(2, 5, 4)), dtype),
    cursor=jnp.asarray([3, 1], jnp.int32),
    count=jnp.asarray([5, 1], jnp.int32),
  )
  return TrainState(
    step=jnp.int32(step),
    params=params,
    batch_stats={"mean": jnp.asarray(rng.normal(size=4), jnp.float32)},
    opt_state=optax.sgd(0.1, momentum=0.9).init(params),
    bank=bank if with_bank else None,
  )
