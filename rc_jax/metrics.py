"""Confusion matrices, and the scores that the benchmarks make of them."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

ABSENT_CLASS_RULES = ("unless_predicted", "not_in_truth", "zero")


def confusion_matrix(predictions: ArrayLike, labels: ArrayLike, num_classes: int) -> Array:
  """Counts the pixels of each true class that were predicted as each class.

  Args:
    predictions: ``[...]``, integer in ``0..N-1``.
    labels: ``[...]``, integer, same shape; pixels labelled outside ``0..N-1`` count nowhere.
    num_classes: ``N``.

  Returns:
    ``[N,N]`` int32, rows the truth, columns the prediction. Sum over images in int64: 2^31 pixels are 1024
    Cityscapes images.
  """
  predictions, labels = jnp.asarray(predictions), jnp.asarray(labels)
  if predictions.shape != labels.shape:
    raise ValueError(
      f"predictions and labels must have one shape, got {predictions.shape} and {labels.shape}"
    )
  # int32 before comparing or multiplying: in uint8, 18 * 19 wraps around.
  predictions, labels = predictions.astype(jnp.int32).ravel(), labels.astype(jnp.int32).ravel()
  counted = (labels >= 0) & (labels < num_classes)
  pairs = jnp.where(counted, labels * num_classes + predictions, num_classes**2)
  counts = jnp.bincount(pairs, length=num_classes**2 + 1)[:-1]
  return counts.reshape(num_classes, num_classes).astype(jnp.int32)


def scores(confusion: np.ndarray, absent_class: str) -> dict[str, Any]:
  """Intersection over union and accuracies of a data set.

  With ``TP``, ``FP``, ``FN`` of a class over all pixels, ``iou = TP / (TP + FP + FN)`` and ``miou`` is its
  mean over the classes. Benchmarks differ in what an absent class does to the mean:

  - ``unless_predicted``: left out when ``TP + FP + FN == 0``, so predicting it anywhere costs (Cityscapes);
  - ``not_in_truth``: left out when ``TP + FN == 0``, predicted or not (COCO-Stuff);
  - ``zero``: counts as 0 (ADE20K).

  Args:
    confusion: ``[N,N]`` integer, rows the truth, columns the prediction.
    absent_class: the rule.

  Returns:
    ``miou`` float; ``iou`` a list of ``N`` floats, None for classes left out; ``pixel_accuracy``, the share
    of pixels that are right; ``mean_accuracy``, the mean of ``TP / (TP + FN)`` over the classes in the truth
    (over all classes, absent ones 0, under ``zero``). A mean of nothing is None.

  Raises:
    ValueError: for an unknown rule or a matrix that is not square.
  """
  if absent_class not in ABSENT_CLASS_RULES:
    raise ValueError(f"absent_class: unknown {absent_class!r}; choose one of {', '.join(ABSENT_CLASS_RULES)}")
  confusion = np.asarray(confusion, np.int64)
  if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
    raise ValueError(f"confusion must be [N,N], got {confusion.shape}")
  right = np.diagonal(confusion)  # TP
  truth = confusion.sum(axis=1)  # TP + FN
  union = truth + confusion.sum(axis=0) - right  # TP + FP + FN

  if absent_class == "zero":
    scored, accurate = np.ones(len(right), bool), np.ones(len(right), bool)
  else:
    scored, accurate = (union if absent_class == "unless_predicted" else truth) > 0, truth > 0
  iou = right / np.maximum(union, 1)
  return {
    "miou": _mean(iou[scored]),
    "iou": [float(value) if counts else None for value, counts in zip(iou, scored, strict=True)],
    "pixel_accuracy": float(right.sum() / confusion.sum()) if confusion.any() else None,
    "mean_accuracy": _mean((right / np.maximum(truth, 1))[accurate]),
  }


def _mean(values: np.ndarray) -> float | None:
  return float(values.mean()) if values.size else None
