"""Draws training images so that rare classes are seen more often.

Source: rare class sampling of DAFormer (Hoyer, Dai and Van Gool, CVPR 2022, Section 3.3).
"""

import dataclasses
import functools

import numpy as np

# Of the random numbers, so that they differ from those of the augmentation at the same position.
_STREAM = 0x52435347


@dataclasses.dataclass(frozen=True, eq=False)
class RareClassSampling:
  """A class at random, the rarer the likelier, and then an image that holds it.

  Attributes:
    probabilities: float64 ``[N]``, of drawing each class; 0 for a class that no image holds. The sum is 1.
    images: of each class, the places in the split of the images that it is drawn from, int32, ascending.
    shares: float64 ``[N]``, of each class in the pixels that are not ignored.
    scarce: the classes that no image holds with the smallest number of pixels, so that all images that hold them serve.
    examples: number of examples of the split.
    crops: the largest number of crops to draw of an image until one holds enough pixels of the class.
    crop_pixels: int ``[N]``, enough pixels of each class in a crop.
  """

  probabilities: np.ndarray
  images: tuple[np.ndarray, ...]
  shares: np.ndarray
  scarce: tuple[int, ...]
  examples: int
  crops: int
  crop_pixels: np.ndarray

  @functools.cached_property
  def _cumulative(self) -> np.ndarray:
    sums = np.cumsum(self.probabilities)
    return sums / sums[-1]

  def draw(self, seed: int, position: int) -> tuple[int, int]:
    """Returns the class that is drawn at a position of the training stream, and the place of its image in the split.

    Args:
      seed: of the order, 0 or more.
      position: 0 or more. The result depends on the two numbers alone.
    """
    of_class, of_image = np.random.default_rng((seed, _STREAM, position)).random(2)
    label = int(np.searchsorted(self._cumulative, of_class, side="right"))
    images = self.images[label]
    return label, int(images[int(of_image * len(images))])


def rare_class_sampling(
  pixels: np.ndarray, temperature: float, min_pixels: int, crops: int = 1
) -> RareClassSampling:
  """Returns the sampling of a split.

  Class ``c`` is drawn with the probability ``softmax((1 - f_c) / T)`` over the classes that occur, where ``f_c`` is its
  share of the pixels that are not ignored. An image is then drawn uniformly from those that hold at least
  ``min_pixels`` of it, or, where there is none, from all that hold it. A crop holds enough of the class with half of
  ``min_pixels``, or of the pixels in the image with most of them where these are fewer.

  Args:
    pixels: pixels of each class in each label, int ``[n,N]``.
    temperature: ``T``, above 0. The smaller, the more often the rarest classes are drawn.
    min_pixels: 1 or more.
    crops: the largest number of crops to draw of an image, 1 or more.

  Raises:
    ValueError: no label holds a class.

  >>> sampling = rare_class_sampling(np.array([[90, 0], [8, 2]]), temperature=0.5, min_pixels=1)
  >>> sampling.probabilities.round(3).tolist(), [images.tolist() for images in sampling.images]
  ([0.128, 0.872], [[0, 1], [1]])
  """
  totals = pixels.sum(axis=0)
  present = totals > 0
  if not present.any():
    raise ValueError(
      "data.rare_class_temperature is above 0, but no training label holds a class: check the labels with "
      "--mode=inspect"
    )
  shares = totals / totals.sum()
  logits = np.where(present, (1 - shares) / temperature, -np.inf)
  weights = np.exp(logits - logits.max())
  enough = pixels >= min_pixels
  scarce = present & ~enough.any(axis=0)
  held = np.where(scarce, pixels > 0, enough)
  return RareClassSampling(
    probabilities=weights / weights.sum(),
    images=tuple(np.flatnonzero(column).astype(np.int32) for column in held.T),
    shares=shares,
    scarce=tuple(np.flatnonzero(scarce).tolist()),
    examples=len(pixels),
    crops=crops,
    crop_pixels=-(-np.minimum(min_pixels, pixels.max(axis=0)) // 2),
  )


def sampling_text(
  sampling: RareClassSampling, class_names: tuple[str, ...], min_pixels: int, shown: int = 5
) -> str:
  """Returns the line on a sampling: the probabilities of the rarest classes, and what is odd about others.

  Args:
    sampling: of ``rare_class_sampling``.
    class_names: ``N`` names.
    min_pixels: as for ``rare_class_sampling``.
    shown: the largest number of classes to name.
  """
  occurring = [int(label) for label in np.argsort(sampling.shares, kind="stable") if sampling.shares[label]]
  rarest = ", ".join(
    f"{class_names[label]} {100 * sampling.probabilities[label]:.3g} % "
    f"({100 * sampling.shares[label]:.3g} % of the pixels, {len(sampling.images[label]):,} images)"
    for label in occurring[:shown]
  )
  absent = [class_names[label] for label in range(len(class_names)) if not sampling.shares[label]]
  scarce = [class_names[label] for label in sampling.scarce]
  others = (
    (scarce, f"of which no image has {min_pixels:,} pixels, so that fewer serve"),
    (absent, "in no label, which are never drawn"),
  )
  notes = "".join(
    f"; classes {reason}: {', '.join(names[:shown])}{', ...' if len(names) > shown else ''}"
    for names, reason in others
    if names
  )
  return f"sampling: by class, the rarest most often: {rarest}{notes}"
