"""Tables in any encoding that states itself, and names of files that are no UTF-8, on each system's locale."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from jax.experimental import multihost_utils

from rc_jax import data
from rc_jax.config import defaults
from rc_jax.data.pipeline import skip_unreadable
from rc_jax.data.prepared import writer
from rc_jax.evaluation import evaluator
from rc_jax.modes import inspect
from rc_jax.predictions import submission
from rc_jax.predictions.images import from_path
from tests.support import processes, small_datasets

TABLE = "id,name,color\n0,Straße,#000000\n1,汽车\n2,дом\n255,ignore\n"
NAMES = ("Straße", "汽车", "дом")
RAW_NAME = os.fsdecode(b"caf\xe9")  # Latin-1


def folder(root: pathlib.Path, table: bytes) -> str:
  small_datasets.folder(root)
  (root / "classes.csv").write_bytes(table)
  return str(root)


def with_raw_names(root: pathlib.Path) -> str:
  """Makes a folder in which the name of an image and its label is no UTF-8."""
  folder(root, TABLE.encode())
  for kind in ("images", "labels"):
    for split in ("train", "val"):
      (root / kind / split / "1.png").rename(root / kind / split / f"{RAW_NAME}.png")
  return str(root)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("form", [",", ";", "\t", "sep=;", "empty cells", "\r\n"])
def test_tables_of_spreadsheets_are_read(tmp_path: pathlib.Path, encoding: str, form: str) -> None:
  text = TABLE
  if form in (";", "\t"):
    text = text.replace(",", form)
  elif form == "sep=;":
    text = "sep=;\n" + text.replace(",", ";")
  elif form == "empty cells":
    text = "".join(f"{line},,\n" for line in text.splitlines()) + ",,,,\n\n"
  elif form == "\r\n":
    text = text.replace("\n", "\r\n")
  root = folder(tmp_path / "set", text.encode(encoding))
  info = data.info("folder", root)
  assert info.class_names == NAMES and info.label_ids.tolist() == [0, 1, 2]
  assert info.palette[0].tolist() == [0, 0, 0]
  assert len(data.load("folder", root, "train")) == 2


@pytest.mark.parametrize(
  ("content", "words"),
  [
    ("id,name\n0,road\n1,Straße\n".encode("cp1252"), ("line 3", "0xdf", "save the file as UTF-8")),
    ("id,name\n0,road\n1,汽车\n".encode("gbk"), ("line 3", "save the file as UTF-8")),
    (
      "id,name\n0,road\n1,car\n".encode("utf-16-le"),
      ("line 1", "zero bytes", "UTF-16", "save the file as UTF-8"),
    ),
    (TABLE.encode("utf-16")[:-1], ("UTF-16", "save the file as UTF-8")),
    (b"sep=;\nid;name\n0;road\n0;car\n", ("line 4", "listed twice")),
    (b'id,name\n0,"road' + b"x" * 200_000, ("line 2", "no line of a table")),
  ],
)
def test_other_tables_are_named_with_the_line(
  tmp_path: pathlib.Path, content: bytes, words: tuple[str, ...]
) -> None:
  root = folder(tmp_path / "set", content)
  with pytest.raises(ValueError) as error:
    data.load("folder", root, "train")
  message = str(error.value)
  assert message.startswith(str(tmp_path / "set/classes.csv")) and "\n" not in message
  for word in words:
    assert word in message


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_of_images_are_read_in_other_encodings(tmp_path: pathlib.Path, encoding: str) -> None:
  small_datasets.coco_stuff_10k(tmp_path)
  path = tmp_path / "imageLists/train.txt"
  path.write_text(path.read_text(), encoding=encoding)
  assert len(data.load("coco_stuff_10k", str(tmp_path), "train")) == 2


def test_inspection_names_files_of_other_bytes(tmp_path: pathlib.Path) -> None:
  root = with_raw_names(tmp_path / "set")
  config = defaults()
  config.dataset.name, config.dataset.root, config.train.crop_size = "folder", root, (33, 33)
  assert inspect.run(config, tmp_path / "run") == inspect.CLEAN
  (tmp_path / "set/labels/train" / f"{RAW_NAME}.png").write_bytes(b"no label")
  assert inspect.run(config, tmp_path / "run") == inspect.DEFECTIVE
  assert b"labels/train/caf\xe9.png: is text" in (tmp_path / "run/inspect/report.txt").read_bytes()
  (defect,) = json.loads((tmp_path / "run/inspect/train.json").read_bytes())["defects"]
  assert f"/{RAW_NAME}.png" in defect


def test_names_of_other_bytes_pass_through_every_record(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  root = with_raw_names(tmp_path / "set")
  source = data.load("folder", root, "train")
  assert isinstance(source, data.FilePairs)
  assert [source[index]["name"] for index in range(2)] == ["0", RAW_NAME]
  assert writer.encode_example(source, 1, "tiles")["name"] == b"caf\xe9"
  monkeypatch.setattr(multihost_utils, "process_allgather", lambda array: np.asarray(array)[None])
  assert evaluator._gathered_names(["0", RAW_NAME, "汽车"]) == ["0", RAW_NAME, "汽车"]
  assert sorted(
    image.name for image in from_path(tmp_path / "set/images/train", False, tmp_path / "out")
  ) == [
    "0",
    RAW_NAME,
  ]
  source.images[1].write_bytes(b"")
  report = skip_unreadable.NextReadable(source, limit=1)[1]
  batch = {name: np.asarray(report[name])[None] for name in ("skipped", "reason")}  # type: ignore[literal-required]
  _, skipped = skip_unreadable.split_report(batch)
  assert "caf\\udce9.png: is an empty file" in skipped[1]


def test_a_submission_refuses_names_that_a_zip_cannot_hold() -> None:
  with pytest.raises(ValueError, match=r"no UTF-8.*rename the image"):
    submission.expected_files(submission.find("ade20k", "ade20k"), [(RAW_NAME, (4, 5))])
  assert submission.expected_files(submission.find("ade20k", "ade20k"), [("Straße", (4, 5))])


@pytest.mark.run
def test_prepared_data_keep_the_bytes_of_names(tmp_path: pathlib.Path) -> None:
  from rc_jax.modes import prepare

  config = defaults()
  config.dataset.name, config.dataset.root = "folder", with_raw_names(tmp_path / "set")
  config.data.workers = 1
  prepared = data.load("folder", str(prepare.run(config, tmp_path / "out")), "train")
  assert [prepared[index]["name"] for index in range(2)] == ["0", RAW_NAME]
  assert prepared.info.class_names == NAMES


@pytest.mark.run
def test_a_system_that_knows_ascii_alone_inspects_all_names(tmp_path: pathlib.Path) -> None:
  root = with_raw_names(tmp_path / "set")
  for kind in ("images", "labels"):
    (tmp_path / "set" / kind / "train/0.png").rename(tmp_path / "set" / kind / "train/Straße.png")
  (tmp_path / "set/images/train/Straße.png").write_bytes(b"no image")
  environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
  flags = (f"--config.dataset.root={root}", "--config.dataset.name=folder", f"--workdir={tmp_path / 'run'}")
  finished = subprocess.run(
    [sys.executable, "-m", "rc_jax.main", "--config=configs/demo.py", "--mode=inspect", *flags],
    cwd=processes.ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert finished.returncode == inspect.DEFECTIVE, finished.stderr
  assert finished.stdout.isascii() and finished.stderr == ""
  report = (tmp_path / "run/inspect/report.txt").read_bytes()
  assert "images/train/Straße.png: is text".encode() in report and NAMES[1].encode() in report
