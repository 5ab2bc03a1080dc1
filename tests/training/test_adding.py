"""A pixel loss, a contrastive method and a log writer are added to a copy of the package as ``docs/adding/`` shows."""

import json
import os
import pathlib
import re
import shutil

import numpy as np
import pytest

from tests.support import run_tiny
from tests.support.package_copy import add_files, copy_package, insert, page, python
from tests.support.paths import ROOT

pytestmark = pytest.mark.run


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A copy of the package with the pixel loss, the contrastive method and the log writer of the pages."""
  folder = tmp_path_factory.mktemp("checkout")
  copy_package(folder)
  for name, place, after, statement in (
    (
      "loss.md",
      "rc_jax/losses/__init__.py",
      "PIXEL_LOSSES: dict[str, PixelLoss] = {\n",
      "from rc_jax.losses import poly",
    ),
    (
      "contrast.md",
      "rc_jax/training/objective.py",
      "METHODS: dict[str, Callable[[Config], ContrastiveMethod]] = {\n",
      "from rc_jax.contrast.prototypes import PrototypeContrast",
    ),
    (
      "log_writer.md",
      "rc_jax/training/log_writers/__init__.py",
      "LOG_WRITERS: dict[str, Callable[[LoggedRun], LogWriter]] = {\n",
      "from rc_jax.training.log_writers.csv_file import CsvFile",
    ),
  ):
    text = page(name)
    add_files(folder, text)
    (line,) = re.findall(r'```python\n(  "\w+": .*,\n)```', text)
    insert(folder / place, after, line)
    docstring, _, _ = (folder / place).read_text().partition("\n\nfrom ")
    insert(folder / place, docstring, f"\n\n{statement}")
  return folder


def train(checkout: pathlib.Path, workdir: pathlib.Path, cache: pathlib.Path, *flags: str) -> tuple[int, str]:
  """Trains the tiny recipe of the tests with the copy, scoring at the end alone; returns status and output."""
  short = ("--config.train.eval_every=0", "--config.train.checkpoint_every=1")
  finished = python(
    checkout,
    *run_tiny.command(workdir, *short, *flags)[1:],
    PYTHONPATH=f"{checkout}{os.pathsep}{ROOT}",  # the recipe is one of the tests' modules
    JAX_COMPILATION_CACHE_DIR=str(cache),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
  )
  return finished.returncode, finished.stdout + finished.stderr


@pytest.mark.slow
def test_a_pixel_loss_trains_and_its_field_is_checked(checkout, cache, tmp_path) -> None:
  poly = ("--config.loss.pixel=poly", "--config.train.steps=2")
  status, printed = train(checkout, tmp_path, cache, *poly, "--config.loss.poly_epsilon=1.5")
  assert status == 0, printed
  losses = [line["loss_pixel"] for line in run_tiny.lines(tmp_path) if "loss" in line]
  # Of 11 classes, untrained: near log 11 + 1.5 (1 - 1/11) = 3.8.
  assert len(losses) == 2 and 2 < losses[0] < 7
  config = json.loads((tmp_path / "config.json").read_text())
  assert (config["loss"]["pixel"], config["loss"]["poly_epsilon"]) == ("poly", 1.5)

  status, printed = train(checkout, tmp_path, cache, *poly, "--config.loss.poly_epsilon=-2.0")
  assert status == 2 and "config.loss.poly_epsilon: is -2.0; expected -1 or more" in printed
  status, printed = train(checkout, tmp_path, cache, "--config.loss.poly_epsilon=1.5")
  assert (
    status == 2 and "config.loss.poly_epsilon: is 1.5, but it is read only with loss.pixel=poly" in printed
  )


VALUE = """
import sys
import jax, jax.numpy as jnp, numpy as np
from rc_jax import losses
from rc_jax.config import defaults, validate
from rc_jax.models import Outputs
from rc_jax.training.objective import pixel_terms

config = defaults()
config.dataset.name, config.loss.pixel, config.loss.poly_epsilon = "synthetic", "poly+0.5*dice", 1.5
validate(config)
arrays = np.load(sys.argv[1])
(term,) = pixel_terms(Outputs(jnp.asarray(arrays["logits"]), None), arrays["labels"], config.loss, True)
certain = jnp.asarray(1000 * arrays["logits"])
gradient = jax.grad(lambda logits: losses.poly.poly_loss(logits, arrays["labels"], 1.5))(certain)
assert jnp.isfinite(gradient).all() and (gradient != 0).any()
dice = losses.dice_loss(jnp.asarray(arrays["logits"]), arrays["labels"])
print(losses.__file__, term.name, term.weight, float(term.value - 0.5 * dice))
"""


@pytest.mark.long
def test_the_objective_holds_the_pixel_loss(checkout, tmp_path) -> None:
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(size=(2, 3, 4, 5)).astype(np.float32), rng.choice([0, 1, 4, 255], (2, 3, 4))
  np.savez(tmp_path / "arrays.npz", logits=logits, labels=labels)
  finished = python(checkout, "-c", VALUE, str(tmp_path / "arrays.npz"))
  assert finished.returncode == 0, finished.stderr
  file, name, weight, value = finished.stdout.split()
  assert (file, name, float(weight)) == (str(checkout / "rc_jax/losses/__init__.py"), "pixel", 1.0)
  pixels = []
  for index in np.ndindex(*labels.shape):
    if labels[index] != 255:
      z = np.float64(logits[index])
      p = np.exp(z[labels[index]]) / np.exp(z).sum()
      pixels.append(1.5 * (1 - p) - np.log(p))
  np.testing.assert_allclose(float(value), np.mean(pixels), rtol=1e-5)


LOG = """
import pathlib, sys
from rc_jax.training import log_writers
from rc_jax.training.run_log import RunLog

log = RunLog(pathlib.Path(sys.argv[1]), 0, log_writers.writer_names("csv"))
log.write({"step": 1, "loss": 0.5, "iou": {"road, paved": 0.25, "sky": None}})
log.write({"step": 2, "loss": 0.25})
log.close()
print(log_writers.__file__)
"""


def test_a_log_writer_gets_the_scalars_of_each_line(checkout, tmp_path) -> None:
  finished = python(checkout, "-c", LOG, str(tmp_path))
  assert finished.returncode == 0, finished.stderr
  assert finished.stdout.strip() == str(checkout / "rc_jax/training/log_writers/__init__.py")
  assert (tmp_path / "scalars.csv").read_text() == '1,loss,0.5\n1,"iou/road, paved",0.25\n2,loss,0.25\n'
  assert not (tmp_path / "tensorboard").exists()


@pytest.mark.slow
def test_a_contrastive_method_trains_is_saved_and_resumes(checkout, cache, tmp_path) -> None:
  flags = ("--config.contrast.method=prototypes", "--config.train.steps=3")
  whole, resumed = tmp_path / "whole", tmp_path / "resumed"
  status, printed = train(checkout, whole, cache, *flags)
  assert status == 0, printed
  lines = [line for line in run_tiny.lines(whole) if "loss" in line]
  assert [line["step"] for line in lines] == [1, 2, 3]
  # The first step has no prototype to contrast with.
  assert [line["contrast_queries"] > 0 for line in lines] == [False, True, True]
  assert lines[0]["loss_contrast"] == 0 < min(lines[1]["loss_contrast"], lines[1]["prototypes"])
  for line in lines:
    scaled = line["loss_pixel"] + line["loss_aux_scaled"] + line["loss_contrast_scaled"]
    assert line["loss"] == pytest.approx(scaled, rel=1e-5)

  # As after a kill between the checkpoint of step 2 and that of step 3.
  shutil.copytree(whole, resumed)
  shutil.rmtree(resumed / "checkpoints" / "3")
  status, printed = train(checkout, resumed, cache, *flags)
  assert status == 0 and "resuming at step 2 of 3" in printed, printed
  assert run_tiny.lines(resumed) == run_tiny.lines(whole)

  status, printed = train(checkout, tmp_path / "other", cache, "--config.contrast.method=prototype")
  assert (
    status == 2
    and "config.contrast.method: is 'prototype'; expected one of 'prototypes', 'region'" in printed
  )
