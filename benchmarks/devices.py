"""Compares one run on 1 device, 8 devices, 2 processes x 4 devices, and killed on 8 devices and resumed on 2.

  python -m benchmarks.devices [--config=configs/demo.py] [--steps=10] [--learning_rate=1e-4]

XLA simulates the devices on a CPU. Each run takes the first steps of the recipe and logs each. The table compares each
run with the first: relative difference of the loss, whether the same bank slots are filled, and absolute difference of
the keys in them, which have unit length. Another order of sums rounds differently, and a young network magnifies the
difference from step to step. The control shows how much: 1 device, with a learning rate that differs in its last bit.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np

from rc_jax import contrast, data, models, sharding
from rc_jax.config import Config, load_recipe
from rc_jax.training import initial_state
from rc_jax.weights.checkpoint import Checkpoints


def start(
  config: str, workdir: pathlib.Path, steps: int, processes: int, devices: int, *flags: str
) -> subprocess.Popen[bytes]:
  """Starts the first steps of a recipe with ``devices`` devices in each process."""
  command = [
    *("launch/local.sh", str(processes)),
    *(f"--config={config}", f"--workdir={workdir}", "--config.train.log_every=1"),
    *(f"--config.train.steps={steps}", "--config.train.eval_every=0", "--config.train.checkpoint_every=5"),
    *flags,
  ]
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "PYTHON": sys.executable,
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
  }
  with (workdir.parent / f"{workdir.name}.log").open("ab") as log:
    return subprocess.Popen(
      command,
      env=environment,
      stdout=log,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )


def logged(workdir: pathlib.Path) -> dict[int, dict[str, Any]]:
  """Reads the logged lines of steps; step -> line."""
  path = workdir / "metrics.jsonl"
  lines = map(json.loads, path.read_text().splitlines()) if path.is_file() else ()
  return {line["step"]: line for line in lines if "loss" in line}


def banks(config: Config, workdir: pathlib.Path) -> contrast.MemoryBank:
  """Restores the banks of a run's newest checkpoint onto one device."""
  network = models.build(config.model, data.info(config.dataset.name, config.dataset.root).num_classes)
  images = len(data.load(config.dataset.name, config.dataset.root, config.dataset.train_split))
  state, _ = initial_state.initial_state(config, network, images, sharding.global_mesh(), fresh=False)
  with Checkpoints(workdir) as checkpoints:
    restored, _ = checkpoints.restore(state)
  return jax.device_get(restored.bank)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", default="configs/demo.py")
  parser.add_argument("--steps", type=int, default=10)
  parser.add_argument("--learning_rate", type=float, default=0, help="default: the recipe's")
  options = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  config = load_recipe(options.config)
  config.train.steps = options.steps
  rate = np.float32(options.learning_rate or config.optimizer.learning_rate)
  field = "--config.optimizer.learning_rate"
  same, control = f"{field}={rate:.9g}", f"{field}={np.nextafter(rate, np.float32(1)):.9g}"
  runs: dict[str, tuple[Any, ...]] = {
    "1 device": (1, 1, same),
    "control": (1, 1, control),
    "8 devices": (1, 8, same),
    "2 processes x 4": (2, 4, same),
  }
  with tempfile.TemporaryDirectory() as folder:
    workdirs = {name: pathlib.Path(folder) / f"run{index}" for index, name in enumerate(runs)}
    for name, how in runs.items():
      if start(options.config, workdirs[name], options.steps, *how).wait():
        raise SystemExit(workdirs[name].with_suffix(".log").read_text())
      print(f"{name}: {options.steps} steps", flush=True)
    name = "killed on 8, resumed on 2"
    workdirs[name] = pathlib.Path(folder) / "resumed"
    running = start(options.config, workdirs[name], options.steps, 1, 8, same)
    while len(logged(workdirs[name])) < options.steps // 2 and running.poll() is None:
      time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    killed_at = max(logged(workdirs[name]))
    if start(options.config, workdirs[name], options.steps, 1, 2, same).wait():
      raise SystemExit(workdirs[name].with_suffix(".log").read_text())
    print(f"{name}: SIGKILL after step {killed_at}\n")

    reference, bank = logged(workdirs["1 device"]), banks(config, workdirs["1 device"])
    shown = [step for step in (1, 2, 3, 5, 10, 20, 40, 80) if step <= options.steps]
    steps = "".join(f"{step:>9}" for step in shown)
    print("loss against 1 device, relative; keys of the banks, absolute")
    print(f"{'step':25}{steps}  keys: median  largest  filled slots")
    for name, workdir in workdirs.items():
      lines, other = logged(workdir), banks(config, workdir)
      apart = "".join(f"{abs(lines[step]['loss'] / reference[step]['loss'] - 1):9.1e}" for step in shown)
      slots_agree = np.array_equal(other.count, bank.count) and np.array_equal(other.cursor, bank.cursor)
      slots = bank.capacity
      keys = np.abs(np.asarray(other.keys[:, :slots]) - np.asarray(bank.keys[:, :slots])).max(axis=-1)
      filled = keys[np.arange(slots) < bank.count[:, None]]
      print(
        f"{name:25}{apart}  {np.median(filled):12.1e}  {filled.max():7.1e}  "
        f"{'the same' if slots_agree else 'OTHERS'} {int(bank.count.sum())}"
      )


if __name__ == "__main__":
  main()
