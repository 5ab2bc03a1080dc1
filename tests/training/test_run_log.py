"""The log of a run has one line for each logged step, also after a kill."""

import json
import pathlib

import numpy as np
import pytest

from rc_jax.training import run_log
from rc_jax.training.throughput import Speed


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
  logged = []
  log._events.add_scalar = lambda name, value, step: logged.append(name)
  log.write(line)
  log.close()
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
