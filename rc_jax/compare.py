"""Compares two results on the same images: the difference in mIoU and how sure it is, ``--mode=compare``."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from rc_jax import metrics
from rc_jax.run_log import say

RESAMPLES = 10_000
COVERAGE = 0.95
# Resamples that are scored at once: 150 classes take 3 MB for each thousand.
CHUNK = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
  """What ``evaluate.write`` left of one evaluation.

  Attributes:
    path: of the JSON.
    scores: what it holds.
    names: of the ``I`` images.
    counts: int64 ``[3,I,N]``: TP, FP, FN of each image and class.
  """

  path: pathlib.Path
  scores: dict[str, Any]
  names: list[str]
  counts: np.ndarray


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


def run(results: str) -> Difference:
  """Prints a comparison: ``--mode=compare --results=FIRST,SECOND``.

  Args:
    results: two paths, separated by a comma; each a JSON that ``--mode=eval`` wrote, or the folder of a run that holds
      the results of one split alone.

  Raises:
    FileNotFoundError: a result is missing.
    ValueError: the two are not of the same images and classes, or not two.
  """
  paths = [pathlib.Path(path) for path in results.split(",") if path]
  if len(paths) != 2:
    raise ValueError(
      f"--results={results}: names {len(paths)} results; expected two, such as --results=runs/a,runs/b/eval/val.json"
    )
  first, second = (read(path) for path in paths)
  found = difference(first, second)
  say(table(first, second, found))
  return found


def read(path: pathlib.Path) -> Result:
  """Reads a result and the counts of its images.

  Raises:
    FileNotFoundError: there is none, or its counts are gone.
    ValueError: the folder holds results of several splits, or a file is damaged.
  """
  path = _json_of(path)
  counts_path = path.with_name(f"{path.stem}_images.npz")
  if not counts_path.is_file():
    raise FileNotFoundError(f"{counts_path}: missing; score again with --mode=eval, which writes it")
  try:
    scores = json.loads(path.read_text())
    rule, classes = scores["absent_class"], list(scores["iou"])
    with np.load(counts_path, allow_pickle=False) as arrays:
      counts = np.stack([arrays[name] for name in ("right", "wrong", "missed")]).astype(np.int64)
      names = [str(name) for name in arrays["names"]]
  except (ValueError, KeyError, EOFError) as error:
    raise ValueError(f"{path}: cannot be read ({error}); score again with --mode=eval") from error
  right, wrong, missed = counts.sum(axis=1)
  total = metrics.class_ious(right, wrong, missed, rule)
  if len(classes) != counts.shape[2] or not np.isclose(np.nanmean(total), scores["miou"], rtol=0, atol=1e-9):
    raise ValueError(f"{counts_path}: is not of the evaluation of {path.name}; score again with --mode=eval")
  return Result(path, scores, names, counts)


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


def table(first: Result, second: Result, found: Difference) -> str:
  """Returns both results side by side for the screen, values in percent."""
  rows = [
    (name, first.scores["iou"][name], second.scores["iou"][name], change)
    for name, change in found.classes.items()
  ]
  rows.append(("mIoU", first.scores["miou"], second.scores["miou"], found.miou))
  width = max(len(name) for name, *_ in rows)
  lines = [f"  {'':<{width}}  first  second  change"]
  lines += [
    f"  {name:<{width}}  {_percent(a)}   {_percent(b)}  {_percent(change, sign='+')}"
    for name, a, b, change in rows
  ]
  return "\n".join(
    [
      f"first:  {first.path}, step {first.scores['step']}",
      f"second: {second.path}, step {second.scores['step']}",
      *lines,
      f"mIoU of the second minus that of the first: {100 * found.miou:+.2f}, {100 * COVERAGE:g} % interval "
      f"{100 * found.low:+.2f} to {100 * found.high:+.2f}; better in {100 * found.better:.1f} % of {RESAMPLES} "
      f"resamples of the {len(first.names)} images",
    ]
  )


def _mean_of_scored(ious: np.ndarray) -> np.ndarray:
  """The mean over the last axis without NaN; 0 where a resample scores no class."""
  scored = ~np.isnan(ious)
  mean: np.ndarray = np.where(scored, ious, 0).sum(-1) / np.maximum(scored.sum(-1), 1)
  return mean


def _json_of(path: pathlib.Path) -> pathlib.Path:
  if path.is_file():
    return path
  splits = sorted(path.glob("eval/*.json"))
  if len(splits) > 1:
    names = ", ".join(file.name for file in splits)
    raise ValueError(f"--results: {path} holds results of several splits ({names}); name one of the files")
  if not splits:
    raise FileNotFoundError(
      f"--results: {path} holds no result; expected a run's folder or its eval/<split>.json, from --mode=eval"
    )
  return splits[0]


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


def _percent(value: float | None, sign: str = "") -> str:
  return "    -" if value is None else f"{100 * value:{sign}5.1f}"
