"""Random rotation about the center of the image."""

import dataclasses

import numpy as np

from rc_jax.data.augment.sample import Augmentation, Sample
from rc_jax.fields import Config, Field, within


def _apply(sample: Sample, rng: np.random.Generator, options: Config) -> Sample:
  if not options.rotation:
    return sample
  return dataclasses.replace(sample, angle=rng.uniform(-options.rotation, options.rotation))


AUGMENTATION = Augmentation(
  fields=(
    Field(
      "augment.rotation",
      0.0,
      "Largest rotation in degrees, drawn uniformly to either side; 0: none.",
      within(0, 180, "0 (off) to 180 degrees"),
    ),
  ),
  apply=_apply,
)
