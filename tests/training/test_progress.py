"""Texts of a training run: its plan, its progress at any width, the time left, and the commands to try next."""

import pathlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rc_jax.command import Command
from rc_jax.config import Config, load_recipe
from rc_jax.training import plan
from rc_jax.training.next_commands import baseline, next_commands
from rc_jax.training.progress import TrainingProgress
from rc_jax.training.throughput import Speed
from tests.test_console import Terminal, clock, terminal  # noqa: F401 (fixtures)

METRICS: Any = {
  "loss": np.float32(2.345),
  "loss_pixel": np.float32(1.6),
  "loss_aux": np.float32(1.5),
  "loss_contrast": np.float32(1.45),
  "learning_rate": np.float32(0.0123),
}
TERMS = {"pixel": 1.0, "aux": 0.4, "contrast": 0.1}


def demo(**train: int) -> Config:
  config = load_recipe("demo")
  config.train.update({"steps": 1000, "eval_every": 250, "batch_size": 8, **train})
  return config


@pytest.mark.parametrize("steps", [1000, 123_000])
@pytest.mark.parametrize("columns", [20, 40, 60, 80, 100, 120, 200])
def test_the_line_fits_every_terminal(
  columns: int,
  steps: int,
  terminal: Terminal,  # noqa: F811
  clock: list[float],  # noqa: F811
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  monkeypatch.setenv("COLUMNS", str(columns))
  shown = TrainingProgress(demo(steps=steps), TERMS, first=0, last_miou=None)
  shown.start()
  clock[0] += 1000
  shown.show(steps // 2, METRICS, Speed(24.13, 0.12))
  (*_, line) = terminal.screen()
  if line == "":  # the estimate has cleared it
    clock[0] += 1
    shown.count_step(steps // 2)
    (*_, line) = terminal.screen()
  assert 0 < len(line) < columns
  assert f"{steps // 2}/{steps}" in line and ("50 %" in line or columns < 40)
  if columns >= 40:
    assert " left" in line
  if columns >= 80:
    assert "24.1 images/s" in line and "loss 2.3" in line
    assert "data wait 12%" in line or "12% of the time waiting for data" in line
  if columns >= 200:
    assert "#####....." in line and "pixel 1.600 + 0.4 x aux 1.500 + 0.1 x contrast 1.450" in line


def test_80_columns_show_the_terms_of_the_loss(
  terminal: Terminal,  # noqa: F811
  clock: list[float],  # noqa: F811
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  monkeypatch.setenv("COLUMNS", "80")
  shown = TrainingProgress(demo(), TERMS, first=0, last_miou=None)
  clock[0] += 1
  shown.show(1, METRICS, Speed(24.13, 0.0))
  assert terminal.screen() == [
    "step 1/1000 0 %  24.1 images/s  16:39 min left  loss 2.35 = 1.60 + 0.60 + 0.15"
  ]


def test_a_log_file_has_the_first_step_the_estimate_and_each_scoring(
  clock: list[float],  # noqa: F811
  capsys: pytest.CaptureFixture[str],
) -> None:
  """A step takes 0.1 s, a scoring 3 s."""
  shown = TrainingProgress(demo(), TERMS, first=0, last_miou=None)
  clock[0] += 20  # a program was compiled
  shown.start()
  for step in range(1, 1001):
    clock[0] += 0.1
    shown.count_step(step)
    if step % 10 == 0 or step == 1:
      shown.show(step, METRICS, Speed(80, 0.0))
    if step % 250 == 0:
      shown.flush()
      clock[0] += 3
      shown.scored(step, step / 2000, "over 3 of 4 classes", 3.0)
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == (
    "step 1/1000 (0 %)  loss 2.345 = pixel 1.600 + 0.4 x aux 1.500 + 0.1 x contrast 1.450  lr 1.23e-02  "
    "80 images/s  1:40 min left"
  )
  assert lines[1].startswith("step 10/1000 (1 %)")
  assert lines[2] == "the 1,000 steps take about 1:40 min; 4 scorings come on top"
  scored = [line for line in lines if "mIoU" in line]
  assert scored[0] == "step 250/1000: mIoU 12.50 over 3 of 4 classes on val, after 48 s, about 1:24 min left"
  assert (
    scored[1]
    == "step 500/1000: mIoU 25.00 over 3 of 4 classes on val (+12.50), after 1:16 min, about 56 s left"
  )
  assert scored[-1] == "step 1000/1000: mIoU 50.00 over 3 of 4 classes on val (+12.50), after 2:12 min"
  for line in scored:  # the step that is scored comes before it
    assert lines[lines.index(line) - 1].startswith(line.partition(":")[0])
  assert len(lines) < 25


def test_a_resumed_run_counts_its_own_steps(
  clock: list[float],  # noqa: F811
  capsys: pytest.CaptureFixture[str],
) -> None:
  shown = TrainingProgress(demo(), TERMS, first=500, last_miou=0.25)
  shown.start()
  for step in range(501, 521):
    clock[0] += 1
    shown.show(step, METRICS, Speed(8, 0.0))
  shown.scored(750, 0.2, "over 4 of 4 classes", 3.0)
  printed = capsys.readouterr().out
  assert "the 500 steps left take about 8:20 min; 2 scorings come on top" in printed
  assert "mIoU 20.00 over 4 of 4 classes on val (-5.00)" in printed


@pytest.mark.parametrize(
  ("steps", "every", "step", "left"),
  [
    *((1000, 250, 0, 4), (1000, 250, 250, 3), (1000, 250, 1000, 0), (1000, 300, 0, 4), (1000, 300, 900, 1)),
    *((1000, 0, 0, 1), (1000, 0, 999, 1), (1000, 0, 1000, 0), (10, 300, 5, 1)),
  ],
)
def test_scorings_left(steps: int, every: int, step: int, left: int) -> None:
  config = demo(steps=steps, eval_every=every)
  due = [s for s in range(step + 1, steps + 1) if s == steps or (every and s % every == 0)]
  assert plan.scorings_left(config, step) == len(due) == left


def plan_of(config: Config, terms: dict[str, float], step: int = 0) -> str:
  state: Any = SimpleNamespace(step=np.int32(step), params={"kernel": np.zeros((3, 4))})
  return plan.plan_text(config, pathlib.Path("runs/demo"), state, terms, 11, 400, 60)


def test_the_plan_of_the_demo() -> None:
  text = plan_of(demo(), TERMS, step=500)
  assert len(text.splitlines()) <= 6 and max(map(len, text.splitlines())) <= 100
  for part in ("400 images", "60 of val", "11 classes", "12 parameters", "banks of 400 keys", "20 epochs"):
    assert part in text.replace("\n  ", " "), text
  assert "cross entropy + 0.4 x auxiliary loss + 0.1 x RegionContrast" in text
  assert "resuming at step 500 of 1000" in text and "every 250 steps" in text
  assert "nothing is left to train" in plan_of(demo(), TERMS, step=1000)


def test_the_plan_of_other_objectives() -> None:
  config = demo(eval_every=0)
  assert "without contrast: the baseline" in plan_of(config, {"pixel": 1.0, "aux": 0.4})
  assert "scores at the end" in plan_of(config, {"pixel": 1.0})
  config.contrast.scope = "batch"
  config.loss.pixel = "ohem"
  text = plan_of(config, {"pixel": 1.0, "presence": 0.2, "contrast": 0.1}).replace("\n  ", " ")
  assert "OHEM cross entropy + 0.2 x presence loss" in text and "with all centers of its batch" in text


def command_of(workdir: str, recipe: str = "demo", **overrides: str) -> Command:
  fields = {name.replace("__", "."): value for name, value in overrides.items()}
  given = tuple((path, (f"--config.{path}={value}",)) for path, value in fields.items())
  return Command(("rc_jax",), recipe, pathlib.Path(workdir), given)


def test_the_baseline_is_the_recipes_variant_or_a_weight_of_0() -> None:
  plain = baseline(command_of("runs/demo", train__steps="20", contrast__bank_size="30"))
  assert plain.text() == "rc_jax --config=demo:baseline --config.train.steps=20"
  plain = baseline(command_of("my runs/a", loss__contrast_weight="0.2", contrast__bank_size="30"))
  assert plain.text() == "rc_jax --config=demo:baseline '--workdir=my runs/a_baseline'"
  plain = baseline(command_of("runs/camvid_cpu", "camvid:cpu", contrast__bank_size="30"))
  assert plain.text() == (
    "rc_jax --config=camvid:cpu --config.contrast.bank_size=30 --config.loss.contrast_weight=0 "
    "--workdir=runs/camvid_cpu_baseline"
  )
  plain = baseline(command_of("runs/cityscapes", "cityscapes"))
  assert "--config=cityscapes --config.loss.contrast_weight=0" in plain.text()


def test_the_baseline_is_suggested_until_it_is_scored(tmp_path: pathlib.Path) -> None:
  config, run = demo(), tmp_path / "demo"
  plain = pathlib.Path(f"{run}_baseline")
  text = next_commands(command_of(str(run)), config)
  compare = f"rc_jax --mode=compare --results={plain},{run}"
  assert f"rc_jax --config=demo:baseline --workdir={plain}\n" in text and compare in text

  (plain / "eval").mkdir(parents=True)
  (plain / "eval" / "val.json").write_text("{}")
  text = next_commands(command_of(str(run)), config)
  assert "demo:baseline" not in text and compare in text
  (plain / "eval" / "test.json").write_text("{}")
  several = compare.replace(f"{plain},", f"{plain}/eval/val.json,")
  assert several in next_commands(command_of(str(run)), config)


def test_a_baseline_suggests_the_comparison_alone(tmp_path: pathlib.Path) -> None:
  config, run, plain = load_recipe("demo:baseline"), tmp_path / "demo", tmp_path / "demo_baseline"
  text = next_commands(command_of(str(plain), "demo:baseline"), config)
  assert "compare" not in text and "contrast_weight" not in text and "--mode=predict" in text
  (run / "eval").mkdir(parents=True)
  (run / "eval" / "val.json").write_text("{}")
  text = next_commands(command_of(str(plain), "demo:baseline"), config)
  assert f"rc_jax --mode=compare --results={plain},{run}" in text
