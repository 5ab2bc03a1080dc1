"""Plausible mistakes: one line each that says what to do, a status that is not 0, no traceback."""

import importlib
import inspect
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from rc_jax import distributed, main
from rc_jax.config import FIELDS, Config, defaults
from tests.support.paths import ROOT

CAMVID = "--config=configs/camvid.py:cpu"
DEMO = "--config=configs/demo.py"


def call(
  capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *flags: str
) -> tuple[int, str, str]:
  """Runs the command line in this process; returns status, output and errors."""
  monkeypatch.chdir(ROOT)
  status = main.main(["rc_jax", *flags])
  captured = capsys.readouterr()
  return status, captured.out, captured.err


def run(*flags: str, **environment: str) -> tuple[int, str, str]:
  """Runs the command line as a user does, in a process of its own."""
  finished = subprocess.run(
    [sys.executable, "-m", "rc_jax.main", *flags],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
    capture_output=True,
    text=True,
    timeout=120,
  )
  return finished.returncode, finished.stdout, finished.stderr


MISTAKES = {
  "a typo in a field": ([DEMO, "--config.train.batch_sise=4"], ["batch_sise", "batch_size"]),
  "a typo in a group": ([DEMO, "--config.trian.steps=4"], ["trian", "train"]),
  "a typo in a flag": ([DEMO, "--wrkdir=x"], ["wrkdir", "workdir"]),
  "a value of another type": ([DEMO, "--config.train.steps=many"], ["train.steps", "many"]),
  "an unknown mode": ([DEMO, "--mode=fly"], ["mode", "train", "eval", "predict"]),
  "a flag of another mode": ([DEMO, "--checkpoint=x"], ["--checkpoint", "--mode=train", "eval", "predict"]),
  "a switch of another mode": ([DEMO, "--nooverlays"], ["--nooverlays", "--mode=train", "predict"]),
  "a field that the head does not read": ([DEMO, "--config.model.psp_bins=(1,2)"], ["psp_bins", "pspnet"]),
  "no config": ([], ["--config", "configs/demo.py"]),
  "a missing config": (["--config=configs/nothing.py"], ["configs/nothing.py", "no such file", "cityscapes"]),
  "an unknown variant": (["--config=configs/camvid.py:huge"], ["huge", "cpu"]),
  "an argument too many": ([DEMO, "train"], ["'train'"]),
  "an unknown backbone": ([DEMO, "--config.model.backbone=resnet5O"], ["resnet5O", "resnet50"]),
  "an unknown data set": ([DEMO, "--config.dataset.name=citiscapes"], ["citiscapes", "cityscapes"]),
  "no root": ([CAMVID], ["dataset.root", "camvid"]),
  "a missing data set": ([CAMVID, "--config.dataset.root=nowhere"], ["nowhere", "images", "dataset.root"]),
  "missing weights": ([DEMO, "--config.model.pretrained=none.npz"], ["none.npz"]),
  "nothing to score": ([DEMO, "--mode=eval"], ["holds no checkpoint"]),
  "one result to compare": (["--mode=compare", "--results=a"], ["--results=a", "expected two"]),
  "results that are not there": (["--mode=compare", "--results=a,b"], ["a holds no result", "--mode=eval"]),
  "a config after a space": (
    ["--config", "configs/nothing.py"],
    ["configs/nothing.py", "no such file", "cityscapes"],
  ),
  "a scale where two are due": ([DEMO, "--config.augment.scale=1.0"], ["augment.scale", "(low, high)"]),
  "a crop that the stride does not fit": ([DEMO, "--config.train.crop_size=70"], ["train.crop_size", "65"]),
  "a crop below the stride": ([DEMO, "--config.train.crop_size=8"], ["train.crop_size", "output stride 8"]),
}


@pytest.mark.long
@pytest.mark.run
@pytest.mark.parametrize(
  ("variables", "wanted"),
  [
    ({"JAX_PLATFORMS": "cuda"}, ("JAX_PLATFORMS=c", "rc_jax[cuda]", "JAX_PLATFORMS=cpu")),
    ({"JAX_PLATFORMS": "gpuu"}, ("'gpuu'", "JAX_PLATFORMS=cpu")),
    ({"JAX_DISABLE_JIT": "1"}, ("JAX_DISABLE_JIT=1", "unset it")),
    ({"JAX_ENABLE_X64": "True"}, ("JAX_ENABLE_X64=True", "unset it")),
    ({"SLURM_STEP_NUM_TASKS": "two"}, ("SLURM_STEP_NUM_TASKS=two", "unset it")),
    ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, ("--coordinator=", "--process_id=")),
  ],
  ids=str,
)
def test_an_environment_in_which_jax_cannot_start_is_one_line(
  variables: dict[str, str], wanted: tuple[str, ...], tmp_path: pathlib.Path
) -> None:
  status, _, errors = run(DEMO, f"--workdir={tmp_path / 'run'}", **variables)
  assert status == 2 and errors.count("\n") == 1 and errors.startswith("error: "), errors
  assert all(part in errors for part in wanted), errors


@pytest.mark.parametrize("coordinator", ["node0", "node0:", ":1234", "node0:http", "node0:70000"])
def test_a_coordinator_needs_a_port(coordinator: str, monkeypatch: pytest.MonkeyPatch) -> None:
  with pytest.raises(ValueError, match=r"--coordinator=.*host:port.*node0:1234"):
    distributed.connect(coordinator, "2", "1")


def test_an_empty_variable_of_a_cluster_counts_as_absent(monkeypatch: pytest.MonkeyPatch) -> None:
  for variable in ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "OMPI_COMM_WORLD_SIZE"):
    monkeypatch.setenv(variable, "")
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  distributed.connect()  # a single process


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(
  name: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
  flags, wanted = MISTAKES[name]
  workdir = [] if "--mode=compare" in flags else [f"--workdir={tmp_path}"]
  status, _, errors = call(capsys, monkeypatch, *flags, *workdir)
  assert status == 2
  assert errors.startswith("error: ") and errors.count("\n") == 1, errors
  for part in wanted:
    assert part in errors, f"{part} is not in: {errors}"


@pytest.mark.run
def test_a_process_ends_with_the_line_and_the_status(tmp_path: pathlib.Path) -> None:
  status, _, errors = run(DEMO, "--config.train.batch_sise=4", f"--workdir={tmp_path}")
  assert status == 2 and errors.startswith("error: ") and errors.count("\n") == 1, errors


@pytest.mark.run
def test_a_batch_that_the_devices_do_not_divide(tmp_path: pathlib.Path) -> None:
  flags = [DEMO, "--config.train.batch_size=6", f"--workdir={tmp_path}"]
  status, _, errors = run(*flags, XLA_FLAGS="--xla_force_host_platform_device_count=4")
  assert status == 2 and "6 images over 4 devices; expected 4 or 8" in errors


@pytest.mark.run
def test_a_label_outside_the_range(tmp_path: pathlib.Path) -> None:
  rng = np.random.default_rng(0)
  for split in ("train", "val"):
    for kind in ("images", "labels"):
      (tmp_path / "data" / kind / split).mkdir(parents=True)
    for number in range(2):
      pixels = rng.integers(0, 256, (60, 80, 3), np.uint8)
      Image.fromarray(pixels).save(tmp_path / "data" / "images" / split / f"{number}.png")
      label = rng.integers(0, 12, (60, 80)).astype(np.uint8)
      label[5, 7] = 77
      Image.fromarray(label).save(tmp_path / "data" / "labels" / split / f"{number}.png")
  status, _, errors = run(
    CAMVID,
    f"--config.dataset.root={tmp_path / 'data'}",
    f"--workdir={tmp_path / 'run'}",
    "--config.model.backbone=resnet_tiny",
    "--config.model.multi_grid=(1,1)",
    "--config.train.crop_size=65",
  )
  assert status == 2
  assert errors.startswith("error: ") and errors.count("\n") == 1, errors
  assert "77" in errors and ".png" in errors and "0-11" in errors, errors


@pytest.mark.parametrize(
  ("override", "wanted"),
  {
    "train.stepz=1": "config.train.stepz: nothing reads this field; did you mean 'steps'?",
    "foo.bar=1": "config.foo: nothing reads this field; known fields: ",
    "seed.x=1": "config.seed.x: config.seed is a field, not a group; expected --config.seed=VALUE",
    "train.crop_size[0]=33": "config.train.crop_size[0]: nothing reads this field; did you mean 'crop_size'?",
    "train=3": "config.train: is a group; expected one of its fields: batch_size, ",
    "train.steps=1e3": "config.train.steps: is '1e3'; expected a whole number, 1 or more",
    "train.steps=": "config.train.steps: is ''; expected a whole number, 1 or more",
    "eval.flip=ja": "config.eval.flip: is 'ja'; expected true or false",
    "optimizer.learning_rate=fast": "config.optimizer.learning_rate: is 'fast'; expected a number, above 0",
  }.items(),
)
def test_an_override_that_sets_no_field(
  override: str, wanted: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
  status, _, errors = call(capsys, monkeypatch, DEMO, "--mode=summary", f"--config.{override}")
  assert status == 2 and errors.startswith(f"error: {wanted}") and errors.count("\n") == 1, errors


@pytest.mark.long
def test_the_last_value_of_a_field_counts(
  capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
  """ml_collections joins the values of a tuple field that is given twice."""
  sizes = ["--config.train.crop_size=65", "--config.train.crop_size=97"]
  status, printed, errors = call(capsys, monkeypatch, DEMO, "--mode=summary", *sizes)
  assert status == 0 and not errors and "97 x 97" in printed


@pytest.mark.parametrize(
  "arguments",
  [
    ["--config.eval.scales=1", "-config.eval.scales=0.5"],
    ["--config.eval.scales", "1", "--config.eval.scales=0.5"],
    ["--config.eval.scales=1", "--config.eval.scales", "0.5"],
    ["--config.eval.scales", "1", "--config.seed", "7", "--config.eval.scales", "0.5"],
  ],
)
def test_the_last_value_counts_in_every_form_of_a_flag(
  arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
  taken: dict[str, Config] = {}
  monkeypatch.setattr("rc_jax.modes.eval.run", lambda config, **others: taken.update(config=config))
  status, _, errors = call(capsys, monkeypatch, DEMO, "--mode=eval", *arguments)
  assert status == 0 and not errors and taken["config"].eval.scales == (0.5,)
  assert taken["config"].seed == (7 if "7" in arguments else defaults().seed)


def test_home_is_expanded_in_every_path(
  tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
  """A shell expands ``~`` at the start of a word alone, not in ``--workdir=~/run``."""
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "mine.py").write_text((ROOT / "configs" / "demo.py").read_text())
  status, _, errors = call(
    capsys, monkeypatch, CAMVID, "--config.dataset.root=~nobody_here/data", "--workdir=~/run"
  )
  assert status == 2 and "~nobody_here/data" in errors and errors.count("\n") == 1
  assert (tmp_path / "run").is_dir()
  taken: dict[str, object] = {}
  for mode, paths in HOME_PATHS.items():
    module = importlib.import_module(f"rc_jax.modes.{mode}")
    monkeypatch.setattr(module, "run", lambda **values: taken.update(values))
    fields = [f"--config.{path}=~/x" for path in ("dataset.root", "model.pretrained")]
    flags = [f"--{name}=~/x" for name in paths]
    status, _, errors = call(capsys, monkeypatch, "--config=~/mine.py", f"--mode={mode}", *fields, *flags)
    assert status == 0, errors
    assert [taken[name] for name in paths] == [tmp_path / "x"] * len(paths)
    assert taken["config"].dataset.root == taken["config"].model.pretrained == str(tmp_path / "x")
  status, _, errors = call(capsys, monkeypatch, "--mode=compare", "--results=~/a,~/b")
  assert status == 2 and f"{tmp_path}/a holds no result" in errors


def test_a_flag_that_is_a_word_of_python_reaches_its_argument(monkeypatch, capsys) -> None:
  taken: dict[str, object] = {}
  monkeypatch.setattr("rc_jax.modes.export.run", lambda **values: taken.update(values))
  status, _, errors = call(capsys, monkeypatch, DEMO, "--mode=export", "--as=timm")
  assert status == 0 and not errors and taken["as_"] == "timm"


def test_a_study_reads_the_home_folder_in_its_paths(monkeypatch, capsys, tmp_path) -> None:
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "mine.py").write_text(
    "from rc_jax.study import Row, Study\n"
    "def get_study(): return Study('one row', 'demo', (Row('CE'),), 'CE', (0,))\n"
  )
  taken = {}
  monkeypatch.setattr(
    importlib.import_module("rc_jax.modes.study"), "run", lambda **values: taken.update(values)
  )
  flags = ("--mode=study", "--study=~/mine.py", "--workdir=~/x", "--config.dataset.root=~/y")
  status, _, errors = call(capsys, monkeypatch, *flags)
  assert status == 0, errors
  assert taken["workdir"] == tmp_path / "x" and taken["config"].dataset.root == str(tmp_path / "y")


def test_every_flag_that_is_a_path_is_listed_here() -> None:
  for mode in main.MODES:
    if mode == "study":
      continue  # it names its recipe itself
    flags = importlib.import_module(f"rc_jax.modes.{mode}").FLAGS
    assert {flag.name for flag in flags if flag.default is None} == set(HOME_PATHS.get(mode, ())), mode


HOME_PATHS = {
  "train": ("workdir",),
  "eval": ("workdir", "checkpoint"),
  "centers": ("workdir", "checkpoint"),
  "predict": ("workdir", "checkpoint", "images", "output"),
  "export": ("workdir", "checkpoint", "output"),
  "report": ("workdir", "checkpoint"),
  "inspect": ("workdir",),
  "prepare": ("output",),
}


def test_help_groups_flags_by_mode(
  capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
  status, printed, errors = call(capsys, monkeypatch, "--help")
  assert status == 0 and not errors
  assert all(f"--mode={mode}: " in printed for mode in main.MODES)
  predict = printed[printed.index("--mode=predict: ") : printed.index("--mode=export: ")]
  assert "--images" in predict and "--size" not in predict
  _, printed, _ = call(capsys, monkeypatch, "--mode=predict", "--help")
  assert "--images" in printed and "--mode=export" not in printed
  assert "legend. Default: true; --nooverlays turns it off." in printed
  assert "wait for all of them. Default: 300." in printed
  assert "below --images.\n" in printed  # a switch that is off
  _, printed, _ = call(capsys, monkeypatch, "--help=config")
  assert all(field.path in printed for field in FIELDS)


@pytest.mark.parametrize(
  ("mode", "usage"),
  [
    ("compile", "--config=RECIPE[:VARIANT] --mode=compile [--config."),
    ("study", "--mode=study --study=STUDY[:VARIANT] [--config."),
    ("compare", "--mode=compare [--flag=value ...]"),
  ],
)
def test_the_usage_of_a_mode_names_its_own_flags(
  mode: str, usage: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
  _, printed, _ = call(capsys, monkeypatch, f"--mode={mode}", "--help")
  assert printed.startswith(f"usage: python -m rc_jax.main {usage}")


@pytest.mark.parametrize("mode", main.MODES)
def test_a_mode_reads_the_flags_that_it_states(mode: str) -> None:
  module = importlib.import_module(f"rc_jax.modes.{mode}")
  names = [flag.argument for flag in module.FLAGS if flag not in distributed.FLAGS]
  assert sorted(names) == sorted(inspect.signature(module.run).parameters.keys() - {"command"})
