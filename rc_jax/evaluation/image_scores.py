"""Scores of each image of a split: as a table in CSV, and the images with the lowest."""

import csv
import io
from collections.abc import Sequence

import numpy as np

from rc_jax.evaluation import metrics
from rc_jax.evaluation.evaluator import Counts

DIGITS = 6  # after the point, in the table


def image_ious(counts: np.ndarray) -> np.ndarray:
  """Returns the IoU of the classes in each image's truth or prediction.

  In an image nearly all classes are absent, so the data set's rule is not read: under ``zero`` they would decide.

  Args:
    counts: ``[3,I,N]``: TP, FP, FN of each image and class.

  Returns:
    float64 ``[I,N]``; NaN for a class that is neither in the image's truth nor predicted on its labelled pixels.
  """
  tp, fp, fn = counts
  return metrics.class_ious(tp, fp, fn, "unless_predicted")


def image_mious(counts: np.ndarray) -> np.ndarray:
  """Returns the mean IoU of the classes in each image's truth or prediction.

  Args:
    counts: as for ``image_ious``.

  Returns:
    float64 ``[I]``; NaN for an image without labelled pixels.
  """
  ious = image_ious(counts)  # [I,N]
  scored = ~np.isnan(ious)
  return _ratio(np.where(scored, ious, 0).sum(axis=1), scored.sum(axis=1))


def pixel_accuracies(counts: np.ndarray) -> np.ndarray:
  """Returns the fraction of correct pixels of each image, float64 ``[I]``; arguments and NaN as ``image_mious``."""
  tp, _, fn = counts
  return _ratio(tp.sum(axis=1), (tp + fn).sum(axis=1))


def worst_images(counts: np.ndarray, number: int) -> list[int]:
  """Returns the rows of the images with the lowest mean IoU, the lowest first.

  Args:
    counts: as for ``image_ious``.
    number: of the images; fewer where fewer have labelled pixels. Of equal ones the first of the split count.
  """
  mious = image_mious(counts)
  order = np.argsort(mious, kind="stable")  # NaN last
  return [int(row) for row in order[:number] if not np.isnan(mious[row])]


def image_table(counts: Counts, class_names: Sequence[str]) -> str:
  """Returns the table of all images as CSV.

  Its columns: ``image``; ``miou``, of ``image_mious``; ``pixel_accuracy``; ``cross_entropy``, the mean over the image's
  counted pixels in nats; ``iou <class>`` of each class. A cell without a value is empty.

  Args:
    counts: of the evaluator.
    class_names: of the ``N`` classes.
  """
  of_images = stacked(counts)
  pixels = (counts.true_positives + counts.false_negatives).sum(axis=1)
  columns = np.column_stack(
    [
      image_mious(of_images),
      pixel_accuracies(of_images),
      _ratio(counts.cross_entropy, pixels),
      image_ious(of_images),
    ]
  )
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  # No class has the name of another column.
  writer.writerow(
    ["image", "miou", "pixel_accuracy", "cross_entropy", *(f"iou {name}" for name in class_names)]
  )
  for name, values in zip(counts.names, columns.tolist(), strict=True):
    # NaN alone differs from itself.
    writer.writerow([name, *(f"{value:.{DIGITS}f}" if value == value else "" for value in values)])
  return text.getvalue()


def stacked(counts: Counts) -> np.ndarray:
  """Returns int ``[3,I,N]``: TP, FP, FN of each image and class."""
  return np.stack([counts.true_positives, counts.false_positives, counts.false_negatives])


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
  return np.where(denominator > 0, numerator / np.maximum(denominator, 1), np.nan)
