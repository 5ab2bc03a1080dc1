"""A mode and a config field are added as ``docs/adding/`` shows, in a copy of the package."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from rc_jax.config import load_recipe
from tests.support.paths import CONFIGS, ROOT

PAGES = ROOT / "docs" / "adding"


def blocks(page: str) -> list[str]:
  """Returns the blocks of Python of a page."""
  return re.findall(r"```python\n(.*?)```", (PAGES / page).read_text(), re.DOTALL)


def insert_after(path: pathlib.Path, line: str, added: str) -> None:
  """Adds text behind the one line of a file that starts with ``line``."""
  lines = path.read_text().splitlines(keepends=True)
  (place,) = [index for index, text in enumerate(lines) if text.startswith(line)]
  path.write_text("".join([*lines[: place + 1], added, *lines[place + 1 :]]))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A copy of the package with the mode and the field of the pages."""
  folder = tmp_path_factory.mktemp("checkout")
  shutil.copytree(ROOT / "rc_jax", folder / "rc_jax", ignore=shutil.ignore_patterns("__pycache__"))
  file, line = blocks("mode.md")
  (folder / file.splitlines()[0].removeprefix("# ")).write_text(file)
  insert_after(folder / "rc_jax" / "main.py", '  "compile": ', line)
  field, reader = blocks("config_field.md")
  insert_after(folder / "rc_jax" / "config.py", '  Field("optimizer.momentum"', field)
  optimizer = folder / "rc_jax" / "training" / "optimizer.py"
  before = "    optax.trace(decay=config_optimizer.momentum),\n"
  assert before in optimizer.read_text()
  optimizer.write_text(optimizer.read_text().replace(before, reader))
  return folder


def run(checkout: pathlib.Path, *command: str) -> subprocess.CompletedProcess[str]:
  environment = {**os.environ, "PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"}
  return subprocess.run(
    [sys.executable, *command], cwd=checkout, env=environment, capture_output=True, text=True
  )


def test_a_mode_runs_and_is_described(checkout: pathlib.Path) -> None:
  recipe = f"--config={CONFIGS / 'cityscapes.py'}"
  finished = run(checkout, "-m", "rc_jax", recipe, "--mode=classes", "--colors")
  assert finished.returncode == 0, finished.stderr
  lines = finished.stdout.splitlines()
  assert len(lines) == 19 and lines[0].split() == ["0", "7", "road", "#804080"]
  assert "#" not in run(checkout, "-m", "rc_jax", recipe, "--mode=classes").stdout
  described = run(checkout, "-m", "rc_jax", "--help", "--mode=classes").stdout
  assert "prints the classes of a data set" in described and "--colors" in described
  # Other modes refuse the new flag by name.
  refused = run(checkout, "-m", "rc_jax", recipe, "--mode=summary", "--colors")
  assert refused.returncode == 2 and "--colors" in refused.stderr and "classes" in refused.stderr


STEP = """
import json
import jax.numpy as jnp
from rc_jax.config import FIELDS, defaults
from rc_jax.training.optimizer import sgd

config = defaults()
config.optimizer.weight_decay, config.optimizer.head_multiplier = 0.0, 1.0
params = {"backbone": {"kernel": jnp.ones(2)}}
gradient = {"backbone": {"kernel": jnp.array([1.0, -2.0])}}
found = {"default": config.optimizer.nesterov, "paths": [field.path for field in FIELDS]}
for nesterov in (False, True):
  config.optimizer.nesterov = nesterov
  optimizer = sgd(config.optimizer, 10, params)
  update, _ = optimizer.update(gradient, optimizer.init(params), params)
  found[str(nesterov)] = update["backbone"]["kernel"].tolist()
print(json.dumps(found))
"""


def test_a_field_has_its_default_is_described_and_is_read(checkout: pathlib.Path) -> None:
  finished = run(checkout, "-c", STEP)
  assert finished.returncode == 0, finished.stderr
  found = json.loads(finished.stdout)
  assert found["default"] is False and "optimizer.nesterov" in found["paths"]
  optimizer = load_recipe(str(CONFIGS / "cityscapes.py")).optimizer
  # The first step of PyTorch's SGD: the buffer is the gradient, and Nesterov's adds momentum times it.
  for nesterov, factor in (("False", 1.0), ("True", 1 + optimizer.momentum)):
    expected = [-optimizer.learning_rate * factor * value for value in (1.0, -2.0)]
    assert found[nesterov] == pytest.approx(expected, rel=1e-6)
  assert "optimizer.nesterov = False" in run(checkout, "-m", "rc_jax", "--help=config").stdout
  refused = run(
    checkout,
    "-m",
    "rc_jax",
    f"--config={CONFIGS / 'demo.py'}",
    "--mode=summary",
    "--config.optimizer.nesterov=x",
  )
  assert refused.returncode == 2 and "nesterov" in refused.stderr and refused.stderr.count("\n") == 1
