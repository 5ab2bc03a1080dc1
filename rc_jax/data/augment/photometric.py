"""Distortion of colours and blur: what changes an image and leaves its label alone."""

import numpy as np
from PIL import Image, ImageFilter


def photometric_distortion(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Distorts brightness, contrast, saturation and hue, each with probability 1/2, as mmsegmentation does.

  Brightness adds -32..32; contrast multiplies by 0.5..1.5, before or after the colours; saturation multiplies HSV's
  S by 0.5..1.5; hue turns by up to 36 degrees either way. Rounding is Pillow's, whose HSV has 8 bits a channel.

  Args:
    image: uint8 ``[h,w,3]``, RGB.
    rng: draws which, how much, and where contrast stands.

  Returns:
    uint8 ``[h,w,3]``.
  """
  # All drawn at once, so that later draws do not depend on which of these apply.
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
    brightness: added to every channel, in 0..255 levels.
    contrast: factor of every channel.
    saturation: factor of HSV's S.
    hue: added to HSV's H, in turns.
    contrast_first: contrast before saturation and hue, rather than after.

  Returns:
    uint8 ``[h,w,3]``; every stage saturates at 0 and 255.
  """
  # A function of one channel is a table of 256 entries: far cheaper than float arithmetic on the image.
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


def gaussian_blur(
  image: np.ndarray, rng: np.random.Generator, *, probability: float, sigma: tuple[float, float]
) -> np.ndarray:
  """Blurs with a Gaussian, now and then.

  Pillow approaches the Gaussian by three box filters, whose cost does not grow with sigma; pixels beyond the border
  are those on it.

  Args:
    image: uint8 ``[h,w,3]``.
    rng: draws whether, and how much.
    probability: of a blur.
    sigma: the range, in pixels, from which the standard deviation is drawn, uniformly.

  Returns:
    uint8 ``[h,w,3]``.
  """
  # Both drawn, so that later draws do not depend on whether this applies.
  applies, amount = rng.random() < probability, rng.uniform(*sigma)
  if not applies:
    return image
  return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(amount)))


def _levels(values: np.ndarray) -> np.ndarray:
  return np.round(np.clip(values, 0, 255)).astype(np.uint8)
