"""The batches of a seed: a run that is resumed by a newer version must train on the same crops."""

import types
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rc_jax.data import DatasetInfo, train_batches

INFO = DatasetInfo(
  name="blobs",
  class_names=("a", "b", "c", "d"),
  palette=np.arange(12, dtype=np.uint8).reshape(4, 3),
  label_ids=np.arange(4),
)
DEFAULTS: dict[str, Any] = {
  **{"scale": (0.5, 2.0), "rotation": 0.0, "cat_max_ratio": 1.0, "flip": 0.5, "photometric": False},
  **{"blur": 0.0, "blur_sigma": (0.1, 2.0)},
}
# Shares of the four classes in each label where no augmentation moves pixels.
UNTURNED = [
  [0.14, 0.24, 0.15, 0.05],
  [0.17, 0.05, 0.11, 0.34],
  [0.1, 0.17, 0.73, 0.0],
  [0.0, 0.27, 0.34, 0.39],
  [0.3, 0.14, 0.23, 0.32],
  [0.03, 0.13, 0.06, 0.16],
]
# Augmentations -> of the second batch: the mean of each image, the mean difference of neighbouring pixels, and the
# shares of the four classes in each label, from the first version that had them. Means, not digests: resampling
# may differ in its last bit between machines and versions.
CROPS: dict[str, tuple[dict[str, Any], list[float], list[float], list[list[float]]]] = {
  "defaults": (
    {},
    [116.4, 120.8, 100.6, 139.0, 118.5, 120.6],
    [5.45, 5.08, 3.76, 4.78, 3.63, 6.18],
    UNTURNED,
  ),
  "photometric": (
    {"photometric": True},
    [118.5, 142.1, 66.9, 96.1, 114.5, 120.9],
    [5.48, 6.72, 2.98, 2.95, 3.63, 5.75],
    UNTURNED,
  ),
  "rotation": (
    {"rotation": 10.0},
    [115.6, 120.3, 91.2, 117.4, 127.7, 120.3],
    [5.86, 5.37, 3.87, 5.6, 4.31, 6.38],
    [
      [0.13, 0.23, 0.15, 0.05],
      [0.16, 0.05, 0.11, 0.32],
      [0.21, 0.1, 0.69, 0.0],
      [0.17, 0.67, 0.11, 0.05],
      [0.29, 0.11, 0.26, 0.33],
      [0.03, 0.12, 0.06, 0.15],
    ],
  ),
  "cat_max_ratio": (
    {"cat_max_ratio": 0.5},
    [116.4, 120.8, 104.9, 139.0, 118.5, 120.6],
    [5.45, 5.08, 2.83, 4.78, 3.63, 6.18],
    [
      [0.14, 0.24, 0.15, 0.05],
      [0.17, 0.05, 0.11, 0.34],
      [0.29, 0.24, 0.47, 0.0],
      [0.0, 0.27, 0.34, 0.39],
      [0.3, 0.14, 0.23, 0.32],
      [0.03, 0.13, 0.06, 0.16],
    ],
  ),
  "blur": (
    {"blur": 0.5},
    [116.4, 120.8, 100.6, 139.1, 118.5, 120.6],
    [5.45, 5.08, 3.75, 4.74, 3.5, 6.13],
    UNTURNED,
  ),
  "all": (
    {
      "scale": (0.3, 1.7),
      "rotation": 25.0,
      "cat_max_ratio": 0.5,
      "flip": 0.3,
      "photometric": True,
      "blur": 0.5,
      "blur_sigma": (0.5, 3.0),
    },
    [120.6, 115.3, 167.2, 81.5, 123.6, 116.6],
    [2.84, 3.33, 3.56, 5.6, 4.9, 0.93],
    [
      [0.05, 0.09, 0.06, 0.02],
      [0.06, 0.02, 0.05, 0.13],
      [0.33, 0.18, 0.49, 0.0],
      [0.0, 0.42, 0.25, 0.27],
      [0.26, 0.1, 0.2, 0.43],
      [0.01, 0.04, 0.03, 0.05],
    ],
  ),
}


class Blobs:
  """Ten images of several sizes with blobs of four classes."""

  info = INFO
  labelled = True

  def __len__(self) -> int:
    return 10

  def __getitem__(self, index: int) -> Any:
    rng = np.random.default_rng(index)
    size = (60 + 7 * index, 130 - 5 * index)
    image = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8)).resize(size, Image.Resampling.NEAREST)
    label = Image.fromarray(rng.integers(0, 4, (3, 4), np.uint8)).resize(size, Image.Resampling.NEAREST)
    return {"image": np.asarray(image), "label": np.asarray(label), "name": str(index)}


@pytest.mark.parametrize("name", CROPS)
def test_batches_of_a_seed_never_change(name: str) -> None:
  changes, means, steps, shares = CROPS[name]
  augment = types.SimpleNamespace(**DEFAULTS | changes)
  with train_batches(Blobs(), seed=7, batch_size=6, crop_size=(65, 81), augment=augment) as batches:
    next(batches)
    batch = next(batches)
  np.testing.assert_allclose(batch["image"].mean(axis=(1, 2, 3)), means, rtol=0, atol=0.5)
  differences = np.abs(np.diff(batch["image"].astype(np.float64), axis=2)).mean(axis=(1, 2, 3))
  np.testing.assert_allclose(differences, steps, rtol=0.03)
  found = [[float((label == number).mean()) for number in range(4)] for label in batch["label"]]
  np.testing.assert_allclose(found, shares, rtol=0, atol=0.02)
