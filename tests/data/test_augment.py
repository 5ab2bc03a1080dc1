"""Augmentation: geometry against loops and Pillow, image against label, random numbers against their documentation."""

import dataclasses
import fractions
import math
import types

import numpy as np
import pytest
from PIL import Image

from rc_jax.data.augment import (
  AUGMENTATIONS,
  FIELDS,
  Augmentation,
  Sample,
  crop_views,
  flip,
  options_of,
  random_crop,
  random_scale,
  rotation,
  training_crop,
)


@pytest.fixture
def rng():
  return np.random.default_rng(11)


def augment(image, label, rng, crop_size, **fields):
  """Returns the training crop with these fields of ``config.augment``."""
  return training_crop(
    image, label, rng, crop_size=crop_size, options=options_of(types.SimpleNamespace(**fields))
  )


def apply(augmentation, image, label, rng, crop_size=(8, 8), **fields):
  """Applies one augmentation to a new sample."""
  sample = Sample(image, label, size=label.shape, angle=0.0, crop_size=crop_size)
  return augmentation.AUGMENTATION.apply(sample, rng, options_of(types.SimpleNamespace(**fields)))


def _picture(rng, height, width):
  """Returns noise on blobs, which has edges and flat parts."""
  small = rng.integers(0, 256, (max(2, height // 6), max(2, width // 6), 3), np.uint8)
  large = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST)).astype(int)
  return np.clip(large + rng.integers(-20, 20, large.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("case", range(40))
def test_window_equals_resizing_and_cropping(case):
  rng = np.random.default_rng(case)
  source = tuple(rng.integers(5, 90, 2).tolist())
  factor = rng.uniform(0.2, 3)
  size = tuple(max(1, round(side * factor)) for side in source)
  height, width = (int(rng.integers(1, side + 1)) for side in size)
  top, left = int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1))
  image = _picture(rng, *source)
  resized = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
  window = crop_views.resized_window(image, size, (top, left, height, width))
  expected = resized[top : top + height, left : left + width]
  assert window.dtype == np.uint8 and window.shape == expected.shape
  # Pillow rounds after each of its two passes, whose order depends on the size of the result: both orders are within 1
  # of the exact value.
  difference = np.abs(window.astype(int) - expected)
  assert difference.max() <= 2 and (difference > 1).mean() < 1e-3


def test_enlarged_window_is_bilinear(rng):
  image = _picture(rng, 7, 9)
  size = (17, 20)
  window = crop_views.resized_window(image, size, (3, 5, 10, 12)).astype(float)
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
  window = crop_views.nearest_window(label, size, (top, left, height, width))
  half = fractions.Fraction(1, 2)
  for i in range(height):
    for j in range(width):
      y = math.floor((top + i + half) * source[0] / size[0])
      x = math.floor((left + j + half) * source[1] / size[1])
      assert window[i, j] == label[y, x]


@pytest.mark.parametrize("case", range(30))
def test_image_and_label_stay_aligned(case):
  # Each pixel holds its coordinates, in the image and in the label.
  height, width = 150, 200
  y, x = np.mgrid[:height, :width].astype(np.uint8)
  image = np.dstack([y, x, np.full_like(x, 77)])
  for label, channel in ((y, 0), (x, 1)):
    draw = np.random.default_rng(case)
    out, mask = augment(image, label, draw, (96, 128), scale=(0.5, 2.0), flip=0.5)
    assert out.shape == (96, 128, 3) and mask.shape == (96, 128)
    inside = mask != 255
    assert inside.mean() > 0.4
    difference = out[..., channel].astype(float)[inside] - mask[inside]
    # Bilinear keeps the fraction that nearest neighbours drop; a shift by half a pixel would change the mean.
    assert np.abs(difference).max() <= 1.5
    assert abs(difference.mean()) < 0.25
    assert (out[~inside] == crop_views.PADDING_COLOR).all()
    assert (out[inside][:, 2] == 77).all()


def test_scale_and_position_are_drawn_uniformly(rng):
  y, x = np.mgrid[:40, :60].astype(np.uint8)
  places, extents = [], []
  for _ in range(3000):
    view = random_crop.random_view(apply(random_scale, np.dstack([y, y, x]), x, rng, scale=(0.5, 2.0)), rng)
    image, label = crop_views.image_window(np.dstack([y, y, x]), view), crop_views.label_window(x, view)
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
    augment(image, label, np.random.default_rng(seed), (32, 32), photometric=True) for seed in (5, 5, 6)
  ]
  np.testing.assert_array_equal(crops[0][0], crops[1][0])
  np.testing.assert_array_equal(crops[0][1], crops[1][1])
  assert (crops[0][0] != crops[2][0]).any()


def test_flip(rng):
  image, label = _picture(rng, 5, 7), rng.integers(0, 9, (5, 7), np.uint8)
  for probability in (0.0, 1.0):
    flipped = apply(flip, image, label, rng, flip=probability)
    out, mask = flipped.image, flipped.label
    for i in range(5):
      for j in range(7):
        k = 6 - j if probability else j
        assert (out[i, j] == image[i, k]).all() and mask[i, j] == label[i, k]
  flips = sum(int((apply(flip, image, label, rng, flip=0.3).label != label).any()) for _ in range(1000))
  assert 230 < flips < 370


def test_padding_is_right_and_bottom(rng):
  image, label = _picture(rng, 5, 7), rng.integers(0, 9, (5, 7), np.uint8)
  out, mask = crop_views.pad(image, label, (8, 9))
  np.testing.assert_array_equal(out[:5, :7], image)
  np.testing.assert_array_equal(mask[:5, :7], label)
  for part, sign in ((np.s_[5:], mask[5:]), (np.s_[:, 7:], mask[:, 7:])):
    assert (out[part] == (124, 116, 104)).all() and (sign == 255).all()
  np.testing.assert_allclose((124, 116, 104), 255 * np.array((0.485, 0.456, 0.406)), atol=0.5)
  assert out.flags.c_contiguous and mask.flags.c_contiguous


@pytest.mark.parametrize("case", range(12))
def test_a_rotated_window_equals_rotating_and_cropping(case):
  rng = np.random.default_rng(500 + case)
  source = tuple(rng.integers(20, 90, 2).tolist())
  size = tuple(max(8, round(side * rng.uniform(0.5, 2))) for side in source)
  height, width = (int(rng.integers(4, side + 1)) for side in size)
  top, left = int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1))
  angle = float(rng.uniform(-180, 180) if case % 2 else rng.uniform(-10, 10))
  view = crop_views.View(size, (top, left, height, width), angle)
  image, label = _picture(rng, *source), rng.integers(0, 200, source, np.uint8)
  rotate = dict(angle=angle, center=(size[1] / 2, size[0] / 2))

  resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
  resized = resized.rotate(resample=Image.Resampling.BILINEAR, fillcolor=(124, 116, 104), **rotate)
  expected = np.asarray(resized)[top : top + height, left : left + width].astype(int)
  difference = np.abs(crop_views.image_window(image, view) - expected)
  assert difference.shape == (height, width, 3) and (difference > 2).mean() < 2e-3

  resized = Image.fromarray(crop_views.nearest_window(label, size, (0, 0, *size)))
  resized = resized.rotate(resample=Image.Resampling.NEAREST, fillcolor=255, **rotate)
  expected = np.asarray(resized)[top : top + height, left : left + width]
  # Coordinates are rounded to 1/65536 pixel from another origin.
  assert (crop_views.label_window(label, view) != expected).sum() <= 1 + 2e-3 * expected.size


@pytest.mark.parametrize("angle", [7.0, -33.0, 89.0, 145.0])
def test_rotation_in_floating_point(rng, angle):
  height, width = 31, 44
  image, label = _picture(rng, height, width), rng.integers(0, 200, (height, width), np.uint8)
  view = crop_views.View((height, width), (3, 5, 24, 30), angle)
  out, mask = crop_views.image_window(image, view), crop_views.label_window(label, view)
  turn = math.radians(angle)
  wrong = 0
  for i in range(24):
    for j in range(30):
      # Relative to the center of the image, y upwards, rotated back by the angle.
      x, y = (j + 5 + 0.5) - width / 2, height / 2 - (i + 3 + 0.5)
      x, y = x * math.cos(turn) + y * math.sin(turn), -x * math.sin(turn) + y * math.cos(turn)
      x, y = x + width / 2, height / 2 - y
      if min(x, width - x, y, height - y) < -0.01:
        assert mask[i, j] == 255 and (out[i, j] == (124, 116, 104)).all()
      elif min(x, width - x, y, height - y) > 0.01:
        # Pillow's coordinates of a label are rounded to 1/65536 pixel.
        wrong += mask[i, j] != label[int(y), int(x)]
        u, v = min(max(x - 0.5, 0), width - 1), min(max(y - 0.5, 0), height - 1)
        u0, v0 = min(int(u), width - 2), min(int(v), height - 2)
        corners = image[v0 : v0 + 2, u0 : u0 + 2].astype(float)
        rows = corners[0] * (1 - (v - v0)) + corners[1] * (v - v0)
        np.testing.assert_allclose(out[i, j], rows[0] * (1 - (u - u0)) + rows[1] * (u - u0), atol=1.01)
  assert wrong <= 1


def test_angles_are_drawn_uniformly_to_either_side(rng):
  label = np.zeros((20, 30), np.uint8)
  image = np.zeros((20, 30, 3), np.uint8)
  angles = [apply(rotation, image, label, rng, rotation=10.0).angle for _ in range(3000)]
  assert -10 <= min(angles) < -9.9 and 9.9 < max(angles) <= 10
  assert np.mean(angles) == pytest.approx(0, abs=0.4) and np.std(angles) == pytest.approx(5.77, abs=0.2)


def _mixed(label, ratio):
  """Returns mmsegmentation's rule, pixel by pixel."""
  counts = {}
  for value in label.ravel().tolist():
    if value != 255:
      counts[value] = counts.get(value, 0) + 1
  return len(counts) > 1 and max(counts.values()) / sum(counts.values()) < ratio


@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.999])
def test_the_rule_of_cat_max_ratio(rng, ratio):
  found = set()
  for case in range(300):
    label = rng.choice(
      [3, 7, 9, 255], (4, 5), p=[(0.3, 0.3, 0.3, 0.1), (0.9, 0.05, 0, 0.05), (0.01, 0, 0, 0.99)][case % 3]
    )
    label = label.astype(np.uint8)
    assert random_crop.is_mixed(label, ratio) == _mixed(label, ratio)
    found.add(_mixed(label, ratio))
  assert found == {True, False}
  # A half is not below a half, one class is too few, and ignored pixels are no class.
  assert not random_crop.is_mixed(np.array([[1, 2]], np.uint8), 0.5)
  assert not random_crop.is_mixed(np.array([[1, 255]], np.uint8), 0.999)
  assert not random_crop.is_mixed(np.full((2, 2), 255, np.uint8), 0.999)


@pytest.mark.parametrize("case", range(30))
def test_windows_are_drawn_until_one_is_mixed(case):
  label = np.zeros((60, 90), np.uint8)
  label[20:30, 40:52] = 1
  if case >= 25:
    label[:] = 4  # no window is mixed: the last one is kept
  image = np.dstack([label] * 3)
  drawn = np.random.default_rng(case)
  sample = apply(random_scale, image, label, drawn, crop_size=(16, 16), scale=(0.5, 2.0))
  view = random_crop.random_view(sample, drawn, cat_max_ratio=0.7)
  rng = np.random.default_rng(case)
  factor = rng.uniform(0.5, 2.0)
  height, width = round(60 * factor), round(90 * factor)
  for _ in range(11):
    box = (int(rng.integers(height - 15)), int(rng.integers(width - 15)), 16, 16)
    if _mixed(crop_views.nearest_window(label, (height, width), box), 0.7):
      break
  assert view == ((height, width), box, 0.0)


def test_an_augmentation_that_is_off_draws_nothing(rng):
  image, label = _picture(rng, 60, 80), rng.integers(0, 5, (60, 80), np.uint8)
  drawn, expected = np.random.default_rng(8), np.random.default_rng(8)
  out, mask = augment(image, label, drawn, (32, 40), scale=(0.75, 2.0))
  factor = expected.uniform(0.75, 2.0)
  size = (round(60 * factor), round(80 * factor))
  box = (int(expected.integers(size[0] - 31)), int(expected.integers(size[1] - 39)), 32, 40)
  step = -1 if expected.random() < 0.5 else 1
  np.testing.assert_array_equal(out, crop_views.resized_window(image, size, box)[:, ::step])
  np.testing.assert_array_equal(mask, crop_views.nearest_window(label, size, box)[:, ::step])
  assert drawn.random() == expected.random()


@pytest.mark.parametrize("case", range(10))
def test_all_at_once(case):
  rng = np.random.default_rng(700 + case)
  y, x = np.mgrid[:60, :80].astype(np.uint8)
  image = np.dstack([3 * y, 3 * x, np.full_like(x, 200)])
  options = dict(photometric=bool(case % 2), cat_max_ratio=0.75, rotation=30.0, blur=0.5)
  out, mask = augment(image, (x > 40).astype(np.uint8), rng, (48, 56), **options)
  assert out.shape == (48, 56, 3) and mask.shape == (48, 56) and out.dtype == mask.dtype == np.uint8
  assert set(np.unique(mask)) <= {0, 1, 255}
  if not case % 2:
    # Pixels with the label of the right half have colours of the right half.
    right = out[..., 1].astype(int)[mask == 1]
    assert np.mean(right > 110) > 0.97


def test_fields_have_defaults_and_a_copy_is_independent_of_its_source():
  fields = types.SimpleNamespace(flip=0.25)
  options = options_of(fields)
  fields.flip = 1.0
  assert options.flip == 0.25
  assert {f"augment.{name}": value for name, value in options.items()} == {
    **{field.path: field.default for field in FIELDS},
    "augment.flip": 0.25,
  }
  assert len(FIELDS) == sum(len(augmentation.fields) for augmentation in AUGMENTATIONS)


@pytest.mark.parametrize(
  "change", [{"size": (9, 9)}, {"angle": 3.0}, {"image": np.zeros((8, 8, 3), np.float32)}], ids=str
)
def test_an_augmentation_in_a_wrong_position_or_of_a_wrong_type_is_refused(rng, monkeypatch, change):
  wrong = Augmentation((), lambda sample, rng, options: dataclasses.replace(sample, **change))
  monkeypatch.setattr("rc_jax.data.augment.AUGMENTATIONS", (*AUGMENTATIONS, wrong))
  image, label = _picture(rng, 40, 40), rng.integers(0, 5, (40, 40), np.uint8)
  with pytest.raises(ValueError, match="only before random_crop") as error:
    augment(image, label, rng, (8, 8))
  assert "\n" not in str(error.value)
