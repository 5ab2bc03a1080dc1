"""Random crop: a window at a uniformly drawn position, of which the pixels are computed."""

import dataclasses

import numpy as np

from rc_jax.data.augment.crop_views import View, image_window, label_window
from rc_jax.data.augment.sample import Augmentation, Sample
from rc_jax.data.reading.dataset_info import IGNORE_LABEL
from rc_jax.fields import Check, Config, Field

MAX_REDRAWS = 10  # mmsegmentation's


def random_view(sample: Sample, rng: np.random.Generator, cat_max_ratio: float = 1.0) -> View:
  """Draws a window of the resized and rotated image.

  Args:
    sample: the example.
    rng: draws the row and the column.
    cat_max_ratio: below 1, a window that is not ``is_mixed`` is drawn again, up to 10 times, and the last is kept. This
      is the rule of mmsegmentation's ``RandomCrop``.

  Returns:
    A view of ``sample.crop_size``, smaller along an axis where the resized image is.
  """
  height, width = sample.size
  crop_height, crop_width = min(sample.crop_size[0], height), min(sample.crop_size[1], width)

  def draw() -> View:
    top = int(rng.integers(height - crop_height + 1))
    left = int(rng.integers(width - crop_width + 1))
    return View(sample.size, (top, left, crop_height, crop_width), sample.angle)

  view = draw()
  if cat_max_ratio < 1:
    for _ in range(MAX_REDRAWS):
      # Windows of the label alone: resizing the image takes ten times as long.
      if is_mixed(label_window(sample.label, view), cat_max_ratio):
        break
      view = draw()
  return view


def is_mixed(label: np.ndarray, cat_max_ratio: float) -> bool:
  """Returns whether a label ``[h,w]`` has two classes or more, each on less than this share of the labelled pixels."""
  counts = np.bincount(label.ravel(), minlength=IGNORE_LABEL + 1)[:IGNORE_LABEL]
  return bool(np.count_nonzero(counts) > 1 and counts.max() < cat_max_ratio * counts.sum())


def _apply(sample: Sample, rng: np.random.Generator, options: Config) -> Sample:
  view = random_view(sample, rng, options.cat_max_ratio)
  image, label = image_window(sample.image, view), label_window(sample.label, view)
  return dataclasses.replace(sample, image=image, label=label, size=label.shape, angle=0.0)


AUGMENTATION = Augmentation(
  fields=(
    Field(
      "augment.cat_max_ratio",
      1.0,
      "Draws a crop again, up to 10 times, while one class covers more than this share of its labelled pixels; 1: "
      "never. mmsegmentation's recipes have 0.75.",
      Check("a share above 0, or 1 (off)", lambda value: 0 < value <= 1),
    ),
  ),
  apply=_apply,
)
