"""Memory and time of a train step, from compiling it and without running it."""

import dataclasses
import re
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rc_jax import contrast, data, models, sharding
from rc_jax.config import Config, height_width, reads_banks, reads_image_index
from rc_jax.console import say
from rc_jax.contrast import streamed
from rc_jax.costs import gpu_kernels, hlo_cost, program_warnings
from rc_jax.costs.chips import CHIPS, gpu_of
from rc_jax.costs.gpu_kernels import KernelCost
from rc_jax.costs.program_warnings import ProgramWarning
from rc_jax.costs.scopes import module_of
from rc_jax.costs.stage_cost import forward_flops
from rc_jax.costs.topology import topology_mesh
from rc_jax.files import one_line
from rc_jax.training import initial_state, optimizer
from rc_jax.training.class_weights import with_uncounted_weights

# Classes that an image is assumed to show, for the number of queries: images of ADE20K show 9 of 150 classes.
CLASSES_IN_AN_IMAGE = 10

# Compiles several times faster for a TPU; the resulting code says nothing about speed.
FAST = {"exec_time_optimization_effort": -1.0}

# Without a device nothing is autotuned, and the default tiles of XLA's own matrix products pad their operands.
GPU_NOT_ATTACHED = {"xla_gpu_enable_triton_gemm": False}

PREALLOCATED = 0.75  # of a GPU's memory, which JAX takes by default
# Bytes for cuDNN and cuBLAS, whose need is unknown before they choose their algorithms on the device.
WORKSPACES = 1e9


class Operation(NamedTuple):
  """An expensive operation: its module, its kind, its scope, and the seconds of all its runs in a step."""

  module: str
  kind: str
  scope: str
  seconds: float


@dataclasses.dataclass(frozen=True)
class StepCost:
  """The cost of a train step on each device; memory in bytes.

  Attributes:
    devices: their number.
    kind: of the devices.
    images: of the batch, on each device.
    parameters: with BatchNorm's statistics, and the moving averages of both where the run keeps them.
    momentum: the optimizer's state.
    banks: keys, cursors and counts.
    batch: images and labels.
    activations: all temporary arrays of the step.
    peak: the largest memory at one time.
    limit: the device's memory; of a GPU, the memory that JAX takes, less a margin for workspaces if the GPU is not
      attached. None if it is unknown.
    flops: of the network's convolutions and products, forward and backward, padding included.
    traffic: bytes that the compiler expects to move; the body of a loop counts once, except on a known GPU.
    seconds: of a step, without waiting for messages; None if the compiler estimates nothing.
    collectives: messages between devices.
    compiled_in: seconds.
    attached: whether the devices are.
    operations: that a device starts one by one in a step: fusions, library calls, copies and messages.
    kernels: of a known GPU; None for other devices.
    warnings: operations that a GPU or a TPU does badly.
    heaviest: the most expensive operations, at most ten: on a TPU by the compiler's estimate, on a GPU at best.
  """

  devices: int
  kind: str
  images: int
  parameters: int
  momentum: int
  banks: int
  batch: int
  activations: int
  peak: int
  limit: float | None
  flops: float
  traffic: float | None
  seconds: float | None
  collectives: tuple[hlo_cost.Collective, ...]
  compiled_in: float
  attached: bool = True
  operations: int = 0
  kernels: KernelCost | None = None
  warnings: tuple[ProgramWarning, ...] = ()
  heaviest: tuple[Operation, ...] = ()

  @property
  def share_of_peak(self) -> float | None:
    """The operations of a step as a fraction of the peak rate times its seconds; None if either is unknown."""
    chip = CHIPS.get(self.kind)
    return self.flops / (self.seconds * chip.peak) if self.seconds and chip else None


class DoesNotFit(ValueError):
  """The step needs more memory than the devices have."""


class _Target(NamedTuple):
  """The devices for which a step is compiled: the first one, their number, their platform, and whether they are here.

  The platform is ``gpu`` for GPUs of any maker.
  """

  device: Any
  devices: int
  platform: str
  attached: bool

  @property
  def kind(self) -> str:
    return str(self.device.device_kind)


class _ProgramReading(NamedTuple):
  """Figures that the text of a compiled step gives, as in `StepCost`."""

  cost: hlo_cost.Cost
  seconds: float | None
  kernels: KernelCost | None
  heaviest: tuple[Operation, ...]
  warnings: tuple[ProgramWarning, ...]


def measure(config: Config, topology: str = "", fast: bool = False) -> StepCost:
  """Compiles the train step of a config.

  Args:
    config: a validated config.
    topology: as for ``costs.topology.topology_mesh``; empty: the attached devices.
    fast: leaves out the time of a step, which needs the compiler's full effort.

  Raises:
    DoesNotFit: the step needs more memory than the devices have; one line with remedies.
    ValueError: the config or the topology is invalid, or ``fast`` is set for a GPU.
  """
  if topology:
    # Only shapes are computed here, and an attached TPU would be reserved for nothing.
    jax.config.update("jax_platforms", "cpu")
  mesh = topology_mesh(topology) if topology else sharding.global_mesh()
  sharding.check_batch(config.train.batch_size, mesh, config.train.microbatches)
  platform = "gpu" if sharding.on_gpus(mesh) else mesh.devices.flat[0].platform
  target = _Target(mesh.devices.flat[0], mesh.devices.size, platform, attached=not topology)
  if fast and platform == "gpu":
    raise ValueError("--fast: changes nothing for a GPU, whose compiler has one effort; leave it out")
  network = models.build(
    config.model, data.info(config.dataset.name, config.dataset.root, config.dataset.classes).num_classes
  )
  config = with_uncounted_weights(config, network.num_classes)
  state, batch, update_rule = _abstract_arguments(config, network, mesh)
  # Without norms on GPUs, as nearly all steps of a run there.
  step = initial_state.jitted_step(
    config, network, update_rule, state, mesh, norms=not sharding.on_gpus(mesh)
  )
  start = time.monotonic()
  compiled = _compile(step, (state, batch), config, target, fast)
  compiled_in = time.monotonic() - start

  trips = _loop_trips(config, network, state, target.devices)
  reading = _read_program(compiled.as_text() or "", config, target, trips, fast)
  kernels = reading.kernels
  activations, peak = _memory_of(compiled)
  limit = _memory_limit(target)
  if platform == "gpu":
    rematerialised = kernels.rematerialised if kernels else 0
    refuse_above(limit, peak, rematerialised, config, target.devices, target.kind)
  summary: Any = compiled.cost_analysis() or {}
  images = config.train.batch_size // target.devices
  return StepCost(
    devices=target.devices,
    kind=target.kind,
    images=images,
    parameters=bytes_per_device((state.params, state.batch_stats, state.ema)),
    momentum=bytes_per_device(state.opt_state),
    banks=bytes_per_device(state.bank),
    batch=bytes_per_device(batch),
    activations=activations,
    peak=peak,
    limit=limit,
    flops=3 * images * forward_flops(network, height_width(config.train.crop_size)),
    traffic=kernels.size if kernels else summary.get("bytes accessed"),
    seconds=reading.seconds,
    collectives=reading.cost.collectives,
    compiled_in=compiled_in,
    attached=target.attached,
    operations=reading.cost.operations,
    kernels=kernels,
    warnings=reading.warnings,
    heaviest=reading.heaviest,
  )


def _compile(
  step: Any, arguments: tuple[Any, ...], config: Config, target: _Target, fast: bool
) -> jax.stages.Compiled:
  """Compiles a jitted step, which may take minutes; raises DoesNotFit if the devices have too little memory."""
  options, note = _compiler_options(target.platform, target.attached, fast)
  say(f"compiling for {target.devices} x {target.kind}{note} ...")
  try:
    compiled: jax.stages.Compiled = step.lower(*arguments).compile(options or None)
  except jax.errors.JaxRuntimeError as error:
    raise does_not_fit(error, config, target.devices, target.kind) or error from error
  return compiled


def _read_program(
  text: str, config: Config, target: _Target, trips: dict[str, int], fast: bool
) -> _ProgramReading:
  """Reads a compiled step, ``jax.stages.Compiled.as_text()``; ``trips`` are as for ``hlo_cost.read``."""
  program = hlo_cost.parse(text)
  cost = hlo_cost.read(program, trips)
  kernels, heaviest = _gpu_kernels(program, text, target.kind, trips)
  chip = CHIPS.get(target.kind)
  seconds = None
  if chip and chip.clock and not fast:
    seconds = cost.cycles / chip.clock or None
    heaviest = tuple(
      Operation(module_of(scope), scope.rpartition("/")[2], scope, cycles / chip.clock)
      for cycles, scope in cost.heaviest
    )
  warnings: tuple[ProgramWarning, ...] = ()
  if target.platform in ("gpu", "tpu"):
    warnings = program_warnings.read(program, target.platform, config.model.dtype, trips)
  return _ProgramReading(cost, seconds, kernels, heaviest, warnings)


def _loop_trips(config: Config, network: models.Network, state: Any, devices: int) -> dict[str, int]:
  """Returns the iterations of the loops of the contrastive loss by scope, as for ``hlo_cost.read``."""
  if not isinstance(state.bank, contrast.MemoryBank | contrast.ImageMemoryBank):
    return {}
  queries = config.train.batch_size * min(network.num_classes, CLASSES_IN_AN_IMAGE)
  return streamed.loop_trips(network.num_classes, state.bank.keys.shape[1] // devices, queries)


def _memory_of(compiled: jax.stages.Compiled) -> tuple[int, int]:
  """Returns the bytes of a program's temporary arrays, and the most that it needs at one time."""
  memory: Any = compiled.memory_analysis()
  arguments, results = memory.argument_size_in_bytes, memory.output_size_in_bytes
  peak = arguments + memory.temp_size_in_bytes + results - memory.alias_size_in_bytes
  return memory.temp_size_in_bytes, peak


def _compiler_options(platform: str, attached: bool, fast: bool) -> tuple[dict[str, Any], str]:
  """Returns the compiler's options for a platform, and a note on its effort for the screen."""
  if platform == "tpu" and fast:
    return FAST, " (only memory and messages)"
  if platform == "tpu":
    return {}, " (at full effort, which may take minutes; --fast leaves out speed)"
  return (GPU_NOT_ATTACHED if platform == "gpu" and not attached else {}), ""


def _gpu_kernels(
  program: hlo_cost.Program, text: str, kind: str, trips: dict[str, int]
) -> tuple[KernelCost | None, tuple[Operation, ...]]:
  """Returns the kernels of a program, and the most expensive ones; None and () if the GPU is unknown or none."""
  gpu = gpu_of(kind)
  if gpu is None:
    return None, ()
  kernels = gpu_kernels.read(program, gpu, trips)
  longest = sorted(kernels, key=lambda kernel: -kernel.total_seconds)[:10]
  heaviest = (Operation(module_of(each.scope), each.kind, each.scope, each.total_seconds) for each in longest)
  return gpu_kernels.sum_up(kernels, text, gpu), tuple(heaviest)


def _abstract_arguments(
  config: Config, network: models.Network, mesh: Mesh
) -> tuple[Any, dict[str, jax.ShapeDtypeStruct], Any]:
  """Returns state and batch of the train step as shapes with shardings, and the optimizer."""
  height, width = height_width(config.train.crop_size)
  variables = network.init(jax.random.key(0), image_size=(height, width))
  trained, _ = models.split(variables.params, network.frozen)
  update_rule = optimizer.build(config.optimizer, config.train.steps, trained, network.stages)
  bank_size = config.contrast.bank_size or _count_training_images(config)
  state = jax.eval_shape(
    lambda variables: initial_state.fresh_state(config, network, variables, update_rule, bank_size, mesh),
    variables,
  )
  placed_state = jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
    state,
    initial_state.state_formats(state, mesh),
  )
  spread = sharding.batch_sharding(mesh)
  size = (config.train.batch_size, height, width)
  batch = {
    "image": jax.ShapeDtypeStruct((*size, 3), jnp.uint8, sharding=spread),
    "label": jax.ShapeDtypeStruct(size, jnp.uint8, sharding=spread),
  }
  if reads_image_index(config):
    batch["index"] = jax.ShapeDtypeStruct(size[:1], jnp.int32, sharding=spread)
  return placed_state, batch, update_rule


def _count_training_images(config: Config) -> int:
  """Returns the size of the training set, which ``contrast.bank_size=0`` stands for."""
  dataset = config.dataset
  if not reads_banks(config):
    return 1
  try:
    return len(data.load(dataset.name, dataset.root, dataset.train_split, classes=dataset.classes))
  except (ValueError, FileNotFoundError) as error:
    expected = "dataset.root" if reads_image_index(config) else "a number, or dataset.root"
    raise ValueError(
      "config.contrast.bank_size: is 0, the size of the training set, which cannot be counted here; "
      f"expected {expected}"
    ) from error


def does_not_fit(error: Exception, config: Config, devices: int, kind: str) -> DoesNotFit | None:
  """Turns a compiler's error into one line with remedies; None if the error is not about memory."""
  text = " ".join(str(error).split())
  if "RESOURCE_EXHAUSTED" not in text:
    return None
  used = re.search(r"[Uu]sed ([\d.]+\w) of ([\d.]+\w)", text)
  amount = f"{used[1]} of {used[2]}" if used else one_line(text, 160)
  return DoesNotFit(_remedies(config, devices, kind, f"{amount} on each"))


def refuse_above(
  limit: float | None, peak: float, rematerialised: int, config: Config, devices: int, kind: str
) -> None:
  """Raises DoesNotFit if a GPU's step needs more bytes than the limit: the compiler for GPUs never refuses one.

  Above the memory of the data sheet it rematerialises instead, and says nothing when even that is not enough.
  """
  if limit and peak > limit:
    again = f", with {rematerialised} operations rematerialised" if rematerialised else ""
    amount = f"{peak / 1e9:.2f} GB of the usable {limit / 1e9:.2f} GB on each{again}"
    raise DoesNotFit(_remedies(config, devices, kind, amount))


def _remedies(config: Config, devices: int, kind: str, amount: str) -> str:
  """Returns a line with the memory that a step needs, and changes that need less."""
  batch, half = config.train.batch_size, config.train.batch_size // 2
  changes = [f"more devices ({2 * devices} hold half as many images each)"] if devices * 2 <= batch else []
  changes += [f"train.batch_size={half}"] if half >= devices else []
  parts = 2 * config.train.microbatches
  changes += ["model.remat=backbone"] if not config.model.remat else []
  changes += [f"train.microbatches={parts}"] if batch % (parts * devices) == 0 and batch > parts else []
  changes += ["a smaller train.crop_size"]
  changes += ["contrast.bank_dtype=bfloat16"] if config.contrast.bank_dtype == "float32" else []
  return f"does not fit {devices} x {kind} ({amount}): try {', '.join(changes)}"


def _memory_limit(target: _Target) -> float | None:
  chip = CHIPS.get(target.kind)
  if target.platform == "gpu" and chip and not target.attached:
    return PREALLOCATED * chip.memory - WORKSPACES
  if target.platform == "tpu" and chip:
    return chip.memory
  return _attached_memory(target.device)


def _attached_memory(device: Any) -> float | None:
  stats = device.memory_stats() if hasattr(device, "memory_stats") else None
  return float(stats["bytes_limit"]) if stats and "bytes_limit" in stats else None


def bytes_per_device(tree: Any) -> int:
  """Returns the bytes of a tree of shapes with shardings on one device."""
  return sum(
    int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )
