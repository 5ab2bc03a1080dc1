"""The operations of a compiled program, read from its optimised HLO: their runs, cycles and collectives.

XLA's own summary counts the body of a loop once, so a streamed loss would look as cheap as one of its tiles. TPU
compilers annotate each operation with an estimate of its cycles. Here these are summed along the calls, those of a loop
times its iterations. Compilers for other platforms write no estimates.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

# These move and compute nothing, or others are counted in their place.
NO_OPERATION = {
  *(
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
  ),
  *("opt-barrier", "add-dependency", "while", "call", "conditional", "async-start", "async-update"),
}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "s4": 4, "u4": 4, "token": 0, "opaque": 0, "c64": 64, "c128": 128}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"([a-z]+\d*)[a-z\d]*\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of HLO.

  Attributes:
    name: unique in the program.
    opcode: such as ``fusion`` or ``while``.
    root: whether its result is the result of its computation.
    shape: of its result, as text: ``(bf16[8,97]{1,0}, s32[])``.
    size: bytes of its result.
    operands: names of the instructions of the same computation that it reads.
    parameter: number of a parameter; None for other instructions.
    attributes: the text after its operands.
    cycles: the compiler's estimate, 0 if it gives none; without the computations that it calls.
    called: names of the computations that it runs; a loop runs them in each iteration.
    choices: names of the computations of which it runs one.
    trips: iterations of a loop; None if they depend on data.
    scope: names of the scopes in which it was traced, joined by ``/``.
  """

  name: str
  opcode: str
  root: bool
  shape: str
  size: int
  operands: tuple[str, ...]
  parameter: int | None
  attributes: str
  cycles: int
  called: tuple[str, ...]
  choices: tuple[str, ...]
  trips: int | None
  scope: str

  def attribute(self, pattern: str) -> str:
    """Returns the first group of a regular expression in its attributes; empty if there is none."""
    found = re.search(pattern, self.attributes)
    return found[1] if found else ""


Computations: TypeAlias = Mapping[str, Sequence[Instruction]]


class Program(NamedTuple):
  """A compiled program: its computations by name, and the name of the first one."""

  computations: Computations
  entry: str


class Execution(NamedTuple):
  """An instruction that a program runs, its computation, and its runs: the product of the iterations around it."""

  computation: str
  instruction: Instruction
  runs: int


@dataclasses.dataclass(frozen=True)
class Collective:
  """Messages of one kind in a run of the program: their number, the bytes of their results, and of the largest."""

  kind: str
  count: int
  size: int
  largest: int


@dataclasses.dataclass(frozen=True)
class Cost:
  """A program's cost on one device.

  Attributes:
    cycles: the compiler's estimates, those of loops times their iterations; 0 if it writes none. Messages carry none.
    unknown_loops: scopes of the loops with an unknown number of iterations, which count as one.
    collectives: messages between devices, most bytes first.
    heaviest: the most expensive operations, ``(total cycles, scope)``, at most ten.
    operations: runs of fusions, library calls, copies and messages: what a device starts one by one.
  """

  cycles: int
  unknown_loops: tuple[str, ...]
  collectives: tuple[Collective, ...]
  heaviest: tuple[tuple[int, str], ...]
  operations: int


def is_operation(instruction: Instruction) -> bool:
  """Whether a device starts an instruction, which then moves or computes something."""
  return instruction.opcode not in NO_OPERATION and not instruction.opcode.endswith("-done")


def read(program: Program, trips: Mapping[str, int] | None = None) -> Cost:
  """Sums up a compiled program.

  Args:
    program: from `parse`.
    trips: name of a ``jax.named_scope`` -> iterations of the loop in it, for loops whose iterations depend on data.
  """
  operations = 0
  unknown: list[str] = []
  heaviest: list[tuple[int, str]] = []
  messages: dict[str, list[tuple[int, int]]] = {}  # kind -> runs and bytes
  for _, instruction, runs in executions(program, trips, lambda _, instruction: instruction.cycles):
    scope = instruction.scope or instruction.name
    operations += runs * is_operation(instruction)
    heaviest.append((runs * instruction.cycles, scope))
    kind = instruction.opcode.removesuffix("-start")
    if kind in COLLECTIVES and runs:
      messages.setdefault(kind, []).append((runs, instruction.size))
    if instruction.opcode == "while" and iterations(instruction, trips) is None:
      unknown.append(scope)
  collectives = [
    Collective(
      kind,
      count=sum(runs for runs, _ in of_kind),
      size=sum(runs * size for runs, size in of_kind),
      largest=max(size for _, size in of_kind),
    )
    for kind, of_kind in messages.items()
  ]
  return Cost(
    cycles=sum(cycles for cycles, _ in heaviest),
    unknown_loops=tuple(dict.fromkeys(unknown)),
    collectives=tuple(sorted(collectives, key=lambda collective: -collective.size)),
    heaviest=tuple(sorted((operation for operation in heaviest if operation[0]), reverse=True)[:10]),
    operations=operations,
  )


def executions(
  program: Program, trips: Mapping[str, int] | None, weight: Callable[[str, Instruction], float]
) -> Iterator[Execution]:
  """Yields the instructions that a run of a program executes, in order.

  A loop comes before its body. An unknown number of iterations counts as one.

  Args:
    program: from `parse`.
    trips: as for `read`.
    weight: ``(computation, instruction) -> cost``; of the choices of a conditional, the most expensive one runs.
  """
  computations, entry = program

  def known_iterations(instruction: Instruction) -> int:
    count = iterations(instruction, trips)
    return 1 if count is None else count

  @functools.cache
  def total(name: str) -> float:
    return sum(
      weight(name, instruction)
      + known_iterations(instruction) * sum(map(total, instruction.called))
      + max(map(total, instruction.choices), default=0)
      for instruction in computations.get(name, ())
    )

  def visit(name: str, runs: int) -> Iterator[Execution]:
    for instruction in computations.get(name, ()):
      yield Execution(name, instruction, runs)
      for called in instruction.called:
        yield from visit(called, runs * known_iterations(instruction))
      if instruction.choices:
        yield from visit(max(instruction.choices, key=total), runs)

  yield from visit(entry, 1)


def iterations(instruction: Instruction, trips: Mapping[str, int] | None) -> int | None:
  """Returns the iterations of a loop, None if they are unknown; 1 for other instructions. ``trips`` as for `read`."""
  if instruction.opcode != "while":
    return 1
  if instruction.trips is not None:
    return instruction.trips
  # The innermost known scope decides.
  for scope in reversed(re.split(r"[/()]+", instruction.scope)):
    if scope in (trips or {}):
      return (trips or {})[scope]
  return None


def fused(instruction: Instruction, computations: Computations) -> list[Instruction]:
  """Returns the instructions of a fusion, with those of fusions in it; none of another instruction."""
  if instruction.opcode != "fusion":
    return []
  body = fusion_body(instruction, computations)
  return [inner for each in body for inner in (each, *fused(each, computations))]


def fusion_body(instruction: Instruction, computations: Computations) -> Sequence[Instruction]:
  """Returns the instructions of the computation that a fusion calls, without those of fusions in it."""
  return computations.get(instruction.attribute(r"\bcalls=%?([\w.\-]+)"), ())


def scope_of(instruction: Instruction, body: Sequence[Instruction]) -> str:
  """Returns the scope of an instruction, or, where it has none, that of the last instruction of its body with one.

  Args:
    instruction: of a program.
    body: as from `fused`.
  """
  return instruction.scope or next((each.scope for each in reversed(body) if each.scope), "")


def parse(text: str) -> Program:
  """Reads an HLO module.

  Args:
    text: of ``jax.stages.Compiled.as_text()``.

  Raises:
    ValueError: the text has no entry computation.
  """
  computations: dict[str, list[Instruction]] = {}
  entry = current = None
  for line in text.splitlines():
    if match := _COMPUTATION.match(line):
      current = match[2]
      computations[current] = []
      entry = current if match[1] else entry
    elif current is not None and (match := _INSTRUCTION.match(line)):
      computations[current].append(_instruction(*match.groups()))
  if entry is None:
    raise ValueError(
      "the text has no ENTRY computation; expected optimised HLO, from jax.stages.Compiled.as_text()"
    )
  return Program(computations, entry)


def _instruction(root: str | None, name: str, shape: str, opcode: str, rest: str) -> Instruction:
  end = _closing_parenthesis(rest)
  operands = rest[:end]
  called: list[str] = []
  choices: list[str] = []
  if opcode in ("while", "call", "async-start"):
    called = re.findall(r"\b(?:body|condition|to_apply|calls)=%?([\w.\-]+)", rest)
  elif opcode == "conditional":
    choices = re.findall(r"\b(?:true_computation|false_computation)=%?([\w.\-]+)", rest)
    if listed := re.search(r"branch_computations=\{([^}]*)\}", rest):
      choices += re.findall(r"[\w.\-]+", listed[1])
  cycles = re.search(r'"estimated_cycles":"(\d+)"', rest)
  trips = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', rest)
  scope = re.search(r'op_name="([^"]*)"', rest)
  return Instruction(
    name=name,
    opcode=opcode,
    root=bool(root),
    shape=shape,
    size=shape_bytes(shape),
    operands=tuple(re.findall(r"%([\w.\-]+)", operands)) if "%" in operands else (),
    parameter=int(operands) if opcode == "parameter" else None,
    attributes=rest[end:],
    cycles=int(cycles[1]) if cycles else 0,
    called=tuple(called),
    choices=tuple(choices),
    trips=int(trips[1]) if trips else None,
    scope=scope[1] if scope else "",
  )


def _closing_parenthesis(text: str) -> int:
  """Returns the position of the parenthesis that closes one opened before the text."""
  depth = 1
  for match in re.finditer(r"[()]", text):
    depth += 1 if match[0] == "(" else -1
    if not depth:
      return match.start()
  return len(text)


def arrays(shape: str) -> list[tuple[str, tuple[int, ...]]]:
  """Returns dtype and dimensions of each array of a shape in HLO.

  >>> arrays("(bf16[4,8]{1,0}, s32[])")
  [('bf16', (4, 8)), ('s32', ())]
  """
  return [
    (dtype, tuple(int(n) for n in dimensions.split(",") if n))
    for dtype, dimensions in _SHAPE.findall(re.sub(r"\{[^}]*\}|/\*.*?\*/", "", shape))
  ]


def shape_bytes(shape: str) -> int:
  """Returns the bytes of a result by its shape in HLO, without the padding of its layout.

  >>> shape_bytes("(bf16[4]{0}, s32[])")
  12
  """
  return sum(
    math.prod(dimensions) * (BITS.get(dtype) or int(re.sub(r"\D", "", dtype) or 0)) // 8
    for dtype, dimensions in arrays(shape)
  )
