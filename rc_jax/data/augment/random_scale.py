"""Random resizing by a common factor of both axes."""

import dataclasses

import numpy as np

from rc_jax.data.augment.sample import Augmentation, Sample
from rc_jax.fields import LOW_HIGH, Config, Field


def _apply(sample: Sample, rng: np.random.Generator, options: Config) -> Sample:
  factor = rng.uniform(*options.scale)
  height, width = sample.label.shape
  return dataclasses.replace(sample, size=(max(1, round(height * factor)), max(1, round(width * factor))))


AUGMENTATION = Augmentation(
  fields=(Field("augment.scale", (0.5, 2.0), "Range of the random scale, drawn uniformly.", LOW_HIGH),),
  apply=_apply,
)
