"""Keeps compiled programs in a folder, so that a later command of the same programs does not compile them again.

JAX has the cache; this module chooses its folder and bounds it. JAX's own bound (``jax_compilation_cache_max_size``)
needs the package ``filelock``, and in 0.10.2 a process that is killed while it writes leaves an entry with which no
further program is ever kept. JAX also keeps a program that was cut by a kill or a full disk, and fails to read it each
time. So entries that cannot be read or written are deleted here, and the oldest ones at the start of a command.

JAX's key of a program holds the version of jaxlib, the compiler's options and the CPU's features, so that machines may
share the folder. It takes programs that compiled for a second or more
(``JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS``).
"""

import contextlib
import os
import pathlib
import re
import warnings
from collections.abc import Mapping
from typing import Any, TextIO

import jax

from rc_jax.console import say

OFF = "off"
_JAX_FOLDER = "jax_compilation_cache_dir"
LIMIT = 2**30  # bytes; homes have quotas, and the program of a train step takes 1 to 50 MB
# A file of a program: its name, JAX's key of it, and the ending of the program or of the time of its last use.
_PROGRAM = r".*-[0-9a-f]{64}-(cache|atime)"
_FAILURE = r"Error (reading|writing) persistent compilation cache entry for '([^']*)': (.*)"


def keep_programs(choice: str, several_processes: bool = False) -> pathlib.Path | None:
  """Turns the compilation cache of this process on, where nothing speaks against it.

  ``JAX_COMPILATION_CACHE_DIR`` in the environment wins: JAX then uses that folder as it is. With several processes of
  a run the default is off. Process 0 alone keeps programs, and it would wait for others that compile; GPUs share the
  tuning of kernels while all processes compile.

  Args:
    choice: a folder, ``off``, or empty for the default one in the user's cache.
    several_processes: whether this process is one of several of a run.

  Returns:
    The folder that this module takes care of; None: it takes care of none.
  """
  if choice == OFF or getattr(jax.config, _JAX_FOLDER, None):  # JAX has read the environment
    return None
  folder = pathlib.Path(choice) if choice else None if several_processes else default_folder(os.environ)
  if folder is None:
    return None
  try:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # whoever writes there chooses what this user runs
    usable = os.access(folder, os.R_OK | os.X_OK)
  except OSError:
    usable = False
  if not usable:
    if choice:
      say(f"WARNING: train.compilation_cache: {folder} cannot be used; compiled programs are not kept")
    return None
  bound(folder, LIMIT)
  _delete_what_fails(folder)
  jax.config.update(_JAX_FOLDER, str(folder))
  return folder


def default_folder(environment: Mapping[str, str]) -> pathlib.Path | None:
  """Returns the folder for compiled programs in the user's cache; None where the user has no home.

  >>> str(default_folder({"XDG_CACHE_HOME": "/scratch/me"}))
  '/scratch/me/rc_jax/programs'
  """
  base = environment.get("XDG_CACHE_HOME", "")
  if not os.path.isabs(base):  # which the specification has programs ignore
    base = os.path.expanduser("~/.cache")
  return pathlib.Path(base, "rc_jax", "programs") if os.path.isabs(base) else None


def bound(folder: pathlib.Path, limit: int) -> None:
  """Deletes programs in a folder, the longest unused first, until the rest has ``limit`` bytes at most.

  Files that are none of JAX's programs stay, and are not counted: a user may have named a folder of other files.
  """
  found = []
  for path in folder.iterdir():
    with contextlib.suppress(OSError):  # another process deletes, too
      status = path.stat()
      if path.is_file() and re.fullmatch(_PROGRAM, path.name):
        found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
  total = 0
  for _, size, path in sorted(found, reverse=True):
    total += size
    if total > limit:
      with contextlib.suppress(OSError):
        path.unlink()


def _delete_what_fails(folder: pathlib.Path) -> None:
  """Deletes the programs of the name of which JAX warns that one cannot be read or kept, so that they are kept anew."""
  show_others, noted = warnings.showwarning, False

  def show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
  ) -> Any:
    nonlocal noted
    failure = re.match(_FAILURE, str(message), re.DOTALL)
    if not failure:
      return show_others(message, category, filename, lineno, file, line)
    for path in folder.glob(f"{failure[2]}-*"):
      with contextlib.suppress(OSError):
        path.unlink()
    if failure[1] == "writing" and not noted:
      noted = True
      say(f"note: {folder}: compiled programs are not kept ({' '.join(failure[3].split())[:200]})")
    return None

  warnings.filterwarnings("always", message=_FAILURE.partition("(.*)")[0])
  warnings.showwarning = show
