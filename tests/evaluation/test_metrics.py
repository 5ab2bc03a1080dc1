"""Confusion matrices against a plain loop, scores against their definitions computed by hand."""

import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rc_jax.evaluation import metrics

N = 5
confusion_matrix = jax.jit(metrics.confusion_matrix, static_argnums=2)


def count(predictions, labels, num_classes):
  confusion = np.zeros((num_classes, num_classes), np.int64)
  for prediction, label in zip(predictions.ravel().tolist(), labels.ravel().tolist(), strict=True):
    if 0 <= label < num_classes:
      confusion[label, prediction] += 1
  return confusion


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
  predictions=hnp.arrays(np.int32, (2, 4, 6), elements=st.integers(0, N - 1)),
  labels=hnp.arrays(np.int32, (2, 4, 6), elements=st.sampled_from([-3, 0, 1, 2, 3, 4, 5, 255, 2**31 - 1])),
)
def test_labels_in_range_are_counted(predictions, labels):
  found = confusion_matrix(predictions, labels, N)
  assert found.dtype == np.int32
  np.testing.assert_array_equal(found, count(predictions, labels, N))


@pytest.mark.parametrize("num_classes", [19, 171])
def test_labels_of_one_byte_do_not_overflow(num_classes):
  rng = np.random.default_rng(0)
  predictions = rng.integers(0, num_classes, size=(64, 48)).astype(np.uint8)
  labels = rng.integers(0, 256, size=(64, 48)).astype(np.uint8)
  found = metrics.confusion_matrix(predictions, labels, num_classes)
  np.testing.assert_array_equal(found, count(predictions, labels, num_classes))


# Class 0: TP 6, FN 2. Class 1: TP 3, FN 1, FP 2. Class 2: not in the truth, FP 1. Class 3: neither in the truth nor
# predicted.
CONFUSION = np.array([[6, 2, 0, 0], [0, 3, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]], np.int64)


@pytest.mark.parametrize(
  ("rule", "iou", "miou", "mean_accuracy"),
  [
    ("unless_predicted", [6 / 8, 3 / 6, 0.0, None], 1.25 / 3, 0.75),
    ("not_in_truth", [6 / 8, 3 / 6, None, None], 1.25 / 2, 0.75),
    ("zero", [6 / 8, 3 / 6, 0.0, 0.0], 1.25 / 4, 1.5 / 4),
  ],
)
def test_absent_classes_follow_the_rule(rule, iou, miou, mean_accuracy):
  found = metrics.scores(CONFUSION, rule)
  assert found["iou"] == pytest.approx(iou)
  assert found["miou"] == pytest.approx(miou)
  assert found["pixel_accuracy"] == pytest.approx(9 / 12)
  assert found["mean_accuracy"] == pytest.approx(mean_accuracy)
  assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("rule", metrics.ABSENT_CLASS_RULES)
def test_precision_recall_and_f1_of_label_maps(rule):
  """Class 3 is never predicted, class 4 not in the truth, class 5 neither."""
  rng = np.random.default_rng(4)
  labels, predictions = rng.choice([0, 1, 2, 3, 255], (30, 40)), rng.choice([0, 1, 2, 4], (30, 40))
  found = metrics.scores(count(predictions, labels, 6), rule)
  zero = 0.0 if rule == "zero" else None
  for n in range(6):
    tp = fp = fn = 0
    for label, prediction in zip(labels.ravel(), predictions.ravel(), strict=True):
      if label != 255:
        tp += label == n == prediction
        fp += prediction == n != label
        fn += label == n != prediction
    if n == 5 or (n == 4 and rule == "not_in_truth"):  # left out of the mean IoU
      assert found["precision"][n] == found["recall"][n] == found["f1"][n] == found["iou"][n] == zero
      continue
    precision = tp / (tp + fp) if tp + fp else zero
    recall = tp / (tp + fn) if tp + fn else zero
    assert (found["precision"][n], found["recall"][n]) == (precision, recall)
    harmonic = 2 * precision * recall / (precision + recall) if precision and recall else 0.0
    assert found["f1"][n] == pytest.approx(harmonic)
  assert found["recall"] == found["accuracy"]


def test_cross_entropy_of_rows_against_a_float64_loop():
  rng = np.random.default_rng(5)
  logits = 12 * rng.normal(size=(2, 7, 300, 5))
  exact = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  exact[0, 0, :2] = 0, 0, 0, 0, 1
  labels = rng.choice([0, 1, 2, 3, 4, 5, 255, -1], (2, 7, 300))
  labels[0, 0, :2], labels[1, 3] = (1, 4), 255
  expected = np.zeros((2, 7))
  for place, label in np.ndenumerate(labels):
    if 0 <= label < 5:
      expected[place[:2]] -= np.log(max(exact[place][label], 2.0**-126))
  found = np.asarray(jax.jit(metrics.cross_entropy_of_rows)(exact.astype(np.float32), labels))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  assert found[1, 3] == 0 and (found >= 0).all()
  inside = np.where((labels >= 0) & (labels < 5), labels, 2)
  picked = [choose(exact, inside) for choose in (metrics.of_classes_by_gather, metrics.of_classes_by_sum)]
  np.testing.assert_array_equal(*picked)
  slightly_above_one = np.full((3, 1), 1.000001, np.float32)
  assert metrics.cross_entropy_of_rows(slightly_above_one, np.zeros(3, int)) == 0


def test_scores_of_random_confusion_by_definition():
  confusion = np.random.default_rng(1).integers(
    0, 10**12, size=(N, N)
  )  # more pixels than int32 or float32 hold
  ious = []
  for n in range(N):
    true_positive = int(confusion[n, n])
    false_negative = sum(int(confusion[n, j]) for j in range(N) if j != n)
    false_positive = sum(int(confusion[j, n]) for j in range(N) if j != n)
    ious.append(true_positive / (true_positive + false_positive + false_negative))
  for rule in ("unless_predicted", "not_in_truth", "zero"):
    found = metrics.scores(confusion, rule)
    assert found["iou"] == pytest.approx(ious)
    assert found["miou"] == pytest.approx(sum(ious) / N)


@pytest.mark.parametrize("rule", ["unless_predicted", "not_in_truth", "zero"])
def test_scores_of_no_pixel_are_none_instead_of_nan(rule):
  found = metrics.scores(np.zeros((3, 3), np.int64), rule)
  assert found["pixel_accuracy"] is None
  assert found["miou"] == (0.0 if rule == "zero" else None)
  assert found["mean_accuracy"] == (0.0 if rule == "zero" else None)
  json.dumps(found, allow_nan=False)


def test_invalid_arguments_are_named():
  with pytest.raises(
    ValueError, match=r"absent_class: is 'skip'; expected.*unless_predicted, not_in_truth, zero"
  ):
    metrics.scores(CONFUSION, "skip")
  with pytest.raises(ValueError, match=r"\(4, 3\)"):
    metrics.scores(CONFUSION[:, :3], "zero")
  with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 2\)"):
    metrics.confusion_matrix(np.zeros((2, 3), int), np.zeros((3, 2), int), N)


def test_final_score_of_ade20k_is_the_mean_of_two_scores():
  found = metrics.scores(CONFUSION, "zero")
  assert found["final_score"] == pytest.approx((9 / 12 + 1.25 / 4) / 2)
  assert found["accuracy"] == pytest.approx([6 / 8, 3 / 4, 0.0, 0.0])
  assert "final_score" not in metrics.scores(CONFUSION, "unless_predicted")


@pytest.mark.parametrize("num_classes", [3, 171])
def test_counting_by_products_equals_a_plain_loop(num_classes, monkeypatch):
  """Accelerators count by products, here over several tiles of which the last is not full."""
  monkeypatch.setattr(metrics, "TILE", 100)
  rng = np.random.default_rng(2)
  predictions = rng.integers(0, num_classes, (23, 31)).astype(np.int32)
  labels = rng.choice([*range(num_classes), -1, 255, 2**31 - 1], (23, 31)).astype(np.int32)
  found = metrics.count_by_products(predictions.ravel(), labels.ravel(), num_classes)
  assert found.dtype == np.int32
  np.testing.assert_array_equal(found, count(predictions, labels, num_classes))


def test_confusion_within_a_category_costs_nothing():
  rng = np.random.default_rng(3)
  confusion = rng.integers(0, 100, (5, 5))
  confusion[4], confusion[:, 4] = 0, 0
  found = metrics.category_scores(confusion, ("flat", "human", "flat", "human", "sky"))
  for name, members in (("flat", (0, 2)), ("human", (1, 3))):
    tp = fp = fn = 0
    for truth in range(5):
      for predicted in range(5):
        pixels = int(confusion[truth, predicted])
        tp += pixels * (truth in members and predicted in members)
        fp += pixels * (truth not in members and predicted in members)
        fn += pixels * (truth in members and predicted not in members)
    assert found["category_iou"][name] == pytest.approx(tp / (tp + fp + fn))
  assert found["category_iou"]["sky"] is None
  total = found["category_iou"]["flat"] + found["category_iou"]["human"]
  assert found["category_miou"] == pytest.approx(total / 2)
  with pytest.raises(ValueError, match="4 names for 5 classes"):
    metrics.category_scores(confusion, ("flat",) * 4)
