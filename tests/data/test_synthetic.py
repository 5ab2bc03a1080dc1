"""Street scenes: every class occurs, frequencies differ, and colours do not reveal the classes."""

import pickle

import numpy as np
import pytest
from PIL import Image

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
  assert len(splits["train"]) == 800 and len(splits["val"]) == 60
  for examples in drawn.values():
    for example in examples:
      assert example["image"].shape == (129, 193, 3) and example["image"].dtype == np.uint8
      assert example["label"].shape == (129, 193) and example["label"].dtype == np.uint8
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
    assert share.max() > 8 * share.min()
    assert 0 < counts[255] < 0.1 * counts.sum()


def iou_of_classes(prediction, label):
  prediction, label = prediction[label != 255], label[label != 255]
  return np.array(
    [
      ((prediction == i) & (label == i)).sum() / ((prediction == i) | (label == i)).sum()
      for i in range(INFO.num_classes)
    ]
  )


@pytest.mark.parametrize(("levels", "rows", "most"), [(16, 1, 0.3), (8, 32, 0.42)], ids=["colour", "and row"])
def test_colours_do_not_reveal_the_classes(drawn, levels, rows, most):
  # A classifier that sees the colour of a pixel alone, or colour and row, trained on train and scored on val.
  def keys_and_labels(split):
    image = np.stack([example["image"] for example in drawn[split]]).astype(int)
    label = np.stack([example["label"] for example in drawn[split]])
    row = (np.arange(label.shape[1]) * rows // label.shape[1])[:, None]
    colour = (image * levels // 256 * (levels**2, levels, 1)).sum(-1)
    return colour * rows + row, label

  key, label = keys_and_labels("train")
  counts = np.zeros((levels**3 * rows, INFO.num_classes), int)
  np.add.at(counts, (key[label != 255], label[label != 255]), 1)
  key, label = keys_and_labels("val")
  iou = iou_of_classes(counts.argmax(1)[key], label)
  assert iou.mean() < most, np.round(iou, 2)
  assert iou.min() < 0.1


def test_a_feature_grid_of_stride_8_can_show_every_class(drawn):
  # The best that averages over cells of 8 x 8 pixels can give after bilinear upsampling.
  predictions, labels = [], []
  for example in drawn["val"]:
    label = example["label"]
    height, width = label.shape
    shares = []
    for i in range(INFO.num_classes):
      one_hot = Image.fromarray((label == i).astype(np.float32))
      cells = one_hot.resize((width // 8, height // 8), Image.Resampling.BOX)
      shares.append(np.asarray(cells.resize((width, height), Image.Resampling.BILINEAR)))
    predictions.append(np.argmax(shares, axis=0))
    labels.append(label)
  iou = iou_of_classes(np.stack(predictions), np.stack(labels))
  assert iou.mean() > 0.8 and iou.min() > 0.65, np.round(iou, 2)


def test_size_can_be_chosen():
  example = StreetScenes("val", size=(65, 129))[0]
  assert example["image"].shape == (65, 129, 3) and example["label"].shape == (65, 129)


def test_kept_scenes_cannot_be_changed(splits):
  with pytest.raises(ValueError, match="read-only"):
    splits["train"][0]["image"][0, 0] = 0
