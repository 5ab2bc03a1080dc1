"""What a run does differently on GPUs, tried on the CPU: layouts of kernels, and programs without norms."""

import json
import pathlib

import jax
import numpy as np
import pytest

from rc_jax import models, sharding
from rc_jax.config import Config, validate
from rc_jax.modes import train
from rc_jax.train_state import TrainState
from rc_jax.training import initial_state
from rc_jax.training.finite import FiniteCheck, NonFiniteLoss
from rc_jax.training.preemption import PreemptionWatch
from rc_jax.training.step_programs import StepPrograms
from rc_jax.weights.checkpoint import Checkpoints
from tests.support import run_tiny


@pytest.fixture
def as_on_gpus(monkeypatch) -> None:
  monkeypatch.setattr(sharding, "on_gpus", lambda mesh: True)


def tiny(log_every: int = 4) -> Config:
  config = run_tiny.get_config()
  config.train.steps, config.train.log_every, config.train.checkpoint_every = 6, log_every, 3
  config.train.eval_every = 0
  validate(config)
  return config


def metrics(workdir: pathlib.Path) -> list[dict]:
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [
    {k: v for k, v in line.items() if not k.startswith(("images_per", "data_wait", "time"))} for line in lines
  ]


def stopped_after(monkeypatch, step: int) -> None:
  def stop_requested(watch: PreemptionWatch, at: int) -> bool:
    watch.exit_status = 143 if at == step else 0
    return at == step

  monkeypatch.setattr(PreemptionWatch, "stop_requested", stop_requested)


@pytest.mark.long
def test_a_run_trains_saves_resumes_and_scores(as_on_gpus, monkeypatch, tmp_path, capsys) -> None:
  config = tiny()
  assert train.run(config, tmp_path / "undisturbed") == 0
  printed = capsys.readouterr().out
  assert printed.count("compiled the train step") == 2
  assert "compiled the train step without the norms of gradient and parameters" in printed
  with monkeypatch.context() as patch:
    stopped_after(patch, 2)  # a step of the program without norms
    assert train.run(config, tmp_path / "stopped") == 143
  assert train.run(config, tmp_path / "stopped") == 0
  assert metrics(tmp_path / "stopped") == metrics(tmp_path / "undisturbed")
  logged = [line for line in metrics(tmp_path / "undisturbed") if "loss" in line]
  assert [line["step"] for line in logged] == [1, 4]
  assert all(line["gradient_norm"] > 0 and line["parameter_norm"] > 0 for line in logged)


@pytest.mark.slow
def test_a_run_equals_that_of_other_platforms(monkeypatch, tmp_path) -> None:
  assert train.run(tiny(), tmp_path / "cpu") == 0
  monkeypatch.setattr(sharding, "on_gpus", lambda mesh: True)
  assert train.run(tiny(), tmp_path / "gpu") == 0
  for ours, theirs in zip(metrics(tmp_path / "gpu"), metrics(tmp_path / "cpu"), strict=True):
    assert ours.keys() == theirs.keys()
    for name in ("loss", "gradient_norm", "parameter_norm", "miou"):
      if name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-3)


@pytest.mark.long
def test_kernels_keep_their_layout_and_values(as_on_gpus) -> None:
  config, mesh = tiny(), sharding.global_mesh()
  network = models.build(config.model, 11)
  state, update_rule = initial_state.initial_state(config, network, 20, mesh, fresh=True)
  before = jax.tree.map(np.asarray, (state.params, state.opt_state))
  placed = initial_state.in_training_formats(state, mesh)
  jax.tree.map(np.testing.assert_array_equal, (placed.params, placed.opt_state), before)
  batch = {
    "image": np.zeros((4, 49, 65, 3), np.uint8),
    "label": np.zeros((4, 49, 65), np.uint8),
  }
  step = initial_state.jitted_step(config, network, update_rule, placed, mesh)
  assert layouts(placed) == {(3, 0, 1, 2)}
  compiled = step.lower(placed, sharding.put_batch(batch, mesh)).compile()
  after, _ = compiled(placed, sharding.put_batch(batch, mesh))
  assert layouts(after) == {(3, 0, 1, 2)}


def layouts(state: TrainState) -> set[tuple[int, ...]]:
  """The orders of axes in memory of a state's kernels."""
  leaves = [leaf for leaf in jax.tree.leaves((state.params, state.opt_state)) if leaf.ndim == 4]
  assert len(leaves) > 20
  return {leaf.format.layout.major_to_minor for leaf in leaves}


def test_which_program_a_step_runs_depends_on_its_number_alone() -> None:
  compiled = []

  class Jitted:
    def __init__(self, norms: bool):
      self.norms = norms

    def lower(self, state, batch):
      return self

    def compile(self):
      compiled.append(self.norms)
      return lambda state, batch: (state + 1, {"norms": self.norms})

  programs = StepPrograms(Jitted, lambda step: step % 3 == 1)
  assert [programs.compile(step, 0, {}) for step in (2, 3, 4, 5)] == [True, False, True, False]
  assert compiled == [False, True]
  assert [programs(step, 0, {})[1]["norms"] for step in (1, 2, 3, 4)] == [True, False, False, True]


def test_parameters_that_are_not_finite_are_never_saved(tmp_path) -> None:
  check = FiniteCheck(Checkpoints(tmp_path, keep=1))
  check.add(1, {"loss": np.float32(1)})
  check.check({"kernel": np.ones(3, np.float32)})
  with pytest.raises(NonFiniteLoss, match=r"step 1: .*parameter_norm inf"):
    check.check({"kernel": np.asarray([1, np.inf], np.float32)})
