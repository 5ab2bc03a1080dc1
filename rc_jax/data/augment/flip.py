"""Random left-right flip."""

import dataclasses

import numpy as np

from rc_jax.data.augment.sample import Augmentation, Sample
from rc_jax.fields import PROBABILITY, Config, Field


def _apply(sample: Sample, rng: np.random.Generator, options: Config) -> Sample:
  # Drawn with probability 0 too, as in the first version: the crops of a seed stay the same.
  if rng.random() >= options.flip:
    return sample
  return dataclasses.replace(sample, image=sample.image[:, ::-1], label=sample.label[:, ::-1])


AUGMENTATION = Augmentation(
  fields=(Field("augment.flip", 0.5, "Probability of a left-right flip.", PROBABILITY),),
  apply=_apply,
)
