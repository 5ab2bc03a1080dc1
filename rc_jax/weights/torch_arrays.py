"""The arrays of a network under their names, with PyTorch's axes, and back.

| in the network | by name |
|---|---|
| ``params["backbone"]["layer1"]["0"]["conv1"]["kernel"] [k,k,I,O]`` | ``backbone.layer1.0.conv1.weight [O,I,k,k]`` |
| ``params["backbone"]["layer1"]["0"]["bn1"]["scale"]``, ``["bias"]`` | ``backbone.layer1.0.bn1.weight``, ``.bias`` |
| ``batch_stats[...]["bn1"]["mean"]``, ``["var"]`` | ``backbone.layer1.0.bn1.running_mean``, ``.running_var`` |
| ``params["head"]["gate"]["kernel"] [I,O]`` of a linear layer | ``head.gate.weight [O,I]`` |
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rc_jax.models import Variables
from rc_jax.models.network import Arrays
from rc_jax.weights import key_names


def torch_arrays(variables: Variables) -> dict[str, np.ndarray]:
  """Returns the arrays of a network by their names, with PyTorch's axes.

  Args:
    variables: of the network; every array is on this process's devices.
  """
  trees = _trees(variables)
  named = {name: (path[-1], _at(trees, path)) for name, path in key_names.array_paths(**trees).items()}
  on_host = jax.device_get({name: leaf for name, (_, leaf) in named.items()})
  return {name: _torch_axes(named[name][0], np.asarray(array)) for name, array in on_host.items()}


def torch_shapes(variables: Variables) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of a network's arrays, or of shapes in their place, by their names, with PyTorch's axes."""
  trees = _trees(variables)
  return {
    name: _torch_shape(path[-1], tuple(_at(trees, path).shape))
    for name, path in key_names.array_paths(**trees).items()
  }


def transposed_names(variables: Variables) -> frozenset[str]:
  """Returns the names of the arrays whose axes PyTorch has in another order: kernels."""
  paths = key_names.array_paths(**_trees(variables))
  return frozenset(name for name, path in paths.items() if path[-1] == "kernel")


def filled(variables: Variables, arrays: Arrays) -> Variables:
  """Replaces arrays of a network.

  Args:
    variables: of the network.
    arrays: by names of the network's arrays, with PyTorch's axes and as many elements.

  Returns:
    The new variables. A part of the trees without any of these arrays is the same object as before.
  """
  trees = _trees(variables)
  paths = key_names.array_paths(**trees)
  values = {
    paths[name]: _our_axes(paths[name][-1], array).reshape(_at(trees, paths[name]).shape)
    for name, array in arrays.items()
  }
  return Variables(*(_fill(tree, values, (name,)) for name, tree in trees.items()))


def _trees(variables: Variables) -> dict[str, Any]:
  return {"params": variables.params, "batch_stats": variables.batch_stats}


def _torch_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  if leaf != "kernel":
    return shape
  return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def _torch_axes(leaf: str, array: np.ndarray) -> np.ndarray:
  if leaf != "kernel":
    return array
  return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _our_axes(leaf: str, array: np.ndarray) -> np.ndarray:
  if leaf != "kernel":
    return array
  return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _at(trees: Mapping[str, Any], path: Iterable[str]) -> Any:
  node: Any = trees
  for key in path:
    node = node[key]
  return node


def _fill(
  tree: Mapping[str, Any], values: Mapping[tuple[str, ...], np.ndarray], path: tuple[str, ...]
) -> dict[str, Any]:
  result: dict[str, Any] = {}
  for key, leaf in tree.items():
    here = (*path, key)
    if not any(where[: len(here)] == here for where in values):
      result[key] = leaf
    elif isinstance(leaf, Mapping):
      result[key] = _fill(leaf, values, here)
    else:
      result[key] = jnp.asarray(values[here])
  return result
