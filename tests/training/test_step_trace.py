"""Traces of steps: which steps, where they lie, and what ends them."""

import gzip
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from rc_jax.training import step_trace
from rc_jax.training.step_programs import StepPrograms
from rc_jax.training.step_trace import StepTrace, traced_steps


@pytest.fixture(scope="module")
def programs() -> StepPrograms:
  """A program of a step as small as can be."""
  jitted = jax.jit(lambda state, batch: (state @ state + batch, {"loss": state.sum()}))
  found = StepPrograms(lambda norms: jitted, lambda step: True)
  found.compile(1, jnp.ones((8, 8)), jnp.ones((8, 8)))
  return found


def train(trace: StepTrace, programs: StepPrograms, first: int, last: int) -> list[int]:
  """Runs steps as training does; returns those after which the trace wrote."""
  state = batch = jnp.zeros((8, 8))
  wrote = []
  with trace:
    for step in range(first, last + 1):
      trace.start(step, state)
      state, metrics = programs(step, state, batch)
      if trace.stop(step, metrics):
        wrote.append(step)
  return wrote


def steps_of(folder: pathlib.Path) -> list[str]:
  """The numbers of the training steps in the only trace of a folder."""
  (path,) = folder.glob("plugins/profile/*/perfetto_trace.json.gz")
  assert len(list(path.parent.glob("*.xplane.pb"))) == 1
  events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
  return sorted({event["args"]["step_num"] for event in events if event.get("name") == "train"}, key=int)


def test_a_trace_holds_its_steps_and_says_how_to_open_it(programs, tmp_path, capsys) -> None:
  assert train(StepTrace(traced_steps("3:4", 6), tmp_path, 0), programs, 1, 6) == [4]
  assert steps_of(tmp_path / "profile") == ["3", "4"]
  (line,) = capsys.readouterr().out.splitlines()
  folder = tmp_path / "profile"
  assert line == (
    f"trace of steps 3 to 4: {folder}; to open it: pip install xprof, then xprof --port 8791 {folder}; or load its "
    "perfetto_trace.json.gz at https://ui.perfetto.dev"
  )


def test_a_run_that_stops_within_its_trace_writes_it(programs, tmp_path, capsys) -> None:
  assert train(StepTrace(traced_steps("2:9", 9), tmp_path, 0), programs, 1, 3) == []
  assert steps_of(tmp_path / "profile") == ["2", "3"] and "trace of steps 2 to 3:" in capsys.readouterr().out


def test_a_resumed_run_traces_the_steps_that_are_left(programs, tmp_path, capsys) -> None:
  assert train(StepTrace(traced_steps("2:4", 9), tmp_path, 3), programs, 4, 5) == [4]
  assert steps_of(tmp_path / "profile") == ["4"] and "trace of steps 4 to 4:" in capsys.readouterr().out
  assert train(StepTrace(traced_steps("2:4", 9), tmp_path, 7), programs, 8, 9) == []
  assert capsys.readouterr().out == "no trace: --profile=2:4, and the run continues at step 8\n"


def test_each_of_several_processes_has_a_folder(programs, tmp_path, monkeypatch) -> None:
  monkeypatch.setattr(step_trace.jax, "process_count", lambda: 2)
  monkeypatch.setattr(step_trace.jax, "process_index", lambda: 1)
  train(StepTrace(traced_steps("1", 1), tmp_path, 0), programs, 1, 1)
  assert steps_of(tmp_path / "profile" / "process1") == ["1"]


def test_a_trace_that_cannot_be_written_ends_no_training(programs, tmp_path, capsys) -> None:
  (tmp_path / "profile").touch()
  assert train(StepTrace(traced_steps("1:2", 3), tmp_path, 0), programs, 1, 3) == []
  (line,) = capsys.readouterr().out.splitlines()
  assert (
    line.startswith(f"WARNING: --profile: {tmp_path / 'profile'}: no trace (") and "training goes on" in line
  )


def test_no_steps_no_trace(programs, tmp_path, capsys) -> None:
  assert train(StepTrace(traced_steps("", 3), tmp_path, 0), programs, 1, 3) == []
  assert not list(tmp_path.iterdir()) and not capsys.readouterr().out


@pytest.mark.parametrize("text", ["ten", "1:2:3", "-1:3", "1.5", "10:", ":10", "1" * 30])
def test_what_names_no_steps_is_one_line(text: str) -> None:
  with pytest.raises(ValueError, match=f"--profile={text}: expected the first and the last step to trace"):
    traced_steps(text, 100)


@pytest.mark.parametrize("text", ["0:3", "15:10", "90:101", "101"])
def test_steps_that_the_run_has_not_are_one_line(text: str) -> None:
  with pytest.raises(ValueError, match=f"--profile={text}: expected first and last step .* of 1 to 100"):
    traced_steps(text, 100)
