"""Augmentation as mmsegmentation has it."""

import importlib

import numpy as np
import pytest
from PIL import Image

from rc_jax.data.augment import Sample, photometric, random_crop
from tests.support import originals


@pytest.fixture(scope="module")
def theirs():
  originals.mmsegmentation()
  return importlib.import_module("mmseg.datasets.transforms.transforms")


@pytest.mark.parametrize("ratio", [0.6, 0.75, 0.9])
def test_windows_are_drawn_again_as_mmsegmentation_does(theirs, monkeypatch, ratio):
  again = 0
  for case in range(60):
    blobs = np.random.default_rng(case).choice([0] * 12 + [1, 2, 255], (5, 6)).astype(np.uint8)
    label = np.kron(blobs, np.ones((8, 8), np.uint8))
    sample = Sample(np.dstack([label] * 3), label, size=label.shape, angle=0.0, crop_size=(20, 24))
    view = random_crop.random_view(sample, np.random.default_rng(case), ratio)
    rng = np.random.default_rng(case)
    draws = []

    def draw(low, high, rng=rng, draws=draws):
      draws.append(int(rng.integers(low, high)))
      return draws[-1]

    monkeypatch.setattr(np.random, "randint", draw)
    crop = theirs.RandomCrop((20, 24), cat_max_ratio=ratio)
    top, bottom, left, right = crop.crop_bbox({"img": np.zeros((40, 48, 3), np.uint8), "gt_seg_map": label})
    assert view.window == (top, left, bottom - top, right - left)
    again += len(draws) > 2
  assert again > 5


class _Draws:
  """Stands for numpy.random: every stage applies, with these amounts, in the order in which they are asked for."""

  def __init__(self, turn, contrast_first, amounts):
    self.contrasts = iter(
      [1, contrast_first, 1, 1, 1]
    )  # answers to: does it apply? The second says when contrast is.
    stages = ["contrast", "saturation"] if contrast_first else ["saturation", "contrast"]
    self.amounts = iter([amounts[stage] for stage in ("brightness", *stages)])
    self.turn = turn

  def randint(self, *bounds):
    return self.turn if len(bounds) == 2 else int(next(self.contrasts))

  def uniform(self, low, high):
    return next(self.amounts)


def test_distortion_against_mmsegmentation(theirs, monkeypatch):
  """Its stages in its order, each with the amounts that ours is given."""
  rng = np.random.default_rng(11)
  image = np.asarray(
    Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((48, 40), Image.Resampling.BICUBIC)
  )
  for case in range(24):
    turn = int(rng.integers(-18, 18))
    amounts = {
      "brightness": float(rng.uniform(-32, 32)) if case % 3 else 0.0,
      "contrast": float(rng.uniform(0.5, 1.5)) if case % 4 else 1.0,
      "saturation": float(rng.uniform(0.5, 1.5)) if case % 5 else 1.0,
      "hue": turn / 180,
    }
    contrast_first = bool(case % 2)

    monkeypatch.setattr(theirs, "random", _Draws(turn, contrast_first, amounts))
    bgr = np.ascontiguousarray(image[..., ::-1])
    expected = theirs.PhotoMetricDistortion().transform({"img": bgr})["img"][..., ::-1].astype(int)
    ours = photometric.distort(image, contrast_first=contrast_first, **amounts)
    difference = np.abs(ours - expected)
    # They have 180 hues, we have 256; they cut fractions off, we round.
    assert difference.mean() < 4 and np.percentile(difference, 99) < 16, case
