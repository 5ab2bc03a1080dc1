"""The size of the training set in the position of a checkpoint: what changes when a run resumes with another one."""

from typing import Any

import jax
import jax.numpy as jnp

from rc_jax import sharding
from rc_jax.config import Config, reads_banks, reads_image_index
from rc_jax.console import say

# Beside the position of ``TrainBatches``. A list of files may have grown between two sessions of a run.
TRAINING_IMAGES = "training_images"


def with_training_set(position: dict[str, Any], training_images: int) -> dict[str, Any]:
  """Returns the position of the training data with the number of training images that it belongs to."""
  return {**position, TRAINING_IMAGES: training_images}


def position_in_training_set(
  position: dict[str, Any], training_images: int, config: Config, step: int
) -> dict[str, Any]:
  """Returns the part of a checkpoint's position that holds for the training set of today, and says what changed.

  Args:
    position: of the checkpoint, as ``with_training_set`` returned it, or as an earlier version saved it.
    training_images: number of training images today.
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
  if earlier == training_images:
    return position
  lines = [f"the training set has {training_images:,} images; it had {earlier:,} when step {step} was saved"]
  if position.get("skipped"):
    # By their places in the list of files, where other files lie now.
    lines.append("the list of unreadable images starts again")
    position = {key: value for key, value in position.items() if key != "skipped"}
  if reads_image_index(config):
    lines.append("the memory banks start empty, because their slots belong to other images now")
  elif reads_banks(config) and not config.contrast.bank_size:
    kept = "all keys" if training_images > earlier else f"the newest {training_images:,} keys of each class"
    lines.append(f"each memory bank has {training_images:,} slots in place of {earlier:,} and keeps {kept}")
  lines.append("the images are drawn in another order")
  say("; ".join(lines))
  return position


def bank_of_training_set(bank: Any, position: dict[str, Any], training_images: int, config: Config) -> Any:
  """Returns the restored bank, or an empty one where its slots belong to images of another training set.

  Args:
    bank: of the checkpoint; its buffers may be donated.
    position: of the checkpoint, as ``with_training_set`` returned it.
    training_images: number of training images today.
    config: a validated config.
  """
  if not reads_image_index(config) or position.get(TRAINING_IMAGES) == training_images:
    return bank

  def empty(bank: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, bank)

  return jax.jit(empty, donate_argnums=0, out_shardings=sharding.shardings_of(bank))(bank)
