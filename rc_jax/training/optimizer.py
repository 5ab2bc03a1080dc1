"""Stochastic gradient descent as PyTorch and the paper's recipe mean it."""

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike
from ml_collections import ConfigDict


def learning_rate(config_optimizer: ConfigDict, steps: int) -> optax.Schedule:
  """The poly schedule ``learning_rate * (1 - step/steps)^power``, anew at every step.

  Args:
    config_optimizer: `learning_rate`, `power`.
    steps: length of the run; from there on the rate is 0.

  Returns:
    The rate at ``step`` updates made so far, for everything inside the backbone.

  Source: RegionContrast, section 4.2.
  """

  def schedule(step: ArrayLike) -> Array:
    # The steps left are counted in integers: 1 - step/steps can come out below 0 at the last step, whose power is
    # NaN (optax.polynomial_schedule does so under jit), and has lost digits before.
    left = jnp.maximum(steps - jnp.asarray(step), 0) / steps
    return config_optimizer.learning_rate * left**config_optimizer.power

  return schedule


def sgd(
  config_optimizer: ConfigDict, steps: int, params: optax.Params
) -> optax.GradientTransformationExtraArgs:
  """SGD with momentum, weight decay, the poly schedule, and a faster rate outside the backbone.

  For a parameter ``p`` with gradient ``g``, as ``torch.optim.SGD`` (no dampening, no Nesterov):

  ``g <- g + weight_decay * p``, ``b <- momentum * b + g`` (at first ``b = g``),
  ``p <- p - m * rate(step) * b``

  with ``m = head_multiplier`` for parameters outside the top-level entry ``backbone``, else 1. The paper is
  silent on ``m``; 10 is the authors' code's.

  Args:
    config_optimizer: `learning_rate`, `power`, `momentum`, `weight_decay`, `head_multiplier`, and
      `decay_norm_and_bias`: False spares everything not named ``kernel`` (biases, BatchNorm's scales) the
      decay.
    steps: length of the run.
    params: the parameters, a mapping by name of arrays or of mappings; only names matter.

  Returns:
    The transformation. Its state is a pytree of arrays: a momentum buffer like each parameter, and the step.
  """
  decayed = jax.tree_util.tree_map_with_path(
    lambda path, _: bool(config_optimizer.decay_norm_and_bias) or path[-1].key == "kernel", params
  )
  outside_backbone = jax.tree_util.tree_map_with_path(lambda path, _: path[0].key != "backbone", params)
  return optax.chain(
    optax.add_decayed_weights(config_optimizer.weight_decay, mask=decayed),
    optax.trace(decay=config_optimizer.momentum),
    # After the buffer, which in PyTorch does not hold the learning rate.
    optax.masked(optax.scale(config_optimizer.head_multiplier), outside_backbone),
    optax.scale_by_learning_rate(learning_rate(config_optimizer, steps)),
  )
