"""Our JSON against cityscapesScripts' own scorer, on real frames: label PNGs there, the same predictions here."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rc_jax import data
from rc_jax.config import defaults
from rc_jax.evaluation.evaluator import make_evaluator
from rc_jax.evaluation.results import write_results
from rc_jax.models import Network, Outputs


class Predicted:
  """Frames whose "image" is what shall be predicted, so that scoring runs as ever; labels are the real ones."""

  def __init__(self, source, predictions):
    self.info, self._source, self._predictions = source.info, source, predictions

  def __len__(self):
    return len(self._source)

  def __getitem__(self, index):
    prediction = self._predictions[index]
    return self._source[index] | {"image": np.repeat(prediction[..., None], 3, axis=-1)}


def reads_its_image() -> Network:
  def predict(params, batch_stats, images):
    difference = images[..., :1] - jnp.arange(19)
    return Outputs(-jnp.square(difference), images, None)

  return Network(None, None, predict, 19, 19, True)


def perturbed(label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """A prediction that is wrong along borders, in blocks, and with classes that the frame lacks; void is guessed."""
  predicted = np.roll(label, rng.integers(-12, 13, 2), (0, 1))
  predicted = np.where(predicted == 255, rng.integers(0, 19, label.shape), predicted)
  for _ in range(12):
    top, left = rng.integers(0, label.shape[0] - 90), rng.integers(0, label.shape[1] - 150)
    # Class 16, train, is nowhere, in truth or prediction.
    predicted[top : top + 90, left : left + 150] = rng.choice([c for c in range(19) if c != 16])
  predicted[predicted == 16] = 15
  return predicted.astype(np.uint8)


@pytest.mark.parametrize("split", [pytest.param("train", marks=pytest.mark.slow), "val"])
def test_classes_and_categories_equal_the_official_scorers(shared_dir, tmp_path, split):
  scorer = pytest.importorskip(
    "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling", exc_type=ImportError
  )
  root = shared_dir / "data" / "cityscapes_sample"
  source = data.load("cityscapes", str(root), split)
  rng = np.random.default_rng(0)
  predictions = [perturbed(source[index]["label"], rng) for index in range(len(source))]
  truth_files, prediction_files = [], []
  for index, prediction in enumerate(predictions):
    frame = source[index]["name"].removesuffix("_leftImg8bit")
    truth_files.append(str(next(root.glob(f"gtFine/{split}/*/{frame}_gtFine_labelIds.png"))))
    prediction_files.append(str(tmp_path / f"{frame}.png"))
    Image.fromarray(source.info.label_ids[prediction].astype(np.uint8)).save(prediction_files[-1])
  scorer.args.evalInstLevelScore = False  # with NumPy 2 it crashes otherwise
  scorer.args.JSONOutput = False
  scorer.args.quiet = True
  official = scorer.evaluateImgLists(prediction_files, truth_files, scorer.args)

  config = defaults()
  config.eval.split = split
  evaluator = make_evaluator(reads_its_image(), Predicted(source, predictions), config)
  results, counts = evaluator({}, {}, None)
  ours = json.loads(write_results(tmp_path, results, counts, step=1).read_text())

  def same(value, theirs):
    # It says NaN where a class is left out.
    assert (value is None) == bool(np.isnan(theirs))
    assert value is None or value == pytest.approx(theirs, abs=1e-6)

  assert list(ours["iou"]) == list(source.info.class_names) and len(ours["iou"]) == 19
  for name, value in ours["iou"].items():
    same(value, official["classScores"][name])
  same(ours["miou"], official["averageScoreClasses"])
  assert ours["iou"]["train"] is None and 0.2 < ours["miou"] < 0.95
  assert len(ours["category_iou"]) == 7
  for name, value in ours["category_iou"].items():
    same(value, official["categoryScores"][name])
  same(ours["category_miou"], official["averageScoreCategories"])
  assert official["categoryScores"].keys() - ours["category_iou"].keys() == {"void"}
