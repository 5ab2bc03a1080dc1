"""Unreadable training examples are printed once, listed in the run's folder, counted over sessions and processes."""

import json

import numpy as np
import pytest
from PIL import Image

from rc_jax.training.skipped_examples import FILE, SkippedExamples
from tests.support import processes, run_tiny


def _listed(workdir):
  return [json.loads(line) for line in (workdir / FILE).read_text().splitlines()]


def test_each_is_printed_and_listed_once(tmp_path, capsys):
  skipped = SkippedExamples(tmp_path, 2, None)
  assert skipped.add({"next_batch": 1}) == {"next_batch": 1} and not (tmp_path / FILE).exists()
  position = {"next_batch": 2, "skipped": {"12": "b.png: is no image", "3": "a.png: is no image"}}
  assert skipped.add(position) == position == skipped.add(position)
  assert capsys.readouterr().out.splitlines() == [
    "skipped training example 3: a.png: is no image",
    "skipped training example 12: b.png: is no image",
  ]
  assert _listed(tmp_path) == [
    {"index": 3, "reason": "a.png: is no image"},
    {"index": 12, "reason": "b.png: is no image"},
  ]


def test_a_resumed_run_starts_with_those_of_its_checkpoint(tmp_path):
  first = SkippedExamples(tmp_path, 2, None)
  saved = first.add({"next_batch": 2, "skipped": {"3": "a.png"}})
  first.add({"next_batch": 9, "skipped": {"3": "a.png", "4": "b.png"}})  # after the checkpoint: killed
  second = SkippedExamples(tmp_path, 2, saved)
  assert _listed(tmp_path) == [{"index": 3, "reason": "a.png"}]
  assert second.add({"next_batch": 3, "skipped": {"5": "c.png"}})["skipped"] == {"3": "a.png", "5": "c.png"}
  with pytest.raises(ValueError, match=r"3 training images .* at most 2 \(dataset.max_skipped\)"):
    second.add({"next_batch": 4, "skipped": {"6": "d.png"}})


@pytest.mark.long
@pytest.mark.run
def test_a_run_saves_and_stops_at_a_damaged_file_or_skips_it(tmp_path, cache):
  rng = np.random.default_rng(2)
  root = tmp_path / "data"
  for split, count in (("train", 9), ("val", 2)):
    for kind, shape, most in (("images", (52, 68, 3), 256), ("labels", (52, 68), 11)):
      (root / kind / split).mkdir(parents=True)
      for number in range(count):
        picture = Image.fromarray(rng.integers(0, most, shape, np.uint8))
        picture.save(root / kind / split / f"{number}.png")
  (root / "images" / "train" / "0.png").write_bytes(b"a cut file")  # first read by step 3, with this seed
  flags = (
    *("--config.dataset.name=camvid", f"--config.dataset.root={root}", "--config.train.eval_every=0"),
    *("--config.train.steps=6", "--config.train.log_every=3", "--config.data.cache_gb=0.01"),
  )
  workdir = tmp_path / "run"

  def run(*more):
    process = run_tiny.start(workdir, *flags, *more, cache=cache)
    return process, run_tiny.finish(process)

  process, printed = run()
  assert process.returncode == 2 and "0.png: is text" in printed, printed
  assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["2"]  # no step that was made is lost
  # The run continues there. In scoring, an unreadable file is an error all the same.
  (root / "images" / "val" / "1.png").write_bytes(b"a cut file")
  process, printed = run("--config.dataset.on_error=skip", "--config.dataset.max_skipped=0.2")
  assert process.returncode == 2 and "1.png: is text" in printed, printed
  assert "resuming at step 2 of 6" in printed and printed.count("skipped training example 0: ") == 1
  (line,) = _listed(workdir)
  assert line["index"] == 0 and str(root / "images" / "train" / "0.png") in line["reason"]
  last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
  assert last["step"] == 6 and 0 <= last["data_wait"] <= 1


PROCESS = """
import sys, pathlib, jax
from rc_jax import distributed
from rc_jax.training.skipped_examples import SkippedExamples

distributed.connect()
index = jax.process_index()
skipped = SkippedExamples(pathlib.Path(sys.argv[1]), 2, None)
assert skipped.add({"next_batch": 1}) == {"next_batch": 1}
own = {"next_batch": 2}
if index:
  own["skipped"] = {"7": "\N{LATIN SMALL LETTER E WITH ACUTE}.png: no image"}
found = skipped.add(own)["skipped"]
assert found == {"7": "\N{LATIN SMALL LETTER E WITH ACUTE}.png: no image"}, found
try:
  skipped.add({"next_batch": 3, "skipped": {str(index): "x", "7": "y"}})
except ValueError as error:
  print(error, flush=True)
"""


@pytest.mark.run
def test_processes_agree(tmp_path):
  for printed in processes.run("-c", PROCESS, str(tmp_path), processes=2):
    assert "3 training images cannot be read" in printed
  assert [line["index"] for line in _listed(tmp_path)] == [7, 0, 1]
