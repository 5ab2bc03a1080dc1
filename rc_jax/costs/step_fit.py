"""Memory and time of a train step, from compiling it and without running it."""

import dataclasses
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rc_jax import contrast, data, models, sharding
from rc_jax.config import Config, height_width, reads_banks
from rc_jax.console import say
from rc_jax.contrast import streamed
from rc_jax.costs import hlo_cost
from rc_jax.costs.chips import CHIPS
from rc_jax.costs.stage_cost import forward_flops
from rc_jax.costs.topology import topology_mesh
from rc_jax.training import initial_state, optimizer

# Classes that an image is assumed to show, for the number of queries: images of ADE20K show 9 of 150 classes.
CLASSES_IN_AN_IMAGE = 10

# Compiles several times faster for a TPU; the resulting code says nothing about speed.
FAST = {"exec_time_optimization_effort": -1.0}


@dataclasses.dataclass(frozen=True)
class StepCost:
  """The cost of a train step on each device; memory in bytes.

  Attributes:
    devices: their number.
    kind: of the devices.
    images: of the batch, on each device.
    parameters: with BatchNorm's statistics.
    momentum: the optimizer's state.
    banks: keys, cursors and counts.
    batch: images and labels.
    activations: all temporary arrays of the step.
    peak: the largest memory at one time.
    limit: the device's memory; None if it is unknown.
    flops: of the network's convolutions and products, forward and backward, padding included.
    traffic: bytes that the compiler expects to move; the body of a loop counts once.
    seconds: of a step, without waiting for messages; None if the compiler estimates nothing.
    collectives: messages between devices.
    compiled_in: seconds.
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

  @property
  def share_of_peak(self) -> float | None:
    """The operations of a step as a fraction of the peak rate times its seconds; None if either is unknown."""
    chip = CHIPS.get(self.kind)
    return self.flops / (self.seconds * chip.peak) if self.seconds and chip else None


class DoesNotFit(ValueError):
  """The compiler found no way to run the step in the devices' memory."""


def measure(config: Config, topology: str = "", fast: bool = False) -> StepCost:
  """Compiles the train step of a config.

  Args:
    config: a validated config.
    topology: as for ``costs.topology.topology_mesh``; empty: the attached devices.
    fast: leaves out the time of a step, which needs the compiler's full effort.

  Raises:
    DoesNotFit: the step needs more memory than the devices have; one line with remedies.
    ValueError: the config or the topology is invalid.
  """
  if topology:
    # Only shapes are computed here, and an attached TPU would be reserved for nothing.
    jax.config.update("jax_platforms", "cpu")
  mesh = topology_mesh(topology) if topology else sharding.global_mesh()
  sharding.check_batch(config.train.batch_size, mesh)
  kind, devices = mesh.devices.flat[0].device_kind, mesh.devices.size
  network = models.build(config.model, data.info(config.dataset.name, config.dataset.root).num_classes)
  state, batch, update_rule = _abstract_arguments(config, network, mesh)
  # Without norms on GPUs, as nearly all steps of a run there.
  step = initial_state.jitted_step(
    config, network, update_rule, state, mesh, norms=not sharding.on_gpus(mesh)
  )

  effort = (
    "only memory and messages" if fast else "at full effort, which may take minutes; --fast leaves out speed"
  )
  say(f"compiling for {devices} x {kind} ({effort}) ...")
  start = time.monotonic()
  try:
    compiled = step.lower(state, batch).compile(FAST if fast and kind.startswith("TPU") else None)
  except jax.errors.JaxRuntimeError as error:
    raise does_not_fit(error, config, devices, kind) or error from error
  compiled_in = time.monotonic() - start

  memory: Any = compiled.memory_analysis()
  trips = {}
  if isinstance(state.bank, contrast.MemoryBank):
    queries = config.train.batch_size * min(network.num_classes, CLASSES_IN_AN_IMAGE)
    trips = streamed.loop_trips(network.num_classes, state.bank.keys.shape[1] // devices, queries)
  cost = hlo_cost.read(compiled.as_text() or "", trips)
  chip = CHIPS.get(kind)
  images = config.train.batch_size // devices
  summary: Any = compiled.cost_analysis() or {}
  return StepCost(
    devices=devices,
    kind=kind,
    images=images,
    parameters=bytes_per_device((state.params, state.batch_stats)),
    momentum=bytes_per_device(state.opt_state),
    banks=bytes_per_device(state.bank),
    batch=bytes_per_device(batch),
    activations=memory.temp_size_in_bytes,
    peak=memory.argument_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes,
    limit=chip.memory if chip else _attached_memory(mesh.devices.flat[0]),
    flops=3 * images * forward_flops(network, height_width(config.train.crop_size)),
    traffic=summary.get("bytes accessed"),
    seconds=cost.cycles / chip.clock if chip and chip.clock and cost.cycles and not fast else None,
    collectives=cost.collectives,
    compiled_in=compiled_in,
  )


def _abstract_arguments(
  config: Config, network: models.Network, mesh: Mesh
) -> tuple[Any, dict[str, jax.ShapeDtypeStruct], Any]:
  """Returns state and batch of the train step as shapes with shardings, and the optimizer."""
  height, width = height_width(config.train.crop_size)
  variables = network.init(jax.random.key(0), image_size=(height, width))
  update_rule = optimizer.sgd(config.optimizer, config.train.steps, variables.params)
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
  return placed_state, batch, update_rule


def _count_training_images(config: Config) -> int:
  """Returns the size of the training set, which ``contrast.bank_size=0`` stands for."""
  dataset = config.dataset
  if not reads_banks(config):
    return 1
  try:
    return len(data.load(dataset.name, dataset.root, dataset.train_split))
  except (ValueError, FileNotFoundError) as error:
    raise ValueError(
      "config.contrast.bank_size: is 0, the size of the training set, which cannot be counted here; "
      "expected a number, or dataset.root"
    ) from error


def does_not_fit(error: Exception, config: Config, devices: int, kind: str) -> DoesNotFit | None:
  """Turns a compiler's error into one line with remedies; None if the error is not about memory."""
  text = " ".join(str(error).split())
  if "RESOURCE_EXHAUSTED" not in text:
    return None
  used = re.search(r"[Uu]sed ([\d.]+\w) of ([\d.]+\w)", text)
  amount = f"{used[1]} of {used[2]}" if used else text[:160]
  batch, half = config.train.batch_size, config.train.batch_size // 2
  changes = [f"more devices ({2 * devices} hold half as many images each)"] if devices * 2 <= batch else []
  changes += [f"train.batch_size={half}"] if half >= devices else []
  changes += ["a smaller train.crop_size"]
  changes += ["contrast.bank_dtype=bfloat16"] if config.contrast.bank_dtype == "float32" else []
  return DoesNotFit(f"does not fit {devices} x {kind} ({amount} on each): try {', '.join(changes)}")


def _attached_memory(device: Any) -> float | None:
  stats = device.memory_stats() if hasattr(device, "memory_stats") else None
  return float(stats["bytes_limit"]) if stats and "bytes_limit" in stats else None


def bytes_per_device(tree: Any) -> int:
  """Returns the bytes of a tree of shapes with shardings on one device."""
  return sum(
    int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )
