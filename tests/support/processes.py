"""Python in other processes: with several devices, or several processes of one run; and how all tests run Python."""

import gc
import importlib.metadata
import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from tests.support.paths import ROOT

# Tracing a program makes millions of objects, most of which live on. By default, Python looks for garbage among them so
# often that it takes an eighth of the time.
gc.set_threshold(100_000, 20, 100)

# Most programs run once or twice: XLA's own passes stay, LLVM's optimisation of the machine code is not worth its time.
QUICK_COMPILE = ["--xla_backend_optimization_level=0"]
# The older of XLA's two emitters compiles a train step in a third of the time; jaxlib 0.12 has it no more.
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
  QUICK_COMPILE.append("--xla_cpu_use_fusion_emitters=false")


def xla_flags(devices: int | None = None) -> str:
  """Returns ``XLA_FLAGS`` for a process of the tests: those of the environment, and the tests' own.

  A flag that the environment holds wins over ``QUICK_COMPILE``; the number of devices wins over the environment.

  Args:
    devices: how many CPU devices the process has; None: as many as the environment says.
  """
  flags = [*QUICK_COMPILE, *os.environ.get("XLA_FLAGS", "").split()]
  if devices is not None:
    flags.append(f"--xla_force_host_platform_device_count={devices}")
  # One of each name, the last: processes that tests start inherit what this function returned.
  return " ".join({flag.partition("=")[0]: flag for flag in flags}.values())


def with_devices(number: int) -> dict[str, str]:
  """Returns the environment variables of a process that has ``number`` CPU devices and compiles quickly."""
  return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(number)}


def free_port() -> int:
  """Returns a port of this machine that no program uses at the moment."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port: int = free.getsockname()[1]
  return port


def inherited() -> dict[str, str]:
  """Returns the environment of the tests without what connects processes."""
  return {name: value for name, value in os.environ.items() if not name.startswith("RC_JAX_")}


def start(arguments: Sequence[str], *, processes: int = 1, devices: int = 1) -> list[subprocess.Popen]:
  """Starts Python with ``arguments`` in each of the ``processes`` of one run, each with ``devices`` devices."""
  environments = [os.environ | with_devices(devices) for _ in range(processes)]
  if processes > 1:
    port = free_port()
    for index, environment in enumerate(environments):
      environment["RC_JAX_COORDINATOR"] = f"127.0.0.1:{port}"
      environment["RC_JAX_PROCESSES"], environment["RC_JAX_PROCESS_ID"] = str(processes), str(index)
  return [
    subprocess.Popen(
      [sys.executable, *arguments],
      cwd=ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for environment in environments
  ]


def run(*arguments: str, processes: int = 1, devices: int = 1) -> list[str]:
  """Runs Python as ``start`` does, to the end; returns the output of each process. All must succeed."""
  started = start(arguments, processes=processes, devices=devices)
  printed = [process.communicate(timeout=300)[0] for process in started]
  assert not any(process.returncode for process in started), "\n".join(printed)[-3000:]
  return printed
