"""Banks with a slot for each training image are kept where the images are the same, in the same order."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from rc_jax import contrast, data
from rc_jax.config import Config, defaults
from rc_jax.data.reading.class_mapping import ClassMapping, Relabelled
from rc_jax.training.training_set import (
  TrainingSet,
  bank_of_training_set,
  position_in_training_set,
  training_set_of,
  with_training_set,
)
from tests.support import small_datasets


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
  small_datasets.folder(tmp_path / "root")
  return tmp_path / "root"


@pytest.fixture
def config() -> Config:
  config = defaults()
  config.dataset.name, config.contrast.slots, config.contrast.bank_size = "folder", "image", 0
  return config


def rename(root: pathlib.Path, old: str, new: str) -> None:
  for folder in ("images", "labels"):
    (root / folder / "train" / old).rename(root / folder / "train" / new)


def resumed(root: pathlib.Path, config: Config, position: dict) -> tuple[dict, bool]:
  """Returns the position of the training data, and whether the bank of the checkpoint was kept."""
  training_set = training_set_of(data.load("folder", str(root), "train"), config)
  bank = contrast.ImageMemoryBank(jnp.ones((3, 2, 4)), jnp.ones((3, 2), bool))
  restored = jax.device_get(bank_of_training_set(bank, position, training_set, config))
  assert restored.valid.all() == restored.valid.any() == restored.keys.any()
  return position_in_training_set(position, training_set, config, 7), bool(restored.valid.any())


def test_renamed_images_empty_the_banks_with_a_slot_for_each(root, config, capsys) -> None:
  training_set = training_set_of(data.load("folder", str(root), "train"), config)
  saved = with_training_set({"next_batch": 3, "skipped": {"1": "cut"}}, training_set)
  assert resumed(root, config, saved) == (saved, True)
  rename(root, "0.png", "00.png")
  assert not capsys.readouterr().out
  position, kept = resumed(root, config, saved)
  assert not kept and position["next_batch"] == 3 and "skipped" not in position
  assert capsys.readouterr().out == (
    "the training set has other images, or another order of images, than when step 7 was saved; the list of "
    "unreadable images starts again; the memory banks start empty, because their slots belong to other images now\n"
  )
  rename(root, "00.png", "0.png")
  assert resumed(root, config, saved) == (saved, True)


def test_checkpoints_without_names_and_queues_are_as_before(root, config, capsys) -> None:
  source = data.load("folder", str(root), "train")
  earlier = with_training_set({"next_batch": 3}, TrainingSet(len(source)))
  rename(root, "0.png", "00.png")
  assert resumed(root, config, earlier) == (earlier, True)
  config.contrast.slots = "queue"
  assert with_training_set({"next_batch": 3}, training_set_of(source, config)) == earlier
  assert resumed(root, config, earlier) == (earlier, True)
  assert not capsys.readouterr().out


def test_the_digest_of_a_split_follows_names_and_order(root) -> None:
  train, both = (data.load("folder", str(root), split) for split in ("train", "train+val"))
  order = [data.Subset(train, indices) for indices in ((0, 1), (1, 0))]
  streets = [data.load("synthetic", "", split) for split in ("train", "val")]
  digests = [data.examples_digest(source) for source in (train, both, *order, *streets)]
  assert len(set(digests)) == len(digests)
  mapping = ClassMapping(train.info, {0: 0, 1: 1, 2: 1})
  assert data.examples_digest(Relabelled(train, mapping)) == digests[0]
  moved = root.parent / "moved"
  root.rename(moved)
  assert data.examples_digest(data.load("folder", str(moved), "train")) == digests[0]
