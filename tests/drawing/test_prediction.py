"""Overlays of predictions: colours, outlines, and a legend that is readable at any size."""

import itertools

import numpy as np
import pytest
from PIL import Image

from rc_jax.data import DatasetInfo
from rc_jax.data.datasets import camvid
from rc_jax.drawing import prediction

INFO = camvid.INFO


def regions(height: int, width: int) -> np.ndarray:
  """Returns labels with classes 1 and 3 side by side, and a pixel of class 8."""
  labels = np.full((height, width), 1, np.uint8)
  labels[:, width // 2 :] = 3
  labels[0, 0] = 8
  return labels


@pytest.mark.parametrize("size", [(360, 480), (1000, 2000), (48, 64), (1, 1), (900, 3), (3, 900)])
def test_every_image_size_gets_a_legend_with_the_colours_of_its_classes(size: tuple[int, int]) -> None:
  labels = regions(*size) if min(size) > 1 else np.full(size, 3, np.uint8)
  image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
  drawn = np.asarray(prediction.picture(image, labels, INFO))
  assert drawn.shape[1] >= prediction.LEAST_WIDTH
  assert drawn.shape[0] < size[0] + 3 * prediction.LEAST_WIDTH
  found = [(drawn[-200:] == color).all(axis=-1).sum() for color in INFO.palette]
  for index, count in enumerate(found):
    listed = (labels == index).mean() >= prediction.SMALLEST_FRACTION
    # A swatch is a square of a letter's height; a few pixels of that colour may be something else.
    assert (count > 100) == listed, (index, count)


def test_colours_are_half_transparent_and_regions_are_outlined() -> None:
  labels = regions(100, 600)
  image = np.random.default_rng(0).integers(0, 256, (100, 600, 3), np.uint8)
  drawn = np.asarray(prediction.picture(image, labels, INFO)).astype(int)
  for y, x in ((50, 100), (20, 500)):
    expected = (image[y, x].astype(int) + INFO.palette[labels[y, x]]) / 2
    assert np.abs(drawn[y, x] - expected).max() <= 0.5
  assert (drawn[50, 299] == 255).all() and not (drawn[50, 303] == 255).all()


def test_class_fractions_sum_to_one_and_come_largest_first() -> None:
  rng = np.random.default_rng(3)
  labels = rng.choice(11, (50, 40), p=[0.3, 0.2, 0.1, 0, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05, 0])
  fractions = prediction.class_fractions(labels, 11)
  assert np.isclose(sum(fraction for _, fraction in fractions), 1)
  assert all(a[1] >= b[1] for a, b in itertools.pairwise(fractions))
  for index, fraction in fractions:
    assert fraction == (labels == index).mean() > 0


def test_letters_are_proportional_to_the_picture_and_long_names_are_cut() -> None:
  names = ("a name that goes on and on and on and on until no line of any legend holds it " * 3, "b")
  info = DatasetInfo("two", names, np.array([[200, 0, 0], [0, 200, 0]], np.uint8), np.arange(2))
  fractions = [(0, 0.7), (1, 0.3)]
  small, large = (prediction.legend(fractions, info, width) for width in (480, 2048))
  assert small.width == 480 and large.width == 2048
  assert 2 < large.height / small.height < 6
  # Nothing touches the right edge, because long names are cut.
  assert (np.asarray(small)[:, -2:] == 255).all()


def test_a_legend_of_many_classes_has_more_lines(tmp_path) -> None:
  rng = np.random.default_rng(0)
  many = DatasetInfo(
    "many",
    tuple(f"class {i}" for i in range(150)),
    rng.integers(0, 256, (150, 3), np.uint8),
    np.arange(150),
  )
  labels = np.arange(150).repeat(40).reshape(60, 100)
  drawn = prediction.picture(np.zeros((60, 100, 3), np.uint8), labels, many)
  path = tmp_path / "many.jpg"
  drawn.save(path)
  powers = np.array([1, 256, 65536])
  assert np.isin(many.palette @ powers, np.asarray(drawn) @ powers).all()
  with Image.open(path) as image:
    assert image.size == drawn.size
