"""A paired bootstrap over images: the difference between two results, with a confidence interval."""

import dataclasses

import numpy as np

from rc_jax.evaluation import metrics
from rc_jax.evaluation.results import Result

RESAMPLES = 10_000
COVERAGE = 0.95
CHUNK = 1000  # resamples that are scored at once; 150 classes take 3 MB


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
    ValueError: the two results differ in images, classes or rule.
  """
  _check_comparable(first, second)
  rule = first.scores["absent_class"]
  images, classes = first.counts.shape[1:]
  rng = np.random.default_rng(seed)
  both = np.stack([first.counts, second.counts]).astype(np.float64)  # [2,3,I,N], exact below 2^53
  differences = []
  for start in range(0, resamples, CHUNK):
    drawn = rng.multinomial(images, np.full(images, 1 / images), size=min(CHUNK, resamples - start))
    sums = drawn.astype(np.float64) @ both.reshape(6, images, classes)  # [R,I] @ [6,I,N] -> [6,R,N]
    tp, fp, fn = sums.reshape(2, 3, -1, classes).swapaxes(0, 1)  # [2,R,N] each
    miou = _mean_of_scored(metrics.class_ious(tp, fp, fn, rule))
    differences.append(miou[1] - miou[0])
  of_resamples = np.concatenate(differences)
  low, high = np.quantile(of_resamples, [(1 - coverage) / 2, (1 + coverage) / 2])
  of_classes = {
    name: None if before is None or after is None else after - before
    for (name, before), after in zip(first.scores["iou"].items(), second.scores["iou"].values(), strict=True)
  }
  return Difference(
    miou=second.scores["miou"] - first.scores["miou"],
    low=float(low),
    high=float(high),
    better=float((of_resamples > 0).mean()),
    classes=of_classes,
  )


def _mean_of_scored(ious: np.ndarray) -> np.ndarray:
  """Returns the mean over the last axis without NaN; 0 for a resample that scores no class."""
  scored = ~np.isnan(ious)
  mean: np.ndarray = np.where(scored, ious, 0).sum(-1) / np.maximum(scored.sum(-1), 1)
  return mean


def _check_comparable(first: Result, second: Result) -> None:
  for quantity, a, b in (
    ("data set", first.scores["dataset"], second.scores["dataset"]),
    ("classes", list(first.scores["iou"]), list(second.scores["iou"])),
    ("rule for absent classes", first.scores["absent_class"], second.scores["absent_class"]),
    ("number of images", len(first.names), len(second.names)),
  ):
    if a != b:
      shown = "" if isinstance(a, list) else f" ({a}, {b})"
      raise ValueError(
        f"--results: {first.path} and {second.path} differ in their {quantity}{shown}; compare results of one split"
      )
  different = [pair for pair in zip(first.names, second.names, strict=True) if pair[0] != pair[1]]
  if different:
    raise ValueError(
      f"--results: {first.path} and {second.path} scored different images ({' and '.join(different[0])}); "
      "compare results of one split"
    )
