"""Class weights: counted in label files against a loop over images, recorded in the run's folder, read on resume."""

import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from rc_jax import data, distributed
from rc_jax.config import Config, defaults
from rc_jax.data import Joined, Subset
from rc_jax.training import class_weights

SIZES = ((5, 8), (6, 4), (9, 9))


@pytest.fixture
def config(tmp_path: pathlib.Path) -> Config:
  """A data set of files in which no label shows class 3."""
  rng = np.random.default_rng(0)
  root = tmp_path / "data"
  for kind in ("images", "labels"):
    (root / kind / "train").mkdir(parents=True)
  (root / "classes.csv").write_text(
    "id,name,color\n0,road,#804080\n1,car,#00008e\n2,sky,#4682b4\n3,train,#005064\n255,ignore,\n"
  )
  for place, size in enumerate(SIZES):
    label = rng.choice([0, 1, 2, 255] if place else [0, 1, 255], size=size).astype(np.uint8)
    Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(root / f"images/train/{place}.png")
    Image.fromarray(label).save(root / f"labels/train/{place}.png")
  config = defaults()
  config.dataset.name, config.dataset.root = "folder", str(root)
  config.loss.class_weighting = "median_frequency"
  return config


def expected_weights(source: data.Source) -> np.ndarray:
  """By a loop over images, in float64."""
  labels = [source[index]["label"] for index in range(len(source))]
  frequencies = {}
  for c in range(4):
    showing = [label for label in labels if (label == c).any()]
    if showing:
      of_class = sum(int((label == c).sum()) for label in showing)
      frequencies[c] = of_class / sum(int((label != 255).sum()) for label in showing)
  median = np.median(list(frequencies.values()))
  return np.array([median / frequencies[c] if c in frequencies else 1.0 for c in range(4)])


def load(config: Config) -> data.Source:
  return data.load(config.dataset.name, config.dataset.root, "train")


def test_counted_weights_equal_a_loop_over_images(config: Config, tmp_path: pathlib.Path) -> None:
  source = load(config)
  filled = class_weights.with_class_weights(config, tmp_path, source, resumes=False)
  assert config.loss.class_weights == ()
  np.testing.assert_allclose(filled.loss.class_weights, expected_weights(source), rtol=1e-7)
  assert filled.loss.class_weights[3] == 1

  config.loss.class_weighting = "sqrt_median_frequency"
  # A split of another kind has no label files: its examples are read.
  joined = Joined((Subset(source, (0, 1)), Subset(source, (2,))))
  root = class_weights.with_class_weights(config, tmp_path, joined, resumes=False)
  np.testing.assert_allclose(root.loss.class_weights, np.sqrt(expected_weights(source)), rtol=1e-7)
  record = json.loads((tmp_path / class_weights.FILE).read_text())
  assert record["class_weighting"] == "sqrt_median_frequency" and record["images"] == 3
  assert [entry["weight"] for entry in record["classes"]] == list(root.loss.class_weights)


def test_a_resumed_run_reads_its_weights_and_does_not_count(config: Config, tmp_path: pathlib.Path) -> None:
  source = load(config)
  first = class_weights.with_class_weights(config, tmp_path, source, resumes=False)
  fewer = Subset(source, (0,))
  again = class_weights.with_class_weights(config, tmp_path, fewer, resumes=True)
  assert again.loss.class_weights == first.loss.class_weights

  path = tmp_path / class_weights.FILE
  record = json.loads(path.read_text())
  for text, message in (
    (json.dumps({**record, "classes": record["classes"][::-1]}), "other classes"),
    (json.dumps({**record, "classes": [{"name": "road"}]}), "a weight of 0 or more"),
    ("", "is empty"),
    (None, "missing; this run counted its class weights"),
  ):
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
      class_weights.with_class_weights(config, tmp_path, source, resumes=True)
    assert "or train in another --workdir" in str(caught.value) and "\n" not in str(caught.value)


def test_an_unreadable_label_is_an_error_or_skipped(config: Config, tmp_path: pathlib.Path) -> None:
  source = load(config)
  expected = expected_weights(Subset(source, (0, 1)))
  (pathlib.Path(config.dataset.root) / "labels/train/2.png").write_bytes(b"damaged")
  with pytest.raises(ValueError, match=r"labels/train/2\.png"):
    class_weights.with_class_weights(config, tmp_path, source, resumes=False)
  config.dataset.on_error = "skip"
  filled = class_weights.with_class_weights(config, tmp_path, source, resumes=False)
  np.testing.assert_allclose(filled.loss.class_weights, expected, rtol=1e-7)


def test_given_weights_are_one_for_each_class(config: Config, tmp_path: pathlib.Path) -> None:
  config.loss.class_weighting, config.loss.class_weights = "none", (1.0, 2.0)
  message = (
    r"config\.loss\.class_weights: is \(1\.0, 2\.0\); expected 4 numbers, one for each class of folder"
  )
  with pytest.raises(ValueError, match=message):
    class_weights.with_class_weights(config, tmp_path, load(config), resumes=False)
  with pytest.raises(ValueError, match=message):
    class_weights.with_uncounted_weights(config, 4)
  config.loss.class_weighting, config.loss.class_weights = "median_frequency", ()
  assert class_weights.with_uncounted_weights(config, 4).loss.class_weights == (1.0,) * 4


def test_two_processes_count_half_of_the_labels_each(
  config: Config, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """One after the other: the second sends its counts first, and the first gets both."""
  source = load(config)
  expected = expected_weights(source)
  sent: list[bytes] = []

  def gather(content: bytes) -> list[bytes]:
    sent.append(content)
    return [content, sent[0]]

  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(distributed, "allgather_bytes", gather)
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  class_weights.with_class_weights(config, tmp_path, source, resumes=False)
  assert not (tmp_path / class_weights.FILE).exists()
  monkeypatch.setattr(jax, "process_index", lambda: 0)
  first = class_weights.with_class_weights(config, tmp_path, source, resumes=False)
  np.testing.assert_allclose(first.loss.class_weights, expected, rtol=1e-7)

  again = class_weights.with_class_weights(config, tmp_path, source, resumes=True)
  assert again.loss.class_weights == first.loss.class_weights
  (tmp_path / class_weights.FILE).unlink()
  with pytest.raises(ValueError, match="missing; this run counted its class weights"):
    class_weights.with_class_weights(config, tmp_path, source, resumes=True)
