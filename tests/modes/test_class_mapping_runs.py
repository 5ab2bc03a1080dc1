"""Modes on the classes of ``dataset.classes``: a run, its predictions and its scores; inspection and preparation."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

import rc_jax
from rc_jax.config import Config
from rc_jax.data.datasets import cityscapes
from rc_jax.modes import inspect, predict, prepare, report, train
from tests.modes.test_run_classes import config_of
from tests.support import small_datasets

KEPT = {"road": "ground", "sidewalk": "ground", "terrain": "ground", "car": "vehicle", "bus": "vehicle"}


def _config(folder: pathlib.Path, truck: str) -> Config:
  """Returns a config of three classes, or fewer: ground (id 7), vehicle (id 26, or that of ``truck``) and sky."""
  config = config_of(folder / "raw")
  config.dataset.name = "cityscapes"
  config.dataset.classes = str(folder / f"{truck}.csv")
  lines = [
    f"{name},{ {**KEPT, 'truck': truck, 'sky': 'sky'}.get(name, 'ignore') }"
    for name in cityscapes.INFO.class_names
  ]
  (folder / f"{truck}.csv").write_text("\n".join(["class,name", *lines]) + "\n")
  return config


def test_inspection_and_preparation(tmp_path, capsys):
  small_datasets.cityscapes(tmp_path / "raw")
  config = _config(tmp_path, "vehicle")
  assert inspect.run(config, tmp_path / "run") == inspect.CLEAN
  table = json.loads((tmp_path / "run/inspect/train.json").read_text())
  assert table["classes"].keys() == {"ground", "sky", "vehicle"} and not table["unexpected"]
  ids = [np.asarray(Image.open(path)) for path in (tmp_path / "raw/gtFine/train").rglob("*_labelIds.png")]
  vehicles = sum(int(np.isin(each, (26, 27, 28)).sum()) for each in ids)
  assert table["classes"]["vehicle"]["pixels"] == vehicles > 0
  config.data.workers = 1
  output = prepare.run(config, tmp_path / "prepared")
  assert json.loads((output / "prepared.json").read_text())["class_names"] == ["ground", "sky", "vehicle"]
  capsys.readouterr()
  # The same command with another table writes the shards again.
  config = _config(tmp_path, "ignore")
  config.data.workers = 1
  prepare.run(config, output)
  assert "the classes have changed: class 2: vehicle (id 26 with 28), there vehicle (id 26 with 27, 28)" in (
    capsys.readouterr().out
  )


@pytest.mark.run
@pytest.mark.slow
def test_a_run_on_merged_classes(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(report, "write", lambda *unused, **also: "none")  # takes longer than the run
  small_datasets.cityscapes(tmp_path / "raw")
  config, workdir = _config(tmp_path, "vehicle"), tmp_path / "run"
  assert train.run(config, workdir) == 0
  assert "cityscapes, 3 classes by dataset.classes=" in " ".join(capsys.readouterr().out.split())
  scores = json.loads((workdir / "eval/val.json").read_text())
  assert list(scores["iou"]) == ["ground", "sky", "vehicle"]
  assert predict.run(config, workdir) == 0
  predicted = [np.asarray(Image.open(path)) for path in (workdir / "predictions/labels").glob("*.png")]
  assert len(predicted) == 2 and set(np.unique(predicted)) <= {7, 23, 26}
  model = rc_jax.load(workdir)
  assert list(model.class_names) == ["ground", "sky", "vehicle"]
  with pytest.raises(ValueError, match="the benchmark scores 19 classes, and the network has 3"):
    predict.run(config, workdir, format="cityscapes")
  with pytest.raises(
    ValueError, match=r"class 2: vehicle \(id 26 with 28\), there vehicle \(id 26 with 27, 28\)"
  ):
    train.run(_config(tmp_path, "ignore"), workdir)
