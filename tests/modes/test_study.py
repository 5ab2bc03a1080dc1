"""``--mode=study`` from the command line: alone, in parallel, killed and resumed, and with a run that fails."""

import csv
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from rc_jax.main import main
from tests.support import processes, run_tiny

pytestmark = pytest.mark.run

STUDY = f"""
import pathlib
from rc_jax.study import Claim, Row, Study

def get_study(variant=""):
  rows = (Row("CE", {{"contrast.scope": "none"}}), Row("RegionContrast"))
  if variant == "failing":
    weights = str(pathlib.Path(__file__).with_name("damaged.npz"))
    rows += (Row("damaged weights", {{"model.pretrained": weights}}),)
  fields = {{"train.steps": 8, "train.eval_every": 0}}
  return Study("Two rows", {str(pathlib.Path(run_tiny.__file__).resolve())!r}, rows, "CE", (0, 1), fields,
               claims=(Claim("RegionContrast", "CE"),))
"""
TABLES = ("table.md", "table.csv", "runs.csv")


@pytest.fixture(scope="module")
def study_file(tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp("study") / "two_rows.py"
  path.write_text(STUDY)
  path.with_name("damaged.npz").write_bytes(b"PK")
  return path


def start(study: str, workdir: pathlib.Path, cache: pathlib.Path, *flags: str) -> subprocess.Popen:
  """Starts a study; all runs share their compiled programs."""
  environment = run_tiny.environment(cache)
  return subprocess.Popen(
    [sys.executable, "-m", "rc_jax.main", "--mode=study", f"--study={study}", f"--workdir={workdir}", *flags],
    cwd=processes.ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def kill_at(process: subprocess.Popen, workdir: pathlib.Path, run: str, step: int) -> None:
  """Kills a study when one of its runs has made so many steps."""
  metrics = workdir / "runs" / run / "metrics.jsonl"
  end = time.monotonic() + 240
  while not metrics.exists() or metrics.read_text().count("\n") < step:
    assert process.poll() is None and time.monotonic() < end, process.stdout.read()
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.communicate()


def run_study(study: str, workdir: pathlib.Path, cache: pathlib.Path, *flags: str, status: int = 0) -> str:
  """Runs a study to its end, which has the exit status ``status``; returns its output."""
  process = start(study, workdir, cache, *flags)
  printed = run_tiny.finish(process)
  assert process.returncode == status, printed
  return printed


@pytest.fixture(scope="module")
def incomplete(study_file, cache, tmp_path_factory) -> tuple[pathlib.Path, str, str]:
  """The folder, the output and the table of a study with a row whose runs fail."""
  workdir = tmp_path_factory.mktemp("alone")
  printed = run_study(f"{study_file}:failing", workdir, cache, status=1)
  return workdir, printed, (workdir / "table.md").read_text()


@pytest.mark.long
def test_runs_that_fail_are_named_and_the_rest_is_complete(incomplete) -> None:
  _, printed, table = incomplete
  assert "Two rows: 3 rows x 2 seeds = 6 runs" in printed
  assert (
    "failed: damaged weights, seed 0; damaged weights, seed 1: error: " in printed
    and "damaged.npz" in printed
  )
  assert "4 of 6 runs finished, 2 failed" in printed
  assert "damaged weights" in table


@pytest.fixture(scope="module")
def finished(incomplete, study_file, cache) -> tuple[pathlib.Path, str]:
  """The folder and the output of the study without the row that fails, whose other runs are finished."""
  workdir = incomplete[0]
  return workdir, run_study(str(study_file), workdir, cache)


@pytest.mark.long
def test_a_study_of_finished_runs_writes_its_tables(finished) -> None:
  workdir, printed = finished
  assert "Two rows: 2 rows x 2 seeds = 4 runs" in printed
  table = (workdir / "table.md").read_text()
  assert "damaged weights" not in table
  assert "CE" in table and "RegionContrast" in table and str(workdir / "index.html") in printed
  with (workdir / "runs.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
  assert [f"{row['row']} {row['seed']}" for row in rows] == [
    "CE 0",
    "RegionContrast 0",
    "CE 1",
    "RegionContrast 1",
  ]
  # The metrics of a run start from the same weights and images in both rows.
  losses = [
    run_tiny.lines(workdir / "runs" / row / "seed0")[0]["loss_pixel"] for row in ("ce", "regioncontrast")
  ]
  assert losses[0] == losses[1]


@pytest.mark.long
def test_a_finished_study_is_drawn_again_without_training(finished, study_file) -> None:
  workdir = finished[0]
  outputs = sorted(workdir.glob("runs/*/*/output.log"))
  before = [path.read_bytes() for path in outputs], [(workdir / name).read_bytes() for name in TABLES]
  for name in TABLES:
    (workdir / name).unlink()
  assert main(["rc_jax", "--mode=study", f"--study={study_file}", f"--workdir={workdir}"]) == 0
  assert (
    [path.read_bytes() for path in outputs],
    [(workdir / name).read_bytes() for name in TABLES],
  ) == before


@pytest.mark.slow
def test_killed_twice_and_in_parallel_it_gives_the_same_tables(finished, study_file, cache, tmp_path) -> None:
  process = start(str(study_file), tmp_path, cache, "--parallel=2")
  kill_at(process, tmp_path, "regioncontrast/seed0", 3)
  process = start(str(study_file), tmp_path, cache, "--parallel=2")
  kill_at(process, tmp_path, "ce/seed1", 3)
  run_study(str(study_file), tmp_path, cache, "--parallel=2")
  for name in TABLES:
    assert (tmp_path / name).read_bytes() == (finished[0] / name).read_bytes(), name
  for run in ("ce/seed0", "ce/seed1", "regioncontrast/seed0", "regioncontrast/seed1"):
    lines = [run_tiny.lines(folder / "runs" / run) for folder in (tmp_path, finished[0])]
    assert lines[0] == lines[1], run


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--study="], "--study is missing; try: --mode=study --study=table1:demo"),
    (["--config=demo"], "--config=demo: the study names its recipe"),
    (["--config.seed=3"], "--config.seed: a study trains several seeds; expected --seeds=0,1,2"),
    (["--config.eval.split=train"], "--config.eval.split: the study scores val"),
    (["--config.contrast.scope=image"], "--config.contrast.scope: the study's rows set it themselves (CE, "),
    (["--seeds=0,one"], "--seeds=0,one: expected whole numbers"),
    (["--budget=-1"], "--budget=-1: expected hours, or 0 for no limit"),
    (["--parallel=0"], "--parallel=0: expected 1 or more"),
    (["--checkpoint=x"], "--checkpoint: --mode=study does not read it"),
    (["--study=table1:camvid", "--config.dataset.root=nowhere"], "nowhere"),
    (["--config.train.stepz=3"], "config.train.stepz: nothing reads this field"),
  ],
)
def test_a_mistake_is_one_line(flags: list[str], message: str, tmp_path, capsys) -> None:
  status = main(["rc_jax", "--mode=study", "--study=table1:demo", f"--workdir={tmp_path}", *flags])
  printed = capsys.readouterr()
  assert status == 2 and message in printed.err and printed.err.count("\n") == 1
  assert not list(tmp_path.iterdir())
