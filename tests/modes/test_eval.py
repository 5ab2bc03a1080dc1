"""Scores against plain counts, for many image sizes, batches, devices and processes."""

import csv
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rc_jax import data, models
from rc_jax.config import Config, defaults
from rc_jax.data import DatasetInfo
from rc_jax.drawing import contact_sheet
from rc_jax.evaluation.bootstrap import class_intervals, difference
from rc_jax.evaluation.evaluator import make_evaluator
from rc_jax.evaluation.protocol import protocol_text, weights_text
from rc_jax.evaluation.results import read_result, read_results_json, results_table, write_results
from rc_jax.inference import predictor
from rc_jax.models import Network, Outputs
from rc_jax.modes import compare, predict
from rc_jax.modes import eval as eval_mode
from rc_jax.weights import key_names, restore
from tests.support import processes, run_tiny, saved_runs

INFO = DatasetInfo(
  name="three",
  class_names=("red", "green", "blue", "never"),
  palette=np.eye(4, 3, dtype=np.uint8) * 255,
  label_ids=np.arange(4),
)


class Photos:
  """Images of several sizes with noisy labels, some of them ignored."""

  def __init__(self, sizes, info=INFO):
    self.info = info
    rng = np.random.default_rng(3)
    self.examples = []
    for number, size in enumerate(sizes):
      pixels = rng.integers(0, 256, (*size, 3), np.uint8)
      label = np.where(rng.random(size) < 0.7, pixels.argmax(-1), rng.integers(0, 3, size)).astype(np.uint8)
      label[rng.random(size) < 0.1] = 255
      self.examples.append({"image": pixels, "label": label, "name": f"photo{number}"})

  def __len__(self):
    return len(self.examples)

  def __getitem__(self, index):
    return self.examples[index]


def brightest_channel() -> Network:
  """Predicts the brightest colour at every pixel: output stride 1, no parameters but an offset."""

  def predict(params, batch_stats, images):
    logits = images.astype(jnp.float32) * params["gain"]
    logits = jnp.concatenate([logits, jnp.full((*logits.shape[:3], 1), -1e4)], axis=-1)
    return Outputs(logits, logits, None)

  def unused(*args, **kwargs):
    raise AssertionError

  return Network(unused, unused, predict, 4, 4, 1)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_labelled_pixel_is_counted_once(batch_size: int) -> None:
  source = Photos([(8, 9)] * 4 + [(5, 12)] * 2 + [(8, 9)])
  config = defaults()
  config.eval.batch_size = batch_size
  params = {"gain": jnp.float32(1)}
  results, counts = make_evaluator(brightest_channel(), source, config)(params, {}, None)

  expected = np.zeros((4, 4), np.int64)
  for example in source.examples:
    for truth, pixel in zip(example["label"].ravel(), example["image"].reshape(-1, 3), strict=True):
      if truth != 255:
        expected[truth, pixel.argmax()] += 1
  np.testing.assert_array_equal(counts.confusion, expected)
  assert counts.confusion.dtype == np.int64
  red = expected[0, 0] / (expected[0].sum() + expected[:, 0].sum() - expected[0, 0])
  assert results["iou"]["red"] == pytest.approx(red)
  assert results["iou"]["never"] is None
  assert results["images"] == 7


@pytest.mark.parametrize(
  "fields",
  [
    pytest.param({}, id="full images"),
    pytest.param(
      {"crop_size": (16, 16), "stride": (10, 10), "scales": (0.5, 1.0), "flip": True}, id="windows"
    ),
  ],
)
def test_cross_entropy_is_that_of_the_averaged_probabilities(fields: dict) -> None:
  """Against a float64 loop over pixels; with windows, over the probabilities that ``make_predictor`` defines."""
  source = Photos([(8, 9), (20, 33), (8, 9)])
  source.examples[0]["label"][2, 3] = 3  # of which the network is certain that it is not: clipped
  config = defaults()
  config.eval.update(fields)
  network, params = brightest_channel(), {"gain": jnp.float32(0.02)}
  define = jax.jit(predictor.make_predictor(network, config.eval))
  expected = np.zeros(3)
  for number, example in enumerate(source.examples):
    if fields:
      probabilities = np.asarray(define(params, {}, example["image"][None])[0], np.float64)
    else:
      exponentials = np.exp(0.02 * example["image"].astype(np.float64))
      probabilities = np.concatenate([exponentials, 0 * exponentials[..., :1]], -1)
      probabilities /= probabilities.sum(-1, keepdims=True)
    for truth, pixel in zip(example["label"].ravel(), probabilities.reshape(-1, 4), strict=True):
      if truth != 255:
        expected[number] -= np.log(max(pixel[truth], 2.0**-126))
  results, counts = make_evaluator(network, source, config)(params, {}, None)
  np.testing.assert_allclose(counts.cross_entropy, expected, rtol=1e-5)
  assert results["cross_entropy"] == pytest.approx(expected.sum() / counts.confusion.sum(), rel=1e-5)
  assert re.search(rf"cross entropy, nats +{results['cross_entropy']:.4f}\n", results_table(results) + "\n")


def test_a_loss_that_is_not_finite_is_null_and_its_images_are_named(capsys) -> None:
  results, _ = make_evaluator(brightest_channel(), Photos([(6, 7)]), defaults())(
    {"gain": jnp.float32(np.nan)}, {}, None
  )
  assert results["cross_entropy"] is None and re.search(
    r"cross entropy, nats +-\n", results_table(results) + "\n"
  )
  assert re.search(
    r"WARNING: the network computes NaN in 1 of 1 images \(\w+\), where", capsys.readouterr().out
  )
  make_evaluator(brightest_channel(), Photos([(6, 7)]), defaults())({"gain": jnp.float32(1)}, {}, None)
  assert "WARNING" not in capsys.readouterr().out


def test_json_holds_the_fields_of_the_design(tmp_path: pathlib.Path) -> None:
  source = Photos([(6, 7)])
  results, counts = make_evaluator(brightest_channel(), source, defaults())(
    {"gain": jnp.float32(1)}, {}, None
  )
  written = json.loads(write_results(tmp_path, results, counts, step=12).read_text())
  assert {"miou", "iou", "pixel_accuracy", "mean_accuracy", "step", "scales", "flip"} <= written.keys()
  assert written["iou"].keys() == written["accuracy"].keys() == set(INFO.class_names)
  assert written["step"] == 12 and written["iou"]["never"] is None
  for name in ("precision", "recall", "f1"):
    assert written[name].keys() == set(INFO.class_names) and written[name]["never"] is None
  assert read_results_json(tmp_path / "eval" / "val.json") == written
  np.testing.assert_array_equal(np.load(tmp_path / "eval" / "val_confusion.npy"), counts.confusion)


def test_the_worst_images_are_drawn_and_each_file_is_named(
  tmp_path: pathlib.Path, monkeypatch, capsys
) -> None:
  config = saved_runs.save_run(tmp_path / "run")
  monkeypatch.setattr(models, "build", saved_runs.mixing_network)
  with pytest.raises(ValueError, match=r"^--worst=-1: expected a number of images in 0..100$"):
    eval_mode.run(config, tmp_path / "run", worst=-1)
  eval_mode.run(config, tmp_path / "run", worst=3)
  printed = capsys.readouterr().out
  (line,) = (line for line in printed.splitlines() if "written to" in line)
  folder = tmp_path / "run" / "eval"
  assert str(folder) in line
  assert all(path.name in line for path in folder.iterdir()) and len(list(folder.iterdir())) == 5

  with (folder / "val_images.csv").open(newline="") as file:
    images = list(csv.DictReader(file))
  source = data.load("synthetic", "", "val")
  assert [image["image"] for image in images] == [source[row]["name"] for row in range(len(source))]
  lowest = sorted(range(len(images)), key=lambda row: float(images[row]["miou"]))[:3]
  with Image.open(folder / "val_worst.png") as sheet:
    drawn = np.asarray(sheet.convert("RGB"))
  found = [_rows_of(drawn, source[row]["image"]) for row in lowest]
  assert found == sorted(found) and None not in found  # the lowest first
  assert _rows_of(drawn, source[next(row for row in range(60) if row not in lowest)]["image"]) is None


def test_scores_say_whether_they_are_of_the_moving_average(tmp_path: pathlib.Path, monkeypatch) -> None:
  """The recipe that scores does not know of the average; the checkpoint does."""
  monkeypatch.setattr(models, "build", saved_runs.mixing_network)
  folder, other = tmp_path / "run", tmp_path / "other"
  config = saved_runs.save_run(folder, ema=True)
  saved_runs.save_run(other, seed=1)  # whose weights are the averages
  found = {}
  for ema in (True, False):
    config.eval.ema = ema
    scores = eval_mode.run(config, folder)
    written = read_result(folder)
    assert scores["ema"] is ema and written.scores["ema"] is ema
    assert ("moving average" in protocol_text(written.scores)) is ema
    # --mode=compare predicts with the weights that were scored.
    assert compare._config_of(written).eval.ema is ema
    found[ema] = scores["iou"]
  config.eval.ema = True
  without = eval_mode.run(config, other)
  assert without["ema"] is False and without["iou"] == found[True] != found[False]


def test_scores_of_weights_that_are_not_of_the_run_say_whose_they_are(
  tmp_path: pathlib.Path, monkeypatch, capsys
) -> None:
  """Published weights, scored without ``--workdir``, replace the scores of the run in the recipe's folder."""
  saved_runs.use_small_runs(monkeypatch, 2)
  run, other = tmp_path / "run", tmp_path / "other" / "checkpoints" / "7"
  config = saved_runs.save_run(run)
  saved_runs.save_run(tmp_path / "other", seed=1)
  (run / "checkpoints").rename(tmp_path / "disk")
  (run / "checkpoints").symlink_to(tmp_path / "disk")
  for checkpoint in (None, pathlib.Path("7")):
    eval_mode.run(config, run, checkpoint)
    scores = read_result(run).scores
    assert weights_text(scores) == "step 7" and "checkpoint" not in scores
  assert "is no checkpoint of" not in capsys.readouterr().out
  eval_mode.run(config, run, other)
  assert f"note: {other} is no checkpoint of the run in {run}" in capsys.readouterr().out
  result = read_result(run)
  assert weights_text(result.scores) == f"step 7 of {other}"
  assert f"{result.path}, step 7 of {other}: 2 images" in compare.table(
    result, result, difference(result, result, 10), class_intervals(result, result, 10)
  )
  with pytest.raises(ValueError, match=f"scored step 7 of {other}, which is no step of {run}"):
    compare._compared_images(result, result)
  eval_mode.run(config, tmp_path / "empty", other)
  assert "is no checkpoint of" not in capsys.readouterr().out


def _rows_of(sheet: np.ndarray, image: np.ndarray) -> int | None:
  """Returns the row of a sheet in which an image begins, enlarged by an integer, at the left; None where nowhere."""
  factor = max(1, min(contact_sheet.PANEL[0] // image.shape[0], contact_sheet.PANEL[1] // image.shape[1]))
  panel = image.repeat(factor, axis=0).repeat(factor, axis=1)
  height, width = panel.shape[:2]
  for top in range(len(sheet) - height + 1):
    if (sheet[top, :width] == panel[0]).all() and (sheet[top : top + height, :width] == panel).all():
      return top
  return None


def test_a_split_without_labelled_pixels_is_refused() -> None:
  source = Photos([(6, 7)])
  source.examples[0]["label"][:] = 255
  with pytest.raises(ValueError, match="no labelled pixel"):
    make_evaluator(brightest_channel(), source, defaults())({"gain": jnp.float32(1)}, {}, None)


def test_poll_can_stop_the_scoring() -> None:
  def stop() -> None:
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    make_evaluator(brightest_channel(), Photos([(6, 7)] * 3), defaults())({"gain": jnp.float32(1)}, {}, stop)


def plain_counts(source: Photos) -> np.ndarray:
  """Counts TP, FP and FN ``[3,I,4]`` of predicting the brightest colour, pixel by pixel."""
  counts = np.zeros((3, len(source), 4), np.int64)
  for number, example in enumerate(source.examples):
    for truth, pixel in zip(example["label"].ravel(), example["image"].reshape(-1, 3), strict=True):
      if truth == 255:
        continue
      predicted = pixel.argmax()
      counts[0, number, truth] += truth == predicted
      counts[1, number, predicted] += truth != predicted
      counts[2, number, truth] += truth != predicted
  return counts


# Twenty images of seven sizes: neither devices nor batches divide them. Green is predicted, but not in the truth.
SIZES = [(8, 9), (5, 12), (40, 33), (8, 9), (70, 20), (12, 5), (40, 34)] * 3
RULES = {"ade20k": "zero", "coco_stuff": "not_in_truth", "cityscapes": "unless_predicted"}


def photos(rule: str) -> Photos:
  source = Photos(SIZES[:20], dataclasses.replace(INFO, absent_class=rule, categories=("warm", "cold") * 2))
  for example in source.examples:
    example["label"][example["label"] == 1] = 255
  return source


def settings(**fields) -> Config:
  config = defaults()
  config.eval.update({"crop_size": (16, 16), "stride": (10, 10), "flip": True, "batch_size": 2} | fields)
  return config


def scored(rule: str) -> dict:
  source = photos(rule)
  params = {"gain": jnp.float32(1)}
  results, counts = make_evaluator(brightest_channel(), source, settings())(params, {}, None)
  of_images = [
    array.tolist() for array in (counts.true_positives, counts.false_positives, counts.false_negatives)
  ]
  return {"results": results, "names": counts.names, "counts": of_images}


@pytest.fixture(scope="module")
def on_eight_devices() -> dict:
  """Returns the same scores from a process with eight devices."""
  code = (
    "import json, jax; from tests.modes.test_eval import RULES, scored; assert jax.device_count() == 8; "
    "print(json.dumps({rule: scored(rule) for rule in RULES.values()}))"
  )
  (printed,) = processes.run("-c", code, devices=8)
  return json.loads(printed.splitlines()[-1])


@pytest.mark.long
@pytest.mark.run
@pytest.mark.parametrize("data_set", RULES)
def test_each_data_sets_rule_on_one_device_and_eight(data_set: str, on_eight_devices: dict) -> None:
  rule = RULES[data_set]
  found = scored(rule)
  assert json.loads(json.dumps(found)) == on_eight_devices[rule]
  assert found["names"] == [f"photo{number}" for number in range(20)]
  expected = plain_counts(photos(rule))
  np.testing.assert_array_equal(found["counts"], expected)

  ious, accuracies = [], []
  for tp, fp, fn in expected.sum(axis=1).T.tolist():
    union, truth = tp + fp + fn, tp + fn
    if data_set == "ade20k":  # a mean over all classes
      ious.append(tp / union if union else 0.0)
      accuracies.append(tp / truth if truth else 0.0)
    elif data_set == "coco_stuff":  # over those in the truth
      ious += [tp / union] if truth else []
      accuracies += [tp / truth] if truth else []
    else:  # over those in the truth or predicted
      ious += [tp / union] if union else []
      accuracies += [tp / truth] if truth else []
  assert len(ious) == {"ade20k": 4, "coco_stuff": 2, "cityscapes": 3}[data_set]
  results = found["results"]
  assert results["miou"] == pytest.approx(np.mean(ious))
  assert results["mean_accuracy"] == pytest.approx(np.mean(accuracies))
  pixels = expected[[0, 2]].sum()
  assert results["pixel_accuracy"] == pytest.approx(expected[0].sum() / pixels)
  if data_set == "ade20k":
    assert results["final_score"] == pytest.approx((np.mean(ious) + expected[0].sum() / pixels) / 2)
  assert results["category_iou"].keys() == {"warm", "cold"}
  text = results_table(results)
  never = [
    name
    for name, truth in zip(INFO.class_names, (expected[0] + expected[2]).sum(0), strict=True)
    if not truth
  ]
  assert results["never"] == never
  assert f"mIoU over {len(ious)} of 4 classes" in text
  names = ", ".join(never)
  assert f"{len(never)} of 4 classes never occur in the labels of {results['split']}: {names} (" in text
  assert "green" in text and "category mIoU" in text and ("final score" in text) == (data_set == "ade20k")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, models.Variables]:
  """Returns a file of weights, in PyTorch's axes, of an untrained network of the tiny recipe; and its variables."""
  network = models.build(run_tiny.get_config().model, data.info("synthetic", "").num_classes)
  variables = network.init(jax.random.key(3))
  trees = {"params": variables.params, "batch_stats": variables.batch_stats}
  arrays = {}
  for name, where in key_names.array_paths(**trees).items():
    leaf = trees
    for key in where:
      leaf = leaf[key]
    arrays[name] = np.asarray(leaf)
    if where[-1] == "kernel":
      arrays[name] = arrays[name].transpose(3, 2, 0, 1)
  path = tmp_path_factory.mktemp("weights") / "network.npz"
  np.savez(path, **arrays)
  return path, variables


@pytest.mark.long
@pytest.mark.run
def test_two_processes_count_every_image_once(weights, tmp_path: pathlib.Path) -> None:
  """With weights of a file, by sliding windows, started by ``launch/local.sh``; one process counts the same."""
  path, variables = weights
  config = run_tiny.get_config()
  config.eval.update({"scales": (0.5,), "crop_size": (65, 65), "batch_size": 4})
  flags = ["--config.eval.scales=0.5", "--config.eval.crop_size=65", "--config.eval.batch_size=4"]
  command = run_tiny.command(tmp_path, "--mode=eval", f"--checkpoint={path}", *flags)
  process = subprocess.run(
    ["launch/local.sh", "2", *command[3:]],
    cwd=run_tiny.ROOT,
    env={**os.environ, **processes.with_devices(1), "PYTHON": sys.executable},
    capture_output=True,
    text=True,
    timeout=240,
  )
  assert process.returncode == 0, process.stdout + process.stderr
  assert "arrays matched" in process.stdout and "0 missing" in process.stdout

  source = data.load("synthetic", "", "val")
  network = models.build(config.model, source.info.num_classes)
  results, counts = make_evaluator(network, source, config)(*variables, None)
  with np.load(tmp_path / "eval" / "val_images.npz") as arrays:
    assert arrays["names"].tolist() == counts.names == [source[i]["name"] for i in range(60)]
    np.testing.assert_array_equal(arrays["tp"], counts.true_positives)
    np.testing.assert_array_equal(arrays["fp"], counts.false_positives)
    np.testing.assert_array_equal(arrays["fn"], counts.false_negatives)
  np.testing.assert_array_equal(np.load(tmp_path / "eval" / "val_confusion.npy"), counts.confusion)
  written = json.loads((tmp_path / "eval" / "val.json").read_text())
  assert len(written.pop("weights")) == 16  # a digest
  assert written.pop("checkpoint") == str(path.resolve())
  assert written == {"step": 0} | results
  labelled = sum(int((source[i]["label"] != 255).sum()) for i in range(60))
  assert counts.confusion.sum() == labelled


@pytest.mark.long
def test_predict_takes_a_file_of_weights(weights, tmp_path: pathlib.Path) -> None:
  path, variables = weights
  image = np.random.default_rng(5).integers(0, 256, (41, 57, 3), np.uint8)
  Image.fromarray(image).save(tmp_path / "a.png")
  config = run_tiny.get_config()
  config.eval.batch_size = 1
  assert predict.run(config, tmp_path / "run", path, tmp_path / "a.png") == 0
  network = models.build(config.model, data.info("synthetic", "").num_classes)
  expected = jax.jit(predictor.make_predictor(network, config.eval))(*variables, image[None])[0].argmax(-1)
  with Image.open(tmp_path / "run" / "predictions" / "labels" / "a.png") as labels:
    ids = np.asarray(labels)
  np.testing.assert_array_equal(ids, data.info("synthetic", "").label_ids[expected])
  settings = json.loads((tmp_path / "run" / "predictions" / "predictions.json").read_text())
  assert settings["checkpoint"] == str(path)


def test_weights_of_another_network_are_refused(weights) -> None:
  path, _ = weights
  config = run_tiny.get_config()
  config.model.channels = 24
  network = models.build(config.model, data.info("synthetic", "").num_classes)
  with pytest.raises(ValueError, match=r"^--checkpoint: ") as refusal:
    restore.restore(network, config, path, data.info("synthetic", "").table())
  assert "\n" not in str(refusal.value)
