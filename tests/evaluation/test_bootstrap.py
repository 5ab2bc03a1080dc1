"""The bootstrap over images: against a plain loop with the same draws, and how often its interval covers the truth."""

import pathlib

import numpy as np
import pytest
from scipy import stats

from rc_jax.evaluation import bootstrap
from rc_jax.evaluation.results import Result
from tests.support.example_studies import CLASSES, confusions, make_result
from tests.support.resampling import mious_of_resamples

RULES = ["unless_predicted", "not_in_truth", "zero"]


@pytest.mark.parametrize("rule", RULES)
def test_groups_of_runs_agree_with_a_plain_loop_of_the_same_draws(rule: str) -> None:
  images, resamples = 9, bootstrap.CHUNK + 50
  runs = [confusions(seed, skill, images) for skill in (0.0, 0.03) for seed in range(3)]
  found = bootstrap.resampled_mious([make_result(run, rule=rule) for run in runs], resamples, seed=4)

  expected = mious_of_resamples(runs, rule, resamples, seed=4)
  np.testing.assert_allclose(found, expected, rtol=1e-12)

  low, high = bootstrap.interval_of_means(found[:3], found[3:], coverage=0.9)
  differences = [np.mean(column[3:]) - np.mean(column[:3]) for column in expected.T]
  np.testing.assert_allclose([low, high], np.quantile(differences, [0.05, 0.95]), rtol=1e-9)


def test_the_difference_of_two_results_is_that_of_groups_of_one() -> None:
  first, second = (make_result(confusions(1, skill)) for skill in (0.0, 0.03))
  found = bootstrap.difference(first, second, resamples=500, seed=3)
  mious = bootstrap.resampled_mious([first, second], 500, seed=3)
  assert (found.low, found.high) == bootstrap.interval_of_means(mious[:1], mious[1:])


def test_a_class_in_the_truth_of_one_image_has_no_interval_wherever_it_is_predicted() -> None:
  results = []
  for skill in (0.0, 0.03):
    matrices = confusions(1, skill)
    matrices[:, 3] = 0
    matrices[0, 3] = [2, 3, 4, 5]
    predicted = np.where(np.arange(len(matrices)) < 10, 7, 0)
    matrices[:, 0, 0] += matrices[:, 0, 3] - predicted  # the labels stay the same
    matrices[:, 0, 3] = predicted
    for truth in (1, 2):
      matrices[10:, truth, truth] += matrices[10:, truth, 3]
      matrices[10:, truth, 3] = 0
    results.append(make_result(matrices))
  found = bootstrap.class_intervals(*results, resamples=100)
  assert [name for name, interval in found.items() if interval is None] == [CLASSES[3]]


def test_a_result_has_the_same_resamples_beside_any_others() -> None:
  results = [make_result(confusions(seed, 0.0)) for seed in range(3)]
  both = bootstrap.resampled_mious(results, 200)
  np.testing.assert_array_equal(bootstrap.resampled_mious(results[2:], 200)[0], both[2])


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"images": 8}, r"number of images \(9, 8\)"),
    ({"dataset": "woods"}, r"data set \(streets, woods\)"),
    ({"rule": "zero"}, r"rule for absent classes \(unless_predicted, zero\)"),
    ({"num_classes": 3}, "classes"),
  ],
)
def test_results_of_other_images_or_classes_are_refused(changes: dict, message: str) -> None:
  images = changes.pop("images", 9)
  matrices = confusions(0, 0.0, images, changes.pop("num_classes", 4))
  results = [make_result(confusions(0, 0.0, 9), "a.json")] * 2 + [make_result(matrices, "b.json", **changes)]
  with pytest.raises(ValueError, match=f"^a.json and b.json differ in their {message}; compare") as refusal:
    bootstrap.resampled_mious(results, 10)
  assert "\n" not in str(refusal.value)


def test_results_of_other_labels_are_refused_with_an_image() -> None:
  before = confusions(0, 0.0, 9)
  after = before.copy()
  # In two images, pixels that were labelled as cars are labelled as road now. They count as much in all.
  after[[4, 7], 1, 1] -= [30, 20]
  after[[4, 7], 0, 0] += [30, 20]
  first, second = make_result(before, "a.json"), make_result(after, "b.json")
  pixels = before[4].sum(axis=1)
  expected = (
    f"a.json and b.json were scored with different labels in 2 of 9 images (image4 has {pixels[0]:,} and "
    f"{pixels[0] + 30:,} pixels of road); score both again with --mode=eval"
  )
  for compare in (bootstrap.difference, lambda one, other: bootstrap.resampled_mious([one, other])):
    with pytest.raises(ValueError) as refusal:
      compare(first, second)
    assert str(refusal.value) == expected


def linear_result(ious: np.ndarray) -> Result:
  """A result of one class whose union has the same size in each image, so that its IoU is the mean of the images'."""
  union = 1_000_000
  tp = np.rint(union * ious).astype(np.int64)[:, None]  # [I,1]
  counts = np.stack([tp, np.zeros_like(tp), union - tp])
  scores = {"dataset": "made up", "absent_class": "zero", "iou": {"thing": float(tp.mean() / union)}}
  return Result(pathlib.Path("made_up.json"), scores, [str(image) for image in range(len(ious))], counts)


@pytest.mark.parametrize("images", [8, 20, 60])
def test_the_interval_covers_less_than_95_of_100_where_images_are_few_as_theory_says(images: int) -> None:
  studies, true = 4000, 0.01
  rng = np.random.default_rng(images)
  baseline = np.full(images, 0.5)
  differences = rng.normal(true, 0.02, (studies, images))
  results = [linear_result(baseline), *(linear_result(baseline + row) for row in differences)]
  mious = bootstrap.resampled_mious(results, 1000)
  intervals = [bootstrap.interval_of_means(mious[:1], mious[1 + row, None]) for row in range(studies)]
  covered = np.mean([low < true < high for low, high in intervals])
  # The resamples' means are about normal with the variance of the images by n, not by n - 1: the interval is the mean
  # +- 1.96 sqrt((n - 1) / n) s / sqrt(n), where that of Student would have a quantile of t.
  half = stats.norm.ppf(0.975) * np.sqrt((images - 1) / images)
  expected = 1 - 2 * stats.t.sf(half, images - 1)
  assert expected < 0.95
  assert covered == pytest.approx(expected, abs=3.3 * np.sqrt(expected * (1 - expected) / studies))


def test_the_interval_over_images_does_not_cover_other_seeds() -> None:
  studies, seeds, images, true = 1500, 3, 60, 0.01
  of_images, of_seeds = 0.02, 0.01
  rng = np.random.default_rng(0)
  baseline = np.full(images, 0.5)
  # All seeds of a study are scored on the same images: the effect of an image is common to them.
  effects = rng.normal(0, of_images, (studies, 1, images)) + rng.normal(0, of_seeds, (studies, seeds, 1))
  results = [linear_result(baseline)]
  results += [linear_result(baseline + true + seed) for study in effects for seed in study]
  mious = bootstrap.resampled_mious(results, 500)
  groups = mious[1:].reshape(studies, seeds, -1)
  intervals = [bootstrap.interval_of_means(mious[:1], group) for group in groups]
  covered = np.mean([low < true < high for low, high in intervals])
  within = of_images**2 / images
  expected = 1 - 2 * stats.norm.sf(1.96 * np.sqrt(within / (within + of_seeds**2 / seeds)))
  assert expected < 0.7
  assert covered == pytest.approx(expected, abs=0.05)
