"""Random Gaussian blur."""

import dataclasses

import numpy as np
from PIL import Image, ImageFilter

from rc_jax.data.augment.sample import Augmentation, Sample
from rc_jax.fields import LOW_HIGH, PROBABILITY, Config, Field


def gaussian_blur(
  image: np.ndarray, rng: np.random.Generator, *, probability: float, sigma: tuple[float, float]
) -> np.ndarray:
  """Blurs an image with a given probability.

  Pillow approximates the Gaussian by three box filters, whose cost does not grow with sigma. Pixels beyond the border
  are equal to those on it.

  Args:
    image: uint8 ``[h,w,3]``.
    rng: draws whether to blur, and the standard deviation.
    probability: of a blur.
    sigma: the range of the standard deviation in pixels, which is drawn uniformly.

  Returns:
    uint8 ``[h,w,3]``.
  """
  # Both are drawn in any case: later draws do not depend on whether this one blurs.
  blurs, standard_deviation = rng.random() < probability, rng.uniform(*sigma)
  if not blurs:
    return image
  return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(standard_deviation)))


def _apply(sample: Sample, rng: np.random.Generator, options: Config) -> Sample:
  if not options.blur:
    return sample
  image = gaussian_blur(sample.image, rng, probability=options.blur, sigma=options.blur_sigma)
  return dataclasses.replace(sample, image=image)


AUGMENTATION = Augmentation(
  fields=(
    Field("augment.blur", 0.0, "Probability of a Gaussian blur.", PROBABILITY),
    Field(
      "augment.blur_sigma",
      (0.1, 2.0),
      "Range of the blur's standard deviation in pixels, drawn uniformly.",
      LOW_HIGH,
    ),
  ),
  apply=_apply,
)
