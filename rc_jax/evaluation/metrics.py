"""Confusion matrices, and the scores that the benchmarks make of them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

ABSENT_CLASS_RULES = ("unless_predicted", "not_in_truth", "zero")

# Pixels of one product of one-hot vectors: float32 sums of ones are exact up to 2^24.
TILE = 1 << 18


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
  count = lambda form: lambda *arrays: form(*arrays, num_classes)  # noqa: E731
  # Scattered additions to so few bins wait for each other on an accelerator.
  confusion: Array = jax.lax.platform_dependent(
    predictions, labels, cpu=count(_count_by_bins), default=count(_count_by_products)
  )
  return confusion


def _count_by_bins(predictions: Array, labels: Array, num_classes: int) -> Array:
  counted = (labels >= 0) & (labels < num_classes)
  pairs = jnp.where(counted, labels * num_classes + predictions, num_classes**2)
  counts = jnp.bincount(pairs, length=num_classes**2 + 1)[:-1]
  return counts.reshape(num_classes, num_classes).astype(jnp.int32)


def _count_by_products(predictions: Array, labels: Array, num_classes: int) -> Array:
  tiles = -(-labels.size // TILE)
  # No one-hot vector is 1 at -1.
  pad = (0, tiles * TILE - labels.size)
  predictions, labels = (jnp.pad(array, pad, constant_values=-1) for array in (predictions, labels))

  def add_tile(total: Array, tile: tuple[Array, Array]) -> tuple[Array, None]:
    predicted, truth = (jax.nn.one_hot(ids, num_classes, dtype=jnp.bfloat16) for ids in tile)
    counts = jnp.einsum("pt,pq->tq", truth, predicted, preferred_element_type=jnp.float32)
    return total + counts.astype(jnp.int32), None

  start = jnp.zeros((num_classes, num_classes), jnp.int32)
  total, _ = jax.lax.scan(add_tile, start, (predictions.reshape(tiles, -1), labels.reshape(tiles, -1)))
  return total


def scores(confusion: np.ndarray, absent_class: str) -> dict[str, Any]:
  """Intersection over union and accuracies of a data set.

  With ``TP``, ``FP``, ``FN`` of a class over all pixels, ``iou = TP / (TP + FP + FN)`` and ``miou`` is its
  mean over the classes. Benchmarks differ in what an absent class does to the mean:

  - ``unless_predicted``: left out when ``TP + FP + FN == 0``, so predicting it anywhere costs (Cityscapes);
  - ``not_in_truth``: left out when ``TP + FN == 0``, predicted or not (COCO-Stuff);
  - ``zero``: counts as 0 (ADE20K).

  Pixels that the truth ignores count nowhere, whatever was predicted there; a network predicts nothing but its ``N``
  classes, so that the official scorers' rules for predicted void (a miss) never apply.

  Args:
    confusion: ``[N,N]`` integer, rows the truth, columns the prediction.
    absent_class: the rule.

  Returns:
    ``miou`` float; ``iou`` a list of ``N`` floats, None for classes left out; ``accuracy``, a list of
    ``TP / (TP + FN)``, None for classes that the truth lacks (0 under ``zero``); ``pixel_accuracy``, the share of
    pixels that are right; ``mean_accuracy``, the mean of ``accuracy``. Under ``zero`` also ``final_score``,
    ``(pixel_accuracy + miou) / 2``, by which ADE20K's challenge ranks. A mean of nothing is None.

  Raises:
    ValueError: for an unknown rule or a matrix that is not square.
  """
  confusion = _square(confusion)
  right = np.diagonal(confusion)  # TP
  missed, wrong = confusion.sum(axis=1) - right, confusion.sum(axis=0) - right  # FN, FP
  ious = class_ious(right, wrong, missed, absent_class)
  truth = right + missed
  accurate = np.ones(len(right), bool) if absent_class == "zero" else truth > 0
  accuracies = np.where(accurate, right / np.maximum(truth, 1), np.nan)
  found: dict[str, Any] = {
    "miou": _mean(ious),
    "iou": _or_none(ious),
    "accuracy": _or_none(accuracies),
    "pixel_accuracy": float(right.sum() / confusion.sum()) if confusion.any() else None,
    "mean_accuracy": _mean(accuracies),
  }
  if absent_class == "zero" and found["pixel_accuracy"] is not None:
    found["final_score"] = (found["pixel_accuracy"] + found["miou"]) / 2
  return found


def class_ious(right: np.ndarray, wrong: np.ndarray, missed: np.ndarray, absent_class: str) -> np.ndarray:
  """Intersection over union of counts that may stand for many data sets at once.

  Args:
    right: ``[...,N]``, TP of each class.
    wrong: FP.
    missed: FN.
    absent_class: the rule, see ``scores``.

  Returns:
    float64 ``[...,N]``; NaN where the rule leaves a class out of the mean.

  Raises:
    ValueError: for an unknown rule.
  """
  if absent_class not in ABSENT_CLASS_RULES:
    raise ValueError(f"absent_class: unknown {absent_class!r}; choose one of {', '.join(ABSENT_CLASS_RULES)}")
  truth = right + missed
  union = truth + wrong
  iou = right / np.maximum(union, 1)
  if absent_class == "zero":
    return iou
  return np.where((union if absent_class == "unless_predicted" else truth) > 0, iou, np.nan)


def category_scores(confusion: np.ndarray, categories: Sequence[str]) -> dict[str, Any]:
  """Intersection over union of groups of classes, as Cityscapes' second score has it.

  Confusing two classes of a category is no mistake here: ``TP`` are the pixels of the category's classes that were
  predicted as any of them. A category with neither truth nor prediction is left out of the mean.

  Args:
    confusion: ``[N,N]`` integer, rows the truth, columns the prediction.
    categories: the category of each of the ``N`` classes.

  Returns:
    ``category_miou`` float or None, and ``category_iou`` ``{category: float or None}``, in the order in which
    ``categories`` first names them.

  Raises:
    ValueError: when there are not ``N`` of them.

  Source: cityscapesScripts, ``evalPixelLevelSemanticLabeling.getIouScoreForCategory``.
  """
  confusion = _square(confusion)
  if len(categories) != len(confusion):
    raise ValueError(f"categories: {len(categories)} names for {len(confusion)} classes; give each class one")
  names = list(dict.fromkeys(categories))
  belongs = np.array([[category == name for category in categories] for name in names], np.int64)
  grouped = belongs @ confusion @ belongs.T
  right = np.diagonal(grouped)
  wrong, missed = grouped.sum(axis=0) - right, grouped.sum(axis=1) - right
  ious = class_ious(right, wrong, missed, "unless_predicted")
  return {"category_miou": _mean(ious), "category_iou": dict(zip(names, _or_none(ious), strict=True))}


def _square(confusion: np.ndarray) -> np.ndarray:
  confusion = np.asarray(confusion, np.int64)
  if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
    raise ValueError(f"confusion must be [N,N], got {confusion.shape}")
  return confusion


def _or_none(values: np.ndarray) -> list[float | None]:
  return [None if np.isnan(value) else float(value) for value in values]


def _mean(values: np.ndarray) -> float | None:
  values = values[~np.isnan(values)]
  return float(values.mean()) if values.size else None
