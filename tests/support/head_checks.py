"""Checks for every head, whatever it computes."""

import jax
import jax.numpy as jnp
import numpy as np

from rc_jax import models
from rc_jax.config import defaults
from rc_jax.models import Stages
from rc_jax.models.initial_values import initial_variables

CLASSES = 5


def compiled_once(function, *arguments):
  """Compiles a function without optimisation, since it runs once, and runs it."""
  options = {"xla_backend_optimization_level": 0}
  return jax.jit(function).lower(*arguments).compile(compiler_options=options)(*arguments)


def random_stages(stage1=None, stage3=None, last=None):
  """Stages of standard normal values of the given shapes ``(B,h,w,C)``; stage 1 is the last where it has no shape."""
  random = np.random.default_rng(0)
  shapes = (stage1, stage3, last)
  stages = Stages(*(shape and random.standard_normal(shape).astype(np.float32) for shape in shapes))
  return stages if stage1 else stages._replace(stage1=stages.last)


def extra_logits(outputs):
  """Lists the logits of the extra outputs by their names, the order of the originals in ``torch_heads.py``."""
  return [outputs.extra[name].logits for name in sorted(outputs.extra)]


def assert_learns_in_bfloat16(module, stages):
  """Checks a head in bfloat16: finite outputs and gradients, no parameter without gradient, and dtypes.

  Args:
    module: the head.
    stages: float32 arrays.

  Returns:
    The initial parameters. Scales ``gamma`` of attentions, which start at 0, are set to 1/2 for the check.
  """
  key = jax.random.key(0)
  rngs = {"params": key, "dropout": key}
  stages = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), stages)
  _, params, batch_stats = initial_variables(
    lambda key, stages: module.init_with_output(rngs | {"params": key}, stages, True), key, stages
  )
  started = jax.tree_util.tree_map_with_path(
    lambda path, leaf: leaf + 0.5 * (path[-1].key == "gamma"), params
  )

  def loss(params):
    variables = {"params": params, "batch_stats": batch_stats}
    outputs, _ = module.apply(variables, stages, True, rngs=rngs, mutable=["batch_stats"])
    logits = [outputs.logits, *extra_logits(outputs)]
    return jnp.square(jnp.concatenate([y.ravel() for y in logits]) - 1).mean(), (logits, outputs.features)

  gradients, (logits, features) = compiled_once(jax.grad(loss, has_aux=True), started)
  assert {y.dtype for y in logits} == {jnp.dtype("float32")} and features.dtype == jnp.bfloat16
  assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((logits, features, gradients)))
  zero = [path for path, leaf in jax.tree.leaves_with_path(gradients) if not (leaf != 0).any()]
  assert not zero, [jax.tree_util.keystr(path) for path in zero]
  return params


def network_shapes(size=(65, 48), **fields):
  """Traces the network of ``config.model`` with ``fields`` on the tiny ResNet, for two images, and checks its contract.

  Args:
    size: height and width of the images.
    **fields: of ``config.model``.

  Returns:
    Shapes of the outputs in training, and of the head's parameters, nested dicts.
  """
  model = defaults().model
  model.update({"backbone": "resnet_tiny", "multi_grid": (1, 1), "ceil_pool": False} | fields)
  network = models.build(model, CLASSES)
  variables = network.init(jax.random.key(0), size)
  images = jax.ShapeDtypeStruct((2, *size, 3), jnp.uint8)
  outputs, batch_stats = jax.eval_shape(network.train, *variables, images, jax.random.key(0))
  assert jax.tree.map(jnp.shape, batch_stats) == jax.tree.map(jnp.shape, variables.batch_stats)
  predicted = jax.eval_shape(network.predict, *variables, images)
  assert predicted.logits.shape == outputs.logits.shape == (*outputs.features.shape[:3], CLASSES)
  assert not extra_logits(predicted)
  return outputs, jax.tree.map(jnp.shape, variables.params["head"])
