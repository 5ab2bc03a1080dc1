"""Cycles and collectives of a compiled program, read from its optimised HLO.

XLA's own summary counts the body of a loop once, so a streamed loss would look as cheap as one of its tiles. TPU
compilers annotate each operation with an estimate of its cycles. Here these are summed along the calls, those of a loop
times its iterations. Compilers for other platforms write no estimates.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "s4": 4, "u4": 4, "token": 0, "opaque": 0, "c64": 64, "c128": 128}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"([a-z]+\d*)[a-z\d]*\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of HLO.

  Attributes:
    name: unique in the program.
    opcode: such as ``fusion`` or ``while``.
    size: bytes of its result.
    cycles: the compiler's estimate, 0 if it gives none; without the computations that it calls.
    called: names of the computations that it runs; a loop runs them in each iteration.
    choices: names of the computations of which it runs one.
    trips: iterations of a loop; None if they depend on data.
    scope: names of the scopes in which it was traced, joined by ``/``.
  """

  name: str
  opcode: str
  size: int
  cycles: int
  called: tuple[str, ...]
  choices: tuple[str, ...]
  trips: int | None
  scope: str


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
  """

  cycles: int
  unknown_loops: tuple[str, ...]
  collectives: tuple[Collective, ...]
  heaviest: tuple[tuple[int, str], ...]


def read(text: str, trips: Mapping[str, int] | None = None) -> Cost:
  """Sums up a compiled program.

  Args:
    text: of ``jax.stages.Compiled.as_text()``.
    trips: name of a ``jax.named_scope`` -> iterations of the loop in it, for loops whose iterations depend on data.

  Raises:
    ValueError: the text is not an HLO module.
  """
  computations, entry = parse(text)
  unknown: list[str] = []
  heaviest: list[tuple[int, str]] = []
  messages: dict[str, list[tuple[int, int]]] = {}  # kind -> runs and bytes

  def cycles_of(name: str) -> int:
    """Returns the cycles of one run of a computation, with the most expensive of its choices."""
    return sum(
      instruction.cycles
      + _iterations(instruction, trips or {}, None) * sum(map(cycles_of, instruction.called))
      + max(map(cycles_of, instruction.choices), default=0)
      for instruction in computations.get(name, ())
    )

  def visit(name: str, runs: int) -> int:
    total = 0
    for instruction in computations.get(name, ()):
      iterations = _iterations(instruction, trips or {}, unknown)
      cycles = runs * instruction.cycles
      total += cycles
      heaviest.append((cycles, instruction.scope or instruction.name))
      kind = instruction.opcode.removesuffix("-start")
      if kind in COLLECTIVES and runs:
        messages.setdefault(kind, []).append((runs, instruction.size))
      for called in instruction.called:
        total += visit(called, runs * iterations)
      if instruction.choices:
        total += visit(max(instruction.choices, key=cycles_of), runs)
    return total

  cycles = visit(entry, 1)
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
    cycles=cycles,
    unknown_loops=tuple(dict.fromkeys(unknown)),
    collectives=tuple(sorted(collectives, key=lambda collective: -collective.size)),
    heaviest=tuple(sorted((operation for operation in heaviest if operation[0]), reverse=True)[:10]),
  )


def _iterations(instruction: Instruction, trips: Mapping[str, int], unknown: list[str] | None) -> int:
  if instruction.opcode != "while":
    return 1
  if instruction.trips is not None:
    return instruction.trips
  # The innermost known scope decides.
  for scope in reversed(re.split(r"[/()]+", instruction.scope)):
    if scope in trips:
      return trips[scope]
  if unknown is not None:
    unknown.append(instruction.scope or instruction.name)
  return 1


def parse(text: str) -> tuple[dict[str, Sequence[Instruction]], str]:
  """Reads an HLO module.

  Returns:
    Its computations by name, and the name of its entry.

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
      computations[current].append(_instruction(match[1], match[2], match[3], match[4]))
  if entry is None:
    raise ValueError(
      "the text has no ENTRY computation; expected optimised HLO, from jax.stages.Compiled.as_text()"
    )
  return dict(computations), entry


def _instruction(name: str, shape: str, opcode: str, rest: str) -> Instruction:
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
    size=shape_bytes(shape),
    cycles=int(cycles[1]) if cycles else 0,
    called=tuple(called),
    choices=tuple(choices),
    trips=int(trips[1]) if trips else None,
    scope=scope[1] if scope else "",
  )


def shape_bytes(shape: str) -> int:
  """Returns the bytes of a result by its shape in HLO, without the padding of its layout.

  >>> shape_bytes("(bf16[4]{0}, s32[])")
  12
  """
  total = 0
  for dtype, dimensions in _SHAPE.findall(re.sub(r"\{[^}]*\}|/\*.*?\*/", "", shape)):
    bits = BITS.get(dtype) or int(re.sub(r"\D", "", dtype) or 0)
    total += math.prod(int(n) for n in dimensions.split(",") if n) * bits // 8
  return total
