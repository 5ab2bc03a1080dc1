"""Weights & Biases and MLflow, as fakes with the arguments of their public functions; writers that fail."""

import importlib.machinery
import json
import pathlib
import sys
import types

import pytest

from rc_jax import files
from rc_jax.training import log_writers
from rc_jax.training.log_writers import LoggedRun
from rc_jax.training.run_log import RunLog, read_metrics

FIELDS = {f"group.field{number}": number for number in range(150)}


def install(monkeypatch: pytest.MonkeyPatch, name: str) -> types.ModuleType:
  module = types.ModuleType(name)
  module.__spec__ = importlib.machinery.ModuleSpec(name, None)
  monkeypatch.setitem(sys.modules, name, module)
  return module


class Wandb:
  """wandb 0.19 to 0.31: what W&B holds of each run, by its id. Keyword arguments as in ``wandb.init``."""

  def __init__(self, module: types.ModuleType):
    self.history: dict[str, dict[int, dict[str, float]]] = {}
    self.started: list[dict] = []
    history, started = self.history, self.started

    class Run:
      def __init__(self, run_id: str):
        self._steps = history.setdefault(run_id, {})
        self.finished = False

      def log(self, data: dict, step: int | None = None, commit: bool | None = None) -> None:
        assert step is not None and not self.finished
        if step >= max(self._steps, default=0):  # W&B ignores the others
          self._steps.setdefault(step, {}).update(data)

      def finish(self, exit_code: int | None = None) -> None:
        self.finished = True

    class Settings:
      def __init__(self, console: str = "auto"):
        self.console = console

    def init(
      entity=None,
      project=None,
      dir=None,
      id=None,
      name=None,
      notes=None,
      tags=None,
      config=None,
      allow_val_change=None,
      group=None,
      mode=None,
      resume=None,
      settings=None,
    ):
      started.append({"project": project, "dir": dir, "id": id, "name": name, "resume": resume})
      started[-1] |= {"config": config, "console": settings.console}
      return Run(id)

    module.init, module.Settings = init, Settings  # type: ignore[attr-defined]


class Mlflow:
  """mlflow 2.22 to 3.17: what a server holds of each run, with its limits."""

  def __init__(self, module: types.ModuleType):
    self.points: dict[str, list[tuple[str, int, float]]] = {}
    self.params: dict[str, dict[str, object]] = {}
    self.experiment, self.active = "", ""
    server = self

    def set_experiment(experiment_name=None, experiment_id=None):
      server.experiment = experiment_name

    def start_run(
      run_id=None, experiment_id=None, run_name=None, nested=False, parent_run_id=None, tags=None
    ):
      assert not server.active, "a run is already active"
      server.active = run_id or f"{run_name}-{len(server.points)}"
      server.points.setdefault(server.active, [])
      server.params.setdefault(server.active, {})
      return types.SimpleNamespace(info=types.SimpleNamespace(run_id=server.active))

    def log_metrics(metrics, step=None, synchronous=None, run_id=None, timestamp=None):
      assert len(metrics) <= 1000
      assert not any(set("():,") & set(name) for name in metrics), "a name that MLflow refuses"
      server.points[server.active] += [(name, step, value) for name, value in metrics.items()]

    def log_params(params, synchronous=None, run_id=None):
      assert len(params) <= 100 and not params.keys() & server.params[server.active].keys()
      server.params[server.active] |= params

    def end_run(status="FINISHED"):
      server.active = ""

    for function in (set_experiment, start_run, log_metrics, log_params, end_run):
      setattr(module, function.__name__, function)


def train_twice(workdir: pathlib.Path, *names: str) -> None:
  """Logs steps 1 to 3, and after a kill 3 to 4 again from the checkpoint of step 2."""
  workdir.mkdir(exist_ok=True)
  for resumed_at in (0, 2):
    log = RunLog(workdir, resumed_at, names, FIELDS)
    for step in range(resumed_at + 1, resumed_at + 4 - resumed_at // 2):
      log.write({"step": step, "loss": 1 / step + resumed_at, "iou": {"a (b)": 0.5, "none": None}})
    log.close()


def test_wandb_continues_its_run_and_keeps_the_first_values(monkeypatch, tmp_path) -> None:
  for variable in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID"):
    monkeypatch.delenv(variable, raising=False)
  fake = Wandb(install(monkeypatch, "wandb"))
  train_twice(tmp_path / "camvid", *log_writers.writer_names("wandb"))
  first, second = fake.started
  assert (
    first == second and first["id"] == json.loads((tmp_path / "camvid/log_runs.json").read_text())["wandb"]
  )
  assert (first["project"], first["name"], first["resume"]) == ("rc_jax", "camvid", "allow")
  assert (first["dir"], first["config"], first["console"]) == (str(tmp_path / "camvid"), FIELDS, "off")
  (history,) = fake.history.values()
  assert {step: row["loss"] for step, row in history.items()} == {1: 1.0, 2: 0.5, 3: 2 + 1 / 3, 4: 2.25}
  assert history[1] == {"loss": 1.0, "iou/a (b)": 0.5}


def test_mlflow_continues_its_run_and_holds_both_values(monkeypatch, tmp_path) -> None:
  for variable in ("EXPERIMENT_NAME", "EXPERIMENT_ID", "RUN_ID"):
    monkeypatch.delenv(f"MLFLOW_{variable}", raising=False)
  fake = Mlflow(install(monkeypatch, "mlflow"))
  train_twice(tmp_path / "camvid", *log_writers.writer_names("mlflow"))
  assert fake.experiment == "rc_jax" and list(fake.points) == ["camvid-0"] and not fake.active
  assert fake.params == {"camvid-0": FIELDS}
  points = fake.points["camvid-0"]
  losses = [(step, value) for name, step, value in points if name == "loss"]
  assert losses == [(1, 1.0), (2, 0.5), (3, 1 / 3), (3, 2 + 1 / 3), (4, 2.25)]
  assert ("iou/a _b_", 1, 0.5) in points
  log = RunLog(tmp_path / "camvid", 4, ("mlflow",))
  log.write({"step": 5, "iou": {str(number): 0.5 for number in range(1100)}})
  assert sum(step == 5 for _, step, _ in fake.points["camvid-0"]) == 1100


def test_wandb_and_mlflow_have_one_file_of_ids(monkeypatch, tmp_path) -> None:
  fakes = Wandb(install(monkeypatch, "wandb")), Mlflow(install(monkeypatch, "mlflow"))
  train_twice(tmp_path, *log_writers.writer_names("mlflow,wandb"))
  ids = json.loads((tmp_path / "log_runs.json").read_text())
  assert [ids["wandb"]] == list(fakes[0].history) and [ids["mlflow"]] == list(fakes[1].points)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_not_installed_is_one_line_with_the_extra(name, monkeypatch) -> None:
  monkeypatch.setattr(log_writers.importlib.util, "find_spec", lambda package: None)
  message = rf"config.train.log_to: is 'tensorboard,{name}', but {name} is not installed; run: pip install "
  with pytest.raises(ValueError, match=message + rf"'rc_jax\[{name}\]', or leave it out"):
    log_writers.writer_names(f"tensorboard,{name}")


def test_an_unknown_writer_is_one_line_with_those_that_exist() -> None:
  message = (
    "config.train.log_to: is 'tensorbord'; expected names separated by commas, of tensorboard, wandb, mlflow"
  )
  with pytest.raises(ValueError, match=message):
    log_writers.writer_names("tensorbord")


@pytest.mark.parametrize(
  ("folder", "name"),
  [
    ("camvid", "camvid"),
    ("runs/camvid", "camvid"),
    ("runs/ablation/runs/CE loss/seed0", "CE loss/seed0"),
    ("runs", "runs"),
    ("mine/scans/seed0", "seed0"),  # no study
  ],
)
def test_a_run_has_the_name_of_its_folder(folder: str, name: str, tmp_path: pathlib.Path) -> None:
  assert LoggedRun(tmp_path / folder, 1, {}).name == name


class Failing:
  """Raises at a call of its methods: the constructor, ``write`` of step 2, or ``close``."""

  def __init__(self, run: LoggedRun, where: str, error: Exception):
    self._where, self._error, self.calls = where, error, 0
    self._raise("open")

  def write(self, step: int, scalars: dict[str, float]) -> None:
    self.calls += 1
    self._raise(f"write {step}")

  def close(self) -> None:
    self._raise("close")

  def _raise(self, where: str) -> None:
    if where == self._where:
      raise self._error


@pytest.mark.parametrize("where", ["open", "write 2", "close"])
def test_a_writer_that_fails_is_left_out_with_one_warning(where, monkeypatch, tmp_path, capsys) -> None:
  opened: list[Failing] = []

  def failing(run: LoggedRun) -> Failing:
    opened.append(Failing(run, where, RuntimeError("no network\nat all")))
    return opened[-1]

  monkeypatch.setitem(log_writers.LOG_WRITERS, "service", failing)
  log = RunLog(tmp_path, 0, ("service", "tensorboard"))
  for step in range(1, 5):
    log.write({"step": step, "loss": 0.5})
  log.close()
  (warning,) = capsys.readouterr().out.splitlines()
  assert warning == (
    "WARNING: logging to service failed (RuntimeError: no network at all); training goes on without it, and "
    "metrics.jsonl holds all values"
  )
  assert [writer.calls for writer in opened] == {"open": [], "write 2": [2], "close": [4]}[where]
  assert len(read_metrics(tmp_path)) == 4 and list((tmp_path / "tensorboard").iterdir())


def test_a_writer_that_keeps_its_values_stays(monkeypatch, tmp_path, capsys) -> None:
  writers: list[Failing] = []

  def keeping(run: LoggedRun) -> Failing:
    writers.append(Failing(run, "write 2", files.WriteError("disk: full", "free space")))
    return writers[-1]

  monkeypatch.setitem(log_writers.LOG_WRITERS, "file", keeping)
  log = RunLog(tmp_path, 0, ("file",))
  for step in range(1, 5):
    log.write({"step": step, "loss": 0.5})
  log.close()
  assert writers[0].calls == 4 and capsys.readouterr().out.startswith(
    "WARNING: disk: full; training goes on, and"
  )
