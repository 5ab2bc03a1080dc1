"""Where arrays live: the one mesh, how a batch spreads over it, and how processes find each other."""

import os
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def connect() -> None:
  """Joins the processes of one run, where the environment says that there are several.

  ``RC_JAX_COORDINATOR`` (host:port), ``RC_JAX_PROCESSES`` and ``RC_JAX_PROCESS_ID`` name them explicitly
  (``launch/local.sh`` does). Must run before the first use of a device.

  Raises:
    ValueError: when only some of the three are set, or one is no number.
  """
  names = ("RC_JAX_COORDINATOR", "RC_JAX_PROCESSES", "RC_JAX_PROCESS_ID")
  values = [os.environ.get(name, "") for name in names]
  if not any(values):
    return
  if not all(values):
    missing = ", ".join(name for name, value in zip(names, values, strict=True) if not value)
    raise ValueError(f"environment: {missing} not set; a run of several processes needs {', '.join(names)}")
  coordinator, processes, process_id = values
  if not (processes.isdigit() and process_id.isdigit() and int(process_id) < int(processes)):
    raise ValueError(
      f"environment: RC_JAX_PROCESS_ID={process_id} of RC_JAX_PROCESSES={processes}; expected 0..processes-1"
    )
  jax.distributed.initialize(coordinator, num_processes=int(processes), process_id=int(process_id))


def global_mesh() -> Mesh:
  """Returns the mesh of all devices of all processes, one axis, over which batches are spread."""
  # `jax.make_mesh` defaults to explicit axes, under which every array's type would carry its sharding.
  return jax.make_mesh((jax.device_count(),), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def local_mesh() -> Mesh:
  """Returns the mesh of this process's devices, for work that processes do apart, such as scoring."""
  devices = np.asarray(jax.local_devices())
  return Mesh(devices, (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of ``[B,...]`` arrays whose images are spread over the devices."""
  return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def check_batch(batch_size: int, mesh: Mesh) -> None:
  """Refuses a global batch that the devices do not divide.

  Raises:
    ValueError: one line with the nearest sizes that work.
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
  sharding = batched(mesh)
  return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def put_replicated(tree: Any, mesh: Mesh) -> Any:
  """Puts the same value of every leaf on every device of the mesh; all processes must hold that value."""
  sharding = replicated(mesh)
  if jax.process_count() == 1:
    return jax.device_put(tree, sharding)
  return jax.tree.map(
    lambda leaf: jax.make_array_from_callback(np.shape(leaf), sharding, np.asarray(leaf).__getitem__), tree
  )


def local_copy(tree: Any) -> Any:
  """Returns replicated global arrays as arrays on all of this process's own devices, for work done apart."""
  sharding = replicated(local_mesh())
  return jax.tree.map(lambda leaf: jax.device_put(leaf.addressable_data(0), sharding), tree)
