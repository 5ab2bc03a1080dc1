"""Where arrays live: the one mesh, how a batch spreads over it, and how processes find each other."""

import importlib.util
import os
import sys
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def connect(coordinator: str = "", processes: str = "", process_id: str = "") -> None:
  """Joins the processes of one run, where there are several. Must run before the first use of a device.

  What tells them of each other, the first that applies:

  1. the arguments, or ``RC_JAX_COORDINATOR``, ``RC_JAX_PROCESSES`` and ``RC_JAX_PROCESS_ID`` (``launch/local.sh``);
  2. a SLURM step of several tasks, or Open MPI;
  3. Cloud TPU: a pod's metadata, or what GKE sets in each container.

  Args:
    coordinator: ``host:port`` of process 0.
    processes: how many there are.
    process_id: which this is, from 0.

  Raises:
    ValueError: when only some of the three are given, or one is no number; when the others cannot be reached.
  """
  names = ("RC_JAX_COORDINATOR", "RC_JAX_PROCESSES", "RC_JAX_PROCESS_ID")
  flags = ("--coordinator", "--processes", "--process_id")
  given = zip((coordinator, processes, process_id), names, strict=True)
  values = [value or os.environ.get(name, "") for value, name in given]
  if not any(values):
    if _is_cluster():
      _join()
    return
  if not all(values):
    missing = ", ".join(flag for flag, value in zip(flags, values, strict=True) if not value)
    needed = f"{', '.join(flags)}, or in the environment {', '.join(names)}"
    raise ValueError(f"{missing}: not set; a run of several processes needs {needed}")
  coordinator, processes, process_id = values
  if not (processes.isdigit() and process_id.isdigit() and int(process_id) < int(processes)):
    raise ValueError(f"--process_id={process_id} of --processes={processes}: expected 0..processes-1")
  _join(coordinator_address=coordinator, num_processes=int(processes), process_id=int(process_id))


def _join(**how: Any) -> None:
  try:
    jax.distributed.initialize(**how)
  except RuntimeError as error:
    reason = " ".join(str(error).split())[:300]
    raise ValueError(f"the processes of this run did not find each other: {reason}") from error


def _is_cluster() -> bool:
  """Whether this is one of several processes of a cluster that JAX knows how to join."""
  environment = os.environ
  # Of a step, not of the job: the batch script itself is one process, whatever it has asked for.
  if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in environment:
    return True
  if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
    return True
  if "tpu" not in environment.get("JAX_PLATFORMS", "tpu"):
    return False
  if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in environment:
    return True
  # A virtual machine of a Cloud TPU, alone or in a pod: its metadata says which.
  has_chips = any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0")))
  return has_chips and importlib.util.find_spec("libtpu") is not None


def leave(status: int) -> None:
  """Ends this process at once where others run: they wait in a collective that it will never join."""
  if jax.distributed.is_initialized():
    sys.stdout.flush()
    os._exit(status)


def global_mesh() -> Mesh:
  """Returns the mesh of all devices of all processes, one axis, over which batches are spread."""
  # `jax.make_mesh` defaults to explicit axes, under which every array's type would carry its sharding.
  return jax.make_mesh((jax.device_count(),), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def topology_mesh(name: str) -> Mesh:
  """Returns the mesh of a TPU slice that is not attached, to compile for.

  Args:
    name: generation and chips along each axis, ``v5e:4x8``, ``v5p:2x2x4``.

  Raises:
    ValueError: there is no such slice, or libtpu is not installed.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(f"--topology={name}: needs libtpu, which needs no TPU: pip install -e '.[tpu]'")
  # Otherwise libtpu asks a cloud's metadata for the machine it is on, and complains where there is none.
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
  """Returns the mesh of this process's devices, for work that processes do apart, such as scoring."""
  devices = np.asarray(jax.local_devices())
  return Mesh(devices, (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of ``[B,...]`` arrays whose images are spread over the devices."""
  return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def slots(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of banks' keys ``[N,M,C]``, spread along their slots."""
  return NamedSharding(mesh, PartitionSpec(None, DATA_AXIS))


def of(tree: Any) -> Any:
  """Returns the shardings of a tree's arrays, in the same tree."""
  return jax.tree.map(lambda leaf: leaf.sharding, tree)


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
