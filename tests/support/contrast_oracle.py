"""Equation 4 of the paper, written as loops over keys in float64."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def contrast_oracle(
  queries: Any, present: np.ndarray, keys_of: Callable[[int, int], Sequence[Any]], temperature: float
) -> tuple[float, np.ndarray, dict[str, Any]]:
  """Returns the loss, its gradient ``[B,N,C]`` and the statistics in float64.

  Args:
    queries: ``[B,N,C]``.
    present: bool ``[B,N]``.
    keys_of: lists the keys ``[C]`` of class ``n`` that a query of image ``b`` sees, as ``keys_of(b, n)``.
    temperature: ``tau``.
  """
  queries = np.asarray(queries, np.float64)
  losses, gradient = [], np.zeros_like(queries)
  positive_means, negative_means, classes = [], [], []
  for b in range(queries.shape[0]):
    for n in range(queries.shape[1]):
      positives = [np.asarray(k, np.float64) for k in keys_of(b, n)]
      negatives = [
        np.asarray(k, np.float64) for j in range(queries.shape[1]) if j != n for k in keys_of(b, j)
      ]
      if not present[b, n] or not positives or not negatives:
        continue
      query = queries[b, n]
      loss = 0.0
      for positive in positives:
        # -log of the share, each exponential relative to the positive's; then its derivative term by term.
        ratios = [np.exp(query @ (negative - positive) / temperature) for negative in negatives]
        loss += np.log1p(sum(ratios)) / len(positives)
        for ratio, negative in zip(ratios, negatives, strict=True):
          slope = ratio / (1 + sum(ratios)) * (negative - positive) / temperature
          gradient[b, n] += slope / len(positives)
      losses.append(loss)
      positive_means.append(np.mean([query @ k for k in positives]))
      negative_means.append(np.mean([query @ k for k in negatives]))
      classes.append(n)
  number = max(len(losses), 1)

  def by_class(means):
    of_class = [[m for m, c in zip(means, classes, strict=True) if c == n] for n in range(queries.shape[1])]
    return [sum(means) / len(means) if means else np.nan for means in of_class]

  stats = {
    "queries": len(losses),
    "positive_similarity": sum(positive_means) / number,
    "negative_similarity": sum(negative_means) / number,
    "positive_similarity_by_class": by_class(positive_means),
    "negative_similarity_by_class": by_class(negative_means),
  }
  return sum(losses) / number, gradient / number, stats


def unit_vectors(rng: np.random.Generator, *shape: int) -> np.ndarray:
  """Returns random vectors of length 1 along the last axis, float32."""
  vectors = rng.normal(size=shape)
  return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
