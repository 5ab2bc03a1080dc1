"""A head and a backbone are added to a copy of the package as ``docs/adding/head.md`` shows: a file and a line each."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.run

PAGE = (ROOT / "docs" / "adding" / "head.md").read_text()
SEGMENTER = pathlib.Path("rc_jax", "models", "segmenter.py")
RECIPE = """
from rc_jax.config import defaults

def get_config():
  config = defaults()
  config.dataset.name = "synthetic"
  config.train.crop_size = (65, 65)
  return config
"""
CLASSES, CHANNELS, WIDTH = 5, 16, 6


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
  """A copy of the package with the files and the lines of the page."""
  folder = tmp_path_factory.mktemp("checkout")
  shutil.copytree(ROOT / "rc_jax", folder / "rc_jax", ignore=shutil.ignore_patterns("__pycache__"))
  files = re.findall(r"```python\n# (rc_jax/\S+)\n(.*?)```", PAGE, re.DOTALL)
  lines = re.findall(r'```python\n(  "\w+": (\w+)\.(HEAD|BACKBONE),\n)```', PAGE)
  assert len(files) == len(lines) == 2
  for path, code in files:
    (folder / path).write_text(code)
  code = (folder / SEGMENTER).read_text()
  for line, module, kind in lines:
    start = f"from rc_jax.models.{kind.lower()}s import "
    assert code.count(f"\n{start}") == 1
    code = code.replace(f"\n{start}", f"\n{start}{module}\n{start}")
    (opening,) = re.findall(rf"^{kind}S: .* = {{\n", code, re.MULTILINE)
    code = code.replace(opening, opening + line)
  (folder / SEGMENTER).write_text(code)
  (folder / "recipe.py").write_text(RECIPE)
  return folder


def python(checkout, *arguments):
  """Runs Python on the copy."""
  environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"}
  return subprocess.run(
    [sys.executable, *arguments], capture_output=True, text=True, cwd=checkout, env=environment
  )


def main(checkout, *flags):
  return python(checkout, "-m", "rc_jax.main", "--config=recipe.py", "--mode=summary", *flags)


@pytest.mark.long
def test_the_network_is_chosen_by_flags(checkout):
  finished = main(
    checkout,
    "--config.model.name=squeeze",
    "--config.model.backbone=plainnet",
    "--config.model.squeeze_ratio=4",
    "--config.model.plain_width=6",
  )
  assert finished.returncode == 0, finished.stderr
  assert "squeeze on plainnet" in finished.stdout


@pytest.mark.long
@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (
      ["--config.model.name=squeeze", "--config.model.squeeze_ratio=0"],
      "config.model.squeeze_ratio: is 0; expected 1 or more",
    ),
    (
      ["--config.model.squeeze_ratio=4"],
      "config.model.squeeze_ratio: is 4, but only squeeze read it",
    ),
    (
      ["--config.model.backbone=plainnet", "--config.model.output_stride=16"],
      "config.model.output_stride: is 16; expected 8 with plainnet",
    ),
    (["--config.model.plain_width=8"], "config.model.plain_width: is 8, but only plainnet read it"),
  ],
)
def test_fields_of_the_new_files_are_checked(checkout, flags, message):
  finished = main(checkout, *flags)
  assert finished.returncode != 0 and message in finished.stderr


LOAD = """
import sys
import jax, numpy as np
from rc_jax import models
from rc_jax.config import defaults
from rc_jax.weights import key_names, pretrained

file, part, ratio, out = sys.argv[1:]
model = defaults().model
model.update(
  dict(name="squeeze", backbone="plainnet", channels=16, plain_width=6, squeeze_ratio=int(ratio), pretrained_part=part)
)
variables, report = pretrained.load(file, models.build(model, 5).init(jax.random.key(0)), model)
print(report.summary())
arrays = {}
for name, path in key_names.array_paths(variables.params, variables.batch_stats).items():
  tree = {"params": variables.params, "batch_stats": variables.batch_stats}
  for key in path:
    tree = tree[key]
  arrays[name] = tree
np.savez(out, **arrays)
"""


def published_arrays():
  """Arrays under the published keys, and by this project's names: written out here, not read from the rules."""
  random = np.random.default_rng(0)
  shapes = {
    ("neck.conv.weight", "head.reduce.conv.weight"): (CHANNELS, 8 * WIDTH, 3, 3),
    ("se.fc1.weight", "head.squeeze.weight"): (CHANNELS // 4, CHANNELS),
    ("se.fc1.bias", "head.squeeze.bias"): (CHANNELS // 4,),
    ("se.fc2.weight", "head.excite.weight"): (CHANNELS, CHANNELS // 4),
    ("se.fc2.bias", "head.excite.bias"): (CHANNELS,),
    ("predict.weight", "head.classifier.weight"): (CLASSES, CHANNELS, 1, 1),
    ("predict.bias", "head.classifier.bias"): (CLASSES,),
  }
  inputs = 3
  for i in range(4):
    channels = WIDTH * 2**i
    shapes[f"features.{3 * i}.weight", f"backbone.conv{i + 1}.weight"] = (channels, inputs, 3, 3)
    inputs = channels
  norms = {"neck.norm": ("head.reduce.bn", CHANNELS)}
  norms |= {f"features.{3 * i + 1}": (f"backbone.bn{i + 1}", WIDTH * 2**i) for i in range(4)}
  for theirs, (ours, channels) in norms.items():
    for leaf in ("weight", "bias", "running_mean", "running_var"):
      shapes[f"{theirs}.{leaf}", f"{ours}.{leaf}"] = (channels,)
  return {names: random.uniform(0.1, 1, shape).astype(np.float32) for names, shape in shapes.items()}


def our_axes(array):
  return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


@pytest.mark.parametrize("part", ["all", "backbone"])
def test_published_weights_are_imported(checkout, tmp_path, part):
  arrays = {
    names: array for names, array in published_arrays().items() if part == "all" or "features" in names[0]
  }
  classifier = {"output.weight": np.ones((10, 48), np.float32)}
  np.savez(tmp_path / "weights.npz", **{theirs: array for (theirs, _), array in arrays.items()}, **classifier)
  finished = python(checkout, "-c", LOAD, str(tmp_path / "weights.npz"), part, "4", str(tmp_path / "out.npz"))
  assert finished.returncode == 0, finished.stderr
  assert f"{len(arrays)} arrays matched" in finished.stdout
  assert "1 left out (output.weight)" in finished.stdout
  assert ("squeeze on plainnet with plain_width 6, 5 classes" in finished.stdout) == (part == "all")
  assert ("WARNING: the config has model.align_corners=True" in finished.stdout) == (part == "all")
  loaded = np.load(tmp_path / "out.npz")
  for (_, ours), array in arrays.items():
    np.testing.assert_array_equal(loaded[ours], our_axes(array))


def test_a_field_that_the_weights_contradict_is_named(checkout, tmp_path):
  arrays = {theirs: array for (theirs, _), array in published_arrays().items()}
  np.savez(tmp_path / "weights.npz", **arrays)
  finished = python(
    checkout, "-c", LOAD, str(tmp_path / "weights.npz"), "all", "2", str(tmp_path / "out.npz")
  )
  assert finished.returncode != 0 and "set model.squeeze_ratio=4" in finished.stderr.splitlines()[-1]
