"""Stopping a command when the process that started it ends, however that ends."""

import ctypes
import os
import signal
import sys

# The number of the parent process, which ``environment`` sets for a command.
_VARIABLE = "RC_JAX_STOP_WITH"
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def environment() -> dict[str, str]:
  """Returns the environment of a command that is to stop when this process ends."""
  return {**os.environ, _VARIABLE: str(os.getpid())}


def stop_with_parent() -> None:
  """Makes this process get SIGTERM when its parent ends, if the parent asked for it; Linux only.

  A training run finishes its step and saves then, as for any SIGTERM.
  """
  parent = os.environ.pop(_VARIABLE, "")
  if not parent or not sys.platform.startswith("linux"):
    return
  ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
  if str(os.getppid()) != parent:
    sys.exit(128 + signal.SIGTERM)  # the parent ended before the kernel knew of the request
