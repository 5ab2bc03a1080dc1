"""What a compiled program costs, read from its optimised HLO: cycles with loops multiplied out, and collectives.

XLA's own summary counts a loop's body once, so that a streamed loss would look as cheap as one of its tiles. TPU
compilers write an estimate of the cycles into each operation; here they are summed along the calls, a loop's as often
as it runs. Compilers for other platforms write none.
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
    cycles: the compiler's estimate, 0 where it gives none; of a loop or a call, without what is called.
    called: names of the computations that run once with it or, of a loop, once each time round.
    choices: names of those of which one runs.
    trips: how often a loop goes round, where the compiler knows; None where data decide.
    scope: names of the scopes that it was traced in, joined by ``/``.
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
  """Messages of one kind: how many operations start them in a run of the program, and bytes of their results."""

  kind: str
  count: int
  size: int
  largest: int


@dataclasses.dataclass(frozen=True)
class Cost:
  """A program's cost on one device.

  Attributes:
    cycles: the compiler's estimates, loops multiplied out; 0 where it writes none. Messages carry none.
    unknown_loops: scopes of the loops whose trips nobody told; each counts as going round once.
    collectives: messages between devices, most bytes first.
    heaviest: the most expensive operations, ``(cycles in all, scope)``, at most ten.
  """

  cycles: int
  unknown_loops: tuple[str, ...]
  collectives: tuple[Collective, ...]
  heaviest: tuple[tuple[int, str], ...]


def read(text: str, trips: Mapping[str, int] | None = None) -> Cost:
  """Sums up a compiled program.

  Args:
    text: of ``jax.stages.Compiled.as_text()``.
    trips: how often a loop goes round whose trips depend on data: a name of ``jax.named_scope`` around it -> times.

  Raises:
    ValueError: the text is no HLO module.
  """
  computations, entry = parse(text)
  times: dict[str, float] = {}  # computation -> how often it runs
  unknown: list[str] = []
  heaviest: list[tuple[int, str]] = []
  found: dict[str, list[tuple[float, int]]] = {}

  def cycles_of(name: str) -> int:
    """Cycles of one run of a computation, whose own calls are the more expensive choices."""
    return sum(
      instruction.cycles
      + _rounds(instruction, trips or {}, None) * sum(map(cycles_of, instruction.called))
      + max(map(cycles_of, instruction.choices), default=0)
      for instruction in computations.get(name, ())
    )

  def visit(name: str, runs: int) -> int:
    total = 0
    times[name] = times.get(name, 0) + runs
    for instruction in computations.get(name, ()):
      rounds = _rounds(instruction, trips or {}, unknown)
      own = runs * instruction.cycles
      total += own
      heaviest.append((own, instruction.scope or instruction.name))
      kind = instruction.opcode.removesuffix("-start")
      if kind in COLLECTIVES and runs:
        found.setdefault(kind, []).append((runs, instruction.size))
      for called in instruction.called:
        total += visit(called, runs * rounds)
      if instruction.choices:
        total += visit(max(instruction.choices, key=cycles_of), runs)
    return total

  cycles = visit(entry, 1)
  collectives = [
    Collective(
      kind,
      int(sum(runs for runs, _ in messages)),
      int(sum(runs * size for runs, size in messages)),
      max(size for _, size in messages),
    )
    for kind, messages in found.items()
  ]
  return Cost(
    cycles=cycles,
    unknown_loops=tuple(dict.fromkeys(unknown)),
    collectives=tuple(sorted(collectives, key=lambda one: -one.size)),
    heaviest=tuple(sorted((one for one in heaviest if one[0]), reverse=True)[:10]),
  )


def _rounds(instruction: Instruction, trips: Mapping[str, int], unknown: list[str] | None) -> int:
  if instruction.opcode != "while":
    return 1
  if instruction.trips is not None:
    return instruction.trips
  # The innermost scope that is known says it.
  for scope in reversed(re.split(r"[/()]+", instruction.scope)):
    if scope in trips:
      return trips[scope]
  if unknown is not None:
    unknown.append(instruction.scope or instruction.name)
  return 1


def parse(text: str) -> tuple[dict[str, Sequence[Instruction]], str]:
  """Reads a module's computations, by name, and the name of its entry.

  Raises:
    ValueError: there is no entry.
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
    raise ValueError("this is no optimised HLO: it has no ENTRY computation")
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
  """Bytes of a result by its shape in HLO, ``f32[8,128]{1,0}`` or ``(bf16[4], s32[])``; layouts' padding excluded."""
  total = 0
  for dtype, dimensions in _SHAPE.findall(re.sub(r"\{[^}]*\}|/\*.*?\*/", "", shape)):
    bits = BITS.get(dtype) or int(re.sub(r"\D", "", dtype) or 0)
    total += math.prod(int(n) for n in dimensions.split(",") if n) * bits // 8
  return total
