"""What the heads with attention or encodings are held to besides their numbers."""

import jax
import jax.numpy as jnp
import numpy as np

from rc_jax import models
from rc_jax.config import defaults
from rc_jax.models import Stages

CLASSES = 5


def assert_learns_in_bfloat16(module):
  """Holds a head of 16 channels to finite outputs and gradients, none of them zero once ``gamma`` is not.

  Returns:
    The parameters as they start.
  """
  last = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 6, 12)), jnp.bfloat16)
  stages = Stages(last, None, last)
  rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
  variables = jax.jit(lambda rngs: module.init(rngs, stages, True))(rngs)
  random = np.random.default_rng(1)

  def opened(path, leaf):
    # Kernels start at 0 here: their values come from ``initial.py``.
    spread = 0.2 if path[-1].key == "kernel" else 0
    return leaf + spread * random.standard_normal(leaf.shape) + 0.5 * (path[-1].key == "gamma")

  params = jax.tree_util.tree_map_with_path(opened, variables["params"])

  def loss(params):
    outputs, _ = module.apply(
      variables | {"params": params}, stages, True, rngs=rngs, mutable=["batch_stats"]
    )
    logits = jax.tree.leaves(outputs._replace(features=None))
    return jnp.square(jnp.concatenate([y.ravel() for y in logits]) - 1).mean(), (logits, outputs.features)

  gradients, (logits, features) = jax.jit(jax.grad(loss, has_aux=True))(params)
  assert {y.dtype for y in logits} == {jnp.dtype("float32")}
  assert features.shape == (2, 5, 6, 16) and features.dtype == jnp.bfloat16
  assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((gradients, logits, features)))
  still = [path for path, leaf in jax.tree.leaves_with_path(gradients) if not (leaf != 0).any()]
  assert not still, [jax.tree_util.keystr(path) for path in still]
  return variables["params"]


def network_outputs(**fields):
  """Shapes of what a network on the tiny ResNet says in training about two images, nothing computed."""
  model = defaults().model
  model.update({"backbone": "resnet_tiny", "multi_grid": (1, 1), "channels": 16, "aux_channels": 12} | fields)
  network = models.build(model, CLASSES)
  images = jax.ShapeDtypeStruct((2, 65, 49, 3), jnp.uint8)
  return jax.eval_shape(network.train, *network.init(jax.random.key(0)), images, jax.random.key(1))[0]
