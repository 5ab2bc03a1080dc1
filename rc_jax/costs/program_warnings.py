"""Operations of a compiled program that are slow or inexact on its hardware."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping

from rc_jax.costs import hlo_cost
from rc_jax.costs.gpu_kernels import custom_call_target, only_moves
from rc_jax.costs.hlo_cost import Computations, Instruction, Program
from rc_jax.costs.scopes import module_of

# cuDNN has no fast algorithm above this size, and often none at all.
LARGEST_CUDNN_WINDOW = 15
LARGEST_MOVE = 50_000_000  # bytes
SUMS_OVER_DEVICES = ("all-reduce", "all-reduce-start", "reduce-scatter")

# Kind -> how its count is explained.
KINDS = {
  "large_window": f"convolutions with a filter above {LARGEST_CUDNN_WINDOW} pixels, slow in cuDNN or refused",
  "float32_convolution": "float32 convolutions outside classifiers, although model.dtype is bfloat16",
  "large_move": f"transposes or copies alone of more than {LARGEST_MOVE / 1e6:.0f} MB",
  "bfloat16_sum": "sums over devices in bfloat16, which lose digits with every device",
  "adding_scatter": "scatters that add, one value after another",
  "unknown_trips": "loops with data-dependent iterations: a GPU's host waits in each, and a TPU's estimate counts one",
}


@dataclasses.dataclass(frozen=True)
class ProgramWarning:
  """Operations of one kind that the hardware does badly.

  Attributes:
    kind: of `KINDS`.
    count: number of their runs in a step.
    modules: module of the network -> its share of the count, the largest first.
  """

  kind: str
  count: int
  modules: Mapping[str, int]

  def __str__(self) -> str:
    modules = ", ".join(f"{module} ({count})" for module, count in self.modules.items())
    return f"{self.count} x {KINDS[self.kind]}: {modules}"


def read(
  program: Program, platform: str, dtype: str, trips: Mapping[str, int] | None = None
) -> tuple[ProgramWarning, ...]:
  """Returns the warnings of a compiled program, in the order of `KINDS`.

  Args:
    program: from ``hlo_cost.parse``.
    platform: ``gpu`` or ``tpu``, for which it was compiled.
    dtype: of the activations, ``model.dtype``.
    trips: as for ``hlo_cost.read``. The host of a GPU waits in the loops that it names, too.
  """
  computations = program.computations
  by_name = {each.name: each for body in computations.values() for each in body}
  counts: dict[str, collections.Counter[str]] = {kind: collections.Counter() for kind in KINDS}
  # Of the choices of a conditional, the one with the most instructions counts.
  for _, instruction, runs in hlo_cost.executions(program, trips, lambda *_: 1):
    body = hlo_cost.fused(instruction, computations)
    kinds = [kind for each in (instruction, *body) for kind in _kinds(each, by_name, computations, dtype)]
    if only_moves(instruction, body) and instruction.size > LARGEST_MOVE:
      kinds.append("large_move")
    if hlo_cost.iterations(instruction, trips if platform == "tpu" else None) is None:
      kinds.append("unknown_trips")
    scope = hlo_cost.scope_of(instruction, body)
    for kind in kinds:
      counts[kind][module_of(scope)] += runs
  return tuple(
    ProgramWarning(kind, modules.total(), dict(modules.most_common()))
    for kind, modules in counts.items()
    if modules.total()
  )


def _kinds(
  instruction: Instruction, by_name: Mapping[str, Instruction], computations: Computations, dtype: str
) -> Iterator[str]:
  """Yields the kinds of warnings of one instruction, inside a fusion or not."""
  cudnn = custom_call_target(instruction).startswith("__cudnn$conv")
  window = instruction.attribute(r"window=\{size=([\dx]+)")
  if cudnn and max(map(int, window.split("x")), default=0) > LARGEST_CUDNN_WINDOW:
    yield "large_window"
  # A TPU's compiler makes convolutions of matrix products.
  convolution = instruction.opcode == "convolution" and "conv_general_dilated" in instruction.scope
  if (cudnn or convolution) and dtype == "bfloat16" and "classifier" not in instruction.scope:
    operands = [by_name[name] for name in instruction.operands[:2] if name in by_name]
    if any(hlo_cost.arrays(each.shape)[0][0] == "f32" for each in operands):
      yield "float32_convolution"
  if instruction.opcode in SUMS_OVER_DEVICES and "bf16[" in instruction.shape:
    yield "bfloat16_sum"
  if instruction.opcode == "select-and-scatter":
    yield "adding_scatter"
  # Without equal indices nothing is added twice to one place.
  if instruction.opcode == "scatter" and "unique_indices=true" not in instruction.attributes:
    combiner = computations.get(instruction.attribute(r"to_apply=%?([\w.\-]+)"), ())
    if any(each.opcode == "add" for each in combiner):
      yield "adding_scatter"
