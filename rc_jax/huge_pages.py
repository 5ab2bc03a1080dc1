"""Huge pages for the memory of programs on CPUs.

XLA allocates the intermediate arrays of a CPU's program anew in each call: of gigabytes, whose pages of 4 KB the kernel
maps and clears one by one. With pages of 2 MB the demo's train step takes three quarters of the time. glibc requests
them when a process starts with a setting in its environment, so the command starts itself once more.
"""

import glob
import os
import pathlib
import sys
from collections.abc import Mapping

from rc_jax import streams

SETTING = "GLIBC_TUNABLES"
HUGE_PAGES = "glibc.malloc.hugetlb=1"
_KERNEL = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel*", "/dev/vfio/[0-9]*", "/dev/kfd")
_FIRST_GLIBC = (2, 35)  # the first that knows the setting


def restart_with_huge_pages() -> None:
  """Replaces this process by the same command with huge pages, where that helps; returns otherwise.

  The process keeps its id and its files. Nothing happens where ``GLIBC_TUNABLES`` is set, even to nothing, on a machine
  with an accelerator, under a debugger, or where the kernel offers no huge pages to a process that requests them.
  """
  debugged = sys.gettrace() is not None or "debugpy" in sys.modules
  if debugged or not (sys.executable and sys.orig_argv):
    return
  kernel = _KERNEL.read_text(encoding="utf-8") if _KERNEL.is_file() else ""
  if helps(os.environ, _glibc(), kernel, has_accelerator()):
    streams.flush()
    environment = {**os.environ, SETTING: HUGE_PAGES}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def has_accelerator() -> bool:
  """Returns whether this machine has the device file of a GPU or a TPU."""
  return any(glob.glob(pattern) for pattern in _ACCELERATORS)


def helps(environment: Mapping[str, str], glibc: str, kernel: str, accelerators: bool) -> bool:
  """Returns whether the setting is absent and would change anything.

  Args:
    environment: of the process.
    glibc: its name and version, ``"glibc 2.36"``; empty with another C library.
    kernel: the kernel's choice among ``always``, ``madvise`` and ``never``, in brackets.
    accelerators: whether the machine has one, which JAX would then use.
  """
  name, _, version = glibc.partition(" ")
  numbers = tuple(int(part) for part in version.split(".") if part.isdigit())
  cpu = environment.get("JAX_PLATFORMS") == "cpu" or not accelerators
  return (
    SETTING not in environment
    and cpu
    and name == "glibc"
    and numbers >= _FIRST_GLIBC
    and "[madvise]" in kernel  # with "always" every process has them
  )


def _glibc() -> str:
  try:
    return os.confstr("CS_GNU_LIBC_VERSION") or ""
  except (AttributeError, ValueError, OSError):
    return ""
