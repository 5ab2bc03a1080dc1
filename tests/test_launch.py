"""The scripts that start runs: what they start, and how they end. Whole runs: ``test_train.py``."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile

import pytest
import yaml

from rc_jax import recipes
from tests.support.paths import ROOT

pytestmark = pytest.mark.run


def launch(*arguments: str, script: str = "local.sh", **environment: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [f"launch/{script}", *arguments],
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


SLICE = {"ZONE": "us-west4-a", "TYPE": "v5litepod-16", "BUCKET": "mine"}


def test_a_pod_is_created_installed_run_and_deleted() -> None:
  flags = ("--config=configs/cityscapes.py", "--config.dataset.root=a folder")
  finished = launch(
    "keep", "r50", *flags, script="tpu_pod.sh", DRY_RUN="1", SPOT="1", PYTHON="python3.12", **SLICE
  )
  assert finished.returncode == 0, finished.stderr
  lines = finished.stdout.splitlines()
  assert [line for line in lines if "queued-resources create r50" in line and "--spot" in line]
  assert "--accelerator-type=v5litepod-16" in lines[0] and "--zone=us-west4-a" in lines[0]
  (run,) = [line for line in lines if "rc_jax.main" in line]
  assert "--worker=all" in run and "bucket/runs/r50" in run and "--config=configs/cityscapes.py" in run
  assert "queued-resources delete r50" in lines[-1] and "--worker=all" in lines[-3]
  (install,) = [line for line in lines if "pip" in line]
  assert "python3.12\\ -m\\ venv" in install


@pytest.mark.parametrize(
  ("arguments", "environment", "words"),
  [
    (("fly", "r50"), SLICE, "'fly' is none of create, install"),
    (("run", "r50"), SLICE, "--config is missing"),
    (("create", "r50"), {"ZONE": "z", "TYPE": "t"}, "BUCKET is not set"),
  ],
)
def test_what_a_pod_lacks_is_one_line(arguments, environment, words) -> None:
  finished = launch(*arguments, script="tpu_pod.sh", DRY_RUN="1", **environment)
  assert finished.returncode == 2 and words in finished.stderr and finished.stderr.count("\n") == 1


def test_slurm_starts_a_task_a_gpu_and_requeues_what_was_saved(tmp_path: pathlib.Path) -> None:
  flags = ("--config=configs/cityscapes.py", "--workdir=shared/run")
  finished = launch(*flags, script="slurm.sh", DRY_RUN="1", PYTHON="python3")
  assert finished.stdout.split() == ["srun", "--kill-on-bad-exit=0", "python3", "-m", "rc_jax.main", *flags]
  assert launch(flags[0], script="slurm.sh").stderr.count("--workdir is missing") == 1

  # With stand-ins for SLURM's own commands: saved and stopped, failed, finished.
  for status, requeued in ((143, True), (2, False), (0, False)):
    folder = tmp_path / str(status)
    folder.mkdir()
    for name, body in (("srun", f"exit {status}"), ("scontrol", f"echo $@ >{folder}/requeued")):
      (folder / name).write_text(f"#!/usr/bin/env bash\n{body}")
      (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    assert launch(*flags, script="slurm.sh", SLURM_JOB_ID="7", PATH=path).returncode == status
    assert (folder / "requeued").exists() == requeued
  assert (tmp_path / "143" / "requeued").read_text() == "requeue 7\n"


def test_the_jobset_asks_for_all_chips_of_its_slice() -> None:
  jobset = yaml.safe_load((ROOT / "launch" / "gke_jobset.yaml").read_text())
  assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  (job,) = jobset["spec"]["replicatedJobs"]
  job = job["template"]["spec"]
  pod = job["template"]["spec"]
  (container,) = pod["containers"]
  rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
  assert job["parallelism"] == job["completions"]
  assert job["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == rows * columns
  assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0
  (rule,) = job["podFailurePolicy"]["rules"]
  assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
  mounted = {mount["name"] for mount in container["volumeMounts"]}
  assert mounted == {volume["name"] for volume in pod["volumes"]}
  command = container["command"]
  assert command[:3] == ["python", "-m", "rc_jax.main"]
  (recipe,) = [flag.partition("=")[2] for flag in command if flag.startswith("--config=")]
  assert recipe in recipes.names()  # a path would need a checkout, which the image has not
  (batch,) = [int(flag.partition("=")[2]) for flag in command if "batch_size" in flag]
  assert batch % (rows * columns) == 0


DOCKERFILE = (ROOT / "launch" / "Dockerfile").read_text()


def docker_steps() -> list[tuple[str, list[str]]]:
  """Returns the instructions of the Dockerfile with their words."""
  code = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
  return [(line.split()[0], line.split()[1:]) for line in code.splitlines() if line.strip()]


def test_the_image_has_a_pinned_base_and_an_extra_by_argument() -> None:
  steps = docker_steps()
  assert steps[0] == ("FROM", ["python:3.12-slim"])
  assert ("ARG", ["EXTRA=train"]) in steps
  extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
  (listed,) = re.findall(r"^# EXTRA is an extra of pyproject\.toml: (.*?)\.", DOCKERFILE, re.MULTILINE)
  assert set(re.findall(r"\b(train|cuda|tpu)\b", listed)) == {"train", "cuda", "tpu"} <= set(extras)
  jobset = (ROOT / "launch" / "gke_jobset.yaml").read_text()
  named = re.findall(r"--build-arg EXTRA=(\w+)", DOCKERFILE + jobset)
  assert named == ["cuda", "tpu"]
  assert "docker build -f launch/Dockerfile --build-arg EXTRA=tpu -t REGISTRY/rc_jax:TAG ." in jobset
  # The Python packages bring CUDA; jax[cuda13-local] would need an installation of it.
  assert extras["cuda"] == ["rc_jax[train]", "jax[cuda13]"]


def test_the_image_keeps_no_cache_and_runs_as_any_user() -> None:
  runs = " ".join(word for name, words in docker_steps() if name == "RUN" for word in words)
  assert re.findall(r"pip install (\S+)", runs) == ["--no-cache-dir"] and "apt" not in runs
  assert "chmod 1777 /home/rc_jax" in runs
  assert docker_steps()[-3:] == [
    ("ENV", ["HOME=/home/rc_jax"]),
    ("WORKDIR", ["/home/rc_jax"]),
    ("CMD", ['["rc_jax",', '"--help"]']),
  ]


def test_a_wheel_is_built_from_what_the_image_copies(tmp_path: pathlib.Path) -> None:
  copied = [source for name, words in docker_steps() if name == "COPY" for source in words[:-1]]
  ignored = (ROOT / "launch" / "Dockerfile.dockerignore").read_text().splitlines()
  assert [line[1:] for line in ignored if line.startswith("!")] == copied and "*" in ignored
  for source in copied:
    path = ROOT / source
    if path.is_dir():
      shutil.copytree(path, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
    else:
      shutil.copy(path, tmp_path / source)
  subprocess.run(
    [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "dist"],
    cwd=tmp_path,
    check=True,
    capture_output=True,
  )
  (wheel,) = (tmp_path / "dist").glob("*.whl")
  with zipfile.ZipFile(wheel) as archive:
    files = set(archive.namelist())
  assert {"rc_jax/main.py", "rc_jax/configs/demo.py"} <= files
  assert any(name.endswith("entry_points.txt") for name in files)
