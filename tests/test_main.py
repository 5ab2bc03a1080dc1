"""Plausible mistakes: one line each that says what to do, a status that is not 0, no traceback."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.support.paths import ROOT

CAMVID = "--config=configs/camvid.py:cpu"
DEMO = "--config=configs/demo.py"


def run(*flags: str, **environment: str) -> tuple[int, str, str]:
  finished = subprocess.run(
    [sys.executable, "-m", "rc_jax.main", *flags],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
    capture_output=True,
    text=True,
    timeout=120,
  )
  return finished.returncode, finished.stdout, finished.stderr


MISTAKES = {
  "a typo in a field": ([DEMO, "--config.train.batch_sise=4"], ["batch_sise", "batch_size"]),
  "a typo in a group": ([DEMO, "--config.trian.steps=4"], ["trian", "train"]),
  "a typo in a flag": ([DEMO, "--wrkdir=x"], ["wrkdir", "workdir"]),
  "a value of another type": ([DEMO, "--config.train.steps=many"], ["train.steps", "many"]),
  "an unknown mode": ([DEMO, "--mode=fly"], ["mode", "train", "eval", "predict"]),
  "no config": ([], ["--config", "configs/demo.py"]),
  "a missing config": (["--config=configs/nothing.py"], ["configs/nothing.py", "no such file"]),
  "an unknown variant": (["--config=configs/camvid.py:huge"], ["huge", "cpu"]),
  "an argument too many": ([DEMO, "train"], ["'train'"]),
  "an unknown backbone": ([DEMO, "--config.model.backbone=resnet5O"], ["resnet5O", "resnet50"]),
  "an unknown data set": ([DEMO, "--config.dataset.name=citiscapes"], ["citiscapes", "cityscapes"]),
  "no root": ([CAMVID], ["dataset.root", "camvid"]),
  "a missing data set": ([CAMVID, "--config.dataset.root=nowhere"], ["nowhere", "images", "dataset.root"]),
  "missing weights": ([DEMO, "--config.model.pretrained=none.npz"], ["none.npz"]),
  "nothing to score": ([DEMO, "--mode=eval"], ["holds no checkpoint"]),
  "one result to compare": (["--mode=compare", "--results=a"], ["--results=a", "expected two"]),
  "results that are not there": (["--mode=compare", "--results=a,b"], ["a holds no result", "--mode=eval"]),
  "a config after a space": (["--config", "configs/nothing.py"], ["configs/nothing.py", "no such file"]),
  "a scale where two are due": ([DEMO, "--config.augment.scale=1.0"], ["augment.scale", "(low, high)"]),
  "a crop that the stride does not fit": ([DEMO, "--config.train.crop_size=70"], ["train.crop_size", "65"]),
  "a crop below the stride": ([DEMO, "--config.train.crop_size=8"], ["train.crop_size", "output stride 8"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str, tmp_path: pathlib.Path) -> None:
  flags, wanted = MISTAKES[name]
  status, _, errors = run(*flags, f"--workdir={tmp_path}")
  assert status == 2
  assert errors.startswith("error: ") and errors.count("\n") == 1, errors
  for part in wanted:
    assert part in errors, f"{part} is not in: {errors}"


def test_a_batch_that_the_devices_do_not_divide(tmp_path: pathlib.Path) -> None:
  flags = [DEMO, "--config.train.batch_size=6", f"--workdir={tmp_path}"]
  status, _, errors = run(*flags, XLA_FLAGS="--xla_force_host_platform_device_count=4")
  assert status == 2 and "6 images over 4 devices; expected 4 or 8" in errors


def test_a_label_outside_the_range(tmp_path: pathlib.Path) -> None:
  rng = np.random.default_rng(0)
  for split in ("train", "val"):
    for kind in ("images", "labels"):
      (tmp_path / "data" / kind / split).mkdir(parents=True)
    for number in range(2):
      pixels = rng.integers(0, 256, (60, 80, 3), np.uint8)
      Image.fromarray(pixels).save(tmp_path / "data" / "images" / split / f"{number}.png")
      label = rng.integers(0, 12, (60, 80)).astype(np.uint8)
      label[5, 7] = 77
      Image.fromarray(label).save(tmp_path / "data" / "labels" / split / f"{number}.png")
  status, _, errors = run(
    CAMVID,
    f"--config.dataset.root={tmp_path / 'data'}",
    f"--workdir={tmp_path / 'run'}",
    "--config.model.backbone=resnet_tiny",
    "--config.model.multi_grid=(1,1)",
    "--config.train.crop_size=65",
  )
  assert status == 2
  assert errors.startswith("error: ") and errors.count("\n") == 1, errors
  assert "77" in errors and ".png" in errors and "0-11" in errors, errors


def test_help_lists_the_modes() -> None:
  status, printed, errors = run("--help")
  assert status == 0 and not errors
  assert all(word in printed for word in ("--mode", "train", "eval", "predict", "report", "--config"))
