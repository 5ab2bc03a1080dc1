"""Connects the processes of one run, compares them, and ends a process that failed while others wait for it."""

import atexit
import importlib.util
import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rc_jax import agreement, files, streams
from rc_jax.fields import Flag
from rc_jax.process_group import ProcessGroup
from rc_jax.rendezvous import connect_processes, split_address

CONNECT_SECONDS = 300

FLAGS = (
  Flag(
    "coordinator", "", "Several processes: host:port of the first. SLURM and Cloud TPU need no such flags."
  ),
  Flag("processes", "", "Several processes: their number."),
  Flag("process_id", "", "Several processes: the number of this one, from 0."),
  Flag("connect_timeout", CONNECT_SECONDS, "Several processes: seconds to wait for all of them."),
)
_ADDRESS_FLAGS = FLAGS[:3]

# Here JAX asks a launcher or a metadata server for the address.
_LEFT_TO_JAX = ("OMPI_MCA_orte_hnp_uri", "MEGASCALE_COORDINATOR_ADDRESS", "TPU_PROCESS_ADDRESSES")
_SLURM_VARIABLES = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")

_group: ProcessGroup | None = None


def connect(
  coordinator: str = "",
  processes: str = "",
  process_id: str = "",
  connect_timeout: int = CONNECT_SECONDS,
  facts: agreement.Facts | None = None,
) -> None:
  """Joins the processes of one run, where there are several. Must run before the first use of a device.

  The processes find each other through the first of these sources that is present:

  1. the arguments, or ``RC_JAX_COORDINATOR``, ``RC_JAX_PROCESSES`` and ``RC_JAX_PROCESS_ID`` (``launch/local.sh``);
  2. a SLURM step of several tasks, or Open MPI;
  3. Cloud TPU: a pod's metadata, or the environment that GKE sets in each container.

  Args:
    coordinator: ``host:port`` of process 0.
    processes: number of processes.
    process_id: number of this process, from 0.
    connect_timeout: seconds after which the start is given up.
    facts: what must be equal in all processes, as for ``agreement.disagreements``.

  Raises:
    ValueError: only some of the three are given, or one is no number; a process is missing, two have the same number,
      or the processes do not agree. One line.
  """
  names = ("RC_JAX_COORDINATOR", "RC_JAX_PROCESSES", "RC_JAX_PROCESS_ID")
  flags = tuple(f"--{flag.name}" for flag in _ADDRESS_FLAGS)
  given = zip((coordinator, processes, process_id), names, strict=True)
  values = [value or os.environ.get(name, "") for value, name in given]
  if connect_timeout < 1:
    raise ValueError(f"--connect_timeout={connect_timeout}: expected 1 or more seconds")
  if not any(values):
    if _is_cluster():
      coordinator_address, count, index = _address_of_cluster() or (None, None, None)
      _join(coordinator_address, count, index, connect_timeout, facts or {})
    return
  if not all(values):
    missing = ", ".join(flag for flag, value in zip(flags, values, strict=True) if not value)
    needed = f"{', '.join(flags)}, or in the environment {', '.join(names)}"
    raise ValueError(f"{missing}: not set; a run of several processes needs {needed}")
  coordinator, processes, process_id = values
  if not (processes.isdecimal() and process_id.isdecimal() and int(process_id) < int(processes)):
    raise ValueError(f"--process_id={process_id} of --processes={processes}: expected 0..processes-1")
  try:
    split_address(coordinator)
  except ValueError as error:
    raise ValueError(f"--coordinator={error}") from None
  _join(coordinator, int(processes), int(process_id), connect_timeout, facts or {})


def _join(
  coordinator: str | None,
  processes: int | None,
  process_id: int | None,
  timeout: int,
  facts: agreement.Facts,
) -> None:
  """Joins the other processes; JAX reads from the cluster's environment whatever is None."""
  global _group
  if coordinator and processes and processes > 1 and process_id is not None:
    _group = connect_processes(coordinator, processes, process_id, timeout, facts)
    # The interpreter's end must not look like a crash to the others. JAX registered its own function earlier, so
    # this one runs first.
    atexit.register(leave, 0)
  try:
    with _WaitNotice(coordinator is None):
      jax.distributed.initialize(coordinator, processes, process_id, initialization_timeout=timeout)
  except RuntimeError as error:
    reason = files.one_line(error, 300)
    raise ValueError(
      f"JAX could not connect the processes of this run ({reason}); check that all ports are open between the hosts "
      "and start all processes again, or raise --connect_timeout"
    ) from error
  except (ValueError, KeyError, IndexError) as error:
    # JAX reads the variables of the cluster as they are.
    if coordinator is not None:
      raise
    reason = files.one_line(error)
    raise ValueError(
      f"the variables that the cluster sets for this process cannot be read ({type(error).__name__}: {reason}); "
      f"set them, or give {', '.join(f'--{flag.name}=' for flag in _ADDRESS_FLAGS)}"
    ) from error
  if _group is None:
    check_agreement(facts)


class _WaitNotice:
  """Says now and then that JAX waits, inside the ``with`` block, where it finds the other processes itself."""

  def __init__(self, shown: bool):
    self._over = threading.Event()
    if not shown:
      self._over.set()

  def __enter__(self) -> None:
    threading.Thread(target=self._show, name="connecting", daemon=True).start()

  def __exit__(self, *unused: object) -> None:
    self._over.set()

  def _show(self) -> None:
    seconds = 0
    while not self._over.wait(30):
      seconds += 30
      streams.write_output(f"JAX waits for the other processes of this run ({seconds} s)\n")


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


def _address_of_cluster() -> tuple[str, int, int] | None:
  """Returns coordinator, number and index of the processes from documented variables of SLURM or GKE.

  JAX finds the same values, but has no public function that returns them. None where JAX has to find them: Open MPI,
  the metadata of a Cloud TPU, several TPU slices, or variables that are missing or of another form.
  """
  environment = os.environ
  if any(name in environment for name in _LEFT_TO_JAX):
    return None
  place = _place_in_slurm() if "SLURM_JOB_ID" in environment else _place_in_gke()
  if place is None:
    return None
  host, port, processes, process_id = place
  port = environment.get("JAX_COORDINATOR_PORT") or port
  return environment.get("JAX_COORDINATOR_ADDRESS") or f"{host}:{port}", processes, process_id


def _place_in_slurm() -> tuple[str, str, int, int] | None:
  """Returns host and port of process 0, the number of processes and the index of this one, as JAX does."""
  values = [os.environ.get(name, "") for name in _SLURM_VARIABLES]
  job, nodes, tasks, task, _ = values
  # The first of ``node001,gpu2`` or of ``node[001-015,20],gpu2``.
  first = re.match(r"([\w.-]+)(?:\[(\w+)[^\]]*\])?(?:,|$)", nodes)
  if not all(values) or not first or not all(map(str.isdecimal, (job, tasks, task))):
    return None
  return first[1] + (first[2] or ""), str(int(job) % 2**12 + 65535 - 2**12 + 1), int(tasks), int(task)


def _place_in_gke() -> tuple[str, str, int, int] | None:
  """As ``_place_in_slurm``, for a TPU slice in GKE."""
  hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
  worker = os.environ.get("TPU_WORKER_ID", "")
  if len(hosts) < 2 or not worker.isdecimal() or not all(re.fullmatch(r"[\w.-]+", host) for host in hosts):
    return None
  return hosts[0], "8482", len(hosts), int(worker)


def _number(variable: str) -> int:
  """Returns the number in an environment variable; 1 where it is absent or empty."""
  value = os.environ.get(variable, "").strip() or "1"
  if not value.isdecimal():
    raise ValueError(f"{variable}={value} in the environment: expected a number; set it, or unset it")
  return int(value)


def check_agreement(facts: agreement.Facts, listings: Mapping[str, Sequence[str]] | None = None) -> None:
  """Checks that all processes of the run have the same facts and lists, as ``agreement.check_agreement``.

  Every process calls this at the same place. A single process returns at once.

  Raises:
    ValueError: they differ; one line.
  """
  if _group is not None:
    group = _group
    agreement.check_agreement(lambda value: group.gather(value, "read the data"), facts, listings)
  elif is_one_of_several():
    agreement.check_agreement(_gather_on_devices, facts, listings)


def is_one_of_several() -> bool:
  """Returns whether this process is one of several of a run; starts JAX's devices only where it may be."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def _gather_on_devices(value: Any) -> list[Any]:
  """Exchanges values through the devices, where JAX has connected the processes."""
  return [json.loads(content) for content in allgather_bytes(json.dumps(value).encode())]


def allgather_bytes(content: bytes) -> list[bytes]:
  """Exchanges bytes through the devices; every process calls this at the same place.

  Args:
    content: of this process; its length may differ between processes.

  Returns:
    The contents of all processes, in order.
  """
  # Gathered arrays must have one shape in all processes.
  lengths = np.ravel(multihost_utils.process_allgather(np.int32(len(content))))
  if not lengths.max():  # often no process has anything to send
    return [b""] * len(lengths)
  padded = np.zeros(int(lengths.max()), np.uint8)
  padded[: len(content)] = np.frombuffer(content, np.uint8)
  rows = np.asarray(multihost_utils.process_allgather(padded))
  return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]


def leave(status: int, message: str = "") -> None:
  """Sends the other processes the exit status of this one; does nothing the second time, or in a single process.

  Args:
    status: its exit status.
    message: its error, in one line; empty where it has finished.
  """
  global _group
  if _group is not None:
    group, _group = _group, None
    group.leave(status, message)


def exit_if_lost() -> None:
  """Ends this process if another one of the run is lost, with the line that says which."""
  if _group is not None:
    _group.exit_if_lost()


def abort_process(status: int, message: str, shown: str = "") -> None:
  """Ends this process at once if it is one of several: the others wait in a collective that it will never join.

  Args:
    status: the exit status.
    message: its error, in one line, which the others print too.
    shown: a text to print before; nothing is printed where this process is the only one.
  """
  leave(status, message)
  if jax.distributed.is_initialized():
    streams.write_error(shown)
    streams.flush()
    os._exit(status)
