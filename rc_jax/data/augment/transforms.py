"""Augmentation of training examples on uint8 arrays, image and label together, each from an explicit generator.

The order is the usual one of the field (mmsegmentation's): random resize, rotation, random crop, flip, photometric
distortion, blur, padding. Everything stays uint8: the network normalises on the device, to which a quarter of the
bytes travel.
"""

import numpy as np

from rc_jax.data.augment import photometric as colours
from rc_jax.data.augment.crop_views import PADDING_COLOR, View, image_window, label_window
from rc_jax.data.reading.dataset_info import IGNORE_LABEL

CROP_TRIES = 10  # mmsegmentation's


def augment(
  image: np.ndarray,
  label: np.ndarray,
  rng: np.random.Generator,
  *,
  crop_size: tuple[int, int],
  scale: tuple[float, float] = (0.5, 2.0),
  flip: float = 0.5,
  photometric: bool = False,
  cat_max_ratio: float = 1.0,
  rotation: float = 0.0,
  blur: float = 0.0,
  blur_sigma: tuple[float, float] = (0.1, 2.0),
) -> tuple[np.ndarray, np.ndarray]:
  """Makes a training crop of an image and its label.

  What is off (``photometric`` False, ``cat_max_ratio`` 1, ``rotation`` and ``blur`` 0) draws nothing from ``rng``.

  Args:
    image: uint8 ``[H,W,3]``, RGB.
    label: uint8 ``[H,W]``.
    rng: the only source of randomness.
    crop_size: ``(h,w)`` of the result.
    scale: the range from which the resizing factor is drawn, uniformly.
    flip: probability of a mirror image.
    photometric: whether to distort colours.
    cat_max_ratio: the share of a crop's labelled pixels that one class may cover, as in ``random_view``.
    rotation: the image is turned by up to so many degrees either way, uniformly.
    blur: probability of a Gaussian blur.
    blur_sigma: the range of its standard deviation, in pixels of the crop.

  Returns:
    The image uint8 ``[h,w,3]`` and the label uint8 ``[h,w]``.
  """
  view = random_view(
    label, rng, crop_size=crop_size, scale=scale, cat_max_ratio=cat_max_ratio, rotation=rotation
  )
  image, label = image_window(image, view), label_window(label, view)
  image, label = random_flip(image, label, rng, flip)
  if photometric:
    image = colours.photometric_distortion(image, rng)
  if blur:
    image = colours.gaussian_blur(image, rng, probability=blur, sigma=blur_sigma)
  return pad(image, label, crop_size)


def random_view(
  label: np.ndarray,
  rng: np.random.Generator,
  *,
  crop_size: tuple[int, int],
  scale: tuple[float, float],
  cat_max_ratio: float = 1.0,
  rotation: float = 0.0,
) -> View:
  """Draws a resizing factor from ``scale``, an angle, and a window at a place drawn uniformly.

  The window is chosen first and only its pixels are computed: of a 2048x1024 frame at scale 2, a 769 crop needs 7 %.

  Args:
    label: uint8 ``[H,W]``, 255 where ignored.
    rng: draws the factor, the angle unless ``rotation`` is 0, the row and the column.
    crop_size: ``(h,w)``.
    scale: smallest and largest factor.
    cat_max_ratio: below 1, a window in which one class covers this share of the labelled pixels or more, or which
      shows fewer than two classes, is drawn again, up to 10 times; the last is taken as it is. So mmsegmentation's
      ``RandomCrop`` has it.
    rotation: largest angle, in degrees.

  Returns:
    A view of at most ``crop_size``: smaller along an axis where the resized image is.
  """
  factor = rng.uniform(*scale)
  height, width = (max(1, round(size * factor)) for size in label.shape)
  angle = rng.uniform(-rotation, rotation) if rotation else 0.0
  crop_height, crop_width = min(crop_size[0], height), min(crop_size[1], width)

  def draw() -> View:
    top = int(rng.integers(height - crop_height + 1))
    left = int(rng.integers(width - crop_width + 1))
    return View((height, width), (top, left, crop_height, crop_width), angle)

  view = draw()
  if cat_max_ratio < 1:
    for _ in range(CROP_TRIES):
      # Of the label alone: resizing the image costs ten times as much.
      if is_mixed(label_window(label, view), cat_max_ratio):
        break
      view = draw()
  return view


def is_mixed(label: np.ndarray, cat_max_ratio: float) -> bool:
  """True where a crop's label ``[h,w]`` shows two classes or more, each on less than this share of what is labelled."""
  counts = np.bincount(label.ravel(), minlength=IGNORE_LABEL + 1)[:IGNORE_LABEL]
  return bool(np.count_nonzero(counts) > 1 and counts.max() < cat_max_ratio * counts.sum())


def random_flip(
  image: np.ndarray, label: np.ndarray, rng: np.random.Generator, probability: float
) -> tuple[np.ndarray, np.ndarray]:
  """Mirrors image ``[h,w,3]`` and label ``[h,w]`` left to right with ``probability``."""
  if rng.random() < probability:
    return image[:, ::-1], label[:, ::-1]
  return image, label


def pad(image: np.ndarray, label: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
  """Fills up to ``size`` on the right and at the bottom, as the usual toolboxes do.

  Args:
    image: uint8 ``[h,w,3]``; the padding is ImageNet's mean colour.
    label: uint8 ``[h,w]``; the padding is 255, which counts nowhere.
    size: ``(H,W)``, nowhere smaller than the image.

  Returns:
    Image ``[H,W,3]`` and label ``[H,W]``, contiguous.
  """
  height, width = label.shape
  if (height, width) == size:
    return np.ascontiguousarray(image), np.ascontiguousarray(label)
  padded_image = np.empty((*size, 3), np.uint8)
  padded_image[:] = PADDING_COLOR
  padded_image[:height, :width] = image
  padded_label = np.full(size, IGNORE_LABEL, np.uint8)
  padded_label[:height, :width] = label
  return padded_image, padded_label
