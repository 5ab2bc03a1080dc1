"""Stopping a command when the process that started it ends, however that ends."""

import ctypes
import os
import signal
import sys

# The number of the parent process, which ``environment`` sets for a command.
VARIABLE = "RC_JAX_STOP_WITH"
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>

_stops_with_parent = False


def environment() -> dict[str, str]:
  """Returns the environment of a command that is to stop when this process ends."""
  return {**os.environ, VARIABLE: str(os.getpid())}


def stop_with_parent() -> None:
  """Makes this process get SIGTERM when its parent ends, if the parent asked for it; Linux only.

  A training run finishes its step and saves then, as for any SIGTERM. The variable of the request is removed, because
  it does not concern the processes that this one starts.
  """
  global _stops_with_parent
  parent = os.environ.pop(VARIABLE, "")
  _stops_with_parent = bool(parent)
  if not parent or not sys.platform.startswith("linux"):
    return
  ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
  if str(os.getppid()) != parent:
    sys.exit(128 + signal.SIGTERM)  # the parent ended before the kernel knew of the request


def started_by_runner() -> bool:
  """Returns whether the parent asked this process to stop with it, as a study's runner does.

  Such a process may get SIGTERM twice: a scheduler sends it to all processes of a job, and the runner sends it again.
  """
  return _stops_with_parent
