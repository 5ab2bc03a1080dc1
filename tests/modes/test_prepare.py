"""``--mode=prepare``: after a kill at any moment it resumes to the same bytes; partial files never count."""

import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from rc_jax import data
from rc_jax.config import defaults
from rc_jax.data.prepared import reader, writer
from rc_jax.modes import prepare
from tests.data.test_prepared import write_raw
from tests.support import disks
from tests.support.paths import ROOT


def settings(raw: pathlib.Path, workers: int = 1):
  config = defaults()
  config.dataset.name, config.dataset.root, config.data.workers = "folder", str(raw), workers
  return config


def digests(folder: pathlib.Path) -> dict[str, str]:
  return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture
def raw(tmp_path, monkeypatch):
  monkeypatch.setattr(writer, "SHARD_BYTES", (4_000, 4_000))
  return write_raw(tmp_path / "raw", {"train": 12, "val": 3, "test": 2})


@pytest.mark.long
@pytest.mark.run
def test_processes_change_no_byte(raw, tmp_path, capsys):
  for workers in (1, 3):
    prepare.run(settings(raw, workers), tmp_path / str(workers), "tiles")
  assert digests(tmp_path / "1") == digests(tmp_path / "3")
  assert len(digests(tmp_path / "1")) > 6
  assert "17 images (test 2, train 12, val 3)" in capsys.readouterr().out
  # The same command checks a complete folder.
  prepare.run(settings(raw), tmp_path / "1", "tiles")
  assert "every shard matches its checksum" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.run
def test_a_killed_and_resumed_run_ends_with_the_same_bytes(raw, tmp_path):
  prepare.run(settings(raw), tmp_path / "complete", "original")
  output = tmp_path / "killed"
  # Slow enough to be killed within a shard.
  code = f"""
import pathlib
import time
from rc_jax.data.prepared import writer
from rc_jax.modes import prepare
from tests.modes.test_prepare import settings
writer.SHARD_BYTES = (4_000, 4_000)
encode = writer.encode_example
writer.encode_example = lambda *given: (time.sleep(0.1), encode(*given))[1]
print("ready", flush=True)
prepare.run(settings({str(raw)!r}, 1), pathlib.Path({str(output)!r}), "original")
"""
  moments = random.Random(0)
  for _ in range(3):
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    before = len(list(output.glob("folder-*"))) if output.exists() else 0
    deadline = time.monotonic() + 30
    while len(list(output.glob("folder-*"))) <= before and time.monotonic() < deadline:
      time.sleep(0.02)
    time.sleep(moments.uniform(0, 0.2))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()  # also closes the pipe
    assert not reader.is_prepared(str(output))
  kept = {path.name: path.stat().st_mtime_ns for path in output.glob("folder-*")}
  assert len(kept) >= 3
  prepare.run(settings(raw), output, "original")
  assert digests(output) == digests(tmp_path / "complete")
  assert kept == {name: (output / name).stat().st_mtime_ns for name in kept}


@pytest.mark.run
def test_a_damaged_raw_file_is_named_and_its_repair_keeps_finished_shards(raw, tmp_path):
  prepare.run(settings(raw), tmp_path / "complete", "tiles")
  file = raw / "images" / "train" / "08.png"
  content = file.read_bytes()
  file.write_bytes(content[: len(content) // 2])
  for workers in (2, 1):
    with pytest.raises(ValueError, match=r"08\.png: cannot be decoded") as error:
      prepare.run(settings(raw, workers), tmp_path / "packed", "tiles")
    assert "\n" not in str(error.value) and not reader.is_prepared(str(tmp_path / "packed"))
  assert list((tmp_path / "packed").glob("folder-*"))
  file.write_bytes(content)
  prepare.run(settings(raw), tmp_path / "packed", "tiles")
  assert digests(tmp_path / "packed") == digests(tmp_path / "complete")


def test_a_damaged_shard_is_found_and_written_again(raw, tmp_path):
  output = prepare.run(settings(raw), tmp_path / "packed", "tiles")
  before = digests(output)
  shard = next(output.glob("folder-val*"))
  content = bytearray(shard.read_bytes())
  content[70] ^= 4
  shard.write_bytes(content)
  with pytest.raises(ValueError, match=f"{shard.name}.*checksum"):
    prepare.run(settings(output), None, "tiles")
  prepare.run(settings(raw), output, "tiles")
  assert digests(output) == before


def replace_keeping_its_time(path: pathlib.Path, change) -> None:
  """Changes an image file and gives it its old time, as tools that synchronise folders do."""
  status = path.stat()
  Image.fromarray(change(np.asarray(Image.open(path)))).save(path)
  os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def assert_as_prepared_anew(raw: pathlib.Path, output: pathlib.Path, tmp_path: pathlib.Path) -> None:
  anew = tmp_path / "anew"
  prepare.run(settings(raw), anew, "tiles")
  assert digests(output) == digests(anew)


@pytest.mark.parametrize("kind", ["labels", "images"])
def test_shards_of_changed_raw_files_are_written_again(raw, tmp_path, capsys, kind):
  output = prepare.run(settings(raw), tmp_path / "packed", "tiles")
  kept = {path.name: path.stat().st_mtime_ns for path in output.glob("folder-*")}
  replace_keeping_its_time(raw / kind / "train" / "08.png", lambda pixels: pixels[::-1])
  prepare.run(settings(raw), output, "tiles")
  printed = capsys.readouterr().out
  assert "1 of " in printed and "have other raw files now: written again (folder-train" in printed
  rewritten = [name for name, time in kept.items() if (output / name).stat().st_mtime_ns != time]
  assert len(rewritten) == 1 and rewritten[0].startswith("folder-train")
  assert_as_prepared_anew(raw, output, tmp_path)
  prepare.run(settings(raw), output, "tiles")
  assert "written again" not in capsys.readouterr().out.rpartition("17 images")[2]


def test_a_copy_of_the_raw_files_is_not_another_data_set(raw, tmp_path, capsys):
  output = prepare.run(settings(raw), tmp_path / "packed", "tiles")
  shutil.copytree(raw, tmp_path / "copy", copy_function=shutil.copy)  # with other times
  prepare.run(settings(tmp_path / "copy"), output, "tiles")
  assert "written again" not in capsys.readouterr().out


@pytest.mark.parametrize(
  "change, said, rewritten",
  [
    (lambda lines: [lines[0], *lines[:0:-1]], "class 0", True),
    (lambda lines: [line.replace("#804080", "#00ff00") for line in lines], "#00ff00, there #804080", False),
  ],
)
def test_changed_classes_are_said_and_taken_over(raw, tmp_path, capsys, change, said, rewritten):
  output = prepare.run(settings(raw), tmp_path / "packed", "tiles")
  table = raw / "classes.csv"
  table.write_text("\n".join(change(table.read_text().splitlines())) + "\n")
  prepare.run(settings(raw), output, "tiles")
  printed = capsys.readouterr().out
  assert said in printed and ("written again" in printed) == rewritten
  assert_as_prepared_anew(raw, output, tmp_path)
  assert data.info("folder", str(output)).table() == data.info("folder", str(raw)).table()


def test_a_complete_folder_of_another_request_is_refused(raw, tmp_path):
  output = prepare.run(settings(raw), tmp_path / "packed", "tiles", ("train", "val"))
  before = digests(output)
  with pytest.raises(ValueError, match="encoding tiles, here original"):
    prepare.run(settings(raw), output, "original")
  with pytest.raises(ValueError, match="from the splits train, val, without test"):
    prepare.run(settings(raw), output, "tiles")
  prepare.run(settings(raw), output, "tiles", ("val",))
  replace_keeping_its_time(raw / "labels" / "val" / "00.png", lambda pixels: pixels[::-1])
  with pytest.raises(ValueError, match="--splits=train,val"):
    prepare.run(settings(raw), output, "tiles", ("val",))
  for kind in ("images", "labels"):
    for path in sorted((raw / kind / "train").iterdir())[2:]:
      path.unlink()
  with pytest.raises(ValueError, match=r"from 12 images of train.* holds 2 for"):
    prepare.run(settings(raw), output, "tiles", ("train", "val"))
  assert digests(output) == before


def test_a_folder_of_an_earlier_version_says_what_cannot_be_checked(raw, tmp_path, capsys):
  output = prepare.run(settings(raw), tmp_path / "packed", "tiles")
  index = json.loads((output / reader.INDEX_FILE).read_text())
  for split in index["splits"].values():
    for shard in split["shards"]:
      del shard[writer.RAW_SHA256]
  (output / reader.INDEX_FILE).write_text(json.dumps(index))
  replace_keeping_its_time(raw / "labels" / "val" / "00.png", lambda pixels: pixels[::-1])
  prepare.run(settings(raw), output, "tiles")
  assert "whether they have changed since cannot be checked" in capsys.readouterr().out


def test_a_raw_file_that_changes_while_it_is_packed_is_refused(raw, tmp_path, monkeypatch):
  write = writer.write

  def write_and_change(*arguments):
    write(*arguments)
    file = raw / "labels" / "train" / "08.png"
    os.utime(file, ns=(1, 1))

  monkeypatch.setattr(writer, "write", write_and_change)
  with pytest.raises(
    ValueError, match="changed while they were packed: run the same command again"
  ) as refusal:
    prepare.run(settings(raw), tmp_path / "packed", "tiles")
  assert "\n" not in str(refusal.value) and not reader.is_prepared(str(tmp_path / "packed"))
  monkeypatch.undo()


def test_folders_with_other_files_are_refused_and_unchanged(raw, tmp_path, monkeypatch):
  photos = tmp_path / "photos"
  photos.mkdir()
  (photos / "me.jpg").write_text("not yours")
  with pytest.raises(ValueError, match=r"photos: holds me\.jpg, expected an empty folder"):
    prepare.run(settings(raw), photos, "tiles")
  assert (photos / "me.jpg").read_text() == "not yours"

  shards = writer.plan({"val": packing_source(raw, "val")}, "tiles")
  begun = tmp_path / "begun"
  with writer.locked(begun):
    writer.begin(shards, begun)
    with pytest.raises(ValueError, match=r"process .* writes to this folder; wait"), writer.locked(begun):
      pass
  with pytest.raises(ValueError, match="encoding tiles, here original"):
    prepare.run(settings(raw), begun, "original")

  class Full:
    free = 10

  monkeypatch.setattr(writer.shutil, "disk_usage", lambda path: Full)
  with pytest.raises(OSError, match=r"GB are needed, but 0\.00 GB are free"):
    prepare.run(settings(raw), tmp_path / "small", "tiles")


@pytest.mark.parametrize("size", [0, 1_000, 3_000])
def test_a_disk_that_fills_loses_no_finished_shard(raw, tmp_path, size):
  """The same command continues, once there is space, to the same bytes."""
  prepare.run(settings(raw), tmp_path / "complete", "original")
  output = tmp_path / "filled"
  with (
    disks.file_size_limit(size),
    pytest.raises(OSError, match=r"cannot be written .*File too large") as error,
  ):
    prepare.run(settings(raw), output, "original")
  assert str(output) in str(error.value) and "\n" not in str(error.value)
  assert not [path for path in output.iterdir() if ".part" in path.name]
  prepare.run(settings(raw), output, "original")
  assert digests(output) == digests(tmp_path / "complete")


def test_impossible_requests_are_refused(raw, tmp_path):
  config = defaults()
  config.dataset.name = "synthetic"
  with pytest.raises(ValueError, match="synthetic"):
    prepare.run(config, tmp_path / "packed", "tiles")
  with pytest.raises(FileNotFoundError, match="nowhere"):
    prepare.run(settings(raw), tmp_path / "packed", "tiles", ("train", "nowhere"))
  (raw / "images" / "train").rename(raw / "images" / "my-train")
  with pytest.raises(ValueError, match="my-train"):
    prepare.run(settings(raw), tmp_path / "packed", "tiles", ("my-train",))


@pytest.mark.parametrize("names", [("train", "val"), ("first", "second")])
def test_folds_are_not_packed_into_one_split(names, tmp_path):
  raw = write_raw(tmp_path / "folds", {})
  for fold in ("a", "b"):
    for kind in ("images", "labels"):
      (raw / kind / fold).mkdir(parents=True)
    write_raw(tmp_path / fold, {name: 2 for name in names})
    for name in names:
      for kind in ("images", "labels"):
        (tmp_path / fold / kind / name).rename(raw / kind / fold / name)
  config = settings(raw)
  config.dataset.train_split, config.eval.split = (f"a/{name}" for name in names)
  with pytest.raises(ValueError, match=rf"split 'a/{names[0]}': .* for example to a_{names[0]}"):
    prepare.run(config, tmp_path / "packed", "tiles")
  assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize(
  ("root", "output"),
  [
    (".", "{here}_prepared"),
    ("..", "{above}_prepared"),
    ("", "{here}_prepared"),
    ("raw/", "raw_prepared"),
    ("raw/.", "raw_prepared"),
    ("~/raw", "{home}/raw_prepared"),
    ("~", "{home}_prepared"),
  ],
)
def test_the_default_output_lies_beside_the_data(root, output, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.chdir(tmp_path)
  expected = output.format(here=tmp_path, above=tmp_path.parent, home=tmp_path / "home")
  assert prepare.default_output(root) == pathlib.Path(expected)


def test_the_top_of_a_disk_needs_an_output():
  with pytest.raises(ValueError, match="--output="):
    prepare.default_output("/")


def packing_source(raw: pathlib.Path, split: str):
  return data.DATASETS["folder"].load(str(raw), split)
