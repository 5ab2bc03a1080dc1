"""Additions to a copy of the package by the code that a page of ``docs/adding/`` shows."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

from tests.support import processes
from tests.support.paths import ROOT


def copy_package(folder: pathlib.Path) -> pathlib.Path:
  """Copies ``rc_jax`` into a folder and returns the folder."""
  shutil.copytree(ROOT / "rc_jax", folder / "rc_jax", ignore=shutil.ignore_patterns("__pycache__"))
  return folder


def add_from_page(checkout: pathlib.Path, page: str, place: str, after: str, imported: str) -> None:
  """Adds the file and the line of a page to a copy of the package.

  Args:
    checkout: holds the copy.
    page: its name in ``docs/adding``; one block of code starts with a comment of its path, another is one line.
    place: the file that gets the line.
    after: the line there that the new line follows.
    imported: an import statement that the line needs.
  """
  blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "adding" / page).read_text(), re.DOTALL)
  ((path, code),) = re.findall(r"^# (rc_jax/\S+)\n(.*)", blocks[0], re.DOTALL)
  assert len(blocks) == 2 and blocks[1].count("\n") == 1
  (checkout / path).write_text(code)
  text = (checkout / place).read_text()
  assert text.count(after) == 1
  text = text.replace(after, after + blocks[1])
  start = text.index("\nfrom rc_jax") + 1
  (checkout / place).write_text(f"{text[:start]}{imported}\n{text[start:]}")


def python(checkout: pathlib.Path, *arguments: str, cache: pathlib.Path | None = None) -> tuple[int, str]:
  """Runs Python on the copy; returns its exit status and what it printed."""
  environment = os.environ | processes.with_devices(1)
  environment |= {"PYTHONPATH": f"{checkout}{os.pathsep}{ROOT}", "PYTHONSAFEPATH": "1"}
  if cache is not None:
    environment |= {
      "JAX_COMPILATION_CACHE_DIR": str(cache),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
  finished = subprocess.run(
    [sys.executable, *arguments],
    cwd=checkout,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout=300,
  )
  return finished.returncode, finished.stdout
