"""Colours of classes, overlays and legends."""

import numpy as np

from rc_jax import data
from rc_jax.drawing import panels

PALETTE = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


def test_colorize_gives_classes_their_colours_and_other_labels_black() -> None:
  labels = np.array([[0, 2], [255, 1]], np.uint8)
  expected = [[[255, 0, 0], [0, 0, 255]], [[0, 0, 0], [0, 255, 0]]]
  np.testing.assert_array_equal(panels.colorize(labels, PALETTE), expected)


def test_overlay_blends_image_and_colour() -> None:
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (4, 5, 3), np.uint8)
  labels = rng.integers(0, 3, (4, 5)).astype(np.uint8)
  mixed = panels.overlay(image, labels, PALETTE, opacity=0.25)
  for row in range(4):
    for column in range(5):
      expected = 0.75 * image[row, column] + 0.25 * PALETTE[labels[row, column]]
      assert np.abs(mixed[row, column] - expected).max() <= 0.5


def test_differences_mark_wrong_pixels_and_ignored_ones_apart() -> None:
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (9, 8, 3), np.uint8)
  truth, prediction = rng.integers(0, 3, (2, 9, 8), np.uint8)
  truth[2] = 255
  drawn = panels.differences(image, truth, prediction).astype(int)
  redness = drawn[..., 0] - drawn[..., 1:].max(axis=-1)
  scored, wrong = truth != 255, truth != prediction
  assert (drawn[~scored] == 0).all() and (drawn[scored] > 0).all()
  assert (redness[scored & wrong] > 100).all() and (redness[scored & ~wrong] == 0).all()


def test_a_legend_shows_only_the_classes_that_are_passed() -> None:
  info = data.info("ade20k", "")
  few, all_ = (panels.legend(info, classes, 400) for classes in ([3, 60], range(150)))
  assert few.height < all_.height
  colors = {color for _, color in few.getcolors(10_000)}
  assert {tuple(info.palette[n].tolist()) for n in (3, 60)} <= colors
  assert tuple(info.palette[4].tolist()) not in colors
