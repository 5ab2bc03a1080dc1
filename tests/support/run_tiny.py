"""A recipe that runs from start to end in seconds, and how tests start it as a user would."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from rc_jax import models
from rc_jax.config import Config, defaults
from rc_jax.models.backbones import resnet
from tests.support import processes

ROOT = processes.ROOT
STEPS = 12

# Compiling is most of what these runs take, and it grows with the number of layers.
BACKBONE = "resnet_least"
models.BACKBONES[BACKBONE] = resnet.backbone(resnet.ResNetSpec((1, 1, 1, 1), bottleneck=False, width=16))


def get_config() -> Config:
  """The smallest network on small crops of the synthetic streets."""
  config = defaults()
  config.dataset.name = "synthetic"
  config.model.backbone = BACKBONE
  config.model.multi_grid = (1,)
  config.model.aspp_rates = (1, 2, 3)
  config.model.channels = 16
  config.model.dtype = "float32"
  config.train.batch_size = 4
  config.train.steps = STEPS
  config.train.crop_size = (49, 65)
  config.train.log_every = 1
  config.train.eval_every = 6
  config.train.checkpoint_every = 4
  config.contrast.bank_size = 20
  config.eval.batch_size = 20
  return config


def command(workdir: pathlib.Path, *flags: str) -> list[str]:
  """The command line of a mode of this recipe."""
  recipe = pathlib.Path(__file__).resolve()
  return [sys.executable, "-m", "rc_jax.main", f"--config={recipe}", f"--workdir={workdir}", *flags]


def environment(cache: pathlib.Path, devices: int = 1) -> dict[str, str]:
  """Returns the environment of a run whose compiled programs are kept in ``cache``."""
  return {
    **os.environ,
    **processes.with_devices(devices),
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }


def start(workdir: pathlib.Path, *flags: str, cache: pathlib.Path, devices: int = 1, **variables: str):
  """Starts a run; its compiled programs are kept in ``cache``, so that only the first of a test compiles."""
  return subprocess.Popen(
    command(workdir, *flags),
    cwd=ROOT,
    env=environment(cache, devices) | variables,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process: subprocess.Popen, seconds: float = 240) -> str:
  """Waits for a run; returns what it printed."""
  printed, _ = process.communicate(timeout=seconds)
  return printed


def lines(workdir: pathlib.Path) -> list[dict]:
  """The lines of ``metrics.jsonl`` without speed and waiting, which no two runs share."""
  path = workdir / "metrics.jsonl"
  if not path.is_file():
    return []
  found = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
  for line in found:
    line.pop("images_per_second", None)
    line.pop("data_wait", None)
  return found


def signal_at(process: subprocess.Popen, workdir: pathlib.Path, step: int, number: signal.Signals) -> None:
  """Sends a signal once the run has logged a step."""
  deadline = time.monotonic() + 200
  while process.poll() is None and time.monotonic() < deadline:
    if any(line["step"] >= step for line in lines(workdir)):
      process.send_signal(number)
      return
    time.sleep(0.02)
  raise AssertionError(f"the run ended, or took too long, before step {step}: {process.communicate()[0]}")
