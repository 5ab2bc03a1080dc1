"""How well the region centers of a split separate its classes, in numbers that need no projection to two dimensions."""

import dataclasses
from typing import NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Centers:
  """The region centers of a split.

  Attributes:
    vectors: float32 ``[K,C]`` of unit length.
    images: int32 ``[K]``, the image of each center; an image has at most one center of a class.
    labels: int32 ``[K]``, the class of each center, ``0..N-1``.
  """

  vectors: np.ndarray
  images: np.ndarray
  labels: np.ndarray


class Separation(NamedTuple):
  """How a set of centers lies to the centers of its own class and of the others.

  Attributes:
    centers: their number.
    within: mean cosine of pairs of one class, in -1..1; None where there is no pair.
    between: mean cosine of pairs of two classes; None where there is no pair.
    silhouette: mean silhouette coefficient with the cosine distance, in -1..1; None where there is one class.
    accuracy: share of the centers that the nearest class mean of the other images classifies correctly; None where no
      other image has the class.
  """

  centers: int
  within: float | None
  between: float | None
  silhouette: float | None
  accuracy: float | None


class Statistics(NamedTuple):
  """The separation of each class, and of all centers together.

  Attributes:
    classes: of each of the ``N`` classes, its centers and their pairs.
    all: of all centers and pairs, in which classes of many images count more.
    mean: the means of the classes that have a value; ``centers`` is the number of classes that occur.
  """

  classes: tuple[Separation, ...]
  all: Separation
  mean: Separation


def center_statistics(centers: Centers, num_classes: int) -> Statistics:
  """Computes how well centers separate their classes.

  With ``S_c`` the sum of the ``n_c`` vectors of class ``c``, all means of cosines follow from the products ``x.S_c``,
  without a matrix of all pairs. For a center ``x`` of class ``c``:

  - cosines: ``x.y`` for the centers ``y`` of ``c`` (within), and of all other classes (between). Each pair counts once;
    of a class, each pair with one of its centers.
  - silhouette: ``(b - a) / max(a, b)``. ``a`` is the mean of ``1 - x.y`` over the other centers of ``c``, and ``b`` the
    least of its means over the centers of another class. 0 where ``x`` is the only center of its class.
  - nearest center: ``x`` is classified as the class whose mean, over all images but the one of ``x``, has the largest
    cosine with ``x``. Classes that no other image has are no candidates. A center of such a class is left out.

  Args:
    centers: of a split.
    num_classes: ``N``.

  Raises:
    ValueError: there is no center.

  Source: silhouette: Rousseeuw (1987), as ``sklearn.metrics.silhouette_score``.
  """
  vectors = centers.vectors.astype(np.float64)
  labels = centers.labels
  if not len(vectors):
    raise ValueError("centers: there are none; expected at least one labelled pixel in the images")
  counts = np.bincount(labels, minlength=num_classes)  # [N]
  sums = np.zeros((num_classes, vectors.shape[1]))
  np.add.at(sums, labels, vectors)
  products = vectors @ sums.T  # [K,N]: x.S_c
  rows = np.arange(len(vectors))
  to_own = products[rows, labels] - np.square(vectors).sum(axis=1)  # [K], without x itself
  to_others = products.sum(axis=1) - products[rows, labels]
  own_pairs, other_pairs = counts[labels] - 1, len(vectors) - counts[labels]  # [K]
  silhouettes = _silhouettes(products, to_own, labels, counts)
  correct = _nearest_mean(vectors, centers.images, labels, counts, sums)  # [K], NaN where left out

  def separation(chosen: np.ndarray) -> Separation:
    return Separation(
      centers=int(chosen.sum()),
      within=_ratio(to_own[chosen].sum(), own_pairs[chosen].sum()),
      between=_ratio(to_others[chosen].sum(), other_pairs[chosen].sum()),
      silhouette=_mean(silhouettes[chosen]),
      accuracy=_mean(correct[chosen]),
    )

  classes = tuple(separation(labels == label) for label in range(num_classes))
  means = (_mean_of([each[place] for each in classes]) for place in range(1, len(Separation._fields)))
  return Statistics(
    classes, separation(np.ones(len(vectors), bool)), Separation(int((counts > 0).sum()), *means)
  )


def _silhouettes(
  products: np.ndarray, to_own: np.ndarray, labels: np.ndarray, counts: np.ndarray
) -> np.ndarray:
  """Returns the silhouette of each center ``[K]``; NaN where only one class occurs."""
  if (counts > 0).sum() < 2:
    return np.full(len(labels), np.nan)
  own = counts[labels]
  a = 1 - to_own / np.maximum(own - 1, 1)
  means = np.where(counts > 0, 1 - products / np.maximum(counts, 1), np.inf)  # [K,N]
  means[np.arange(len(labels)), labels] = np.inf
  b = means.min(axis=1)
  largest = np.maximum(a, b)
  # Of equal vectors the distances are 0, or a rounding below.
  return np.where((own > 1) & (largest > 0), (b - a) / np.where(largest > 0, largest, 1), 0)


def _nearest_mean(
  vectors: np.ndarray, images: np.ndarray, labels: np.ndarray, counts: np.ndarray, sums: np.ndarray
) -> np.ndarray:
  """Returns ``[K]``: 1 where the nearest mean of the other images has the center's class, else 0; NaN: left out."""
  correct = np.full(len(labels), np.nan)
  for image in np.unique(images):
    here = images == image
    others, number = sums.copy(), counts.copy()
    # At most one center of a class in an image: no index occurs twice.
    others[labels[here]] -= vectors[here]
    number[labels[here]] -= 1
    lengths = np.linalg.norm(others, axis=1)
    cosines = vectors[here] @ (others / np.where(lengths > 0, lengths, 1)[:, None]).T  # [k,N]
    predicted = np.where(number > 0, cosines, -np.inf).argmax(axis=1)
    correct[here] = np.where(number[labels[here]] > 0, predicted == labels[here], np.nan)
  return correct


def _ratio(total: float, number: float) -> float | None:
  return float(total / number) if number else None


def _mean(values: np.ndarray) -> float | None:
  known = values[~np.isnan(values)]
  return float(known.mean()) if known.size else None


def _mean_of(values: list[float | None]) -> float | None:
  return _mean(np.array([np.nan if value is None else value for value in values]))
