"""A paired bootstrap over images: the difference between two results, with its interval."""

import dataclasses

import numpy as np

from rc_jax.evaluation import metrics
from rc_jax.evaluation.results import Result

RESAMPLES = 10_000
COVERAGE = 0.95
# Resamples that are scored at once: 150 classes take 3 MB for each thousand.
CHUNK = 1000


@dataclasses.dataclass(frozen=True)
class Difference:
  """Of mIoUs, second minus first, in 0..1.

  Attributes:
    miou: of all images.
    low: end of the interval that holds ``COVERAGE`` of the resamples' differences; ``high``: the other end.
    better: share of the resamples in which the second is better.
    classes: class -> difference of its IoU, None where either leaves it out.
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

  A resample draws as many images as there are, with replacement, the same ones for both results; each data set's own
  rule then gives both mIoUs of it. So what makes an image hard for both counts for neither. The interval speaks of
  other images like these: not of other seeds of training, which need runs of their own.

  Args:
    first: what to compare with.
    second: what is perhaps better.
    resamples: how many.
    coverage: share of the resamples that the interval holds, 0..1.
    seed: of the draws.

  Raises:
    ValueError: the two are not of the same images, classes and rule.
  """
  _refuse_unlike(first, second)
  rule = first.scores["absent_class"]
  images, classes = first.counts.shape[1:]
  rng = np.random.default_rng(seed)
  both = np.stack([first.counts, second.counts]).astype(np.float64)  # [2,3,I,N], exact below 2^53
  differences = []
  for start in range(0, resamples, CHUNK):
    drawn = rng.multinomial(images, np.full(images, 1 / images), size=min(CHUNK, resamples - start))
    # [R,I] times [I,N]: how often an image was drawn is all that matters.
    sums = drawn.astype(np.float64) @ both.reshape(6, images, classes)
    right, wrong, missed = sums.reshape(2, 3, -1, classes).swapaxes(0, 1)
    miou = _mean_of_scored(metrics.class_ious(right, wrong, missed, rule))
    differences.append(miou[1] - miou[0])
  drawn_differences = np.concatenate(differences)
  low, high = np.quantile(drawn_differences, [(1 - coverage) / 2, (1 + coverage) / 2])
  of_classes = {
    name: None if before is None or after is None else after - before
    for (name, before), after in zip(first.scores["iou"].items(), second.scores["iou"].values(), strict=True)
  }
  return Difference(
    miou=second.scores["miou"] - first.scores["miou"],
    low=float(low),
    high=float(high),
    better=float((drawn_differences > 0).mean()),
    classes=of_classes,
  )


def _mean_of_scored(ious: np.ndarray) -> np.ndarray:
  """The mean over the last axis without NaN; 0 where a resample scores no class."""
  scored = ~np.isnan(ious)
  mean: np.ndarray = np.where(scored, ious, 0).sum(-1) / np.maximum(scored.sum(-1), 1)
  return mean


def _refuse_unlike(first: Result, second: Result) -> None:
  for what, a, b in (
    ("data set", first.scores["dataset"], second.scores["dataset"]),
    ("classes", list(first.scores["iou"]), list(second.scores["iou"])),
    ("rule for absent classes", first.scores["absent_class"], second.scores["absent_class"]),
    ("number of images", len(first.names), len(second.names)),
  ):
    if a != b:
      shown = "" if isinstance(a, list) else f" ({a}, {b})"
      raise ValueError(
        f"--results: {first.path} and {second.path} differ in their {what}{shown}; compare results of one split"
      )
  unlike = [pair for pair in zip(first.names, second.names, strict=True) if pair[0] != pair[1]]
  if unlike:
    raise ValueError(
      f"--results: {first.path} and {second.path} are of other images ({unlike[0][0]}, {unlike[0][1]}); "
      "compare results of one split"
    )
