"""Initial parameters and statistics of the layers of ``layers.py``: those of PyTorch's ResNet.

They are drawn in NumPy from the shapes that the modules declare: initialising inside the compiled network takes ten
seconds for a ResNet-50 on a CPU, this takes one. All other modules keep the initialisers of their own parameters.

| layer | value |
|---|---|
| convolution without bias | kernel: He normal, fan out, deviation ``sqrt(2 / (k k out))`` |
| convolution with bias, ``Linear`` | both: PyTorch's default, uniform within ``1 / sqrt(k k in)`` |
| ``BatchNorm`` | ``scale`` and ``var`` 1, ``bias`` and ``mean`` 0 |
"""

import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rc_jax.models.layers import BatchNorm, Conv, DepthwiseConv, Linear
from rc_jax.models.network import Tree

LAYERS = (BatchNorm, Conv, DepthwiseConv, Linear)
CONSTANTS = {"scale": 1, "bias": 0, "mean": 0, "var": 1}

Path = tuple[str, ...]


def initial_variables(
  init_with_output: Callable[..., tuple[Any, Mapping[str, Any]]], rng: jax.Array, *inputs: Any
) -> tuple[Any, Tree, Tree]:
  """Draws the parameters and the statistics of a module.

  Args:
    init_with_output: the module's ``(rng, *inputs) -> (outputs, variables)``.
    rng: a PRNG key. A layer's values depend on it and on the layer's path alone, on any platform.
    *inputs: pytrees of arrays, or of their shapes and dtypes.

  Returns:
    Shapes and dtypes of the outputs; parameters; statistics. The last two are nested dicts of arrays.
  """
  layers: dict[Path, type[nn.Module]] = {}

  def record(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    if isinstance(context.module, LAYERS):
      layers[context.module.path] = type(context.module)
    return call(*args, **kwargs)

  with nn.intercept_methods(record):
    outputs, shapes = jax.eval_shape(init_with_output, rng, *inputs)
  trees = {name: shapes.get(name, {}) for name in ("params", "batch_stats")}
  seed = np.asarray(jax.random.key_data(rng)).ravel().tolist()
  values = {name: _draw(seed, tree, layers, ()) for name, tree in trees.items()}
  if any(map(_is_shape, jax.tree.leaves(values))):
    values = _complete(values, init_with_output, rng, inputs)
  return outputs, values["params"], values["batch_stats"]


def _draw(seed: list[int], tree: Tree, layers: Mapping[Path, type[nn.Module]], path: Path) -> Tree:
  """Replaces the shapes of the layers' leaves by values; all other leaves stay shapes."""
  layer = layers.get(path)
  values: Tree = {}
  for name, leaf in tree.items():
    if isinstance(leaf, Mapping):
      values[name] = _draw(seed, dict(leaf), layers, (*path, name))
    elif layer is not None:
      # Each leaf has its own generator, so that changing one part of a network changes no other part's values.
      key = "".join(f"/{part}" for part in (*path, name))
      generator = np.random.default_rng([*seed, zlib.crc32(key.encode())])
      values[name] = jnp.asarray(_leaf_value(layer, name, tree, generator))
    else:
      values[name] = leaf
  return values


def _leaf_value(
  layer: type[nn.Module], name: str, leaves: Tree, generator: np.random.Generator
) -> np.ndarray:
  """Draws one leaf of a layer, float32, by the table at the head of this file."""
  shape = leaves[name].shape
  if issubclass(layer, BatchNorm):
    return np.full(shape, CONSTANTS[name], np.float32)
  kernel_shape = leaves["kernel"].shape
  if "bias" in leaves:
    bound = 1 / math.sqrt(math.prod(kernel_shape[:-1]))
    return np.asarray(bound * (2 * generator.random(shape, np.float32) - 1), np.float32)
  deviation = math.sqrt(2 / (math.prod(kernel_shape[:-2]) * kernel_shape[-1]))
  return np.asarray(deviation * generator.standard_normal(shape, np.float32), np.float32)


def _complete(
  values: Tree, init_with_output: Callable[..., tuple[Any, Mapping[str, Any]]], rng: jax.Array, inputs: Any
) -> Tree:
  """Replaces the shapes left in ``values`` by what the modules' own initialisers draw."""

  def missing(rng: jax.Array) -> Tree:
    # XLA drops whatever these few leaves do not need, which is the network.
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), inputs)
    drawn = init_with_output(rng, *zeros)[1]
    return jax.tree.map(
      lambda value, leaf: leaf if _is_shape(value) else (),
      values,
      {name: drawn.get(name, {}) for name in values},
    )

  return jax.tree.map(lambda value, leaf: leaf if _is_shape(value) else value, values, jax.jit(missing)(rng))


def _is_shape(leaf: Any) -> bool:
  return isinstance(leaf, jax.ShapeDtypeStruct)
