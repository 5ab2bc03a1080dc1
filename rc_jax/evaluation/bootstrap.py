"""A paired bootstrap over images: the difference of two results, or of two groups of results, with its interval."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from rc_jax.evaluation import metrics
from rc_jax.evaluation.results import Result

RESAMPLES = 10_000
COVERAGE = 0.95
CHUNK = 1000  # resamples that are scored at once; 150 classes take 3 MB
LEAST_IMAGES = 5  # whose truth has a class; of fewer, resamples are too much alike for an interval


@dataclasses.dataclass(frozen=True)
class Difference:
  """The difference of two results, second minus first, as fractions.

  Attributes:
    miou: mIoU over all images.
    low: lower end of the interval that holds ``COVERAGE`` of the resamples' differences in mIoU.
    high: its upper end.
    better: fraction of the resamples in which the second has the higher mIoU.
    classes: class -> difference of its IoU, None if either result leaves it out.
  """

  miou: float
  low: float
  high: float
  better: float
  classes: dict[str, float | None]


def difference(
  first: Result, second: Result, resamples: int = RESAMPLES, coverage: float = COVERAGE, seed: int = 0
) -> Difference:
  """Compares two results by a paired bootstrap over images.

  A resample draws as many images as there are, with replacement, and the same ones for both results. The data set's
  rule then gives both mIoUs, so an image that is hard for both favours neither. The interval holds for other images
  like these, and not for other seeds of training, which need several runs.

  Args:
    first: the result to compare with.
    second: the result that may be better.
    resamples: their number.
    coverage: fraction of the resamples that the interval holds, 0..1.
    seed: of the draws.

  Raises:
    ValueError: the two results differ in images, labels, classes or rule.
  """
  mious = resampled_mious([first, second], resamples, seed)  # [2,R]
  low, high = interval_of_means(mious[:1], mious[1:], coverage)
  of_classes = {
    name: None if before is None or after is None else after - before
    for (name, before), after in zip(first.scores["iou"].items(), second.scores["iou"].values(), strict=True)
  }
  return Difference(
    miou=second.scores["miou"] - first.scores["miou"],
    low=low,
    high=high,
    better=float((mious[1] > mious[0]).mean()),
    classes=of_classes,
  )


def resampled_mious(results: Sequence[Result], resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
  """Computes the mIoU of each result on each resample of the images; all results have the same resamples.

  Args:
    results: ``K`` of the same images.
    resamples: their number, ``R``.
    seed: of the draws.

  Returns:
    float64 ``[K,R]``, 0..1, by the data set's rule for absent classes; 0 for a resample that scores no class.

  Raises:
    ValueError: two results differ in images, labels, classes or rule; one line.
  """
  for result in results[1:]:
    check_comparable(results[0], result)
  chunks = [
    [_mean_of_scored(_resampled_ious(result, draws)) for result in results]
    for draws in _draws(len(results[0].names), resamples, seed)
  ]
  return np.concatenate(chunks, axis=1)


def _draws(images: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
  """Yields float64 ``[R,I]``, ``R`` up to ``CHUNK``: how often each resample holds each image."""
  rng = np.random.default_rng(seed)
  for start in range(0, resamples, CHUNK):
    draws = rng.multinomial(images, np.full(images, 1 / images), size=min(CHUNK, resamples - start))
    yield draws.astype(np.float64)  # sums of pixels are exact below 2^53


def _resampled_ious(result: Result, draws: np.ndarray) -> np.ndarray:
  """Returns the IoU of each class on the resamples ``draws [R,I]``, ``[R,N]``; NaN where the rule leaves it out."""
  tp, fp, fn = draws @ result.counts.astype(np.float64)  # [R,I] @ [3,I,N] -> [3,R,N]
  return metrics.class_ious(tp, fp, fn, result.scores["absent_class"])


def interval_of_means(
  first: np.ndarray, second: np.ndarray, coverage: float = COVERAGE
) -> tuple[float, float]:
  """Returns the interval over images of the difference between the means of two groups of results.

  Args:
    first: ``[S,R]`` of ``resampled_mious``: the runs to compare with, such as those of several seeds.
    second: ``[T,R]`` of the same call: the runs that may be better.
    coverage: fraction of the resamples that the interval holds, 0..1.

  Returns:
    Its lower and its upper end, as fractions, second minus first.
  """
  differences = second.mean(axis=0) - first.mean(axis=0)  # [R]
  low, high = np.quantile(differences, [(1 - coverage) / 2, (1 + coverage) / 2])
  return float(low), float(high)


def _mean_of_scored(ious: np.ndarray) -> np.ndarray:
  """Returns the mean over the last axis without NaN; 0 for a resample that scores no class."""
  scored = ~np.isnan(ious)
  mean: np.ndarray = np.where(scored, ious, 0).sum(-1) / np.maximum(scored.sum(-1), 1)
  return mean


def check_comparable(first: Result, second: Result) -> None:
  """Checks that two results are of the same images, labels and classes, scored by one rule.

  Raises:
    ValueError: they are not; one line with both files.
  """
  for quantity, a, b in (
    ("data set", first.scores["dataset"], second.scores["dataset"]),
    ("classes", list(first.scores["iou"]), list(second.scores["iou"])),
    ("rule for absent classes", first.scores["absent_class"], second.scores["absent_class"]),
    ("number of images", len(first.names), len(second.names)),
  ):
    if a != b:
      shown = "" if isinstance(a, list) else f" ({a}, {b})"
      raise ValueError(
        f"{first.path} and {second.path} differ in their {quantity}{shown}; compare results of one split"
      )
  different = [pair for pair in zip(first.names, second.names, strict=True) if pair[0] != pair[1]]
  if different:
    raise ValueError(
      f"{first.path} and {second.path} scored different images ({' and '.join(different[0])}); "
      "compare results of one split"
    )
  _check_labels(first, second)


def _check_labels(first: Result, second: Result) -> None:
  """Checks that each image of two results had as many labelled pixels of each class.

  Raises:
    ValueError: one has not, as where labels were corrected between two evaluations; one line with an image.
  """
  # TP + FN, [I,N] each
  labelled, others = (result.counts[0] + result.counts[2] for result in (first, second))
  changed = labelled != others
  if not changed.any():
    return
  image, label = (int(place) for place in np.argwhere(changed)[0])
  pixels = (
    f"{labelled[image, label]:,} and {others[image, label]:,} pixels of {list(first.scores['iou'])[label]}"
  )
  raise ValueError(
    f"{first.path} and {second.path} were scored with different labels in {int(changed.any(axis=1).sum())} of "
    f"{len(first.names)} images ({first.names[image]} has {pixels}); score both again with --mode=eval"
  )


def class_intervals(
  first: Result, second: Result, resamples: int = RESAMPLES, coverage: float = COVERAGE, seed: int = 0
) -> dict[str, tuple[float, float] | None]:
  """Computes an interval for the difference of each class's IoU, by the resamples of `difference`.

  A resample without the class counts for no bound of it.

  Args:
    first: as for `difference`.
    second: likewise.
    resamples: their number.
    coverage: fraction of the resamples that each interval holds, 0..1.
    seed: of the draws.

  Returns:
    Class -> lower and upper end, as fractions, second minus first; None for a class that either result leaves out, or
    that fewer than ``LEAST_IMAGES`` images have in their truth.
  """
  differences = np.concatenate(
    [
      _resampled_ious(second, draws) - _resampled_ious(first, draws)
      for draws in _draws(len(first.names), resamples, seed)
    ]
  )  # [resamples,N]
  # Of truth alone: where one image has a class and ten are predicted to have it, all resamples rest on one image.
  tp, _, fn = first.counts
  images_with = (tp + fn > 0).sum(axis=0)  # [N]
  scored = [
    None not in pair for pair in zip(first.scores["iou"].values(), second.scores["iou"].values(), strict=True)
  ]
  intervals: dict[str, tuple[float, float] | None] = {}
  for label, name in enumerate(first.scores["iou"]):
    intervals[name] = None
    if scored[label] and images_with[label] >= LEAST_IMAGES:
      low, high = np.nanquantile(differences[:, label], [(1 - coverage) / 2, (1 + coverage) / 2])
      intervals[name] = (float(low), float(high))
  return intervals
