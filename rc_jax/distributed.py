"""Connects the processes of one run, and ends one of them where others wait."""

import importlib.util
import os
import sys
from typing import Any

import jax

from rc_jax.fields import Flag

FLAGS = (
  Flag(
    "coordinator", "", "Several processes: host:port of the first. SLURM and Cloud TPU need no such flags."
  ),
  Flag("processes", "", "Several processes: how many."),
  Flag("process_id", "", "Several processes: the number of this one, from 0."),
)


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


def abort_process(status: int) -> None:
  """Ends this process at once where others run: they wait in a collective that it will never join."""
  if jax.distributed.is_initialized():
    sys.stdout.flush()
    os._exit(status)
