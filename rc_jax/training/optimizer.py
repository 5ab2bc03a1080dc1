"""SGD and AdamW with PyTorch's updates, and the schedules of their learning rates."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from rc_jax.models.network import Tree

# ``optimizer.schedule`` -> the learning rate's share of ``optimizer.learning_rate``, from the remaining share of the
# run: 1 at step 0, 0 at the end.
SCHEDULES: dict[str, Callable[[Array, ConfigDict], Array]] = {
  "poly": lambda remaining, config_optimizer: remaining**config_optimizer.power,
  # (1 + cos(pi step/steps)) / 2, without a difference that loses digits near the end.
  "cosine": lambda remaining, config_optimizer: jnp.square(jnp.sin(jnp.pi / 2 * remaining)),
}


def learning_rate(config_optimizer: ConfigDict, steps: int) -> optax.Schedule:
  """Returns the learning rate of each step: ``poly`` or ``cosine``, with a linear warm-up.

  ``learning_rate * warmup * (1 - step/steps)^power``, or
  ``learning_rate * warmup * (1 + cos(pi step/steps)) / 2``,
  with ``warmup = min(1, (step + 1) / warmup_steps)``. The schedule runs from step 0, also during the warm-up.

  Args:
    config_optimizer: `learning_rate`, `schedule`, `power` (of ``poly``), `warmup_steps`.
    steps: length of the run; from there on the rate is 0.

  Returns:
    From ``step``, the updates made so far, to the learning rate of the backbone, a float32 scalar.

  Source: RegionContrast, section 4.2, for ``poly``; Loshchilov and Hutter, *SGDR*, ICLR 2017, for ``cosine``.
  """
  shape = SCHEDULES[config_optimizer.schedule]
  warmup_steps = config_optimizer.warmup_steps

  def schedule(step: ArrayLike) -> Array:
    # The difference is one of integers: in floats, 1 - step/steps loses digits, and can be negative at the last step,
    # where the power is then NaN (optax.polynomial_schedule under jit).
    remaining = jnp.maximum(steps - jnp.asarray(step), 0) / steps
    rate: Array = config_optimizer.learning_rate * shape(remaining, config_optimizer)
    if warmup_steps:
      rate = rate * jnp.minimum((jnp.asarray(step) + 1) / warmup_steps, 1)
    return rate

  return schedule


def _sgd(config_optimizer: ConfigDict, decayed: Tree) -> list[optax.GradientTransformation]:
  """``g <- g + weight_decay * p``, ``b <- momentum * b + g`` (in the first step ``b = g``); the direction is ``b``.

  The momentum buffer holds no learning rate, as in ``torch.optim.SGD`` without dampening and Nesterov momentum.
  """
  return [
    optax.add_decayed_weights(config_optimizer.weight_decay, mask=decayed),
    optax.trace(decay=config_optimizer.momentum),
  ]


def _adamw(config_optimizer: ConfigDict, decayed: Tree) -> list[optax.GradientTransformation]:
  """``m <- b1 m + (1 - b1) g``, ``v <- b2 v + (1 - b2) g^2``; the direction is
  ``(m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + epsilon) + weight_decay * p``, as in ``torch.optim.AdamW``.

  Source: Loshchilov and Hutter, *Decoupled Weight Decay Regularization*, ICLR 2019.
  """
  return [
    optax.scale_by_adam(config_optimizer.beta1, config_optimizer.beta2, config_optimizer.epsilon),
    optax.add_decayed_weights(config_optimizer.weight_decay, mask=decayed),
  ]


# ``optimizer.name`` -> from gradients to directions, which the learning rate then scales.
OPTIMIZERS: dict[str, Callable[[ConfigDict, Tree], list[optax.GradientTransformation]]] = {
  "sgd": _sgd,
  "adamw": _adamw,
}


def build(
  config_optimizer: ConfigDict, steps: int, params: Tree, stages: Mapping[str, tuple[str, ...]]
) -> optax.GradientTransformationExtraArgs:
  """Returns the optimizer of a config.

  ``p <- p - m * rate(step) * direction(g)``

  for a parameter ``p`` with gradient ``g``. Where ``clip_norm`` is set, ``g`` is first scaled so that the norm over all
  parameters is at most ``clip_norm``. ``m`` is ``head_multiplier`` for parameters outside the top-level entry
  ``backbone``; the paper is silent on it, and 10 is from the authors' code. Within the backbone ``m`` is
  ``layer_decay^d``: ``d`` is 1 in the last stage and grows by 1 with each stage before it, as in mmsegmentation.

  Args:
    config_optimizer: the fields of ``rc_jax.config.defaults().optimizer``. Without `decay_norm_and_bias`, parameters
      not named ``kernel`` (biases, BatchNorm's scales) get no weight decay.
    steps: length of the run.
    params: the parameters that are trained, a mapping by name of arrays or of mappings; only names matter.
    stages: of ``Network.stages``; read where ``layer_decay`` is not 1.

  Returns:
    The transformation. Its state is a pytree of arrays: the buffers of each parameter, and numbers of steps.

  Raises:
    ValueError: there is no parameter to train; ``layer_decay`` is set and a module of the backbone belongs to no stage.
  """
  if not jax.tree.leaves(params):
    raise ValueError(
      "config.model.freeze: names all parts of the network, so no parameter is left to train; expected fewer parts"
    )
  decayed = jax.tree_util.tree_map_with_path(
    lambda path, _: bool(config_optimizer.decay_norm_and_bias) or path[-1].key == "kernel", params
  )
  outside_backbone = jax.tree_util.tree_map_with_path(lambda path, _: path[0].key != "backbone", params)
  transformations = OPTIMIZERS[config_optimizer.name](config_optimizer, decayed)
  if config_optimizer.clip_norm:
    # Before the weight decay, which is no part of the gradient, as torch.nn.utils.clip_grad_norm_.
    transformations.insert(0, optax.clip_by_global_norm(config_optimizer.clip_norm))
  # After the buffers, which in PyTorch hold no learning rate.
  transformations.append(optax.masked(optax.scale(config_optimizer.head_multiplier), outside_backbone))
  if config_optimizer.layer_decay != 1:
    transformations.append(_layer_decay(config_optimizer.layer_decay, params, stages))
  return optax.chain(*transformations, optax.scale_by_learning_rate(learning_rate(config_optimizer, steps)))


def _layer_decay(
  decay: float, params: Tree, stages: Mapping[str, tuple[str, ...]]
) -> optax.GradientTransformation:
  depths = {
    module: len(stages) - number for number, modules in enumerate(stages.values()) for module in modules
  }

  def multiplier(path: tuple[jax.tree_util.DictKey, ...], _: Array) -> float:
    top, *below = (key.key for key in path)
    if top != "backbone":
      return 1.0
    if below[0] not in depths:
      raise ValueError(
        f"config.optimizer.layer_decay: is {decay}, and the backbone's module {below[0]} belongs to no stage; "
        f"expected one of {', '.join(depths)}: name it in Backbone.stages, or set layer_decay=1"
      )
    return float(decay ** depths[below[0]])

  multipliers = jax.tree_util.tree_map_with_path(multiplier, params)
  return optax.stateless(
    lambda updates, _: jax.tree.map(lambda update, factor: update * factor, updates, multipliers)
  )
