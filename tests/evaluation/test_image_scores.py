"""Scores of each image against plain loops over label maps, and the table that holds them."""

import csv
import io

import numpy as np
import pytest

from rc_jax.evaluation import image_scores
from rc_jax.evaluation.evaluator import Counts

NAMES = ["first", 'a, "quoted" name', "Straße/3", "all ignored"]
CLASSES = ("road", "car, parked", "sky", "never")


def label_maps() -> tuple[np.ndarray, np.ndarray]:
  """Returns truth and prediction of four images, ``[4,9,11]``; each image has other classes, the last has none."""
  rng = np.random.default_rng(6)
  truth, prediction = rng.integers(0, 3, (2, 4, 9, 11))
  truth[rng.random(truth.shape) < 0.2] = 255
  truth[1][truth[1] == 2] = 0
  prediction[1][prediction[1] == 2] = 1  # so the second image has no sky
  truth[2][truth[2] == 1] = 0  # in the third, cars are predicted alone
  truth[3] = 255
  return truth, prediction


@pytest.fixture(scope="module")
def counts() -> Counts:
  truth, prediction = label_maps()
  of_images = np.zeros((3, 4, 4), np.int32)
  for (number, y, x), label in np.ndenumerate(truth):
    if label != 255:
      predicted = prediction[number, y, x]
      of_images[0, number, label] += label == predicted
      of_images[1, number, predicted] += label != predicted
      of_images[2, number, label] += label != predicted
  return Counts(np.zeros((4, 4), np.int64), NAMES, *of_images, np.array([30.0, 15.5, 0.25, 0.0]))


def test_the_table_holds_the_scores_of_each_image(counts: Counts) -> None:
  rows = list(csv.DictReader(io.StringIO(image_scores.image_table(counts, CLASSES))))
  assert [row["image"] for row in rows] == NAMES
  ious = [f"iou {name}" for name in CLASSES]
  assert list(rows[0]) == ["image", "miou", "pixel_accuracy", "cross_entropy", *ious]
  assert all(value == "" for name, value in rows[3].items() if name != "image")
  present = []
  for row, truth, prediction, nats in zip(rows[:3], *label_maps(), counts.cross_entropy, strict=False):
    counted = truth != 255
    expected = {}
    for label, name in enumerate(ious):
      one, other = (truth == label) & counted, (prediction == label) & counted
      if (one | other).any():
        expected[name] = (one & other).sum() / (one | other).sum()
    assert [name for name in ious if row[name]] == list(expected)
    for name, value in expected.items():
      assert float(row[name]) == pytest.approx(value, abs=1e-6)
    assert float(row["miou"]) == pytest.approx(np.mean(list(expected.values())), abs=1e-6)
    assert float(row["pixel_accuracy"]) == pytest.approx((truth == prediction)[counted].mean(), abs=1e-6)
    assert float(row["cross_entropy"]) == pytest.approx(nats / counted.sum(), abs=1e-6)
    present.append(len(expected))
  assert present == [3, 2, 3]


def test_the_worst_images_come_first_without_those_that_have_no_score(counts: Counts) -> None:
  of_images = image_scores.stacked(counts)
  mious = image_scores.image_mious(of_images)
  assert np.isnan(mious[3])
  order = sorted(range(3), key=lambda row: mious[row])
  assert image_scores.worst_images(of_images, 2) == order[:2]
  assert image_scores.worst_images(of_images, 10) == order
  twice = of_images[:, [1, 0, 1]]
  assert image_scores.worst_images(twice, 3) in ([0, 2, 1], [1, 0, 2])  # of equal ones the first
