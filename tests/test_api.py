"""``rc_jax.load`` and ``rc_jax.train``: the labels of ``--mode=predict``, from runs and exported programs."""

import json
import os
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import rc_jax
from rc_jax import data, sharding
from rc_jax.class_table import write_class_table
from rc_jax.config import as_dict
from rc_jax.modes import predict
from rc_jax.train_state import TrainState
from rc_jax.weights.checkpoint import Checkpoints
from tests.support import run_tiny, tiny_predictions
from tests.support.paths import ROOT

SIZES = ((33, 49), (33, 49), (41, 33))
INFO = data.info("synthetic", "")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A run of the smallest network, at step 7, and images beside it."""
  folder = tmp_path_factory.mktemp("work") / "runs" / "camvid"
  folder.mkdir(parents=True)
  config = tiny_predictions.tiny_config()
  (folder / "config.json").write_text(json.dumps(as_dict(config)))
  write_class_table(folder, INFO.table())
  with Checkpoints(folder) as checkpoints:
    state = TrainState(jnp.int32(7), *tiny_predictions.tiny_variables(), {"momentum": jnp.zeros(1)}, None)
    checkpoints.save(sharding.put_replicated(state, sharding.global_mesh()), {"next_batch": 7})
  (folder / "images").mkdir()
  for number, image in enumerate(scenes()):
    Image.fromarray(image).save(folder / "images" / f"{number}.png")
  return folder


def scenes() -> list[np.ndarray]:
  """Smooth images, in which random weights predict several classes."""
  random = np.random.default_rng(0)
  coarse = [Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8)) for _ in SIZES]
  return [
    np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC))
    for image, size in zip(coarse, SIZES, strict=True)
  ]


def labels_of_mode(run: pathlib.Path, **fields) -> list[np.ndarray]:
  config = tiny_predictions.tiny_config()
  config.eval.update(fields)
  output = run / f"predictions{len(fields)}"
  assert predict.run(config, run, None, run / "images", output=output, overlays=False) == 0
  return [np.asarray(Image.open(output / "labels" / f"{number}.png")) for number in range(len(SIZES))]


@pytest.mark.long
def test_labels_are_those_of_the_mode_to_the_last_pixel(run: pathlib.Path) -> None:
  expected = labels_of_mode(run)
  model = rc_jax.load(run)
  assert (model.step, model.class_names, model.dataset) == (7, INFO.class_names, "synthetic")
  files = [run / "images" / f"{number}.png" for number in range(len(SIZES))]
  for given in (files, scenes()):  # of two sizes
    for found, ids in zip(model.predict(given), expected, strict=True):
      assert found.dtype == np.uint8
      np.testing.assert_array_equal(model.label_ids[found], ids)
  assert len(np.unique(np.concatenate([ids.ravel() for ids in expected]))) > 1

  stacked = np.stack(scenes()[:2])
  labels, probabilities = model.predict(stacked), model.probabilities(stacked)
  assert labels.shape == (2, 33, 49) and probabilities.shape == (2, 33, 49, INFO.num_classes)
  np.testing.assert_array_equal(probabilities.argmax(-1), labels)
  np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
  np.testing.assert_array_equal(model.predict(str(files[2])), model.predict(scenes()[2]))


@pytest.mark.long
def test_sliding_windows_and_scales_by_fields(run: pathlib.Path) -> None:
  fields = {"crop_size": (33, 33), "scales": (1.0, 1.5)}
  model = rc_jax.load(
    run / "checkpoints" / "7", fields={f"eval.{name}": value for name, value in fields.items()}
  )
  for found, ids in zip(model.predict(scenes()), labels_of_mode(run, **fields), strict=True):
    np.testing.assert_array_equal(model.label_ids[found], ids)


def test_a_size_compiles_once(run: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  from rc_jax.inference.full_images import FullImages

  compiled = []
  compile_size = FullImages._compile
  monkeypatch.setattr(
    FullImages, "_compile", lambda self, *args: compiled.append(args[2].shape) or compile_size(self, *args)
  )
  model = rc_jax.load(run)
  for _ in range(2):
    model.predict(scenes()[0])
    model.predict(scenes()[2])
  assert compiled == [(1, *SIZES[0], 3), (1, *SIZES[2], 3)]
  assert model.predict([]) == []


def test_an_exported_program_has_the_same_interface(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
  options = {"size": "33,49", "probabilities": True, "platforms": ("cpu",)}
  folder = tiny_predictions.export_tiny(tmp_path / "export", weights="beside", batch=2, **options)
  exported, model = rc_jax.load(folder), rc_jax.load(run)
  assert exported.class_names == model.class_names and exported.step == 7
  images = [*scenes()[:2], scenes()[0]]  # a full batch and one that is not
  found = exported.predict(images)
  np.testing.assert_array_equal(found, np.stack(model.predict(images)))
  np.testing.assert_array_equal(np.argmax(exported.probabilities(images[0]), -1), found[0])
  with pytest.raises(ValueError, match=r"reads images of 33 x 49 pixels .* found 41 x 33"):
    exported.predict(scenes()[2])
  with pytest.raises(ValueError, match="is an exported program"):
    rc_jax.load(folder, fields={"eval.flip": True})


@pytest.mark.parametrize(
  ("given", "words"),
  [
    (np.zeros((4, 4, 3), np.float32), r"an image is float32 of shape \(4, 4, 3\); expected uint8 RGB"),
    (np.zeros((4, 4), np.uint8), r"of shape \(4, 4\)"),
    ("none.png", "none.png: no such file"),
  ],
)
def test_what_is_no_image_is_refused_in_one_line(run: pathlib.Path, given, words) -> None:
  with pytest.raises((ValueError, FileNotFoundError), match=words) as error:
    rc_jax.api.pixels_of(given)
  assert "\n" not in str(error.value)


def test_what_cannot_be_loaded_is_refused_in_one_line(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
  (tmp_path / "weights.npz").touch()
  for path, options, words in (
    (tmp_path / "none", {}, "no such file or folder"),
    (tmp_path, {}, "holds no checkpoint"),
    (tmp_path / "weights.npz", {}, "a file of weights, which needs config="),
    (run, {"fields": {"eval.flop": True}}, "eval.flop"),
    (run, {"fields": {"eval.scales": (-1.0,)}}, "eval.scales"),
  ):
    with pytest.raises((ValueError, FileNotFoundError), match=words) as error:
      rc_jax.load(path, **options)
    assert "\n" not in str(error.value)


def test_a_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setitem(sys.modules, "rc_jax.api", None)
  with pytest.raises(ImportError, match=r"rc_jax\.load needs .* pip install 'rc_jax\[train\]'"):
    rc_jax.load  # noqa: B018
  with pytest.raises(AttributeError, match="no attribute 'lod'"):
    rc_jax.lod  # noqa: B018


@pytest.mark.long
def test_training_and_loading(tmp_path: pathlib.Path) -> None:
  config = run_tiny.get_config()
  config.train.steps = config.train.eval_every = config.train.checkpoint_every = 1
  assert rc_jax.train(config, tmp_path / "run") == 0
  model = rc_jax.load(tmp_path / "run")
  assert model.step == 1 and model.predict(scenes()[0]).shape == SIZES[0]


def test_the_lines_of_the_page_run(run: pathlib.Path) -> None:
  page = (ROOT / "docs" / "using_a_network.md").read_text()
  (code,) = re.findall(r"```python\n(import rc_jax\n.*?)```", page, re.DOTALL)
  assert len(code.splitlines()) < 12
  Image.fromarray(scenes()[0]).save(run.parents[1] / "street.png")
  Image.fromarray(scenes()[2]).save(run.parents[1] / "square.png")
  before = pathlib.Path.cwd()
  os.chdir(run.parents[1])
  try:
    variables: dict = {}
    exec(compile(code, "using_a_network.md", "exec"), variables)
  finally:
    os.chdir(before)
  assert variables["labels"].shape == SIZES[0] and len(variables["several"]) == 2
  assert variables["probabilities"].shape == (*SIZES[0], INFO.num_classes)
  assert jax.tree.leaves(variables["ids"])[0].shape == SIZES[0]
