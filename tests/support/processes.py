"""Python in processes of its own: with several devices, or several of one run."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from tests.support.paths import ROOT


def with_devices(number: int) -> dict[str, str]:
  """What a process must find in its environment to have so many devices, and to compile as quickly as the tests."""
  flags = f"--xla_force_host_platform_device_count={number} --xla_backend_optimization_level=0"
  return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def start(arguments: Sequence[str], *, processes: int = 1, devices: int = 1) -> list[subprocess.Popen]:
  """Starts Python with ``arguments`` in each of so many processes of one run, with so many devices each."""
  environments = [os.environ | with_devices(devices) for _ in range(processes)]
  if processes > 1:
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      port = free.getsockname()[1]
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
  """Runs Python as ``start`` does; returns what each process printed. All must succeed."""
  started = start(arguments, processes=processes, devices=devices)
  printed = [process.communicate(timeout=300)[0] for process in started]
  assert not any(process.returncode for process in started), "\n".join(printed)[-3000:]
  return printed
