"""``launch/local.sh`` with a stand-in for Python: what it starts, and how it ends. Whole runs: ``test_train.py``."""

import os
import pathlib
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def launch(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    ["launch/local.sh", *arguments],
    cwd=ROOT,
    env={**os.environ, "PORT": "1", **environment},
    capture_output=True,
    text=True,
    timeout=60,
  )


def stand_in(folder: pathlib.Path, body: str) -> str:
  path = folder / "python"
  path.write_text("#!/usr/bin/env bash\n" + body)
  path.chmod(0o755)
  return str(path)


def test_a_dry_run_prints_the_commands() -> None:
  finished = launch("2", "--config=x.py", DRY_RUN="1", GPUS="1")
  assert finished.returncode == 0
  first, second = finished.stdout.splitlines()
  assert "RC_JAX_PROCESSES=2 RC_JAX_PROCESS_ID=0 CUDA_VISIBLE_DEVICES=0" in first
  assert "RC_JAX_PROCESS_ID=1 CUDA_VISIBLE_DEVICES=1" in second and second.endswith(
    "rc_jax.main --config=x.py"
  )


@pytest.mark.parametrize("processes", ["0", "two", "-1"])
def test_a_wrong_number_is_one_line(processes: str) -> None:
  finished = launch(processes, "--config=x.py")
  assert finished.returncode == 2 and finished.stderr.count("\n") == 1 and processes in finished.stderr


def test_all_must_succeed(tmp_path: pathlib.Path) -> None:
  assert launch("3", PYTHON=stand_in(tmp_path, "exit 0")).returncode == 0


def test_one_that_fails_takes_the_others_with_it(tmp_path: pathlib.Path) -> None:
  python = stand_in(tmp_path, '[ "$RC_JAX_PROCESS_ID" = 1 ] && exit 3\ntrap "" TERM\nexec sleep 50')
  start = time.monotonic()
  assert launch("3", PYTHON=python, GRACE="1").returncode == 3
  assert time.monotonic() - start < 30, "the others were not killed"
