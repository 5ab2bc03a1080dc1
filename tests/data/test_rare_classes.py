"""Rare class sampling: its probabilities, its order in any number of processes, and the counts that it needs."""

import collections
import itertools
import json
import math
import os
import types

import numpy as np
import pytest
from PIL import Image

from rc_jax import data
from rc_jax.data import class_counts, train_batches
from rc_jax.data.pipeline.rare_classes import rare_class_sampling, sampling_text
from rc_jax.data.prepared import reader, writer
from tests.data.test_pipeline import EVERYTHING, PLAIN, SIZE, Numbered, _assert_equal, _parsed_flags

__all__ = ["_parsed_flags"]

NAMES = ("road", "car", "train", "lamp")
# Rows: images. The class 2 is in no image; no image has 10 pixels of class 3.
PIXELS = np.array(
  [[90, 10, 0, 0], [80, 20, 0, 3], [97, 0, 0, 0], [60, 0, 0, 5], [50, 11, 0, 0], [70, 9, 0, 0]]
)


def _sampling(pixels=PIXELS, temperature=0.3, min_pixels=10):
  return rare_class_sampling(pixels, temperature, min_pixels)


def test_probabilities_and_images_by_the_formula():
  total = float(PIXELS.sum())
  weights = []
  for label in range(4):
    pixels = sum(int(row[label]) for row in PIXELS)
    weights.append(math.exp((1 - pixels / total) / 0.3) if pixels else 0.0)
  sampling = _sampling()
  np.testing.assert_allclose(sampling.probabilities, np.array(weights) / sum(weights), rtol=1e-12)
  assert [images.tolist() for images in sampling.images] == [[0, 1, 2, 3, 4, 5], [0, 1, 4], [], [1, 3]]
  assert sampling.scarce == (3,)


def test_the_draws_have_these_probabilities():
  sampling, draws = _sampling(), 5_000
  drawn = [sampling.draw(7, position) for position in range(draws)]
  assert all(image in sampling.images[label] for label, image in drawn)
  counts = collections.Counter(image for _, image in drawn)
  expected = np.zeros(len(PIXELS))
  for probability, images in zip(sampling.probabilities, sampling.images, strict=True):
    for image in images:
      expected[image] += probability / len(images)
  found = np.array([counts[image] for image in range(len(PIXELS))]) / draws
  # Five standard deviations.
  assert (abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / draws)).all()


def test_a_small_temperature_draws_the_rarest_class_alone():
  sampling = _sampling(temperature=1e-4)
  np.testing.assert_allclose(sampling.probabilities, [0, 0, 0, 1])
  assert {sampling.draw(0, position) for position in range(50)} == {(3, 1), (3, 3)}


def test_the_line_names_the_rarest_classes():
  line = sampling_text(_sampling(), NAMES, 10, shown=2)
  assert line.startswith("sampling: by class, the rarest most often: lamp ")
  assert "(1.58 % of the pixels, 2 images), car " in line and "road" not in line
  assert (
    "no image has 10 pixels, so that fewer serve: lamp; classes in no label, which are never drawn: train"
    in line
  )


def test_without_a_class_there_is_nothing_to_draw():
  with pytest.raises(ValueError, match="no training label holds a class: check the labels"):
    _sampling(np.zeros((3, 4), int))


# Of seven images, each with a class of its number: the rarer, the higher the number.
OF_SEVEN = rare_class_sampling(np.diag([600, 300, 200, 100, 50, 30, 20]), 0.2, 60, crops=3)


def _batches(source, count=6, **options):
  options = {"augment": EVERYTHING, "threads": 1, "max_skipped": 0.2, **options}
  with train_batches(
    source, seed=3, batch_size=4, crop_size=SIZE, rare_classes=OF_SEVEN, **options
  ) as batches:
    return [next(batches) for _ in range(count)]


@pytest.fixture(scope="module")
def reference():
  """Batches of one thread. Example 4 cannot be read, and 5 replaces it."""
  return _batches(Numbered(7, bad=4))


def test_the_examples_are_those_of_the_draws():
  batches = _batches(Numbered(7), augment=PLAIN, with_index=True)
  drawn = [OF_SEVEN.draw(3, position)[1] for position in range(24)]
  assert np.concatenate([batch["index"] for batch in batches]).tolist() == drawn
  assert np.concatenate([batch["label"][:, 0, 0] for batch in batches]).tolist() == drawn
  assert len(set(drawn)) > 3


@pytest.mark.run
@pytest.mark.parametrize(
  ("hosts", "workers", "cache_gb"),
  [(2, 0, 2e-6), (4, 0, 0.0), pytest.param(1, 2, 0.01, marks=pytest.mark.long)],
)
def test_batches_are_the_same_everywhere(reference, hosts, workers, cache_gb):
  options = dict(workers=workers, threads=2, cache_gb=cache_gb, host_count=hosts)
  parts = [_batches(Numbered(7, bad=4), host_index=host, **options) for host in range(hosts)]
  joined = [
    {key: np.concatenate([part[key] for part in step]) for key in step[0]}
    for step in zip(*parts, strict=True)
  ]
  _assert_equal(joined, reference)
  assert any((one["image"] != other["image"]).any() for one, other in itertools.pairwise(joined))


def test_resuming(reference):
  options = dict(seed=3, batch_size=4, crop_size=SIZE, augment=EVERYTHING, max_skipped=0.2, threads=1)
  with train_batches(Numbered(7, bad=4), rare_classes=OF_SEVEN, **options) as batches:
    for _ in range(2):
      next(batches)
    state = json.loads(json.dumps(batches.get_state()))
  with train_batches(Numbered(7, bad=4), rare_classes=OF_SEVEN, **options) as batches:
    batches.set_state(state)
    _assert_equal([next(batches) for _ in range(4)], reference[2:])


class WithCorner:
  """Images of class 0 with a square of 12 x 12 pixels of class 1 in a corner."""

  info = data.info("synthetic", "")

  def __init__(self):
    self.corner = np.zeros((40, 40), np.uint8)
    self.corner[:12, :12] = 1

  def __len__(self):
    return 3

  def __getitem__(self, index):
    return {"image": np.full((40, 40, 3), index, np.uint8), "label": self.corner, "name": f"{index}"}


@pytest.mark.parametrize(("min_pixels", "enough"), [(20, 10), (400, 72)])
def test_crops_are_drawn_until_one_holds_the_class(min_pixels, enough):
  """An image has 144 pixels of the class: half of them are enough where no image has ``min_pixels``."""
  source, pixels = WithCorner(), np.array([[1456, 144]] * 3)
  held = {}
  for crops in (1, 200):
    sampling = rare_class_sampling(pixels, 1e-3, min_pixels, crops)
    assert sampling.crop_pixels.tolist() == [min(min_pixels, 1456) // 2, enough]
    with train_batches(
      source, seed=0, batch_size=20, crop_size=(12, 12), augment=PLAIN, threads=1, rare_classes=sampling
    ) as batches:
      held[crops] = [int((label == 1).sum()) for label in next(batches)["label"]]
  # The first crop is the same, and serves where it holds enough.
  assert all(many == one for one, many in zip(held[1], held[200], strict=True) if one >= enough)
  found = {crops: sum(count >= enough for count in counts) for crops, counts in held.items()}
  assert found[1] < 10 and found[200] >= 18, held


def test_counts_of_another_split_are_refused():
  with pytest.raises(ValueError, match="rare_classes is of 7 examples, but the split has 6"):
    _batches(Numbered(6))


def _pairs(root, count=4, split="train"):
  """A data set in which image k has k pixels of the class ``car`` and an ignored one."""
  root.mkdir(exist_ok=True)
  (root / "classes.csv").write_text("id,name\n7,road\n3,car\n9,ignore\n5,bus\n")
  for kind in ("images", "labels"):
    (root / kind / split).mkdir(parents=True)
  for number in range(count):
    ids = np.full(20, 7, np.uint8)
    ids[:number] = 3
    ids[-1] = 9
    Image.fromarray(np.full((4, 5, 3), number, np.uint8)).save(root / f"images/{split}/{number}.png")
    Image.fromarray(ids.reshape(4, 5)).save(root / f"labels/{split}/{number}.png")
  return data.load("folder", str(root), split)


EXPECTED = np.array([[19, 0, 0], [18, 1, 0], [17, 2, 0], [16, 3, 0]])


def _count(source, folder, skip=False, keep=True):
  return class_counts.count_class_pixels(source, folder, skip=skip, keep=keep)


def test_counts_of_files_prepared_data_and_joined_splits(tmp_path):
  source = _pairs(tmp_path / "raw")
  np.testing.assert_array_equal(_count(source, tmp_path), EXPECTED)
  for encoding in writer.ENCODINGS:
    output = tmp_path / encoding
    output.mkdir()
    shards = writer.begin(writer.plan({"train": source}, encoding), output)
    writer.write(shards, output, 0, lambda _: None)
    writer.finish(shards, output)
    assert reader.is_prepared(str(output))
    np.testing.assert_array_equal(_count(data.load("folder", str(output), "train"), output), EXPECTED)
  joined = data.Joined((source, source))
  np.testing.assert_array_equal(_count(joined, tmp_path / "tiles"), np.concatenate([EXPECTED, EXPECTED]))
  numbered = _count(Numbered(3), tmp_path / "original")
  assert numbered[:, :3].tolist() == np.diag([SIZE[0] * SIZE[1]] * 3).tolist()


def test_the_counts_are_kept_until_a_label_or_the_classes_change(tmp_path, monkeypatch, capsys):
  root = tmp_path / "raw"
  source = _pairs(root)
  _count(source, tmp_path, keep=False)
  assert not (tmp_path / class_counts.FILE).exists()
  _count(source, tmp_path)
  with monkeypatch.context() as patched:
    patched.setattr(class_counts, "label_counts", None)  # what reads the labels
    np.testing.assert_array_equal(_count(data.load("folder", str(root), "train"), tmp_path), EXPECTED)
  capsys.readouterr()
  # The same labels with another time, as after a copy, are counted again and change nothing.
  os.utime(root / "labels/train/0.png", (1, 1))
  np.testing.assert_array_equal(_count(source, tmp_path), EXPECTED)
  assert capsys.readouterr().out == ""
  Image.fromarray(np.full((4, 5), 3, np.uint8)).save(root / "labels/train/2.png")
  assert _count(source, tmp_path)[2].tolist() == [0, 20, 0]
  assert (
    "the classes or the labels have changed since it was written: counted again" in capsys.readouterr().out
  )
  (root / "classes.csv").write_text("id,name\n3,car\n7,road\n9,ignore\n5,bus\n")
  assert _count(data.load("folder", str(root), "train"), tmp_path)[0].tolist() == [0, 19, 0]


def test_damaged_counts_are_replaced(tmp_path, capsys):
  source = _pairs(tmp_path / "raw")
  (tmp_path / class_counts.FILE).write_bytes(b"PK\3\4 half a file")
  np.testing.assert_array_equal(_count(source, tmp_path), EXPECTED)
  assert f"{tmp_path / class_counts.FILE}: cannot be read" in capsys.readouterr().out
  capsys.readouterr()
  np.testing.assert_array_equal(_count(source, tmp_path), EXPECTED)
  assert capsys.readouterr().out == ""


def test_an_unreadable_label(tmp_path, capsys):
  source = _pairs(tmp_path / "raw")
  path = tmp_path / "raw/labels/train/1.png"
  content = path.read_bytes()
  path.write_bytes(b"no image")
  with pytest.raises(ValueError, match=r"labels/train/1\.png"):
    _count(source, tmp_path)
  expected = EXPECTED.copy()
  expected[1] = 0
  for _ in range(2):
    np.testing.assert_array_equal(_count(source, tmp_path, skip=True), expected)
    printed = capsys.readouterr().out
    assert "1 of 4 labels cannot be read, or hold no class" in printed and "another order" not in printed
  path.write_bytes(content)
  np.testing.assert_array_equal(_count(source, tmp_path, skip=True), EXPECTED)
  assert "the images are drawn in another order from here on" in capsys.readouterr().out


def test_off_is_the_order_of_epochs():
  options = dict(seed=3, batch_size=7, crop_size=SIZE, augment=types.SimpleNamespace(), threads=0)
  with train_batches(Numbered(7), **options, with_index=True) as batches:
    assert sorted(next(batches)["index"].tolist()) == list(range(7))
