"""The log of a run has one line for each logged step, also after a kill."""

import json
import pathlib
import struct
import time

import numpy as np
import pytest
import tensorboardX
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from rc_jax import files
from rc_jax.training import run_log
from rc_jax.training.event_log import EventLog
from rc_jax.training.throughput import Speed
from tests.support import disks


def events(path: pathlib.Path) -> list[event_pb2.Event]:
  """The events of a TensorBoard file; fails at a record that is cut or has another checksum."""
  content, found = path.read_bytes(), []
  while content:
    (length,) = struct.unpack("<Q", content[:8])
    crcs = struct.unpack("<I", content[8:12]) + struct.unpack("<I", content[12 + length : 16 + length])
    assert crcs == (masked_crc32c(content[:8]), masked_crc32c(content[12 : 12 + length]))
    found.append(event_pb2.Event.FromString(content[12 : 12 + length]))
    content = content[16 + length :]
  return found


def test_a_resumed_log_drops_what_came_after_the_checkpoint(tmp_path: pathlib.Path) -> None:
  log = run_log.RunLog(tmp_path, resumed_at=0)
  for step in range(1, 8):
    log.write({"step": step, "loss": 1 / step, "bank_fill": {"road": 0.5}})
  log.write({"step": 6, "split": "val", "miou": 0.5})
  log.close()

  log = run_log.RunLog(tmp_path, resumed_at=5)
  assert [line["step"] for line in run_log.read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
  log.write({"step": 6, "loss": 0.25})
  log.close()
  lines = run_log.read_metrics(tmp_path)
  assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
  assert lines[2] == {"step": 3, "loss": 1 / 3, "bank_fill": {"road": 0.5}}
  assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_line_cut_by_a_kill_is_left_out(tmp_path: pathlib.Path) -> None:
  (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
  assert run_log.read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]
  log = run_log.RunLog(tmp_path, resumed_at=1)
  log.write({"step": 2, "loss": 1.5})
  log.close()
  text = (tmp_path / "metrics.jsonl").read_text()
  assert [json.loads(line)["step"] for line in text.splitlines()] == [1, 2]


def test_a_line_is_valid_json_where_a_class_has_no_value(tmp_path: pathlib.Path) -> None:
  metrics = {
    "loss": np.float32(0.5),
    "gradient_norm": np.float32(np.inf),
    "similarity": np.array([0.25, np.nan], np.float32),
  }
  line = run_log.step_line(3, metrics, ("road", "sky"), Speed(images_per_second=2.0, data_wait=0.0))
  assert line == {
    "step": 3,
    "loss": 0.5,
    "gradient_norm": None,
    "similarity": {"road": 0.25, "sky": None},
    "images_per_second": 2.0,
    "data_wait": 0.0,
  }
  log = run_log.RunLog(tmp_path, resumed_at=0)
  log.write(line)
  log.close()
  (path,) = (tmp_path / "tensorboard").iterdir()
  logged = [value.tag for event in events(path) for value in event.summary.value]
  assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail) == line
  assert logged == ["loss", "similarity/road", "images_per_second", "data_wait"]


def test_scores_of_another_protocol_are_left_out_and_named(tmp_path: pathlib.Path) -> None:
  lines = [
    {"step": 2, "split": "val", "miou": 0.5},  # of an earlier version
    {"step": 4, "split": "val", "miou": 0.9, "protocol": "60 images, scales 1 2"},
    {"step": 4, "split": "val", "miou": 0.6, "protocol": "60 images, scales 1"},
    {"step": 4, "split": "test", "miou": 0.7, "protocol": "60 images, scales 1"},
  ]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  now = ("val", "60 images, scales 1")
  assert run_log.read_scores(tmp_path, *now) == {2: 0.5, 4: 0.6}
  others, unrecorded = run_log.notes_on_protocols(tmp_path, *now)
  assert "1 earlier score on val (60 images, scales 1 2)" in others and "best" in others
  assert "1 earlier score does not record" in unrecorded and "unchecked" in unrecorded
  assert run_log.notes_on_protocols(tmp_path, "test", "60 images, scales 1") == []


def test_lines_that_do_not_fit_are_written_when_there_is_space(tmp_path: pathlib.Path, capsys) -> None:
  log = run_log.RunLog(tmp_path, resumed_at=0)
  with disks.file_size_limit(300):
    for step in range(1, 30):
      log.write({"step": step, "loss": 1 / step})
    with pytest.raises(OSError, match=r"metrics\.jsonl: cannot be written"):
      log.flush()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert 0 < len(text) <= 300 and text.endswith("\n")
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert 0 < path.stat().st_size <= 300 and events(path)
  log.write({"step": 30, "loss": 1 / 30})
  log.close()
  assert [line["step"] for line in run_log.read_metrics(tmp_path)] == list(range(1, 31))
  steps = [event.step for event in events(path) if event.summary.value]
  assert steps == list(range(1, 31))
  warnings = sorted(capsys.readouterr().out.splitlines(), key=lambda line: "tensorboard" in line)
  assert [line.partition(": ")[0] for line in warnings] == ["WARNING", "WARNING"]
  assert "metrics.jsonl: cannot be written (File too large); training goes on" in warnings[0]
  assert "events.out.tfevents" in warnings[1] and "training goes on" in warnings[1]


def test_a_tensorboard_folder_that_cannot_be_written_ends_no_training(tmp_path: pathlib.Path, capsys) -> None:
  (tmp_path / "tensorboard").touch()
  log = run_log.RunLog(tmp_path, resumed_at=0)
  for step in range(1, 100):
    log.write({"step": step, "loss": 1 / step})
  log.close()
  assert len(run_log.read_metrics(tmp_path)) == 99
  assert capsys.readouterr().out.count("WARNING") == 1


def test_events_are_those_of_tensorboardx(tmp_path: pathlib.Path) -> None:
  scalars = {"loss": 0.25, "bank_fill/a class (of two)": 1.0}
  with tensorboardX.SummaryWriter(str(tmp_path / "theirs"), purge_step=7) as theirs:
    for name, value in scalars.items():
      theirs.add_scalar(name, value, 7)
  ours = EventLog(tmp_path / "ours", first_step=7)
  ours.write(7, scalars)
  contents = []
  for folder in ("ours", "theirs"):
    (path,) = (tmp_path / folder).iterdir()
    found = events(path)
    contents.append(
      (
        {event.file_version for event in found if event.file_version},
        [(event.step, event.session_log.status) for event in found if event.HasField("session_log")],
        [(event.step, value.tag, value.simple_value) for event in found for value in event.summary.value],
      )
    )
  assert contents[0] == contents[1] and contents[0][1] == [(7, event_pb2.SessionLog.START)]


def test_events_of_a_resumed_run_come_last_after_the_clock_was_set_back(
  tmp_path: pathlib.Path, monkeypatch
) -> None:
  names = []
  for now in (1_800_000_000.0, 5.0, 5.0, 1_900_000_000.0):
    monkeypatch.setattr(time, "time", lambda now=now: now)
    log = EventLog(tmp_path, first_step=1)
    log.write(1, {"loss": 1.0})
    (name,) = {path.name for path in tmp_path.iterdir()} - set(names)
    names.append(name)
  assert names == sorted(names)


def test_scalars_wait_for_a_folder_that_cannot_be_made(tmp_path: pathlib.Path) -> None:
  folder = tmp_path / "tensorboard"
  folder.touch()  # a file in its place
  log = EventLog(folder, first_step=1)
  with pytest.raises(files.WriteError, match="tensorboard: cannot be created"):
    log.write(1, {"loss": 2.0})
  folder.unlink()
  log.write(2, {"loss": 1.0})
  (path,) = folder.iterdir()
  assert [event.step for event in events(path) if event.summary.value] == [1, 2]
