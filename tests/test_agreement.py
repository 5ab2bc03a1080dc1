"""Processes of one run that do not agree are refused, in one line that says what differs and where."""

import json
import pathlib
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rc_jax import agreement, data
from rc_jax.config import FIELDS, defaults, shared_fields
from rc_jax.data.reading.class_mapping import ClassMapping, Relabelled
from rc_jax.weights import restore
from tests.support import processes, run_tiny, small_datasets
from tests.support.paths import ROOT


class Exchange:
  """Stands for the connections of processes: each is a thread."""

  def __init__(self, count: int):
    self.rounds, self._values, self._barrier = 0, [None] * count, threading.Barrier(count, timeout=20)

  def of(self, index: int) -> Callable[[Any], list[Any]]:
    def gather(value: Any) -> list[Any]:
      self._values[index] = value
      if self._barrier.wait() == 0:
        self.rounds += 1
      values = list(self._values)
      self._barrier.wait()
      return values

    return gather


def refusals(facts: Sequence[dict], listings: Sequence[dict]) -> tuple[list[str], int]:
  """Returns the message of each process, empty where it agrees, and how often values were exchanged."""
  exchange = Exchange(len(facts))

  def check(index: int) -> str:
    try:
      agreement.check_agreement(exchange.of(index), facts[index], listings[index])
    except ValueError as error:
      return str(error)
    return ""

  with ThreadPoolExecutor(len(facts)) as pool:
    return list(pool.map(check, range(len(facts)))), exchange.rounds


@pytest.mark.parametrize(
  ("facts", "expected"),
  [
    ([{"seed": 1}, {"seed": 1}], ""),
    ([{"seed": 1}, {"seed": 2}], "seed is 1 on process 0 and 2 on process 1;"),
    ([{"seed": 1}] * 5 + [{"seed": 0}], "seed is 1 on processes 0-4 and 0 on process 5;"),
    (
      [{"seed": 1}, {"seed": 0}] * 5,
      "seed is 1 on processes 0, 2, 4 and 2 more and 0 on processes 1, 3, 5 and 2",
    ),
    ([{"seed": 1}, {}], "seed is 1 on process 0 and absent on process 1;"),
    ([{}, {"seed": None}], ""),
    ([{"a": (1, 2), "nan": float("nan")}, {"a": [1, 2], "nan": float("nan")}], ""),
    ([{"a": 1}, {"a": "1"}, {"a": True}], "a is 1 on process 0, 1 on process 1 and true on process 2;"),
    ([{"a": "x" * 99}, {"a": "x" * 99 + "y"}], f"a is {'x' * 60}... on process 0 and {'x' * 60}... on"),
    ([{"a": n} for n in range(6)], "a is 0 on process 0, 1 on process 1, 2 on process 2 and 3 other values;"),
    ([{c: 1 for c in "abcde"}, {c: 2 for c in "abcde"}], "c is 1 on process 0 and 2 on process 1; 2 more;"),
  ],
)
def test_facts_are_compared(facts: list[dict], expected: str) -> None:
  message = agreement.disagreements(facts)
  assert bool(message) == bool(expected) and expected in message and "\n" not in message


def test_the_first_name_that_differs_is_found_in_two_exchanges() -> None:
  names = [f"{number}.png" for number in range(1000)]
  other = [*names[:700], "cat.png", *names[701:]]
  messages, rounds = refusals([{}] * 3, [{"example of train": one} for one in (names, other, names)])
  assert rounds == 2 and len(set(messages)) == 1
  assert "example of train number 701 is 700.png on processes 0, 2 and cat.png on process 1;" in messages[0]


@pytest.mark.parametrize("kept", [0, 255, 256, 257, 999])
def test_a_list_that_ends_early_is_found(kept: int) -> None:
  names = [f"{number}.png" for number in range(1000)]
  messages, _ = refusals([{}] * 2, [{"image": names}, {"image": names[:kept]}])
  assert f"image number {kept + 1} is {kept}.png on process 0 and absent on process 1;" in messages[0]
  assert messages[0] == messages[1]


def test_equal_lists_take_one_exchange() -> None:
  names = [f"{number}.png" for number in range(1000)]
  assert refusals([{"a": 1}] * 2, [{"image": names}, {"image": list(names)}]) == (["", ""], 1)
  assert refusals([{}] * 2, [{}, {}]) == (["", ""], 1)


def test_a_list_of_one_process_alone_is_a_difference() -> None:
  messages, _ = refusals([{}] * 2, [{}, {"image": ["a.png"]}])
  assert "image number 1 is absent on process 0 and a.png on process 1;" in messages[0]


def test_fields_that_say_where_files_lie_or_how_fast_to_read_may_differ() -> None:
  free = {field.path for field in FIELDS} - shared_fields(defaults()).keys()
  assert free == {
    *("dataset.root", "dataset.classes", "model.pretrained", "train.compilation_cache"),
    *("data.workers", "data.threads", "data.cache_gb"),
  }


def test_software_is_compared() -> None:
  facts = agreement.software_facts()
  assert {"version of rc_jax", "version of jax", "version of numpy", "jax_enable_x64"} <= facts.keys()
  assert facts == agreement.software_facts() and len(facts["code of rc_jax"]) == 16


def split_of(root: pathlib.Path) -> tuple[dict, dict]:
  source = data.load("folder", str(root), "train")
  facts, listings = data.split_facts(source, "train")
  return facts | data.class_facts(source.info), listings


@pytest.fixture
def roots(tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """Equal data sets in two places."""
  places = (tmp_path / "first", tmp_path / "elsewhere" / "second")
  for place in places:
    place.parent.mkdir(exist_ok=True)
    small_datasets.folder(place)
  return places


def test_a_copy_in_another_place_agrees(roots: tuple[pathlib.Path, pathlib.Path]) -> None:
  splits = [split_of(root) for root in roots]
  assert splits[0] == splits[1]
  assert splits[0][0]["number of examples of train"] == 2 and len(splits[0][1]["example of train"]) == 2


def test_the_examples_of_merged_classes_are_compared_too(roots: tuple[pathlib.Path, pathlib.Path]) -> None:
  source = data.load("folder", str(roots[0]), "train")
  relabelled = Relabelled(source, ClassMapping(source.info, {0: 0, 1: 1}))
  for split in (relabelled, data.Joined((relabelled,))):
    assert data.split_facts(split, "train")[1] == data.split_facts(source, "train")[1]


def remove_a_pair(root: pathlib.Path) -> None:
  for file in (sorted((root / "images/train").iterdir())[1], sorted((root / "labels/train").iterdir())[1]):
    file.unlink()


def rename_a_pair(root: pathlib.Path) -> None:
  for folder in ("images/train", "labels/train"):
    file = sorted((root / folder).iterdir())[1]
    file.rename(file.with_name("z.png"))


def correct_a_label(root: pathlib.Path) -> None:
  file = sorted((root / "labels/train").iterdir())[0]
  label = np.array(Image.open(file))
  Image.fromarray(np.where(label == 1, 2, label).astype(np.uint8)).save(file)


def reorder_the_classes(root: pathlib.Path) -> None:
  lines = (root / "classes.csv").read_text().splitlines(keepends=True)
  (root / "classes.csv").write_text("".join([lines[0], lines[2], lines[1], *lines[3:]]))


CHANGES: dict[str, tuple[Callable[[pathlib.Path], None], str]] = {
  "a missing example": (remove_a_pair, "number of examples of train is 2 on process 0 and 1 on process 1"),
  "another name": (
    rename_a_pair,
    "example of train number 2 is 1.png with 1.png on process 0 and z.png with z.png",
  ),
  "a corrected label": (correct_a_label, "content of example 1 of train is "),
  "other classes": (
    reorder_the_classes,
    "class 0 is background (id 0) on process 0 and road (id 1) on process 1",
  ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_files_are_refused(change: str, roots: tuple[pathlib.Path, pathlib.Path]) -> None:
  alter, expected = CHANGES[change]
  alter(roots[1])
  splits = [split_of(root) for root in roots]
  messages, _ = refusals([facts for facts, _ in splits], [listings for _, listings in splits])
  assert messages[0] == messages[1] and expected in messages[0], messages[0]


def test_other_prepared_data_are_refused(tmp_path: pathlib.Path) -> None:
  for place in ("first", "second"):
    with zipfile.ZipFile(ROOT / "tests/data/prepared_format_1.zip") as archive:
      archive.extractall(tmp_path / place)
  splits = [split_of(tmp_path / place) for place in ("first", "second")]
  assert splits[0] == splits[1] and "index of the prepared train" in splits[0][0]
  index = tmp_path / "second/prepared.json"
  content = json.loads(index.read_text())
  content["splits"]["train"]["shards"][0]["sha256"] = "0" * 64
  index.write_text(json.dumps(content))
  assert splits[0] != split_of(tmp_path / "second")


def test_other_weights_differ(tmp_path: pathlib.Path) -> None:
  """A file of weights by its content; a checkpoint by its step and its checksums, wherever it lies."""
  for place, content, step in (("a", b"1", 4), ("b", b"1", 4), ("c", b"2", 4), ("d", b"1", 6)):
    (tmp_path / f"{place}.npz").write_bytes(content)
    folder = tmp_path / place / "checkpoints" / str(step)
    (folder / "model").mkdir(parents=True)
    (folder / "checksums.json").write_bytes(content)
  assert (
    restore.facts(tmp_path / "a.npz")
    == restore.facts(tmp_path / "b.npz")
    != restore.facts(tmp_path / "c.npz")
  )
  runs = [restore.facts(tmp_path / place) for place in "abcd"]
  assert runs[0] == runs[1] and len({json.dumps(facts) for facts in runs}) == 3


def run_both(*flags_of_each: Sequence[str], folders: Sequence[pathlib.Path] = (ROOT, ROOT)) -> list[str]:
  """Starts the command in two processes with flags of their own; returns the one line of error of each."""
  started = []
  port = processes.free_port()
  for index, (flags, folder) in enumerate(zip(flags_of_each, folders, strict=True)):
    place = [f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--process_id={index}"]
    recipe = f"--config={pathlib.Path(run_tiny.__file__).resolve()}"
    started.append(
      subprocess.Popen(
        [sys.executable, "-m", "rc_jax.main", recipe, *place, *flags],
        cwd=folder,
        env={**processes.inherited(), **processes.with_devices(1), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  ended = [process.communicate(timeout=200) for process in started]
  assert [process.returncode for process in started] == [2, 2], ended
  errors = [[line for line in errors.splitlines() if line.startswith("error: ")] for _, errors in ended]
  assert all(len(lines) == 1 for lines in errors), ended
  return [lines[0] for lines in errors]


@pytest.mark.run
def test_another_field_is_refused_at_the_start(tmp_path: pathlib.Path) -> None:
  workdir = f"--workdir={tmp_path / 'run'}"
  errors = run_both([workdir], [workdir, "--config.seed=1", "--config.data.threads=2"])
  assert (
    errors[0] == errors[1] and "do not agree: seed is 0 on process 0 and 1 on process 1; give" in errors[0]
  )
  assert not (tmp_path / "run").exists()


@pytest.mark.run
def test_another_newest_checkpoint_is_refused(tmp_path: pathlib.Path) -> None:
  """One machine does not see the folder of the run: it would start anew where the other resumes."""
  folders = (tmp_path / "host0", tmp_path / "host1")
  for folder in folders:
    folder.mkdir()
  (folders[0] / "run/checkpoints/4").mkdir(parents=True)
  errors = run_both(["--workdir=run"], ["--workdir=run"], folders=folders)
  expected = "newest checkpoint in --workdir is 4 on process 0 and absent on process 1;"
  assert errors[0] == errors[1] and expected in errors[0]


@pytest.mark.run
def test_other_data_are_refused(roots: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path) -> None:
  flags = [f"--workdir={tmp_path / 'run'}", "--config.dataset.name=folder", "--mode=predict"]
  reorder_the_classes(roots[1])
  (tmp_path / "run/checkpoints/4/model").mkdir(parents=True)
  errors = run_both(*([*flags, f"--config.dataset.root={root}"] for root in roots))
  assert errors[0] == errors[1] and CHANGES["other classes"][1] in errors[0]


ON_DEVICES = """
import os, sys, jax
from rc_jax import distributed
index = int(os.environ["RC_JAX_PROCESS_ID"])
jax.distributed.initialize(os.environ["RC_JAX_COORDINATOR"], 2, index)
assert distributed.allgather_bytes(b"") == [b"", b""]
assert distributed.allgather_bytes(b"\\0a" * index) == [b"", b"\\0a"]
distributed.check_agreement({"seed": 0}, {"image": ["a.png"] * 300})
try:
  distributed.check_agreement({"seed": index}, {"image": ["a.png"] * (300 + index)})
except ValueError as error:
  print(error)
"""


@pytest.mark.run
def test_processes_that_jax_has_connected_compare_over_the_devices() -> None:
  for printed in processes.run("-c", ON_DEVICES, processes=2):
    assert (
      "seed is 0 on process 0 and 1 on process 1; image number 301 is absent on process 0 and a.png"
      in printed
    )
