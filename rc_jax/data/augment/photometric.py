"""Random photometric distortion: brightness, contrast, saturation and hue."""

import dataclasses

import numpy as np
from PIL import Image

from rc_jax.data.augment.sample import Augmentation, Sample
from rc_jax.fields import Config, Field


def photometric_distortion(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Distorts brightness, contrast, saturation and hue, each with probability 1/2, as mmsegmentation does.

  Brightness adds -32..32; contrast multiplies by 0.5..1.5, before or after saturation and hue; saturation multiplies
  HSV's S by 0.5..1.5; hue changes by up to 36 degrees to either side. Pillow's HSV has 8 bits for each channel.

  Args:
    image: uint8 ``[h,w,3]``, RGB.
    rng: draws which distortions apply, their amounts, and the position of contrast.

  Returns:
    uint8 ``[h,w,3]``.
  """
  # All are drawn in any case: later draws do not depend on which of these apply.
  apply_brightness, contrast_first, apply_contrast, apply_saturation, apply_hue = rng.random(5) < 0.5
  brightness = rng.uniform(-32, 32) if apply_brightness else 0.0
  contrast = rng.uniform(0.5, 1.5) if apply_contrast else 1.0
  saturation = rng.uniform(0.5, 1.5) if apply_saturation else 1.0
  hue = rng.uniform(-0.1, 0.1) if apply_hue else 0.0
  return distort(
    image,
    brightness=brightness,
    contrast=contrast,
    saturation=saturation,
    hue=hue,
    contrast_first=bool(contrast_first),
  )


def distort(
  image: np.ndarray,
  *,
  brightness: float,
  contrast: float,
  saturation: float,
  hue: float,
  contrast_first: bool,
) -> np.ndarray:
  """Applies a given photometric distortion.

  Args:
    image: uint8 ``[h,w,3]``, RGB.
    brightness: added to every channel, in levels of 0..255.
    contrast: factor of every channel.
    saturation: factor of HSV's S.
    hue: added to HSV's H, in turns.
    contrast_first: whether contrast comes before saturation and hue, not after.

  Returns:
    uint8 ``[h,w,3]``; every stage clips at 0 and 255.
  """
  # A function of one channel is a table of 256 entries, far cheaper than floating point arithmetic on the image.
  levels = np.arange(256, dtype=np.float64)
  before = _levels(levels + brightness)
  after = np.arange(256, dtype=np.uint8)
  if contrast_first:
    before = _levels(before * contrast)
  else:
    after = _levels(levels * contrast)
  pixels = Image.fromarray(image).point(before.tolist() * 3)
  if saturation != 1 or hue != 0:
    hues = np.round(levels + 256 * hue).astype(np.int64) % 256
    tables = [*hues.tolist(), *_levels(levels * saturation).tolist(), *range(256)]
    pixels = pixels.convert("HSV").point(tables).convert("RGB")
  return np.asarray(pixels.point(after.tolist() * 3) if not contrast_first else pixels)


def _levels(values: np.ndarray) -> np.ndarray:
  return np.round(np.clip(values, 0, 255)).astype(np.uint8)


def _apply(sample: Sample, rng: np.random.Generator, options: Config) -> Sample:
  if not options.photometric:
    return sample
  return dataclasses.replace(sample, image=photometric_distortion(sample.image, rng))


AUGMENTATION = Augmentation(
  fields=(
    Field("augment.photometric", False, "Distorts brightness, contrast, saturation and hue at random."),
  ),
  apply=_apply,
)
