"""Device meshes, and the shardings of arrays over them: one axis, along which images and banks' slots are spread."""

import importlib.util
import os
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def global_mesh() -> Mesh:
  """Returns the mesh of all devices of all processes, with the axis ``DATA_AXIS``."""
  # `jax.make_mesh` defaults to explicit axes, under which every array's type would carry its sharding.
  return jax.make_mesh((jax.device_count(),), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def topology_mesh(name: str) -> Mesh:
  """Returns the mesh of a TPU slice that is not attached, to compile for it.

  Args:
    name: generation and chips along each axis, ``v5e:4x8``, ``v5p:2x2x4``.

  Raises:
    ValueError: there is no such slice, or libtpu is not installed.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(f"--topology={name}: needs libtpu, which needs no TPU: pip install -e '.[tpu]'")
  # Otherwise libtpu queries a cloud's metadata server for its machine, and logs errors where there is none.
  for variable, value in (("TPU_SKIP_MDS_QUERY", "1"), ("TPU_WORKER_HOSTNAMES", "localhost")):
    os.environ.setdefault(variable, value)
  try:
    topology = topologies.get_topology_desc(platform="tpu", topology_name=name)
  except Exception as error:
    reason = " ".join(str(error).split())[:200]
    raise ValueError(
      f"--topology={name}: no such slice ({reason}); expected a generation and its chips along each axis, "
      "such as v5e:2x4, v6e:4x8, v5p:2x2x2 or v4:2x2x4"
    ) from error
  return Mesh(np.asarray(topology.devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def local_mesh() -> Mesh:
  """Returns the mesh of this process's devices, for work that each process does alone, such as scoring."""
  devices = np.asarray(jax.local_devices())
  return Mesh(devices, (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array of which every device holds a copy."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of ``[B,...]`` arrays whose images are spread over the devices."""
  return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def shardings_of(tree: Any) -> Any:
  """Returns the sharding of each array of a tree, in the same tree."""
  return jax.tree.map(lambda leaf: leaf.sharding, tree)


def check_batch(batch_size: int, mesh: Mesh) -> None:
  """Checks that the devices divide a global batch.

  Raises:
    ValueError: they do not; one line with the nearest sizes that work.
  """
  devices = mesh.devices.size
  if batch_size % devices:
    below = batch_size // devices * devices
    sizes = f"{below} or {below + devices}" if below else f"{devices}"
    raise ValueError(f"config.train.batch_size: {batch_size} images over {devices} devices; expected {sizes}")


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
