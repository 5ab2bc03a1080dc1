"""Augmentation of training examples: image and label together, from an explicit random generator.

Arrays stay uint8: the network normalises them on the device, and a quarter of the bytes is transferred.
"""

import numpy as np

from rc_jax.data.augment import blur, flip, photometric, random_crop, random_scale, rotation
from rc_jax.data.augment.crop_views import pad
from rc_jax.data.augment.sample import Augmentation, Sample
from rc_jax.fields import Config, Field

# In the order of their application, mmsegmentation's. Those before ``random_crop`` change the geometry, those after it
# the pixels of the crop.
AUGMENTATIONS: tuple[Augmentation, ...] = (
  random_scale.AUGMENTATION,
  rotation.AUGMENTATION,
  random_crop.AUGMENTATION,
  flip.AUGMENTATION,
  photometric.AUGMENTATION,
  blur.AUGMENTATION,
)
FIELDS: tuple[Field, ...] = tuple(field for augmentation in AUGMENTATIONS for field in augmentation.fields)


def options_of(augment: object = None) -> Config:
  """Returns a copy of the fields of ``config.augment``.

  Args:
    augment: has the fields as attributes; one that is absent gets its default.
  """
  names = {field.path.partition(".")[2]: field.default for field in FIELDS}
  return Config({name: getattr(augment, name, default) for name, default in names.items()})


def training_crop(
  image: np.ndarray,
  label: np.ndarray,
  rng: np.random.Generator,
  *,
  crop_size: tuple[int, int],
  options: Config,
) -> tuple[np.ndarray, np.ndarray]:
  """Makes a training crop of an image and its label.

  Args:
    image: uint8 ``[H,W,3]``, RGB, an array or tiles that are decoded on access.
    label: uint8 ``[H,W]``, train ids, likewise.
    rng: the only source of random numbers.
    crop_size: ``(h,w)`` of the crop.
    options: from ``options_of``.

  Returns:
    The crop, uint8 ``[h,w,3]``, and its label, uint8 ``[h,w]``, padded where the resized image is smaller.
  """
  height, width = label.shape
  sample = Sample(image, label, size=(height, width), angle=0.0, crop_size=crop_size)
  for augmentation in AUGMENTATIONS:
    sample = augmentation.apply(sample, rng, options)
  if sample.image.dtype != np.uint8 or sample.image.shape[:2] != sample.size or sample.angle:
    raise ValueError(
      f"AUGMENTATIONS: the crop is {sample.image.dtype} {sample.image.shape}, with size {sample.size} and angle "
      f"{sample.angle}; expected uint8 of that size, not rotated: change size and angle only before random_crop"
    )
  return pad(sample.image, sample.label, crop_size)


__all__ = ["AUGMENTATIONS", "FIELDS", "Augmentation", "Sample", "options_of", "training_crop"]
