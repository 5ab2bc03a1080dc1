"""Confusion matrices, the scores that the benchmarks compute from them, and the cross entropy of predictions."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from rc_jax.data.reading.dataset_info import AbsentClass

ABSENT_CLASS_RULES: tuple[str, ...] = get_args(AbsentClass)

# Scores of ``scores`` that each class has.
OF_CLASSES = ("iou", "accuracy", "precision", "recall", "f1")

# Pixels of one product of one-hot vectors; float32 sums of ones are exact up to 2^24.
TILE = 1 << 18

# Of the true class: in float32, the softmax of a logit 104 below the largest is 0, whose logarithm is infinite.
LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)


def confusion_matrix(predictions: ArrayLike, labels: ArrayLike, num_classes: int) -> Array:
  """Counts the pixels of each true class that were predicted as each class.

  Args:
    predictions: ``[...]``, integer in ``0..N-1``.
    labels: ``[...]``, integer, same shape; pixels labelled outside ``0..N-1`` count nowhere.
    num_classes: ``N``.

  Returns:
    ``[N,N]`` int32, rows truth, columns prediction. Sum over images in int64: 2^31 pixels are 1024 Cityscapes images.

  Raises:
    ValueError: the shapes differ.

  >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 0, 255]), 2).tolist()
  [[1, 1], [0, 0]]
  """
  predictions, labels = jnp.asarray(predictions), jnp.asarray(labels)
  if predictions.shape != labels.shape:
    raise ValueError(
      f"predictions and labels: have shapes {predictions.shape} and {labels.shape}; expected the same shape"
    )
  # int32 before comparing or multiplying: in uint8, 18 * 19 wraps around.
  predictions, labels = predictions.astype(jnp.int32).ravel(), labels.astype(jnp.int32).ravel()
  count = lambda form: lambda *arrays: form(*arrays, num_classes)  # noqa: E731
  # On an accelerator, scattered additions to so few bins wait for each other.
  confusion: Array = jax.lax.platform_dependent(
    predictions, labels, cpu=count(count_by_bins), default=count(count_by_products)
  )
  return confusion


def count_by_bins(predictions: Array, labels: Array, num_classes: int) -> Array:
  """Counts as ``confusion_matrix``, by scattered additions; predictions and labels are int32 ``[P]``."""
  counted = (labels >= 0) & (labels < num_classes)
  pairs = jnp.where(counted, labels * num_classes + predictions, num_classes**2)
  counts = jnp.bincount(pairs, length=num_classes**2 + 1)[:-1]
  return counts.reshape(num_classes, num_classes).astype(jnp.int32)


def count_by_products(predictions: Array, labels: Array, num_classes: int) -> Array:
  """Counts as ``confusion_matrix``, by products of one-hot vectors; predictions and labels are int32 ``[P]``."""
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


def cross_entropy_of_rows(probabilities: ArrayLike, labels: ArrayLike) -> Array:
  """Computes the cross entropy ``-log p[y]`` of each counted pixel, summed over each row of an image.

  ``p`` are the probabilities that the prediction is the largest of: the mean over windows, scales and mirror images. So
  it is defined however an image was scored, and for one view of the full image it is the cross entropy of its logits.
  ``p[y]`` is clipped to ``LEAST_PROBABILITY..1``, so no pixel has more than 87.3 nats.

  Args:
    probabilities: float32 ``[...,W,N]``.
    labels: ``[...,W]``, integer; pixels labelled outside ``0..N-1`` count nowhere.

  Returns:
    ``[...]`` float32, nats. Rows, because their sums stay exact to about 1e-6 in float32; add them in float64.

  >>> round(float(cross_entropy_of_rows(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([1, 255]))), 4)
  0.6931
  """
  probabilities, labels = jnp.asarray(probabilities), jnp.asarray(labels).astype(jnp.int32)
  # Accelerators gather single elements slowly, and CPUs reduce a short axis slowly.
  of_truth = jax.lax.platform_dependent(
    probabilities, labels, cpu=of_classes_by_gather, default=of_classes_by_sum
  )  # [...,W,N] -> [...,W]
  entropies = -jnp.log(jnp.clip(of_truth, LEAST_PROBABILITY, 1))
  counted = (labels >= 0) & (labels < probabilities.shape[-1])
  rows: Array = jnp.where(counted, entropies, 0).sum(axis=-1)
  return rows


def of_classes_by_gather(probabilities: Array, labels: Array) -> Array:
  """Returns the element ``labels [...]`` of ``probabilities [...,N]``; of a label outside ``0..N-1`` any."""
  inside = jnp.clip(labels, 0, probabilities.shape[-1] - 1)[..., None]
  return jnp.take_along_axis(probabilities, inside, axis=-1)[..., 0]


def of_classes_by_sum(probabilities: Array, labels: Array) -> Array:
  """Returns the same as ``of_classes_by_gather``, as a sum of one term."""
  is_class = labels[..., None] == jnp.arange(probabilities.shape[-1])
  return jnp.where(is_class, probabilities, 0).sum(axis=-1)


def scores(confusion: np.ndarray, absent_class: str) -> dict[str, Any]:
  """Computes intersection over union, accuracies, precision, recall and F1 of a data set.

  With ``TP``, ``FP``, ``FN`` of a class over all pixels, ``iou = TP / (TP + FP + FN)`` and ``miou`` is its
  mean over the classes. Benchmarks treat an absent class differently:

  - ``unless_predicted``: left out of the mean if ``TP + FP + FN == 0``, so predicting it anywhere costs (Cityscapes);
  - ``not_in_truth``: left out if ``TP + FN == 0``, predicted or not (COCO-Stuff);
  - ``zero``: counts as 0 (ADE20K).

  Pixels that the truth ignores count nowhere. A network predicts one of its ``N`` classes at every pixel, so the
  official scorers' rules for predicted void never apply.

  Args:
    confusion: ``[N,N]`` integer, rows truth, columns prediction.
    absent_class: the rule.

  Returns:
    ``miou`` float; ``iou``, a list of ``N`` floats, None for classes left out; ``accuracy``, a list of
    ``TP / (TP + FN)``, None for classes that the truth lacks (0 under ``zero``); ``pixel_accuracy``, the fraction of
    correct pixels; ``mean_accuracy``, the mean of ``accuracy``. Under ``zero`` also ``final_score``,
    ``(pixel_accuracy + miou) / 2``, by which ADE20K's challenge ranks. The mean of no class is None.
    ``precision``, ``recall`` and ``f1`` are those of ``precision_recall_f1``, lists as ``iou``.

  Raises:
    ValueError: for an unknown rule or a matrix that is not square.

  >>> scores(np.array([[3, 1], [0, 4]]), "zero")["iou"]
  [0.75, 0.8]
  """
  confusion = _checked(confusion)
  true_positives, false_positives, false_negatives = positives_and_negatives(confusion)
  ious = class_ious(true_positives, false_positives, false_negatives, absent_class)
  truth = true_positives + false_negatives
  scored = np.ones(len(truth), bool) if absent_class == "zero" else truth > 0
  accuracies = np.where(scored, true_positives / np.maximum(truth, 1), np.nan)
  of_classes = precision_recall_f1(true_positives, false_positives, false_negatives, absent_class)
  result: dict[str, Any] = {
    "miou": _mean(ious),
    "iou": _or_none(ious),
    "accuracy": _or_none(accuracies),
    **{
      name: _or_none(values) for name, values in zip(("precision", "recall", "f1"), of_classes, strict=True)
    },
    "pixel_accuracy": float(true_positives.sum() / confusion.sum()) if confusion.any() else None,
    "mean_accuracy": _mean(accuracies),
  }
  if absent_class == "zero" and result["pixel_accuracy"] is not None:
    result["final_score"] = (result["pixel_accuracy"] + result["miou"]) / 2
  return result


def over_classes(ious: Mapping[str, float | None]) -> str:
  """Returns over how many classes a mean IoU was computed, which belongs beside each one.

  Args:
    ious: class -> IoU, None for a class that the rule leaves out.

  >>> over_classes({"road": 0.5, "train": None})
  'over 1 of 2 classes'
  """
  return f"over {sum(iou is not None for iou in ious.values())} of {len(ious)} classes"


def positives_and_negatives(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns TP, FP and FN, ``[N]`` each, of a confusion matrix ``[N,N]`` with rows truth, columns prediction.

  >>> [counts.tolist() for counts in positives_and_negatives(np.array([[3, 1], [0, 4]]))]
  [[3, 4], [0, 1], [1, 0]]
  """
  true_positives = np.diagonal(confusion)
  return true_positives, confusion.sum(axis=0) - true_positives, confusion.sum(axis=1) - true_positives


def class_ious(
  true_positives: np.ndarray, false_positives: np.ndarray, false_negatives: np.ndarray, absent_class: str
) -> np.ndarray:
  """Computes intersection over union of each class, for one data set or for many at once.

  Args:
    true_positives: ``[...,N]``, pixels.
    false_positives: likewise.
    false_negatives: likewise.
    absent_class: the rule, see ``scores``.

  Returns:
    float64 ``[...,N]``; NaN for a class that the rule leaves out of the mean.

  Raises:
    ValueError: for an unknown rule.
  """
  if absent_class not in ABSENT_CLASS_RULES:
    raise ValueError(f"absent_class: is {absent_class!r}; expected one of {', '.join(ABSENT_CLASS_RULES)}")
  truth = true_positives + false_negatives
  union = truth + false_positives
  iou = true_positives / np.maximum(union, 1)
  if absent_class == "zero":
    return iou
  return np.where((union if absent_class == "unless_predicted" else truth) > 0, iou, np.nan)


def precision_recall_f1(
  true_positives: np.ndarray, false_positives: np.ndarray, false_negatives: np.ndarray, absent_class: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Computes ``TP / (TP + FP)``, ``TP / (TP + FN)`` and ``2 TP / (2 TP + FP + FN)`` of each class.

  Recall is the class's accuracy, and F1 its Dice coefficient.

  Args:
    true_positives: ``[N]``, pixels.
    false_positives: likewise.
    false_negatives: likewise.
    absent_class: the rule, see ``scores``.

  Returns:
    float64 ``[N]`` each; NaN for a class that the rule leaves out of the mean IoU. Precision is also NaN for a class
    that is never predicted, and recall for one that the truth lacks, because both are 0 / 0; under ``zero`` they are 0.

  Raises:
    ValueError: for an unknown rule.
  """
  left_out = np.isnan(class_ious(true_positives, false_positives, false_negatives, absent_class))

  def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    undefined = left_out | ((denominator == 0) & (absent_class != "zero"))
    return np.where(undefined, np.nan, numerator / np.maximum(denominator, 1))

  return (
    ratio(true_positives, true_positives + false_positives),
    ratio(true_positives, true_positives + false_negatives),
    ratio(2 * true_positives, 2 * true_positives + false_positives + false_negatives),
  )


def category_scores(confusion: np.ndarray, categories: Sequence[str]) -> dict[str, Any]:
  """Computes intersection over union of groups of classes, as Cityscapes' category score.

  Confusing two classes of a category is no mistake here: ``TP`` are the pixels of the category's classes that were
  predicted as any of them. A category with neither truth nor prediction is left out of the mean.

  Args:
    confusion: ``[N,N]`` integer, rows truth, columns prediction.
    categories: the category of each of the ``N`` classes.

  Returns:
    ``category_miou`` float or None, and ``category_iou`` ``{category: float or None}``, in the order in which
    ``categories`` first names them.

  Raises:
    ValueError: ``categories`` has another length than ``N``.

  Source: cityscapesScripts, ``evalPixelLevelSemanticLabeling.getIouScoreForCategory``.
  """
  confusion = _checked(confusion)
  if len(categories) != len(confusion):
    raise ValueError(
      f"categories: has {len(categories)} names for {len(confusion)} classes; expected one for each class"
    )
  names = list(dict.fromkeys(categories))
  belongs = np.array([[category == name for category in categories] for name in names], np.int64)  # [K,N]
  ious = class_ious(*positives_and_negatives(belongs @ confusion @ belongs.T), "unless_predicted")
  return {"category_miou": _mean(ious), "category_iou": dict(zip(names, _or_none(ious), strict=True))}


def _checked(confusion: np.ndarray) -> np.ndarray:
  confusion = np.asarray(confusion, np.int64)
  if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
    raise ValueError(f"confusion: has shape {confusion.shape}; expected [N,N]")
  return confusion


def _or_none(values: np.ndarray) -> list[float | None]:
  return [None if np.isnan(value) else float(value) for value in values]


def _mean(values: np.ndarray) -> float | None:
  values = values[~np.isnan(values)]
  return float(values.mean()) if values.size else None
