"""Photometric distortion against colorsys, and blur against SciPy in float64."""

import colorsys

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image, ImageFilter

from rc_jax.data.augment import blur, photometric


@pytest.fixture
def rng():
  return np.random.default_rng(11)


def _distorted(pixel, brightness, contrast, saturation, hue, contrast_first):
  """One pixel in floating point, stage by stage."""

  def clip(values):
    return [min(255.0, max(0.0, value)) for value in values]

  values = clip(value + brightness for value in pixel)
  if contrast_first:
    values = clip(value * contrast for value in values)
  h, s, v = colorsys.rgb_to_hsv(*(value / 255 for value in values))
  values = [255 * value for value in colorsys.hsv_to_rgb((h + hue) % 1, min(1, s * saturation), v)]
  return values if contrast_first else clip(value * contrast for value in values)


@pytest.mark.parametrize("case", range(12))
def test_distortion_against_colorsys(case):
  rng = np.random.default_rng(300 + case)
  image = rng.integers(0, 256, (12, 16, 3), np.uint8)
  amounts = {
    "brightness": rng.uniform(-32, 32),
    "contrast": rng.uniform(0.5, 1.5),
    "saturation": rng.uniform(0.5, 1.5),
    "hue": rng.uniform(-0.1, 0.1),
    "contrast_first": bool(case % 2),
  }
  if case >= 8:
    # Without saturation and hue there is no detour through 8-bit HSV.
    amounts.update(saturation=1.0, hue=0.0)
  out = photometric.distort(image, **amounts)
  expected = np.array([_distorted(pixel, **amounts) for pixel in image.reshape(-1, 3).tolist()]).reshape(
    image.shape
  )
  difference = np.abs(out - expected)
  assert difference.max() <= (12 if case < 8 else 1.3)
  assert difference.mean() < (2 if case < 8 else 0.6)


def test_distortions_are_drawn_as_documented(rng):
  # A grey has no hue and no saturation: what changes it is brightness and contrast.
  grey = np.full((2, 2, 3), 100, np.uint8)
  values = np.array([int(photometric.photometric_distortion(grey, rng)[0, 0, 0]) for _ in range(2000)])
  assert np.mean(values == 100) == pytest.approx(0.25, abs=0.06)
  assert values.min() >= 34 - 1 and values.max() <= 198 + 1
  assert values.min() < 50 and values.max() > 170
  # A colour's hue turns in half the cases, by a tenth of a turn at most.
  colour = np.full((1, 1, 3), (180, 90, 60), np.uint8)
  before = colorsys.rgb_to_hsv(*(colour[0, 0] / 255))[0]
  outs = [photometric.photometric_distortion(colour, rng)[0, 0] / 255 for _ in range(1000)]
  turns = np.array([(colorsys.rgb_to_hsv(*out)[0] - before + 0.5) % 1 - 0.5 for out in outs])
  assert np.mean(np.abs(turns) > 0.012) == pytest.approx(0.45, abs=0.08)
  assert np.abs(turns).max() < 0.13


@pytest.mark.parametrize("sigma", [0.3, 0.7, 1.1, 2.0, 5.0])
def test_blur_is_gaussian(rng, sigma):
  image = np.asarray(
    Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)).resize((72, 56), Image.Resampling.BICUBIC)
  )
  out = blur.gaussian_blur(image, rng, probability=1.0, sigma=(sigma, sigma))
  expected = scipy.ndimage.gaussian_filter(image.astype(np.float64), (sigma, sigma, 0), mode="nearest")
  difference = np.abs(out - expected)
  assert out.dtype == np.uint8 and out.shape == image.shape
  # Three boxes are not quite a Gaussian; without any blur the larger sigmas differ by 20 levels and more.
  assert difference.mean() < 1.5 and difference.max() < 16
  if sigma > 1:
    assert np.abs(image - expected).mean() > 2


def test_blurs_are_drawn_as_documented(rng):
  image = rng.integers(0, 256, (16, 16, 3), np.uint8)
  spread = []
  for _ in range(600):
    out = blur.gaussian_blur(image, rng, probability=0.3, sigma=(1.0, 3.0))
    spread.append(out.std() / image.std())
  spread = np.array(spread)
  assert np.mean(spread < 0.99) == pytest.approx(0.3, abs=0.06)
  blurred = spread[spread < 0.99]
  low, high = (
    np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma))).std() / image.std()
    for sigma in (3.0, 1.0)
  )
  assert low * 0.98 < blurred.min() < low * 1.15 and high * 0.9 < blurred.max() < high * 1.02
  # Whether it applies does not change what is drawn after it.
  after = []
  for probability in (0.0, 1.0):
    draw = np.random.default_rng(4)
    blur.gaussian_blur(image, draw, probability=probability, sigma=(1.0, 3.0))
    after.append(draw.random())
  assert after[0] == after[1]
