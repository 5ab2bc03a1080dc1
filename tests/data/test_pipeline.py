"""The input pipeline: the content and the order of batches, in any number of processes, and after a resumption."""

import contextlib
import inspect
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest
from absl import flags
from PIL import Image

from rc_jax import data
from rc_jax.data import evaluation_examples, train_batches
from tests.support.paths import ROOT

AUGMENT = types.SimpleNamespace(photometric=True)
PLAIN = types.SimpleNamespace(scale=(1.0, 1.0), flip=0.0)
EVERYTHING = types.SimpleNamespace(photometric=True, cat_max_ratio=0.75, rotation=10.0, blur=0.5)
SIZE = (10, 12)


@pytest.fixture(autouse=True, scope="module")
def _parsed_flags():
  # Worker processes need parsed flags, as main.py has them.
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


class Numbered:
  """Images whose red channel and label are their number; ``bad`` numbers cannot be read. Records the reads."""

  info = data.info("synthetic", "")

  def __init__(self, count, bad=None):
    self.count = count
    self.bad = bad
    self.read = []

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    if index == self.bad or (isinstance(self.bad, set) and index in self.bad):
      raise ValueError(f"image_{index}.png: cannot be decoded, expected a complete image file: copy it again")
    self.read.append(index)
    rng = np.random.default_rng(index)
    image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
    image[..., 0] = index
    return {"image": image, "label": np.full(SIZE, index, np.uint8), "name": f"{index}"}


def _batches(source, count=6, *, batch_size=4, augment=AUGMENT, crop_size=SIZE, **options):
  with train_batches(
    source, seed=3, batch_size=batch_size, crop_size=crop_size, augment=augment, **options
  ) as batches:
    return [next(batches) for _ in range(count)]


def _numbers(batches):
  return [int(number) for batch in batches for number in batch["label"][:, 0, 0]]


def _assert_equal(found, expected):
  assert len(found) == len(expected)
  for one, other in zip(found, expected, strict=True):
    assert one.keys() == other.keys() == {"image", "label"}
    for key in one:
      np.testing.assert_array_equal(one[key], other[key])


@pytest.fixture(scope="module")
def reference():
  return _batches(Numbered(7), 8, workers=0, threads=1)


def test_form(reference):
  for batch in reference:
    assert batch["image"].shape == (4, *SIZE, 3) and batch["label"].shape == (4, *SIZE)
    assert batch["image"].dtype == batch["label"].dtype == np.uint8
  assert any((a["image"] != b["image"]).any() for a, b in itertools.pairwise(reference))


@pytest.mark.long
@pytest.mark.run
@pytest.mark.parametrize(("workers", "threads"), [(0, 0), (0, 4), (1, 1), (2, 0), (2, 2)])
def test_batches_do_not_depend_on_workers_and_threads(reference, workers, threads):
  _assert_equal(_batches(Numbered(7), 8, workers=workers, threads=threads), reference)


@pytest.mark.long
@pytest.mark.run
@pytest.mark.parametrize(("hosts", "workers"), [(2, 0), (4, 0), (2, 2)])
def test_hosts_read_contiguous_rows_of_the_same_batches(reference, hosts, workers):
  parts = [
    _batches(Numbered(7), 8, host_index=host, host_count=hosts, workers=workers, threads=1)
    for host in range(hosts)
  ]
  joined = [
    {key: np.concatenate([part[key] for part in step]) for key in step[0]}
    for step in zip(*parts, strict=True)
  ]
  _assert_equal(joined, reference)


def test_a_host_decodes_only_its_rows():
  source = Numbered(100)
  batches = _batches(source, 5, host_index=1, host_count=2, threads=0, augment=PLAIN)
  assert source.read == _numbers(batches) and len(source.read) == 10


def test_an_epoch_visits_every_image_once_and_the_next_in_another_order():
  numbers = _numbers(_batches(Numbered(11), 11, batch_size=6, augment=PLAIN))
  epochs = [numbers[i : i + 11] for i in range(0, 66, 11)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(11))
  assert len(set(map(tuple, epochs))) == 6


def test_seeds_give_other_orders_and_other_crops():
  orders, crops = set(), set()
  for seed in range(6):
    with train_batches(Numbered(20), seed=seed, batch_size=20, crop_size=SIZE, augment=AUGMENT) as batches:
      batch = next(batches)
    orders.add(tuple(_numbers([batch])))
    crops.add(batch["image"][batch["label"][:, 0, 0] == 5].tobytes())
  # Neighbouring seeds must not give the same epochs, shifted.
  assert len(orders) == 6 and len(crops) == 6


def test_an_image_is_augmented_anew_in_each_epoch():
  crops = [batch["image"].tobytes() for batch in _batches(Numbered(1), 5, batch_size=1)]
  assert len(set(crops)) == 5


def test_a_batch_may_be_larger_than_the_data_set():
  batches = _batches(Numbered(3), 2, batch_size=9, augment=PLAIN)
  assert [sorted(_numbers([batch])) for batch in batches] == [[0, 0, 0, 1, 1, 1, 2, 2, 2]] * 2


@pytest.mark.long
@pytest.mark.run
@pytest.mark.parametrize(("workers", "threads"), [(0, 0), (0, 3), (2, 1)])
def test_resuming_continues_with_the_next_batch(reference, workers, threads):
  options = dict(seed=3, batch_size=4, crop_size=SIZE, augment=AUGMENT, workers=workers, threads=threads)
  with train_batches(Numbered(7), **options) as batches:
    assert batches.get_state() == {"next_batch": 0}
    for _ in range(3):
      next(batches)
    # Time to read ahead: the state counts the returned batches.
    time.sleep(0.3)
    state = json.loads(json.dumps(batches.get_state()))
    next(batches)
  with train_batches(Numbered(7), **options) as batches:
    batches.set_state(state)
    assert batches.get_state() == state
    _assert_equal([next(batches) for _ in range(5)], reference[3:8])
    # Back again, on a running iterator.
    batches.set_state(state)
    _assert_equal([next(batches)], reference[3:4])
    assert batches.get_state() == {"next_batch": 4}


@pytest.mark.run
def test_resuming_with_other_workers_and_hosts(reference):
  options = dict(seed=3, batch_size=4, crop_size=SIZE, augment=AUGMENT)
  with train_batches(Numbered(7), host_index=0, host_count=2, threads=2, **options) as batches:
    for _ in range(5):
      next(batches)
    state = batches.get_state()
  with train_batches(Numbered(7), workers=1, **options) as batches:
    batches.set_state(state)
    _assert_equal([next(batches)], reference[5:6])


@pytest.mark.long
@pytest.mark.run
@pytest.mark.parametrize(("workers", "threads"), [(0, 0), (0, 2), (1, 1)])
def test_a_damaged_file_is_reported_in_one_line(workers, threads):
  with train_batches(
    Numbered(6, bad=4), seed=0, batch_size=2, crop_size=SIZE, augment=PLAIN, workers=workers, threads=threads
  ) as batches:
    seen = 0
    with pytest.raises(ValueError) as error:
      for _ in range(3):
        next(batches)
        seen += 1
    assert str(error.value) == "image_4.png: cannot be decoded, expected a complete image file: copy it again"
    # No example is lost when the caller tries again.
    assert batches.get_state() == {"next_batch": seen}
    with pytest.raises(ValueError, match="image_4"):
      next(batches)


@pytest.fixture(scope="module")
def with_everything():
  """All augmentations, one thread of one process, no cache; example 4 cannot be read, and 5 replaces it."""
  return _batches(Numbered(7, bad=4), 8, augment=EVERYTHING, threads=1, max_skipped=0.2)


@pytest.mark.long
@pytest.mark.run
@pytest.mark.parametrize(
  ("hosts", "workers", "cache_gb"), [(2, 0, 0.0), (1, 0, 2e-6), (2, 0, 0.01), (1, 3, 2e-6), (2, 2, 0.01)]
)
def test_batches_are_the_same_everywhere_with_all_features_on(with_everything, hosts, workers, cache_gb):
  options = dict(workers=workers, threads=1, augment=EVERYTHING, cache_gb=cache_gb, max_skipped=0.2)
  parts = [
    _batches(Numbered(7, bad=4), 8, host_index=host, host_count=hosts, **options) for host in range(hosts)
  ]
  joined = [
    {key: np.concatenate([part[key] for part in step]) for key in step[0]}
    for step in zip(*parts, strict=True)
  ]
  _assert_equal(joined, with_everything)


def test_the_next_example_replaces_an_unreadable_one():
  options = dict(batch_size=7, augment=PLAIN, threads=1)
  intact = _numbers(_batches(Numbered(7), 4, **options))
  assert _numbers(_batches(Numbered(7, bad=4), 4, max_skipped=0.2, **options)) == [
    5 if number == 4 else number for number in intact
  ]
  # The first example follows the last.
  assert _numbers(_batches(Numbered(7, bad=6), 4, max_skipped=0.2, **options)) == [
    0 if number == 6 else number for number in intact
  ]


@pytest.mark.long
@pytest.mark.run
@pytest.mark.parametrize(
  "options",
  [
    {"threads": 0},
    {"threads": 2, "max_skipped": 0.2},
    {"cache_gb": 0.01, "max_skipped": 0.2},
    {"workers": 2, "threads": 1, "cache_gb": 0.01},
    {"host_index": 1, "host_count": 2},
  ],
)
def test_the_index_of_a_batch_is_that_of_the_examples_that_were_read(options):
  bad = 4 if "max_skipped" in options else None
  without, batches = (
    _batches(Numbered(7, bad=bad), 5, augment=EVERYTHING, with_index=with_index, **options)
    for with_index in (False, True)
  )
  for batch in batches:
    index = batch.pop("index")
    assert index.dtype == np.int32 and index.shape == batch["label"].shape[:1]
    # The first label that is not ignored; rotation ignores the corners.
    labels = np.where(batch["label"] == 255, 0, batch["label"]).reshape(len(index), -1)
    np.testing.assert_array_equal(index, labels.max(axis=1))
  _assert_equal(batches, without)


def test_skipped_examples_are_reported_with_their_reasons_and_counted_after_a_resumption():
  options = dict(seed=3, batch_size=4, crop_size=SIZE, augment=PLAIN, threads=1)
  with train_batches(Numbered(12, bad={4, 5}), max_skipped=0.2, **options) as batches:
    seen = [dict(batches.skipped)]
    for _ in range(6):
      assert next(batches).keys() == {"image", "label"}
      seen.append(dict(batches.skipped))
    state = json.loads(json.dumps(batches.get_state()))
  assert set(seen[3]) == set(seen[6]) == {4, 5} and seen[0] == {}
  for index, reason in seen[6].items():
    assert reason == f"image_{index}.png: cannot be decoded, expected a complete image file: copy it again"
  # Another unreadable file: with those of the earlier session there are too many.
  with train_batches(Numbered(12, bad={1}), max_skipped=0.2, **options) as batches:
    batches.set_state(state)
    assert batches.skipped == seen[6]
    with pytest.raises(ValueError, match=r"^3 of 12 training images .* at most 2 .*max_skipped.*image_1"):
      for _ in range(3):
        next(batches)


def test_too_many_unreadable_examples_in_a_row():
  with (
    train_batches(
      Numbered(20, bad=set(range(10, 20))),
      seed=0,
      batch_size=20,
      crop_size=SIZE,
      augment=PLAIN,
      max_skipped=0.1,
    ) as batches,
    pytest.raises(ValueError, match="3 of 20 training images cannot be read, expected at most 2"),
  ):
    next(batches)


def test_scoring_never_skips():
  source = Numbered(5, bad=2)
  assert list(inspect.signature(evaluation_examples).parameters) == [
    "source",
    "host_index",
    "host_count",
    "threads",
  ]
  with pytest.raises(ValueError, match="image_2"):
    list(evaluation_examples(source))


@pytest.mark.long
@pytest.mark.run
@pytest.mark.parametrize(("workers", "cache_gb"), [(0, 0.01), (2, 2e-6)])
def test_resuming_in_the_middle_of_an_epoch_with_all_features_on(with_everything, workers, cache_gb):
  options = dict(seed=3, batch_size=4, crop_size=SIZE, augment=EVERYTHING, max_skipped=0.2, threads=1)
  with train_batches(Numbered(7, bad=4), **options) as batches:
    for _ in range(3):
      next(batches)
    state = json.loads(json.dumps(batches.get_state()))
  with train_batches(Numbered(7, bad=4), workers=workers, cache_gb=cache_gb, **options) as batches:
    batches.set_state(state)
    _assert_equal([next(batches) for _ in range(5)], with_everything[3:8])
    assert batches.skipped == {
      4: "image_4.png: cannot be decoded, expected a complete image file: copy it again"
    }
    if not workers:
      # Back to examples that the cache holds by now.
      batches.set_state(state)
      _assert_equal([next(batches) for _ in range(5)], with_everything[3:8])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"batch_size": 5, "host_count": 2}, r"train\.batch_size is 5, .* hosts, 2"),
    ({"batch_size": 0}, "train.batch_size is 0"),
    ({"host_index": 2, "host_count": 2}, "host_index is 2, expected 0 to 1"),
    ({"seed": -1}, "seed is -1"),
    ({"workers": -1}, "data.workers is -1"),
    ({"cache_gb": 1e6}, r"data\.cache_gb is 1e\+06, but this machine has"),
    ({"threads": -2}, "data.threads is -2"),
  ],
)
def test_impossible_options_are_refused(options, message):
  with pytest.raises(ValueError, match=message) as error:
    train_batches(Numbered(4), **{"seed": 0, "batch_size": 4, "crop_size": SIZE, "augment": PLAIN, **options})
  assert "\n" not in str(error.value)
  with pytest.raises(ValueError, match="empty"):
    train_batches(Numbered(0), seed=0, batch_size=2, crop_size=SIZE, augment=PLAIN)


@pytest.mark.parametrize("hosts", [1, 2, 3, 8])
@pytest.mark.parametrize("threads", [0, 3])
def test_evaluation_reads_every_example_once_in_order(hosts, threads):
  parts = [
    [e["name"] for e in evaluation_examples(Numbered(7), host, hosts, threads)] for host in range(hosts)
  ]
  for host, part in enumerate(parts):
    assert part == [str(i) for i in range(host, 7, hosts)]


def test_evaluation_examples_are_unchanged():
  source = data.load("synthetic", "", "val")
  example = next(evaluation_examples(source))
  for key in ("image", "label"):
    np.testing.assert_array_equal(example[key], source[0][key])


def test_evaluation_reports_damage_and_ends_its_threads():
  with pytest.raises(ValueError, match="image_2"):
    list(evaluation_examples(Numbered(5, bad=2)))
  with pytest.raises(ValueError, match="host_index is 3"):
    evaluation_examples(Numbered(5), 3, 2)
  examples = evaluation_examples(Numbered(200), threads=2)
  next(examples)
  del examples
  deadline = time.monotonic() + 5
  while any("grain" in thread.name for thread in threading.enumerate()):
    assert time.monotonic() < deadline, threading.enumerate()
    time.sleep(0.02)


def test_real_frames(shared_dir):
  batches = _batches(
    data.load("camvid", str(shared_dir / "data/camvid"), "train"), 2, crop_size=(240, 240), batch_size=3
  )
  for batch in batches:
    assert batch["image"].shape == (3, 240, 240, 3)
    assert set(np.unique(batch["label"])) <= {*range(11), 255}
    # Enough pixels are neither padding nor void.
    assert (batch["label"] != 255).mean() > 0.3 and batch["image"].std() > 20


SCRIPT = """
import sys, time, types
from absl import flags
from rc_jax.data import load, train_batches

if __name__ == "__main__":
  _, workers, then, parsed = sys.argv
  if parsed == "parsed":
    flags.FLAGS.mark_as_parsed()
  augment = types.SimpleNamespace(cat_max_ratio=0.75, rotation=5.0, blur=0.5)
  batches = train_batches(
    load("camvid", sys.path[0], "train"), seed=0, batch_size=2, crop_size=(8, 8), augment=augment, workers=int(workers)
  )
  kept = [next(batches) for _ in range(3)]
  print("running", flush=True)
  if then == "wait":
    time.sleep(60)
"""


def _start(folder, workers, then, parsed="parsed"):
  for kind, array in (("images", np.full((9, 9, 3), 50, np.uint8)), ("labels", np.full((9, 9), 1, np.uint8))):
    (folder / kind / "train").mkdir(parents=True)
    Image.fromarray(array).save(folder / kind / "train" / "a.png")
  (folder / "script.py").write_text(SCRIPT)
  root = str(ROOT)
  return subprocess.Popen(
    [sys.executable, str(folder / "script.py"), str(workers), then, parsed],
    env={**os.environ, "PYTHONPATH": root},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )


@pytest.mark.long
@pytest.mark.run
@pytest.mark.parametrize("workers", [0, 2])
def test_the_interpreter_ends_cleanly_with_an_open_iterator(tmp_path, workers):
  process = _start(tmp_path, workers, "end")
  out, err = process.communicate(timeout=60)
  assert (process.returncode, out, err) == (0, "running\n", "")


@pytest.mark.run
def test_unparsed_flags_are_explained(tmp_path):
  process = _start(tmp_path, 1, "end", "unparsed")
  _, err = process.communicate(timeout=60)
  assert process.returncode == 1 and "mark_as_parsed() first, or set data.workers=0" in err


@pytest.mark.long
@pytest.mark.run
@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_workers_outlive_a_job_signal_but_not_their_parent(tmp_path):
  process = _start(tmp_path, 2, "wait")

  def workers():
    found = []
    for status in pathlib.Path("/proc").glob("[0-9]*/stat"):
      try:
        fields = status.read_text().rsplit(")", 1)[1].split()
        command = (status.parent / "cmdline").read_text()
      except OSError:
        continue
      # A living process of the session that the script started.
      if int(fields[3]) == process.pid and fields[0] != "Z" and "spawn_main" in command:
        found.append(int(status.parent.name))
    return found

  try:
    assert process.stdout.readline() == "running\n"
    started = workers()
    assert len(started) == 2
    for worker in started:
      os.kill(worker, signal.SIGTERM)
    time.sleep(0.5)
    assert workers() == started
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while workers():
      assert time.monotonic() < deadline
      time.sleep(0.05)
  finally:
    # All processes of its session: a surviving worker would hold the pipes open.
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
