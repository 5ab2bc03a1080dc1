"""Stochastic gradient descent with PyTorch's update and the paper's poly schedule."""

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike
from ml_collections import ConfigDict


def learning_rate(config_optimizer: ConfigDict, steps: int) -> optax.Schedule:
  """Returns the poly schedule ``learning_rate * (1 - step/steps)^power``, evaluated at every step.

  Args:
    config_optimizer: `learning_rate`, `power`.
    steps: length of the run; from there on the rate is 0.

  Returns:
    From ``step``, the updates made so far, to the learning rate of the backbone, a float32 scalar.

  Source: RegionContrast, section 4.2.
  """

  def schedule(step: ArrayLike) -> Array:
    # The difference is one of integers: in floats, 1 - step/steps loses digits, and can be negative at the last step,
    # where the power is then NaN (optax.polynomial_schedule under jit).
    remaining = jnp.maximum(steps - jnp.asarray(step), 0) / steps
    return config_optimizer.learning_rate * remaining**config_optimizer.power

  return schedule


def sgd(
  config_optimizer: ConfigDict, steps: int, params: optax.Params
) -> optax.GradientTransformationExtraArgs:
  """Returns SGD with momentum, weight decay, the poly schedule, and a higher rate outside the backbone.

  ``g <- g + weight_decay * p``, ``b <- momentum * b + g`` (in the first step ``b = g``),
  ``p <- p - m * rate(step) * b``

  for a parameter ``p`` with gradient ``g``, as ``torch.optim.SGD`` without dampening and Nesterov momentum. ``m`` is
  ``head_multiplier`` for parameters outside the top-level entry ``backbone``, else 1. The paper is silent on ``m``; 10
  is from the authors' code.

  Args:
    config_optimizer: `learning_rate`, `power`, `momentum`, `weight_decay`, `head_multiplier`, and
      `decay_norm_and_bias`: False applies no decay to parameters not named ``kernel`` (biases, BatchNorm's scales).
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
    # After the momentum buffer, which in PyTorch holds no learning rate.
    optax.masked(optax.scale(config_optimizer.head_multiplier), outside_backbone),
    optax.scale_by_learning_rate(learning_rate(config_optimizer, steps)),
  )
