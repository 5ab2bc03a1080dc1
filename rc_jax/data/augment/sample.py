"""The state of an example on its way to a training crop, and the statement of an augmentation."""

import dataclasses
from collections.abc import Callable

import numpy as np

from rc_jax.fields import Config, Field


@dataclasses.dataclass(frozen=True)
class Sample:
  """An image and its label on their way to a training crop.

  Augmentations before ``random_crop`` change ``size`` and ``angle``, and no pixels: only the pixels of the crop are
  computed, 7 % of a 2048x1024 frame for a 769 crop at scale 2. Augmentations after it change ``image`` and ``label``.

  Attributes:
    image: uint8 ``[H,W,3]``, RGB: the image of the data set, and after ``random_crop`` the crop, at most ``crop_size``.
    label: uint8 ``[H,W]``, train ids, 255 where ignored.
    size: ``(h,w)`` to which the image is resized.
    angle: degrees by which the resized image is rotated about its center, counter-clockwise.
    crop_size: ``(h,w)`` of the training crop.
  """

  image: np.ndarray
  label: np.ndarray
  size: tuple[int, int]
  angle: float
  crop_size: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """A random change of a training example.

  Attributes:
    fields: its config fields, ``augment.<name>``.
    apply: ``(sample, rng, config.augment) -> Sample``. Every random number comes from ``rng``, a generator for this
      example. An augmentation that is off draws none, so that the crops of a recipe stay the same when another
      augmentation is added to the project.
  """

  fields: tuple[Field, ...]
  apply: Callable[[Sample, np.random.Generator, Config], Sample]
