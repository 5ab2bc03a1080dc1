"""Statistics of region centers against plain loops over all pairs, and against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from rc_jax.evaluation.center_statistics import Centers, Separation, center_statistics

CLASSES = 6


def make_centers(seed: int, images: int = 14, channels: int = 5, noise: float = 0.6) -> Centers:
  """Centers around a direction for each class; class 3 occurs in one image alone, class 5 in none."""
  rng = np.random.default_rng(seed)
  directions = rng.normal(size=(CLASSES, channels))
  vectors, image_ids, labels = [], [], []
  for image in range(images):
    for label in range(CLASSES - 1):
      if (image != 2) if label == 3 else (rng.random() < 0.3):
        continue
      vector = directions[label] + noise * rng.normal(size=channels)
      vectors.append(vector / np.linalg.norm(vector))
      image_ids.append(image)
      labels.append(label)
  return Centers(np.array(vectors, np.float32), np.array(image_ids, np.int32), np.array(labels, np.int32))


def loops(centers: Centers, chosen: list[int]) -> Separation:
  """The same numbers by loops over pairs of centers, in float64."""
  vectors, labels, images = centers.vectors.astype(np.float64), centers.labels.tolist(), centers.images
  everyone = range(len(labels))
  within, between, silhouettes, correct = [], [], [], []
  for x in chosen:
    distances: dict[int, list[float]] = {}
    for y in everyone:
      if x == y:
        continue
      cosine = float(vectors[x] @ vectors[y])
      distances.setdefault(labels[y], []).append(1 - cosine)
      (within if labels[x] == labels[y] else between).append(cosine)
    if labels[x] not in distances:
      silhouettes.append(0.0)
    else:
      a = np.mean(distances[labels[x]])
      b = min(np.mean(values) for label, values in distances.items() if label != labels[x])
      silhouettes.append((b - a) / max(a, b))
    means = {}
    for label in range(CLASSES):
      members = [vectors[y] for y in everyone if labels[y] == label and images[y] != images[x]]
      if members:
        mean = np.mean(members, axis=0)
        means[label] = float(vectors[x] @ mean / np.linalg.norm(mean))
    if labels[x] in means:
      correct.append(max(means, key=lambda label: means[label]) == labels[x])
  numbers = [float(np.mean(values)) if values else None for values in (within, between, silhouettes, correct)]
  return Separation(len(chosen), *numbers)


@pytest.mark.parametrize("seed", range(3))
def test_the_statistics_equal_plain_loops(seed: int) -> None:
  centers = make_centers(seed)
  found = center_statistics(centers, CLASSES)
  everyone = list(range(len(centers.labels)))
  assert 0.3 < found.all.accuracy < 1  # neither number is trivial
  assert found.all == pytest.approx(loops(centers, everyone), abs=1e-6)
  for label, of_class in enumerate(found.classes):
    chosen = [x for x in everyone if centers.labels[x] == label]
    assert of_class == pytest.approx(loops(centers, chosen), abs=1e-6)
  assert found.classes[3] == (1, None, pytest.approx(found.classes[3].between), 0.0, None)
  assert found.classes[5] == (0, None, None, None, None)


@pytest.mark.parametrize("seed", range(3))
def test_the_silhouette_equals_that_of_scikit_learn(seed: int) -> None:
  centers = make_centers(seed, noise=0.3)
  expected = sklearn_metrics.silhouette_score(centers.vectors, centers.labels, metric="cosine")
  of_each = sklearn_metrics.silhouette_samples(centers.vectors, centers.labels, metric="cosine")
  found = center_statistics(centers, CLASSES)
  assert found.all.silhouette == pytest.approx(expected, abs=1e-5)
  for label in range(CLASSES - 1):
    assert found.classes[label].silhouette == pytest.approx(of_each[centers.labels == label].mean(), abs=1e-5)


def test_the_mean_over_classes_counts_each_class_once() -> None:
  found = center_statistics(make_centers(0), CLASSES)
  assert found.mean.centers == 5  # classes that occur
  for place, name in enumerate(Separation._fields[1:], 1):
    values = [each[place] for each in found.classes if each[place] is not None]
    assert getattr(found.mean, name) == pytest.approx(np.mean(values))


def test_perfect_and_collapsed_centers() -> None:
  images, labels = np.repeat(np.arange(4), 3), np.tile(np.arange(3), 4)
  perfect = center_statistics(Centers(np.eye(3, dtype=np.float32)[labels], images, labels), 3)
  assert perfect.all == perfect.mean._replace(centers=12) == (12, 1, 0, 1, 1)
  same = np.tile(np.array([[0.6, 0.8]], np.float32), (12, 1))
  collapsed = center_statistics(Centers(same, images, labels), 3)
  assert collapsed.all.within == pytest.approx(1) == collapsed.all.between
  assert collapsed.all.silhouette == pytest.approx(0, abs=1e-6)


def test_one_class_has_nothing_to_be_separated_from() -> None:
  centers = make_centers(0)
  first = centers.labels == 0
  found = center_statistics(Centers(centers.vectors[first], centers.images[first], centers.labels[first]), 1)
  assert found.all.within is not None and found.all.between is None and found.all.silhouette is None
  assert found.all.accuracy == 1
  none = np.zeros(0, np.int32)
  with pytest.raises(ValueError, match="there are none"):
    center_statistics(Centers(np.zeros((0, 4), np.float32), none, none), 3)
