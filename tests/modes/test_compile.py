"""``--mode=compile``: memory against counts by hand, and errors for inputs that cannot work."""

import importlib.util
import math
import types

import jax
import numpy as np
import pytest

from rc_jax import contrast, distributed, models, sharding
from rc_jax.costs import chips, gpu_kernels, program_warnings, stage_cost, step_fit, topology
from rc_jax.modes import compile
from tests.support import run_tiny


@pytest.fixture(scope="module")
def cost():
  return step_fit.measure(run_tiny.get_config(), fast=True)


@pytest.mark.long
def test_sizes_equal_counts_by_hand(cost) -> None:
  config = run_tiny.get_config()
  variables = models.build(config.model, 11).init(jax.random.key(0))
  parameters, statistics = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in variables)
  assert cost.parameters == 4 * (parameters + statistics)
  assert cost.momentum >= 4 * parameters and cost.momentum < 4 * parameters + 100  # and a counter
  assert cost.banks == 4 * (11 * 256 * 16 + 11 + 11)  # 20 slots, padded to 256
  assert cost.batch == 4 * 49 * 65 * (3 + 1)
  assert cost.activations > 0 and cost.peak > cost.parameters + cost.momentum + cost.banks + cost.activations
  assert (cost.devices, cost.images, cost.seconds) == (1, 4, None)


def test_operations_are_three_times_those_of_the_forward_pass(cost) -> None:
  config = run_tiny.get_config()
  # At least those of the classifier, [7,9] by 16 by 11.
  assert cost.flops > 3 * 4 * 2 * 7 * 9 * 16 * 11
  assert cost.flops == 3 * 4 * stage_cost.forward_flops(models.build(config.model, 11), (49, 65))


def test_table_holds_every_figure(cost) -> None:
  text = "\n".join(compile.table(cost))
  for word in ("parameters", "optimizer state", "banks", "activations", "peak", "TFLOP", "4 images"):
    assert word in text
  assert "estimated" not in text  # a CPU's compiler estimates nothing


def test_table_holds_rates_and_shares_of_the_peak() -> None:
  chip = chips.CHIPS["TPU v5 lite"]
  cost = step_fit.StepCost(
    *(8, "TPU v5 lite", 2, 1, 1, 1, 1, 1, 2**33, 2.0**34, 0.1 * chip.peak, None, 0.5, (), 1.0)
  )
  assert math.isclose(cost.share_of_peak, 0.2)
  text = "\n".join(compile.table(cost))
  assert "500.0 ms, 20 % of the peak rate, 32.0 images/s" in text and "(50 %)" in text


def test_table_of_a_gpu_holds_kernels_and_warnings() -> None:
  share = gpu_kernels.Share("reduction", 12, 3_000_000, 0.002)
  kernels = gpu_kernels.KernelCost(1618, 1051, 10**11, 2 * 10**13, 0.05, 0.025, 3, (share,), (share,))
  warning = program_warnings.ProgramWarning("adding_scatter", 2, {"backbone": 2})
  operation = step_fit.Operation("head/aspp", "convolution", "a/b", 0.001)
  sizes = (8, chips.GPUS["h100"].name, 2, 1, 1, 1, 1, 1, 10**10, 5e10, 1e12, 1e11, None, (), 1.0)
  cost = step_fit.StepCost(*sizes, False, kernels=kernels, warnings=(warning,), heaviest=(operation,))
  text = "\n".join(compile.table(cost))
  assert "1618, of them 1051 tiny" in text and "3 operations" in text
  assert "50.0 ms, arithmetic alone 25.0 ms, 320.0 images/s" in text
  assert "warning: 2 x scatters that add, one value after another: backbone (2)" in text
  assert "0.75 of the data sheet's, less 1.00 GB for workspaces" in text
  text = "\n".join(compile.details(cost))
  assert "1.000 ms  head/aspp" in text and "12 kernels  reduction" in text


def test_fast_is_refused_for_a_gpu(monkeypatch) -> None:
  device = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA L4")
  mesh = types.SimpleNamespace(devices=np.array([device]), size=1)
  monkeypatch.setattr(step_fit, "topology_mesh", lambda name: mesh)
  with pytest.raises(ValueError, match="--fast: changes nothing for a GPU"):
    step_fit.measure(run_tiny.get_config(), "l4:1", fast=True)


@pytest.mark.slow
@pytest.mark.skipif(
  not all(map(importlib.util.find_spec, ("jax_plugins", "jax_plugins.xla_cuda13"))),
  reason="needs the extra gpu-compile",
)
def test_a_step_compiles_for_a_gpu() -> None:
  config = run_tiny.get_config()
  cost = step_fit.measure(config, "l4:1")
  assert cost.kind == "NVIDIA L4" and cost.limit == 0.75 * 24e9 - 1e9
  assert cost.kernels and cost.kernels.kernels > 100 and cost.kernels.bound > cost.kernels.arithmetic > 0
  assert len(cost.heaviest) == 10 and cost.seconds is None


def test_a_gpu_step_above_the_usable_memory_is_refused() -> None:
  config = run_tiny.get_config()
  step_fit.refuse_above(59e9, 58e9, 0, config, 1, "NVIDIA L4")
  step_fit.refuse_above(None, 58e9, 0, config, 1, "NVIDIA L4")
  message = r"does not fit 1 x NVIDIA L4 \(69\.00 GB of the usable 59\.00 GB on each, with 412 operations"
  with pytest.raises(step_fit.DoesNotFit, match=message + r" rematerialised\): try .* train\.batch_size=2"):
    step_fit.refuse_above(59e9, 69e9, 412, config, 1, "NVIDIA L4")


def test_a_step_that_does_not_fit_names_remedies() -> None:
  config = run_tiny.get_config()
  error = RuntimeError("RESOURCE_EXHAUSTED: ran out of memory in hbm. Used 20.51G of 15.75G hbm.")
  message = str(step_fit.does_not_fit(error, config, 2, "TPU v5 lite"))
  assert "does not fit 2 x TPU v5 lite (20.51G of 15.75G on each)" in message
  remedies = ("more devices (4", "train.batch_size=2", "model.remat=backbone", "contrast.bank_dtype=bfloat16")
  for word in (*remedies, "train.microbatches=2"):
    assert word in message
  config.train.microbatches = 2  # four parts of one image have no statistics
  assert "microbatches" not in str(step_fit.does_not_fit(error, config, 1, "TPU v5 lite"))
  assert step_fit.does_not_fit(RuntimeError("INTERNAL"), config, 2, "TPU v5 lite") is None


def test_alternatives_are_compiled_and_what_does_not_fit_or_divide_is_a_row(monkeypatch, capsys) -> None:
  measured = []

  def measure(config, topology, fast):
    measured.append((config.model.remat, config.train.microbatches, topology, fast))
    if not config.model.remat:
      raise step_fit.DoesNotFit("does not fit 1 x a GPU")
    kernels = types.SimpleNamespace(bound=0.0125)
    return types.SimpleNamespace(peak=3e9, limit=12e9, activations=2e9, kernels=kernels, seconds=None)

  monkeypatch.setattr(compile, "measure", measure)
  config = run_tiny.get_config()
  config.train.batch_size = 6
  config.train.microbatches = 3
  compile.run(config, "h100:1", alternatives=True)
  settings = [("", 3), ("backbone", 3), ("", 6), ("backbone", 6)]
  assert measured == [(*setting, "h100:1", False) for setting in settings]
  lines = capsys.readouterr().out.split("\n")
  assert lines[2].split("  ")[0] == "as configured" and lines[2].endswith("does not fit 1 x a GPU")
  assert " ".join(lines[3].split()) == "model.remat=backbone 3.00 GB (25 %) 2.00 GB 12.5 ms at best"
  assert [line.split("  ")[0] for line in lines[4:6]] == ["train.microbatches=6", "both"]
  config.train.batch_size = 4  # no multiple of 3
  with pytest.raises(ValueError, match=r"train.microbatches: is 3; expected a divisor"):
    compile.run(config, "h100:1", alternatives=True)


@pytest.mark.long
def test_slots_for_images_are_counted() -> None:
  config = run_tiny.get_config()
  config.contrast.update({"slots": "image", "bank_size": 0})
  cost = step_fit.measure(config, fast=True)
  assert cost.banks == 11 * 1024 * (4 * 16 + 1)  # 800 images, padded to 1024; a key and whether it is there
  assert cost.batch == 4 * 49 * 65 * (3 + 1) + 4 * 4  # and their indices


def test_a_training_set_that_cannot_be_counted_names_the_field() -> None:
  config = run_tiny.get_config()
  config.contrast.bank_size, config.dataset.name = 0, "camvid"
  with pytest.raises(ValueError, match=r"config\.contrast\.bank_size: is 0.*or dataset\.root"):
    step_fit.measure(config)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("h100:8", r"--topology=h100:8: needs JAX's plugin for CUDA.*\[gpu-compile\]"),
    ("h100", "--topology=h100: expected GPUs of a host, h100:8, or hosts and GPUs, h100:2x8"),
    ("l4:0", "--topology=l4:0: expected GPUs of a host"),
    ("b300:8", "--topology=b300:8: needs libtpu"),
  ],
)
def test_a_gpu_topology_needs_the_plugin_and_a_number(name, message, monkeypatch) -> None:
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=message):
    topology.topology_mesh(name)


def test_a_topology_needs_libtpu(monkeypatch) -> None:
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"--topology=v5e:2x4: needs libtpu.*\[tpu\]"):
    topology.topology_mesh("v5e:2x4")


@pytest.mark.parametrize(
  ("environment", "several"),
  [
    ({}, False),
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"}, False),  # the batch script itself
    ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "8"}, True),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
    ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": ""}, False),
    ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "tpu,cpu"}, True),
    ({"TPU_WORKER_HOSTNAMES": "localhost", "JAX_PLATFORMS": "tpu"}, False),
  ],
)
def test_a_cluster_is_recognised(environment, several, monkeypatch) -> None:
  for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  joined = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments, **_: joined.append(arguments))
  distributed.connect()
  assert joined == ([(None, None, None)] if several else [])


def test_flags_connect_processes(monkeypatch) -> None:
  joined: list[tuple] = []
  connected: list[tuple] = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments, **_: joined.append(arguments))
  monkeypatch.setattr(distributed, "connect_processes", lambda *arguments: connected.append(arguments))
  distributed.connect("host:1234", "4", "3", 60, {"seed": 0})
  assert joined == [("host:1234", 4, 3)] and connected == [("host:1234", 4, 3, 60, {"seed": 0})]
  with pytest.raises(ValueError, match="--processes, --process_id: not set"):
    distributed.connect("host:1234")
  with pytest.raises(ValueError, match="--process_id=4 of --processes=4: expected 0"):
    distributed.connect("host:1234", "4", "4")
  with pytest.raises(ValueError, match="--connect_timeout=0: expected 1 or more"):
    distributed.connect("host:1234", "4", "3", 0)


def test_bytes_per_device_divide_sharded_arrays() -> None:
  mesh = sharding.global_mesh()
  bank = jax.eval_shape(lambda: contrast.MemoryBank.create(3, 256, 8, mesh=mesh))
  keys = jax.ShapeDtypeStruct(bank.keys.shape, np.float32, sharding=bank.shardings().keys)
  assert step_fit.bytes_per_device(keys) == 4 * 3 * 256 * 8 // mesh.devices.size
