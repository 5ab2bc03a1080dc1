"""A run with rare class sampling: the line that announces it, the counts that it keeps, and a resumption."""

import json
import shutil

import numpy as np
import pytest

from rc_jax.data import class_counts
from rc_jax.modes import report, train
from tests.modes.test_run_classes import config_of
from tests.support import small_datasets
from tests.support.run_tiny import lines

pytestmark = [pytest.mark.run, pytest.mark.long]


def test_a_resumed_run_draws_the_same_images(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(report, "write", lambda *unused, **also: "none")  # takes longer than the run
  small_datasets.folder(tmp_path / "root")
  config = config_of(tmp_path / "root")
  config.train.checkpoint_every, config.train.steps = 2, 4
  config.data.rare_class_temperature, config.data.rare_class_min_pixels = 0.5, 1
  workdir, other = tmp_path / "run", tmp_path / "other"
  assert train.run(config, workdir) == 0
  printed = capsys.readouterr().out
  assert (
    "sampling: by class, the rarest most often: " in printed and "as many images as 4 epochs have" in printed
  )
  assert (workdir / class_counts.FILE).is_file()
  shutil.copytree(workdir, other)
  shutil.rmtree(other / "checkpoints/4")
  (other / class_counts.FILE).unlink()
  assert train.run(config, other) == 0
  assert "resuming at step 2 of 4" in capsys.readouterr().out
  assert lines(other) == lines(workdir)
  config.data.rare_class_temperature = 0.25
  with pytest.raises(ValueError, match=r"data\.rare_class_temperature: 0\.25, there 0\.5"):
    train.run(config, other)
  with np.load(workdir / class_counts.FILE) as kept:
    pixels = kept["pixels"]
  assert pixels.shape == (2, 3) and json.loads((workdir / "classes.json").read_text())["class_names"]
