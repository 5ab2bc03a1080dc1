"""Device meshes, and the shardings of arrays over them: one axis, along which images and banks' slots are spread."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"

# By default XLA leaves out roundings to bfloat16 between operations, and then keeps such arrays in float32: 3.9 of the
# 117 GB that a step of DeepLabV3 on ResNet-50 moves.
GPU_OPTIONS: dict[str, str | bool] = {"xla_allow_excess_precision": False}


def global_mesh() -> Mesh:
  """Returns the mesh of all devices of all processes, with the axis ``DATA_AXIS``."""
  # `jax.make_mesh` defaults to explicit axes, under which every array's type would carry its sharding.
  return jax.make_mesh((jax.device_count(),), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def local_mesh() -> Mesh:
  """Returns the mesh of this process's devices, for work that each process does alone, such as scoring."""
  return mesh_of(jax.local_devices())


def mesh_of(devices: Sequence[Any]) -> Mesh:
  """Returns the mesh of some devices, attached or not, with the axis ``DATA_AXIS``."""
  return Mesh(np.asarray(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def on_gpus(mesh: Mesh) -> bool:
  """Returns whether the devices of a mesh are GPUs, attached or not."""
  return str(mesh.devices.flat[0].platform) == "gpu"


def compiler_options(mesh: Mesh) -> dict[str, str | bool] | None:
  """Returns the options with which programs that run a network are compiled, for ``jax.jit``; None: the usual ones."""
  return GPU_OPTIONS if on_gpus(mesh) else None


def replicated_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array of which every device holds a copy."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of ``[B,...]`` arrays whose images are spread over the devices."""
  return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def shardings_of(tree: Any) -> Any:
  """Returns the sharding of each array of a tree, in the same tree."""
  return jax.tree.map(lambda leaf: leaf.sharding, tree)


def check_batch(batch_size: int, mesh: Mesh, microbatches: int = 1) -> None:
  """Checks that the devices divide each part of a global batch.

  Args:
    batch_size: images of the global batch.
    mesh: the global mesh.
    microbatches: parts of the batch that are computed one after another.

  Raises:
    ValueError: they do not; one line with the nearest sizes that work.
  """
  devices = mesh.devices.size
  unit = devices * microbatches
  if batch_size % unit:
    below = batch_size // unit * unit
    sizes = f"{below} or {below + unit}" if below else f"{unit}"
    parts = f" in {microbatches} parts (train.microbatches)" if microbatches > 1 else ""
    raise ValueError(
      f"config.train.batch_size: {batch_size} images over {devices} devices{parts}; expected {sizes}"
    )


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Moves this process's rows of a batch to its devices.

  Args:
    batch: arrays ``[b,...]``, the rows of this process; ``b`` = global batch / processes.
    mesh: the global mesh.

  Returns:
    Global arrays ``[B,...]``, spread over the mesh.
  """
  sharding = batch_sharding(mesh)
  return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def put_replicated(tree: Any, mesh: Mesh) -> Any:
  """Copies every leaf of a tree to every device of the mesh; the leaf must have the same value in all processes."""
  sharding = replicated_sharding(mesh)
  if jax.process_count() == 1:
    return jax.device_put(tree, sharding)
  return jax.tree.map(
    lambda leaf: jax.make_array_from_callback(np.shape(leaf), sharding, np.asarray(leaf).__getitem__), tree
  )


def local_copy(tree: Any) -> Any:
  """Copies replicated global arrays to arrays on this process's devices, for work that each process does alone."""
  sharding = replicated_sharding(local_mesh())
  return jax.tree.map(lambda leaf: jax.device_put(leaf.addressable_data(0), sharding), tree)
