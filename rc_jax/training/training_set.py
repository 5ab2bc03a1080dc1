"""The training set in the position of a checkpoint: what changes when a run resumes with another one."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rc_jax import data, sharding
from rc_jax.config import Config, reads_banks, reads_image_index
from rc_jax.console import say

# Beside the position of ``TrainBatches``. A list of files may have grown between two sessions of a run.
TRAINING_IMAGES = "training_images"
# With ``contrast.slots=image``. Files may have been renamed or exchanged, and their number is the same.
TRAINING_EXAMPLES = "training_examples"


@dataclasses.dataclass(frozen=True)
class TrainingSet:
  """What a checkpoint records of the training set.

  Attributes:
    images: number of training images.
    examples: digest of the names of the examples in order, where each image has a slot in the memory banks; else None.
  """

  images: int
  examples: str | None = None


def training_set_of(source: data.Source, config: Config) -> TrainingSet:
  """Returns what a run of a validated config records of its training split."""
  return TrainingSet(len(source), data.examples_digest(source) if reads_image_index(config) else None)


def with_training_set(position: dict[str, Any], training_set: TrainingSet) -> dict[str, Any]:
  """Returns the position of the training data with the training set that it belongs to."""
  examples = {} if training_set.examples is None else {TRAINING_EXAMPLES: training_set.examples}
  return {**position, TRAINING_IMAGES: training_set.images, **examples}


def position_in_training_set(
  position: dict[str, Any], training_set: TrainingSet, config: Config, step: int
) -> dict[str, Any]:
  """Returns the part of a checkpoint's position that holds for the training set of today, and says what changed.

  Args:
    position: of the checkpoint, as ``with_training_set`` returned it, or as an earlier version saved it.
    training_set: of today.
    config: a validated config.
    step: of the checkpoint.
  """
  earlier = position.get(TRAINING_IMAGES)
  if earlier is None:
    say(
      f"the checkpoint of step {step} does not record its number of training images, as earlier versions did not: "
      "whether it has changed is not checked"
    )
    return position
  training_images = training_set.images
  if earlier != training_images:
    lines = [
      f"the training set has {training_images:,} images; it had {earlier:,} when step {step} was saved"
    ]
  elif _other_examples(position, training_set):
    lines = [
      f"the training set has other images, or another order of images, than when step {step} was saved"
    ]
  else:
    return position
  if position.get("skipped"):
    # By their places in the list of files, where other files lie now.
    lines.append("the list of unreadable images starts again")
    position = {key: value for key, value in position.items() if key != "skipped"}
  if reads_image_index(config):
    lines.append("the memory banks start empty, because their slots belong to other images now")
  elif reads_banks(config) and not config.contrast.bank_size:
    kept = "all keys" if training_images > earlier else f"the newest {training_images:,} keys of each class"
    lines.append(f"each memory bank has {training_images:,} slots in place of {earlier:,} and keeps {kept}")
  if earlier != training_images:
    lines.append("the images are drawn in another order")
  say("; ".join(lines))
  return position


def bank_of_training_set(
  bank: Any, position: dict[str, Any], training_set: TrainingSet, config: Config
) -> Any:
  """Returns the restored bank, or an empty one where its slots belong to images of another training set.

  Args:
    bank: of the checkpoint; its buffers may be donated.
    position: of the checkpoint, as ``with_training_set`` returned it.
    training_set: of today.
    config: a validated config.
  """
  same_images = position.get(TRAINING_IMAGES) == training_set.images
  if not reads_image_index(config) or (same_images and not _other_examples(position, training_set)):
    return bank

  def empty(bank: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, bank)

  return jax.jit(empty, donate_argnums=0, out_shardings=sharding.shardings_of(bank))(bank)


def _other_examples(position: dict[str, Any], training_set: TrainingSet) -> bool:
  """Returns whether the examples have other names or another order; False where one of both is not recorded."""
  earlier = position.get(TRAINING_EXAMPLES)
  return earlier is not None and training_set.examples is not None and earlier != training_set.examples
