"""Kernels of a program that was compiled for a GPU, and the least time that they take.

XLA's compiler for GPUs estimates no times. Each kernel takes at least ``max(bytes / bandwidth, FLOP / rate)``; the sum
over all kernels of a step bounds its time from below. Launches, waiting and imperfect kernels come on top.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rc_jax.costs import hlo_cost
from rc_jax.costs.chips import Gpu
from rc_jax.costs.hlo_cost import Computations, Instruction, Program
from rc_jax.costs.scopes import module_of

# Large bfloat16 products reach about this fraction of the data sheet's rate: 790 of 989 TFLOP/s on an H100.
ATTAINABLE = 0.8
# A launch takes about as long; kernels that could finish sooner are tiny.
TINY = 3e-6

_CONVOLUTIONS = {
  "__cudnn$convBackwardFilter": "convolution, kernel gradient",
  "__cudnn$convBackwardInput": "convolution, input gradient",
}
# Opcode in a fusion -> kind of its kernel; the first that is present counts.
_FUSIONS = {
  "dot": "matrix product",
  "convolution": "convolution",
  "scatter": "scatter",
  "sort": "sort",
  "reduce-window": "pooling",
  "gather": "gather",
  "dynamic-update-slice": "slice update",
  "reduce": "reduction",
}
_SLICES = ("dynamic-slice", "slice", "gather")
# A fusion of these alone moves values and computes none.
_MOVES = {"transpose", "copy", "bitcast", "convert", "reshape", "parameter", "tuple"}


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A kernel of a program.

  Attributes:
    name: of its function in a trace, but for dots. Fusions that are equal share a function.
    kind: such as ``reduction``.
    scope: in which it was traced.
    runs: in a run of the program.
    size: bytes that a run reads and writes, each array once; of a sliced array the slice.
    flops: operations of convolutions and products, padding included, a multiply-add being two.
    seconds: of a run, at best.
  """

  name: str
  kind: str
  scope: str
  runs: int
  size: int
  flops: int
  seconds: float

  @property
  def total_seconds(self) -> float:
    """The seconds of all its runs, at best."""
    return self.runs * self.seconds


class Share(NamedTuple):
  """Kernels of one kind or module in a step: their runs, bytes, and seconds at best."""

  name: str
  kernels: int
  size: int
  seconds: float


@dataclasses.dataclass(frozen=True)
class KernelCost:
  """The kernels of a step on one GPU.

  Attributes:
    kernels: their runs, loops included.
    tiny: runs that could take less than `TINY`.
    size: bytes read and written.
    flops: of convolutions and products.
    bound: seconds, at best: the sum over kernels of the larger of their bytes / bandwidth and FLOP / rate.
    arithmetic: seconds, at best, if bytes took no time.
    rematerialised: operations that the compiler runs again instead of keeping their results, to save memory.
    by_kind: shares of the kinds of kernels, the most expensive first.
    by_module: the same of the modules of the network.
  """

  kernels: int
  tiny: int
  size: int
  flops: int
  bound: float
  arithmetic: float
  rematerialised: int
  by_kind: tuple[Share, ...]
  by_module: tuple[Share, ...]


def read(program: Program, gpu: Gpu, trips: Mapping[str, int] | None = None) -> list[Kernel]:
  """Returns the kernels of a program that was compiled for a GPU.

  Args:
    program: from ``hlo_cost.parse``.
    gpu: for its bandwidth and rates.
    trips: as for ``hlo_cost.read``.
  """
  computations = program.computations
  operands = {
    name: {instruction.name: instruction for instruction in body} for name, body in computations.items()
  }

  @functools.cache
  def kernel(computation: str, instruction: Instruction) -> Kernel | None:
    return _kernel(instruction, operands[computation], computations, gpu)

  def weight(computation: str, instruction: Instruction) -> float:
    each = kernel(computation, instruction)
    return each.seconds if each else 0

  kernels = []
  for computation, instruction, runs in hlo_cost.executions(program, trips, weight):
    each = kernel(computation, instruction)
    if each and runs:
      kernels.append(dataclasses.replace(each, runs=runs))
  return kernels


def sum_up(kernels: Sequence[Kernel], text: str, gpu: Gpu) -> KernelCost:
  """Sums up the kernels of a program.

  Args:
    kernels: from `read`.
    text: of the program from which they were read, ``jax.stages.Compiled.as_text()``.
    gpu: as for `read`.
  """
  rate = ATTAINABLE * gpu.chip.peak
  return KernelCost(
    kernels=sum(kernel.runs for kernel in kernels),
    tiny=sum(kernel.runs for kernel in kernels if kernel.seconds < TINY),
    size=sum(kernel.runs * kernel.size for kernel in kernels),
    flops=sum(kernel.runs * kernel.flops for kernel in kernels),
    bound=sum(kernel.total_seconds for kernel in kernels),
    arithmetic=sum(kernel.runs * kernel.flops for kernel in kernels) / rate,
    rematerialised=len(re.findall(r"^\s+(?:ROOT )?%[\w\-]+(?:\.\d+)*\.remat[\w.\-]* = ", text, re.MULTILINE)),
    by_kind=_shares(kernels, lambda kernel: kernel.kind),
    by_module=_shares(kernels, lambda kernel: module_of(kernel.scope)),
  )


def _shares(kernels: Sequence[Kernel], key: Callable[[Kernel], str]) -> tuple[Share, ...]:
  groups: dict[str, list[Kernel]] = collections.defaultdict(list)
  for kernel in kernels:
    groups[key(kernel)].append(kernel)
  shares = [
    Share(
      name,
      sum(kernel.runs for kernel in group),
      sum(kernel.runs * kernel.size for kernel in group),
      sum(kernel.total_seconds for kernel in group),
    )
    for name, group in groups.items()
  ]
  return tuple(sorted(shares, key=lambda share: -share.seconds))


def _kernel(
  instruction: Instruction, operands: Mapping[str, Instruction], computations: Computations, gpu: Gpu
) -> Kernel | None:
  """Returns the kernel of an instruction, None if it launches none."""
  if not hlo_cost.is_operation(instruction):
    return None
  target = custom_call_target(instruction)
  body = hlo_cost.fused(instruction, computations)
  inputs = [operands[name] for name in instruction.operands if name in operands]
  size = _bytes_read(instruction, inputs, computations) + _bytes_written(instruction, operands, computations)
  flops = _flops(instruction, target, inputs, body)
  seconds = max(size / gpu.chip.bandwidth, flops / (ATTAINABLE * _rate(instruction, inputs, body, gpu)))
  scope = hlo_cost.scope_of(instruction, body)
  name = instruction.attribute(r'deduplicated_name="([^"]*)"') or instruction.name
  return Kernel(name, _kind(instruction, target, body), scope, 1, size, flops, seconds)


def custom_call_target(instruction: Instruction) -> str:
  """Returns the library function that a ``custom-call`` calls, such as ``__cudnn$convForward``; empty for others."""
  if instruction.opcode != "custom-call":
    return ""
  return instruction.attribute(r'custom_call_target="([^"]*)"')


def only_moves(instruction: Instruction, body: Sequence[Instruction]) -> bool:
  """Whether an instruction transposes or copies an array and computes nothing; ``body`` as from ``hlo_cost.fused``."""
  if instruction.opcode in ("copy", "transpose"):
    return True
  opcodes = {each.opcode for each in body}
  return bool(opcodes & {"transpose", "copy"}) and opcodes <= _MOVES


def _kind(instruction: Instruction, target: str, body: Sequence[Instruction]) -> str:
  if target.startswith("__cudnn$conv"):
    return _CONVOLUTIONS.get(target, "convolution")
  if target.startswith("__cublas"):
    return "matrix product"
  if only_moves(instruction, body):
    return "transpose or copy"
  opcode = instruction.opcode.removesuffix("-start")
  if opcode in hlo_cost.COLLECTIVES:
    return "message"
  opcodes = {each.opcode for each in body} or {opcode}
  kind = next((kind for name, kind in _FUSIONS.items() if name in opcodes), "elementwise")
  return target or kind


def _bytes_written(
  instruction: Instruction, operands: Mapping[str, Instruction], computations: Computations
) -> int:
  if instruction.opcode == "custom-call":
    # The others are workspaces.
    dtype, dimensions = (hlo_cost.arrays(instruction.shape) or [("token", ())])[0]
    return hlo_cost.shape_bytes(f"{dtype}[{','.join(map(str, dimensions))}]")
  if instruction.opcode == "fusion":
    body = hlo_cost.fusion_body(instruction, computations)
    inner = {each.name: each for each in body}
    return sum(_result_bytes(each, inner) for each in body if each.root) or instruction.size
  return _result_bytes(instruction, operands)


def _result_bytes(instruction: Instruction, operands: Mapping[str, Instruction]) -> int:
  """Returns the bytes of a result that are written: updates of slices and scatters are done in place."""
  if instruction.opcode == "tuple":
    return sum(_result_bytes(operands[name], operands) for name in instruction.operands if name in operands)
  if instruction.opcode == "bitcast" and instruction.operands[0] in operands:
    return _result_bytes(operands[instruction.operands[0]], operands)
  update = operands.get(_written_in_place(instruction))
  return update.size if update else instruction.size


def _written_in_place(instruction: Instruction) -> str:
  """Returns the name of the operand that an operation writes into its first one; empty for other operations."""
  if instruction.opcode == "dynamic-update-slice":
    return instruction.operands[1]
  # A scatter of several arrays has more operands.
  return instruction.operands[2] if instruction.opcode == "scatter" and len(instruction.operands) == 3 else ""


def _bytes_read(instruction: Instruction, inputs: Sequence[Instruction], computations: Computations) -> int:
  """Returns the bytes that a kernel reads, each operand once; of operands that it only slices, the slices."""
  unique = {each.name: each for each in inputs}
  if instruction.opcode == "fusion":
    body = hlo_cost.fusion_body(instruction, computations)
    parameters = {each.parameter: each for each in body if each.parameter is not None}
    slices: dict[str, list[int | None]] = {name: [] for name in unique}
    for number, name in enumerate(instruction.operands):
      if number in parameters and name in unique:
        slices[name].append(_slices(parameters[number], body))
    return sum(
      unique[name].size if None in parts or not parts else min(sum(filter(None, parts)), unique[name].size)
      for name, parts in slices.items()
    )
  if instruction.opcode in _SLICES:
    return instruction.size
  if instruction.opcode == "dynamic-update-slice":
    return sum(each.size for each in inputs[1:2])
  if _written_in_place(instruction):
    return sum(each.size for each in inputs[1:])
  return sum(each.size for each in unique.values())


def _slices(array: Instruction, body: Sequence[Instruction]) -> int | None:
  """Returns the bytes of an array that slicing reads; None if anything reads all of it."""
  total = 0
  for user in body:
    if array.name not in user.operands:
      continue
    only_first = user.operands[0] == array.name and array.name not in user.operands[1:]
    if user.opcode in _SLICES and only_first:
      total += user.size
    elif user.opcode == "bitcast":
      below = _slices(user, body)
      if below is None:
        return None
      total += below
    elif not (_written_in_place(user) and only_first):
      return None
  return min(total, array.size)


def _flops(
  instruction: Instruction, target: str, inputs: Sequence[Instruction], body: Sequence[Instruction]
) -> int:
  if target.startswith("__cudnn$conv"):
    return _convolution_flops(instruction, target, inputs)
  if target.startswith("__cublas"):
    contracted = instruction.attribute(r'"lhs_contracting_dimensions":\[([^\]]*)\]')
    return _product_flops(instruction, inputs[0], contracted)
  if instruction.opcode == "dot" and inputs:
    return _product_flops(instruction, inputs[0], instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}"))
  by_name = {each.name: each for each in body}
  return sum(
    _product_flops(each, by_name[each.operands[0]], each.attribute(r"lhs_contracting_dims=\{([\d,]*)\}"))
    for each in body
    if each.opcode == "dot" and each.operands[0] in by_name
  )


def _product_flops(instruction: Instruction, left: Instruction, contracted: str) -> int:
  """Returns ``2 x multiply-adds`` of a matrix product; ``contracted``: dimensions of the left operand."""
  result = hlo_cost.arrays(instruction.shape)[0][1]
  dimensions = hlo_cost.arrays(left.shape)[0][1]
  return 2 * math.prod(result) * math.prod(dimensions[int(n)] for n in re.findall(r"\d+", contracted))


def _convolution_flops(instruction: Instruction, target: str, inputs: Sequence[Instruction]) -> int:
  """Returns ``2 x multiply-adds`` of a convolution or of one of its gradients, padding included.

  All three are ``filter x pixels of the convolution's output``; labels of dimensions are those of the convolution.
  """
  labels = instruction.attribute(r"dim_labels=[\w?]+_[\w?]+->([\w?]+)")
  first, second, result = (hlo_cost.arrays(each.shape)[0][1] for each in (*inputs[:2], instruction))
  if target == "__cudnn$convBackwardFilter":
    kernel, output = result, second
  elif target == "__cudnn$convBackwardInput":
    kernel, output = second, first
  else:
    kernel, output = second, result
  pixels = math.prod(size for size, label in zip(output, labels, strict=True) if label != "f")
  return 2 * math.prod(kernel) * pixels


def _rate(
  instruction: Instruction, inputs: Sequence[Instruction], body: Sequence[Instruction], gpu: Gpu
) -> float:
  """Returns the data sheet's operations a second for the operands of a product."""
  products = [each for each in body if each.opcode == "dot"]
  by_name = {each.name: each for each in body}
  multiplied = [by_name[name] for each in products for name in each.operands if name in by_name] or inputs
  if not any(dtype == "f32" for each in multiplied[:2] for dtype, _ in hlo_cost.arrays(each.shape)):
    return gpu.chip.peak
  exact = any(re.search(r"highest", each.attributes, re.IGNORECASE) for each in (instruction, *products))
  return gpu.float32_rate if exact else gpu.tf32_rate
