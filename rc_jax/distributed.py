"""Connects the processes of one run, and ends a process that failed while others wait for it."""

import importlib.util
import os

import jax

from rc_jax import streams
from rc_jax.fields import Flag

FLAGS = (
  Flag(
    "coordinator", "", "Several processes: host:port of the first. SLURM and Cloud TPU need no such flags."
  ),
  Flag("processes", "", "Several processes: their number."),
  Flag("process_id", "", "Several processes: the number of this one, from 0."),
)


def connect(coordinator: str = "", processes: str = "", process_id: str = "") -> None:
  """Joins the processes of one run, where there are several. Must run before the first use of a device.

  The processes find each other through the first of these sources that is present:

  1. the arguments, or ``RC_JAX_COORDINATOR``, ``RC_JAX_PROCESSES`` and ``RC_JAX_PROCESS_ID`` (``launch/local.sh``);
  2. a SLURM step of several tasks, or Open MPI;
  3. Cloud TPU: a pod's metadata, or the environment that GKE sets in each container.

  Args:
    coordinator: ``host:port`` of process 0.
    processes: number of processes.
    process_id: number of this process, from 0.

  Raises:
    ValueError: only some of the three are given, or one is no number; or the other processes cannot be reached.
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
  host, _, port = coordinator.rpartition(":")
  if not (host and port.isdigit() and 0 < int(port) < 2**16):
    raise ValueError(
      f"--coordinator={coordinator}: expected host:port of the first process, such as node0:1234"
    )
  _join(coordinator, int(processes), int(process_id))


def _join(
  coordinator: str | None = None, processes: int | None = None, process_id: int | None = None
) -> None:
  """Joins the other processes; JAX reads from the cluster's environment whatever is None."""
  try:
    jax.distributed.initialize(coordinator, processes, process_id)
  except RuntimeError as error:
    reason = " ".join(str(error).split())[:300]
    raise ValueError(f"the processes of this run did not find each other: {reason}") from error
  except (ValueError, KeyError, IndexError) as error:
    # JAX reads the variables of the cluster as they are.
    if coordinator is not None:
      raise
    reason = " ".join(str(error).split())[:200]
    raise ValueError(
      f"the variables that the cluster sets for this process cannot be read ({type(error).__name__}: {reason}); "
      f"set them, or give {', '.join(f'--{flag.name}=' for flag in FLAGS)}"
    ) from error


def _is_cluster() -> bool:
  """Returns whether this is one of several processes of a cluster whose environment JAX can read."""
  environment = os.environ
  # The tasks of the step, not of the job: the batch script itself is one process, whatever it requests.
  if _number("SLURM_STEP_NUM_TASKS") > 1 and environment.get("SLURM_PROCID"):
    return True
  if _number("OMPI_COMM_WORLD_SIZE") > 1:
    return True
  if "tpu" not in environment.get("JAX_PLATFORMS", "tpu"):
    return False
  if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in environment:
    return True
  # A virtual machine of a Cloud TPU, alone or in a pod: JAX reads from its metadata which.
  has_chips = any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0")))
  return has_chips and importlib.util.find_spec("libtpu") is not None


def _number(variable: str) -> int:
  """Returns the number in an environment variable; 1 where it is absent or empty."""
  value = os.environ.get(variable, "").strip() or "1"
  if not value.isdecimal():
    raise ValueError(f"{variable}={value} in the environment: expected a number; set it, or unset it")
  return int(value)


def abort_process(status: int) -> None:
  """Ends this process at once if it is one of several: the others wait in a collective that it will never join."""
  if jax.distributed.is_initialized():
    streams.flush()
    os._exit(status)
