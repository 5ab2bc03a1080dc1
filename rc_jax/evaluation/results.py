"""The files of an evaluation: ``eval/<split>.json``, its confusion matrix and the counts of every image."""

import contextlib
import dataclasses
import json
import pathlib
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from rc_jax import files
from rc_jax.evaluation import metrics
from rc_jax.evaluation.evaluator import Counts, Results

MANY_NAMES = 10
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
  with _readable(path):
    scores = json.loads(path.read_bytes())
    rule, classes, miou = scores["absent_class"], list(scores["iou"]), scores["miou"]
  with _readable(counts_path):
    with counts_path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
      count_names = COUNT_NAMES if COUNT_NAMES[0] in arrays else EARLIER_COUNT_NAMES
      counts = np.stack([arrays[name] for name in count_names]).astype(np.int64)
      names = [str(name) for name in arrays["names"]]
    tp, fp, fn = counts.sum(axis=1)
  ious = metrics.class_ious(tp, fp, fn, rule)
  if len(classes) != counts.shape[2] or not np.isclose(
    np.nanmean(ious), np.nan if miou is None else miou, rtol=0, atol=1e-9, equal_nan=True
  ):
    raise ValueError(
      f"{counts_path}: belongs to another evaluation than {path.name}; score again with --mode=eval"
    )
  return Result(path, scores, names, counts)


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
  """Turns whatever a damaged file of a result raises into one line."""
  try:
    yield
  except (ValueError, LookupError, TypeError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    raise ValueError(f"{path}: cannot be read ({reason}); score again with --mode=eval") from error


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
  """Writes ``workdir/eval/<split>.json``, ``<split>_confusion.npy`` and ``<split>_images.npz``.

  ``--mode=compare`` reads the last: ``names``, and int32 ``tp``, ``fp`` and ``fn`` ``[I,N]``.

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
  with files.atomic_write(path.with_name(f"{path.stem}_confusion.npy")) as file:
    np.save(file, counts.confusion)
  with files.atomic_write(path.with_name(f"{path.stem}_images.npz")) as file:
    np.savez_compressed(
      file,
      names=np.array(counts.names),
      tp=counts.true_positives,
      fp=counts.false_positives,
      fn=counts.false_negatives,
    )
  recorded = {"step": step, **({"weights": weights} if weights else {}), **results}
  files.atomic_write_text(path, json.dumps(recorded, indent=2) + "\n")
  return path


def results_table(results: Results) -> str:
  """Returns the tables for the screen, values in percent: classes, categories if there are any, means."""
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
  width = max(map(len, [*results["iou"], *categories, *means]))
  lines = [f"  {'class':<{width}}    IoU  accuracy"]
  for name, value in results["iou"].items():
    lines.append(f"  {name:<{width}}  {_percent(value)}     {_percent(results['accuracy'][name])}")
  if categories:
    lines += ["", f"  {'category':<{width}}    IoU"]
    lines += [f"  {name:<{width}}  {_percent(value)}" for name, value in categories.items()]
  lines += ["", *(f"  {name:<{width}}  {_percent(value)}" for name, value in means.items())]
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
