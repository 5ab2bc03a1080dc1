"""The batches of a seed: a run that is resumed by a newer version must train on the same crops."""

import hashlib
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
# Augmentations -> SHA-256 of the images and of the labels of three batches, from the first version that had them.
DIGESTS: dict[str, tuple[dict[str, Any], str, str]] = {
  "defaults": ({}, "2442ad9707470502", "c696a786fb744d4f"),
  "photometric": ({"photometric": True}, "62f366918fe6c817", "c696a786fb744d4f"),
  "rotation": ({"rotation": 10.0}, "87126ae2abec7c96", "1647af00b2746406"),
  "cat_max_ratio": ({"cat_max_ratio": 0.5}, "ccc8f7a3df734662", "517788561664732d"),
  "blur": ({"blur": 0.5}, "f64a07ca0417756b", "c696a786fb744d4f"),
  "all": (
    {
      **{"scale": (0.3, 1.7), "rotation": 25.0, "cat_max_ratio": 0.5, "flip": 0.3, "photometric": True},
      **{"blur": 0.5, "blur_sigma": (0.5, 3.0)},
    },
    "dab74aa41b26874a",
    "e6d02d3b2b246703",
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


@pytest.mark.parametrize("name", DIGESTS)
def test_batches_of_a_seed_never_change(name: str) -> None:
  changes, image, label = DIGESTS[name]
  digests = {"image": hashlib.sha256(), "label": hashlib.sha256()}
  augment = types.SimpleNamespace(**DEFAULTS | changes)
  with train_batches(Blobs(), seed=7, batch_size=6, crop_size=(65, 81), augment=augment) as batches:
    for _ in range(3):
      batch = next(batches)
      for key, digest in digests.items():
        digest.update(batch[key].tobytes())
  assert (digests["image"].hexdigest()[:16], digests["label"].hexdigest()[:16]) == (image, label)
