"""Augmentation: geometry against loops, image against label, colours against colorsys."""

import colorsys
import fractions
import math

import numpy as np
import pytest
from PIL import Image

from rc_jax.data import transforms


@pytest.fixture
def rng():
  return np.random.default_rng(11)


def _picture(rng, height, width):
  """Noise on blobs: edges and flat parts."""
  small = rng.integers(0, 256, (max(2, height // 6), max(2, width // 6), 3), np.uint8)
  large = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST)).astype(int)
  return np.clip(large + rng.integers(-20, 20, large.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("case", range(40))
def test_window_equals_resizing_the_whole_and_cropping(case):
  rng = np.random.default_rng(case)
  source = tuple(rng.integers(5, 90, 2).tolist())
  factor = rng.uniform(0.2, 3)
  size = tuple(max(1, round(side * factor)) for side in source)
  height, width = (int(rng.integers(1, side + 1)) for side in size)
  top, left = int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1))
  image = _picture(rng, *source)
  whole = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
  window = transforms.resized_window(image, size, (top, left, height, width))
  expected = whole[top : top + height, left : left + width]
  assert window.dtype == np.uint8 and window.shape == expected.shape
  # Pillow rounds after each of its two passes, and chooses which comes first by the size of what is asked for:
  # either way a value is within 1 of the truth.
  difference = np.abs(window.astype(int) - expected)
  assert difference.max() <= 2 and (difference > 1).mean() < 1e-3


def test_enlarged_window_is_bilinear(rng):
  image = _picture(rng, 7, 9)
  size = (17, 20)
  window = transforms.resized_window(image, size, (3, 5, 10, 12)).astype(float)
  for i in range(10):
    for j in range(12):
      y = min(max((i + 3 + 0.5) * 7 / 17 - 0.5, 0), 6)
      x = min(max((j + 5 + 0.5) * 9 / 20 - 0.5, 0), 8)
      y0, x0 = min(int(y), 5), min(int(x), 7)
      corners = image[y0 : y0 + 2, x0 : x0 + 2].astype(float)
      rows = corners[0] * (1 - (y - y0)) + corners[1] * (y - y0)
      # Pillow rounds after each of its two passes.
      np.testing.assert_allclose(window[i, j], rows[0] * (1 - (x - x0)) + rows[1] * (x - x0), atol=1.01)


@pytest.mark.parametrize("case", range(20))
def test_label_is_nearest_neighbour(case):
  rng = np.random.default_rng(100 + case)
  source = tuple(rng.integers(1, 40, 2).tolist())
  size = tuple(rng.integers(1, 60, 2).tolist())
  label = rng.integers(0, 256, source, np.uint8)
  height, width = (int(rng.integers(1, side + 1)) for side in size)
  top, left = int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1))
  window = transforms.nearest_window(label, size, (top, left, height, width))
  half = fractions.Fraction(1, 2)
  for i in range(height):
    for j in range(width):
      y = math.floor((top + i + half) * source[0] / size[0])
      x = math.floor((left + j + half) * source[1] / size[1])
      assert window[i, j] == label[y, x]


@pytest.mark.parametrize("case", range(30))
def test_image_and_label_stay_aligned(case):
  # Each pixel holds its own coordinates, in the image as in the label.
  height, width = 150, 200
  y, x = np.mgrid[:height, :width].astype(np.uint8)
  image = np.dstack([y, x, np.full_like(x, 77)])
  for label, channel in ((y, 0), (x, 1)):
    draw = np.random.default_rng(case)
    out, mask = transforms.augment(image, label, draw, crop_size=(96, 128), scale=(0.5, 2.0), flip=0.5)
    assert out.shape == (96, 128, 3) and mask.shape == (96, 128)
    inside = mask != 255
    assert inside.mean() > 0.4
    difference = out[..., channel].astype(float)[inside] - mask[inside]
    # Bilinear keeps the fraction that nearest rounds away; a shift by half a pixel would show in the mean.
    assert np.abs(difference).max() <= 1.5
    assert abs(difference.mean()) < 0.25
    assert (out[~inside] == transforms.PADDING_COLOR).all()
    assert (out[inside][:, 2] == 77).all()


def test_scale_and_place_are_drawn_uniformly(rng):
  y, x = np.mgrid[:40, :60].astype(np.uint8)
  places, extents = [], []
  for _ in range(3000):
    image, label = transforms.random_resized_crop(
      np.dstack([y, y, x]), x, rng, crop_size=(8, 8), scale=(0.5, 2.0)
    )
    assert image.shape == (8, 8, 3)
    extents.append((int(label[0, -1]) - int(label[0, 0])) / 7)
    places.append(image[..., 2].mean() / 59)
  # Seven pixels on span 7/scale source pixels: 3.5 to 14 of 60.
  assert 0.4 < min(extents) < 0.65 and 1.85 < max(extents) < 2.15
  assert np.mean(np.array(extents) < 0.8) == pytest.approx((2 - 1 / 0.8) / 1.5, abs=0.06)
  assert min(places) < 0.1 and max(places) > 0.9 and np.mean(places) == pytest.approx(0.5, abs=0.02)


def test_same_generator_same_crop(rng):
  image, label = _picture(rng, 60, 80), rng.integers(0, 5, (60, 80), np.uint8)
  crops = [
    transforms.augment(image, label, np.random.default_rng(seed), crop_size=(32, 32), photometric=True)
    for seed in (5, 5, 6)
  ]
  np.testing.assert_array_equal(crops[0][0], crops[1][0])
  np.testing.assert_array_equal(crops[0][1], crops[1][1])
  assert (crops[0][0] != crops[2][0]).any()


def test_flip(rng):
  image, label = _picture(rng, 5, 7), rng.integers(0, 9, (5, 7), np.uint8)
  for probability in (0.0, 1.0):
    out, mask = transforms.random_flip(image, label, rng, probability)
    for i in range(5):
      for j in range(7):
        k = 6 - j if probability else j
        assert (out[i, j] == image[i, k]).all() and mask[i, j] == label[i, k]
  flips = sum(int((transforms.random_flip(image, label, rng, 0.3)[1] != label).any()) for _ in range(1000))
  assert 230 < flips < 370


def test_padding_is_right_and_bottom(rng):
  image, label = _picture(rng, 5, 7), rng.integers(0, 9, (5, 7), np.uint8)
  out, mask = transforms.pad(image, label, (8, 9))
  np.testing.assert_array_equal(out[:5, :7], image)
  np.testing.assert_array_equal(mask[:5, :7], label)
  for part, sign in ((np.s_[5:], mask[5:]), (np.s_[:, 7:], mask[:, 7:])):
    assert (out[part] == (124, 116, 104)).all() and (sign == 255).all()
  np.testing.assert_allclose((124, 116, 104), 255 * np.array((0.485, 0.456, 0.406)), atol=0.5)
  assert out.flags.c_contiguous and mask.flags.c_contiguous


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
  out = transforms.distort(image, **amounts)
  expected = np.array([_distorted(pixel, **amounts) for pixel in image.reshape(-1, 3).tolist()]).reshape(
    image.shape
  )
  difference = np.abs(out - expected)
  assert difference.max() <= (12 if case < 8 else 1.3)
  assert difference.mean() < (2 if case < 8 else 0.6)


def test_distortions_are_drawn_as_documented(rng):
  # A grey has no hue and no saturation: what changes it is brightness and contrast.
  grey = np.full((2, 2, 3), 100, np.uint8)
  values = np.array([int(transforms.photometric_distortion(grey, rng)[0, 0, 0]) for _ in range(2000)])
  assert np.mean(values == 100) == pytest.approx(0.25, abs=0.06)
  assert values.min() >= 34 - 1 and values.max() <= 198 + 1
  assert values.min() < 50 and values.max() > 170
  # A colour's hue turns in half the cases, by a tenth of a turn at most.
  colour = np.full((1, 1, 3), (180, 90, 60), np.uint8)
  before = colorsys.rgb_to_hsv(*(colour[0, 0] / 255))[0]
  outs = [transforms.photometric_distortion(colour, rng)[0, 0] / 255 for _ in range(1000)]
  turns = np.array([(colorsys.rgb_to_hsv(*out)[0] - before + 0.5) % 1 - 0.5 for out in outs])
  assert np.mean(np.abs(turns) > 0.012) == pytest.approx(0.45, abs=0.08)
  assert np.abs(turns).max() < 0.13
