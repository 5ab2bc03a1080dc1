"""Street scenes: every class occurs, frequencies differ, and colours do not reveal the classes."""

import pickle

import numpy as np
import pytest

from rc_jax import data
from rc_jax.data.datasets.synthetic import StreetScenes

INFO = data.info("synthetic", "")


@pytest.fixture(scope="module")
def splits():
  return {split: data.load("synthetic", "", split) for split in data.splits("synthetic", "")}


@pytest.fixture(scope="module")
def drawn(splits):
  return {split: [scenes[i] for i in range(60)] for split, scenes in splits.items()}


def test_form(splits, drawn):
  assert len(splits["train"]) == 400 and len(splits["val"]) == 60
  for examples in drawn.values():
    for example in examples:
      assert example["image"].shape == (128, 192, 3) and example["image"].dtype == np.uint8
      assert example["label"].shape == (128, 192) and example["label"].dtype == np.uint8
      assert set(np.unique(example["label"])) <= {*range(INFO.num_classes), 255}
  names = [example["name"] for examples in drawn.values() for example in examples]
  assert len(set(names)) == len(names)
  with pytest.raises(IndexError):
    splits["val"][60]


def test_scenes_depend_on_seed_split_and_index_alone(splits, drawn):
  pickled = pickle.dumps(splits["train"])
  assert len(pickled) < 1000  # without the kept scenes
  again = pickle.loads(pickled)
  np.testing.assert_array_equal(again[17]["image"], drawn["train"][17]["image"])
  np.testing.assert_array_equal(again[17]["label"], drawn["train"][17]["label"])
  assert (StreetScenes("train", seed=1)[17]["label"] != drawn["train"][17]["label"]).any()


def test_no_scene_is_drawn_twice(drawn):
  labels = [example["label"].tobytes() for examples in drawn.values() for example in examples]
  assert len(set(labels)) == len(labels)


def test_frequencies_are_uneven_and_no_class_is_missing(drawn):
  for examples in drawn.values():
    counts = sum(np.bincount(example["label"].ravel(), minlength=256) for example in examples)
    share = counts[: INFO.num_classes] / counts.sum()
    images = sum(np.isin(np.arange(INFO.num_classes), example["label"]) for example in examples)
    assert share.min() > 0.001 and images.min() >= 0.5 * len(examples)
    assert share.max() > 30 * share.min()
    assert 0 < counts[255] < 0.1 * counts.sum()


def test_colours_do_not_reveal_the_classes(drawn):
  # A classifier that sees the colour of a pixel alone, trained on train and scored on val, misses most classes.
  def colours_and_labels(split):
    image = np.stack([example["image"] for example in drawn[split]]) // 16
    label = np.stack([example["label"] for example in drawn[split]])
    colour = (image.astype(int) * (256, 16, 1)).sum(-1)
    return colour[label != 255], label[label != 255]

  colour, label = colours_and_labels("train")
  counts = np.zeros((4096, INFO.num_classes), int)
  np.add.at(counts, (colour, label), 1)
  colour, label = colours_and_labels("val")
  guess = counts.argmax(1)[colour]
  iou = [
    ((guess == i) & (label == i)).sum() / ((guess == i) | (label == i)).sum() for i in range(INFO.num_classes)
  ]
  assert np.mean(iou) < 0.25, np.round(iou, 2)
  assert np.median(iou) < 0.1


def test_size_can_be_chosen():
  example = StreetScenes("val", size=(65, 129))[0]
  assert example["image"].shape == (65, 129, 3) and example["label"].shape == (65, 129)


def test_kept_scenes_cannot_be_changed(splits):
  with pytest.raises(ValueError, match="read-only"):
    splits["train"][0]["image"][0, 0] = 0
