"""What every head of a network is held to, whatever it computes."""

import jax
import jax.numpy as jnp
import numpy as np

from rc_jax import models
from rc_jax.config import defaults
from rc_jax.models import Stages
from rc_jax.models.initial_values import initial_values

CLASSES = 5


def compiled_once(function, *arguments):
  """Compiles and runs a function; quickly compiled, since it is run once."""
  options = {"xla_backend_optimization_level": 0}
  return jax.jit(function).lower(*arguments).compile(compiler_options=options)(*arguments)


def random_stages(stage1=None, stage3=None, last=None):
  """Stages of standard normal values of the given shapes ``(B,h,w,C)``."""
  random = np.random.default_rng(0)
  shapes = (stage1, stage3, last)
  return Stages(*(shape and random.standard_normal(shape).astype(np.float32) for shape in shapes))


def assert_learns_in_bfloat16(module, stages):
  """Holds a head in bfloat16 to finite outputs and gradients, no parameter without one, and to its dtypes."""
  key = jax.random.key(0)
  stages = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), stages)
  shapes = jax.eval_shape(lambda rng: module.init(rng, stages, False), key)
  variables = {name: initial_values(key, tree) for name, tree in shapes.items()}

  def loss(params):
    given = (variables | {"params": params}, stages, True)
    outputs, _ = module.apply(*given, rngs={"dropout": key}, mutable=["batch_stats"])
    extra = [output.logits for output in outputs.extra.values() if output.term == "aux"]
    logits = [y.ravel() for y in (outputs.logits, *extra)]
    return jnp.square(jnp.concatenate(logits) - 1).mean(), outputs

  gradients, outputs = compiled_once(jax.grad(loss, has_aux=True), variables["params"])
  assert outputs.logits.dtype == jnp.float32 and outputs.features.dtype == jnp.bfloat16
  assert all(output.logits.dtype == jnp.float32 for output in outputs.extra.values())
  assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((outputs, gradients)))
  zero = [path for path, leaf in jax.tree_util.tree_leaves_with_path(gradients) if not (leaf != 0).any()]
  assert not zero, [jax.tree_util.keystr(path) for path in zero]


def assert_network_gives(grid, features, aux_grid, size=(65, 48), **fields):
  """Builds the network of ``config.model`` with ``fields`` on the tiny ResNet and checks the shapes of its outputs.

  Args:
    grid: of the logits and features.
    features: channels of the features.
    aux_grid: of the auxiliary logits.
    size: height and width of the images.
    **fields: of ``config.model``.

  Returns:
    The shapes of the head's parameters.
  """
  model = defaults().model
  model.update({"backbone": "resnet_tiny", "multi_grid": (1, 1), "ceil_pool": False} | fields)
  network = models.build(model, CLASSES)
  variables = network.init(jax.random.key(0), size)
  images = jax.ShapeDtypeStruct((2, *size, 3), jnp.uint8)
  outputs, batch_stats = jax.eval_shape(network.train, *variables, images, jax.random.key(0))
  assert outputs.logits.shape == (2, *grid, CLASSES) and outputs.features.shape == (2, *grid, features)
  assert outputs.extra["aux"].logits.shape == (2, *aux_grid, CLASSES)
  assert jax.tree.map(jnp.shape, batch_stats) == jax.tree.map(jnp.shape, variables.batch_stats)
  predicted = jax.eval_shape(network.predict, *variables, images)
  assert predicted.logits.shape == outputs.logits.shape and not predicted.extra
  return jax.tree.map(jnp.shape, variables.params["head"])
