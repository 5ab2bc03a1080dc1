"""Copies of the package to which tests add the code of the pages in ``docs/adding``."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

from tests.support.paths import ROOT


def page(name: str) -> str:
  """Returns the text of a page of ``docs/adding``."""
  return (ROOT / "docs" / "adding" / name).read_text()


def copy_package(folder: pathlib.Path) -> None:
  """Copies ``rc_jax`` into a folder."""
  shutil.copytree(ROOT / "rc_jax", folder / "rc_jax", ignore=shutil.ignore_patterns("__pycache__"))


def add_files(folder: pathlib.Path, text: str) -> None:
  """Writes the files of a page: blocks of Python whose first line is a comment with their path."""
  files = re.findall(r"```python\n# (rc_jax/\S+)\n(.*?)```", text, re.DOTALL)
  assert files
  for path, code in files:
    (folder / path).write_text(code)


def insert(path: pathlib.Path, after: str, added: str) -> None:
  """Inserts lines into a file, after a text that it holds once."""
  code = path.read_text()
  assert code.count(after) == 1, f"{path} holds {after!r} {code.count(after)} times"
  path.write_text(code.replace(after, after + added))


def python(folder: pathlib.Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
  """Runs Python with the copy in a folder in place of the package; ``variables`` add to the environment."""
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}
  environment |= variables
  return subprocess.run(
    [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=200
  )
