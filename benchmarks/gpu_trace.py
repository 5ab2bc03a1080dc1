"""The kernels of a train step on a GPU: the times of a trace beside the least times that their bytes and FLOP allow."""

import collections
import dataclasses
import gzip
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rc_jax.costs import gpu_kernels, hlo_cost
from rc_jax.costs.chips import Gpu


@dataclasses.dataclass(frozen=True)
class Measured:
  """All launches of one kernel in a step.

  Attributes:
    name: of a fusion, or of a library's operation.
    kind: as of ``gpu_kernels.Kernel``; ``unknown`` for kernels that the program's text does not name.
    scope: in which one of them was traced.
    launches: in a step.
    milliseconds: in a step, of all launches. Kernels that run at the same time count twice.
    at_best: the same by ``gpu_kernels``.
  """

  name: str
  kind: str
  scope: str
  launches: float
  milliseconds: float
  at_best: float


def read_trace(folder: str) -> list[dict[str, Any]]:
  """Returns the events on GPUs of the trace that ``jax.profiler.trace`` wrote to a folder."""
  (path,) = pathlib.Path(folder).rglob("*.trace.json.gz")
  with gzip.open(path) as file:
    events = json.load(file)["traceEvents"]
  devices = {
    event["pid"]
    for event in events
    if event.get("name") == "process_name" and "GPU" in event["args"].get("name", "")
  }
  return [event for event in events if event.get("ph") == "X" and event["pid"] in devices]


def measure(
  events: Iterable[Mapping[str, Any]], steps: int, text: str, gpu: Gpu, trips: Mapping[str, int] | None = None
) -> list[Measured]:
  """Returns the kernels of a step, the most expensive first.

  Args:
    events: from `read_trace`.
    steps: how many steps they are of.
    text: of the program, ``jax.stages.Compiled.as_text()``.
    gpu: on which it ran.
    trips: as for ``hlo_cost.read``.
  """
  expected: dict[str, list[gpu_kernels.Kernel]] = collections.defaultdict(list)
  for kernel in gpu_kernels.read(hlo_cost.parse(text), gpu, trips):
    expected[_function(kernel.name)].append(kernel)
  durations: dict[str, list[float]] = collections.defaultdict(list)
  for event in events:
    operation = event.get("args", {}).get("hlo_op")
    if operation is None:
      continue
    # An operation may be a graph of kernels, which XLA calls a command buffer. Its kernels are named after fusions.
    name = event["name"] if _function(event["name"]) in expected else operation
    if name.startswith("command_buffer"):
      name = f"{name}: {event['name']}"
    durations[_function(name)].append(event["dur"])
  found = []
  for name, values in durations.items():
    kernels = expected.get(name, [])
    first = kernels[0] if kernels else None
    best = sum(kernel.total_seconds for kernel in kernels)
    found.append(
      Measured(
        name,
        first.kind if first else "unknown",
        first.scope if first else "",
        len(values) / steps,
        sum(values) / 1e3 / steps,
        1e3 * best,
      )
    )
  return sorted(found, key=lambda each: -each.milliseconds)


def _function(name: str) -> str:
  """Returns the name of a kernel's function, in which no dots are allowed."""
  return name.replace(".", "_").replace("-", "_")


def table(kernels: Sequence[Measured], top: int) -> list[str]:
  """Returns lines: the sums by kind, and the ``top`` kernels that lose most time against their least."""
  kinds: dict[str, list[Measured]] = collections.defaultdict(list)
  for kernel in kernels:
    kinds[kernel.kind].append(kernel)
  lines = [
    f"{sum(each.milliseconds for each in group):9.3f} ms, {sum(each.at_best for each in group):8.3f} at best, "
    f"{sum(each.launches for each in group):6.0f} x  {kind}"
    for kind, group in sorted(kinds.items(), key=lambda item: -sum(each.milliseconds for each in item[1]))
  ]
  for each in sorted(kernels, key=lambda each: each.at_best - each.milliseconds)[:top]:
    lines.append(
      f"{each.milliseconds:9.3f} ms, {each.at_best:8.3f} at best, {each.launches:6.0f} x  {each.name[:60]:<60} "
      f"{each.kind[:24]:<24} {each.scope[-90:]}"
    )
  return lines
