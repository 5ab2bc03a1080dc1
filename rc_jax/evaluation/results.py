"""The files of an evaluation: ``eval/<split>.json``, its confusion matrix, and counts and scores of every image."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from rc_jax import files
from rc_jax.evaluation import metrics
from rc_jax.evaluation.evaluator import Counts, Results
from rc_jax.evaluation.image_scores import image_table

MANY_NAMES = 10
_LOSS = "cross entropy, nats"
_REMEDY = "score again with --mode=eval"
# Arrays of ``<split>_images.npz``, and their names in files of earlier versions.
COUNT_NAMES = ("tp", "fp", "fn")
EARLIER_COUNT_NAMES = ("right", "wrong", "missed")


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
  """One evaluation, read from the files that ``write_results`` wrote.

  Attributes:
    path: of the JSON.
    scores: the content of the JSON.
    names: of the ``I`` images.
    counts: int64 ``[3,I,N]``: TP, FP, FN of each image and class.
  """

  path: pathlib.Path
  scores: dict[str, Any]
  names: list[str]
  counts: np.ndarray


def read_result(path: pathlib.Path) -> Result:
  """Reads a result and the counts of its images.

  Args:
    path: an ``eval/<split>.json``, or the folder of a run with the results of one split.

  Raises:
    FileNotFoundError: there is no result, or its counts are missing.
    ValueError: the folder holds results of several splits, or a file is damaged.
  """
  path = _json_of(path)
  counts_path = path.with_name(f"{path.stem}_images.npz")
  if not counts_path.is_file():
    raise FileNotFoundError(f"{counts_path}: missing; score again with --mode=eval, which writes it")
  scores = read_results_json(path)
  try:
    # Opened here, because np.load leaves a damaged archive open.
    with counts_path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
      count_names = COUNT_NAMES if COUNT_NAMES[0] in arrays else EARLIER_COUNT_NAMES
      counts = np.stack([arrays[name] for name in count_names]).astype(np.int64)
      names = [_text(name) for name in arrays["names"]]
  except Exception as error:  # damaged files raise errors of any type
    raise ValueError(f"{counts_path}: cannot be read ({files.one_line(error)}); {_REMEDY}") from error
  classes = list(scores["iou"])
  if counts.shape != (3, len(names), len(classes)):
    raise ValueError(
      f"{counts_path}: holds counts of shape {list(counts.shape)} for {len(names)} images and {len(classes)} classes; "
      f"{_REMEDY}"
    )
  tp, fp, fn = counts.sum(axis=1)
  ious = metrics.class_ious(tp, fp, fn, scores["absent_class"])
  recorded = np.array([np.nan if iou is None else iou for iou in scores["iou"].values()])
  if not np.allclose(ious, recorded, rtol=0, atol=1e-9, equal_nan=True) or not _is_mean(ious, scores["miou"]):
    raise ValueError(f"{counts_path}: belongs to another evaluation than {path.name}; {_REMEDY}")
  return Result(path, scores, names, counts)


def read_results_json(path: pathlib.Path) -> dict[str, Any]:
  """Reads an ``eval/<split>.json``, also of an earlier version, which records less.

  Raises:
    ValueError: the file is damaged; one line with the remedy.
    OSError: the file cannot be read.
  """
  scores = files.read_json_object(path, lambda: _REMEDY)
  for field, (is_valid, expected) in _FIELDS.items():
    if field not in scores or not is_valid(scores[field]):
      found = files.one_line(repr(scores[field]), 80) if field in scores else "missing"
      raise ValueError(f"{path}: {field} is {found}, expected {expected}; {_REMEDY}")
  for field, (is_valid, expected) in _LATER_FIELDS.items():
    if field in scores and not is_valid(scores[field]):
      found = files.one_line(repr(scores[field]), 80)
      raise ValueError(f"{path}: {field} is {found}, expected {expected}; {_REMEDY}")
  return scores


def _text(name: np.ndarray) -> str:
  if name.dtype.kind != "U":
    raise ValueError(f"names of type {name.dtype}")
  return str(name)


def _is_mean(ious: np.ndarray, miou: float | None) -> bool:
  if miou is None:
    return bool(np.isnan(ious).all())
  return bool(np.isfinite(ious).any() and np.isclose(np.nanmean(ious), miou, rtol=0, atol=1e-9))


def _is_share(value: Any) -> bool:
  return value is None or (type(value) in (int, float) and 0 <= value <= 1)


def _is_shares(value: Any) -> bool:
  return isinstance(value, dict) and all(map(_is_share, value.values()))


def _is_loss(value: Any) -> bool:
  return value is None or (type(value) in (int, float) and 0 <= value < 1e6)


def _is_count(value: Any) -> bool:
  return type(value) is int and 0 <= value < 2**63


def _is_sides(value: Any) -> bool:
  return isinstance(value, list) and len(value) in (0, 2) and all(map(_is_count, value))


def _is_scales(value: Any) -> bool:
  return isinstance(value, list) and all(type(scale) in (int, float) and 0 < scale < 1e6 for scale in value)


_SHARE, _COUNT = "a share in 0..1 or null", "a number of 0 or more"
_SIDES = "two numbers, or an empty list"
# Field -> its check, and what it expects.
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
  "miou": (_is_share, _SHARE),
  "iou": (lambda value: _is_shares(value) and bool(value), "the IoU of each class"),
  "step": (_is_count, _COUNT),
  "absent_class": (lambda value: value in metrics.ABSENT_CLASS_RULES, "a rule for absent classes"),
}
_LATER_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
  "split": (lambda value: isinstance(value, str), "the name of a split"),
  "checkpoint": (lambda value: isinstance(value, str), "the path of a checkpoint"),
  "pixel_accuracy": (_is_share, _SHARE),
  "mean_accuracy": (_is_share, _SHARE),
  "cross_entropy": (_is_loss, "a number of 0 or more, or null"),
  "images": (_is_count, _COUNT),
  "scales": (_is_scales, "a list of scales"),
  "flip": (lambda value: type(value) is bool, "true or false"),
  "pad_to_grid": (lambda value: type(value) is bool, "true or false"),
  "crop_size": (_is_sides, _SIDES),
  "stride": (_is_sides, _SIDES),
  "never": (
    lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "a list of classes",
  ),
}


def _json_of(path: pathlib.Path) -> pathlib.Path:
  if path.is_file():
    return path
  splits = sorted((path / "eval").rglob("*.json"))
  if len(splits) > 1:
    names = ", ".join(str(file.relative_to(path / "eval")) for file in splits)
    raise ValueError(f"--results: {path} holds results of several splits ({names}); name one of the files")
  if not splits:
    raise FileNotFoundError(
      f"--results: {path} holds no result; expected a run's folder or its eval/<split>.json, from --mode=eval"
    )
  return splits[0]


def write_results(
  workdir: pathlib.Path, results: Results, counts: Counts, step: int, weights: str = ""
) -> pathlib.Path:
  """Writes ``workdir/eval/<split>.json``, and beside it three files that ``written_files`` lists.

  ``--mode=compare`` reads ``<split>_images.npz``: ``names``, and int32 ``tp``, ``fp`` and ``fn`` ``[I,N]``.
  ``<split>_images.csv`` is ``image_scores.image_table``, for people and spreadsheets.

  Args:
    workdir: the run's folder.
    results: of the evaluator.
    counts: of the evaluator.
    step: updates behind the weights.
    weights: digest of the weights, by which a report knows whether its pictures are of the same; empty: not recorded.

  Returns:
    The path of the JSON.

  Raises:
    OSError: a file cannot be written; one line. The JSON of an earlier evaluation stays.
  """
  split = results["split"]
  path = workdir / "eval" / f"{split}.json"
  files.make_folder(path.parent)  # a split may lie in a folder, as fold0/val
  confusion, images, table = written_files(path)
  with files.atomic_write(confusion) as file:
    np.save(file, counts.confusion)
  with files.atomic_write(images) as file:
    np.savez_compressed(
      file,
      names=np.array(counts.names),
      tp=counts.true_positives,
      fp=counts.false_positives,
      fn=counts.false_negatives,
    )
  files.atomic_write_text(table, image_table(counts, list(results["iou"])))
  recorded = {"step": step, **({"weights": weights} if weights else {}), **results}
  files.atomic_write_text(path, json.dumps(recorded, indent=2) + "\n")
  return path


def written_files(path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path, pathlib.Path]:
  """Returns the files beside an ``eval/<split>.json``: the confusion matrix, counts, and scores of every image."""
  confusion, counts, scores = (
    path.with_name(f"{path.stem}_{end}") for end in ("confusion.npy", "images.npz", "images.csv")
  )
  return confusion, counts, scores


def results_table(results: Results) -> str:
  """Returns the tables for the screen: classes, categories if there are any, means, and the validation loss.

  All but the loss, which is in nats, are in percent.
  """
  categories = results.get("category_iou", {})
  means = {
    f"mIoU {metrics.over_classes(results['iou'])}": results["miou"],
    "pixel accuracy": results["pixel_accuracy"],
    "mean accuracy": results["mean_accuracy"],
  }
  if "final_score" in results:
    means["final score"] = results["final_score"]
  if categories:
    over = metrics.over_classes(categories).replace("classes", "categories")
    means[f"category mIoU {over}"] = results["category_miou"]
  width = max(map(len, [*results["iou"], *categories, *means, _LOSS]))
  lines = [f"  {'class':<{width}}    IoU  precision  recall     F1"]
  for name, value in results["iou"].items():
    precision, recall, f1 = (_percent(results[score][name]) for score in ("precision", "recall", "f1"))
    lines.append(f"  {name:<{width}}  {_percent(value)}      {precision}   {recall}  {f1}")
  if categories:
    lines += ["", f"  {'category':<{width}}    IoU"]
    lines += [f"  {name:<{width}}  {_percent(value)}" for name, value in categories.items()]
  lines += ["", *(f"  {name:<{width}}  {_percent(value)}" for name, value in means.items())]
  loss = results["cross_entropy"]
  lines.append(f"  {_LOSS:<{width}}  {'    -' if loss is None else f'{loss:8.4f}'}")
  absent = absent_classes(results)
  return "\n".join(lines + ([f"  {absent}"] if absent else []))


def absent_classes(results: Results) -> str:
  """Returns a sentence on the classes that no label of a split holds; empty where all occur or it is unknown."""
  never, classes = results.get("never", []), list(results["iou"])
  if not never:
    return ""
  names = ", ".join(never[:MANY_NAMES]) + (", ..." if len(never) > MANY_NAMES else "")
  text = (
    f"{len(never)} of {len(classes)} classes never occur in the labels of {results['split']}: {names} "
    "(--mode=inspect counts the pixels of each class)"
  )
  if len(never) == len(classes) - 1:
    (only,) = (name for name in classes if name not in never)
    text += (
      f"; {only} alone occurs, so no score means anything: in masks of 0 and 255, write the id of the class in place "
      "of 255"
    )
  return text


def _percent(value: float | None) -> str:
  return "    -" if value is None else f"{100 * value:5.1f}"
