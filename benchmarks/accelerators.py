"""Compiles recipes for TPU slices and GPUs that are not attached: the page docs/accelerators.md.

  python -m benchmarks.accelerators --page=docs/accelerators.md

Needs the extras ``tpu`` and ``gpu-compile``, and no accelerator. A process for each row runs the compiler. All rows
take hours; an interrupted call resumes, because rows in ``benchmarks/accelerators.jsonl`` are kept. ``--renew``
compiles the chosen ones again. With ``--fast`` rows of TPUs have no times.
"""

import argparse
import datetime
import json
import math
import pathlib
import subprocess
from importlib import metadata
from typing import Any

from benchmarks import compiled_step
from rc_jax.costs import gpu_kernels, step_fit
from rc_jax.costs.chips import CHIPS, GPUS

ROWS = pathlib.Path(__file__).with_suffix(".jsonl")
# Recipe -> the paper's batch, on up to 8 devices. On more, each device gets an eighth of it.
RECIPES = {
  "configs/cityscapes.py:resnet50": 8,
  "configs/cityscapes.py:resnet101": 8,
  "configs/cityscapes.py:hrnetv2_w48": 8,
  "configs/ade20k.py:resnet101": 16,
}
TOPOLOGIES = (
  *("v5e:2x4", "v5e:8x8", "v5e:16x16"),
  *("v5p:2x2x2", "v5p:4x8x8"),
  *("v6e:2x4", "v6e:16x16"),
  *("h100:1", "h100:8", "h100:8x8", "h100:32x8"),
  *("h200:1", "a100:8"),
)
KEPT = (
  *("devices", "kind", "images", "parameters", "momentum", "banks", "batch", "activations", "peak", "limit"),
  *("flops", "traffic", "seconds", "share", "collectives", "compiled_in", "operations", "does_not_fit"),
)

# A change in these may change the programs, or the figures that are read from them.
SOURCES = [
  *(f"rc_jax/{name}" for name in ("contrast", "costs", "losses", "models", "ops", "training")),
  *("rc_jax/config.py", "rc_jax/sharding.py", "configs"),
]

# Assumptions on messages, none of them measured.
NETWORK_CARD = 50e9  # bytes a second and GPU between hosts: 400 Gbit/s
HOP = 1e-6  # seconds between neighbours in a TPU slice
GPU_MESSAGE = 10e-6  # seconds that a message of a GPU waits within a host
HOSTS_MESSAGE = 30e-6  # the same between hosts

INTRODUCTION = f"""\
# Accelerators

`python -m benchmarks.accelerators` makes this page, without a TPU and without a GPU. It compiles the train step of each
recipe for each topology; nothing runs. Sizes are those of one device. On up to 8 devices the batch is the paper's; on
more, each device gets an eighth of it. What ran on a GPU stands on [its own page](gpu.md).

- **TPU slices**: times are the compiler's estimates of cycles, those of loops times their iterations, without waiting
  for messages; the fraction is that of the peak rate. Rows without times were compiled with `--fast`, whose code says
  nothing about speed.
- **GPUs**: times are bounds from below: each kernel at the data sheet's bandwidth, or at \
{gpu_kernels.ATTAINABLE} of its peak rate, without
  launches and messages; in brackets, the arithmetic alone. Kernels are tiny if they could take less than \
{1e6 * gpu_kernels.TINY:.0f} us. The
  limit of the memory is {step_fit.PREALLOCATED} of the data sheet's, less \
{step_fit.WORKSPACES / 1e9:.0f} GB for workspaces.
- **Warnings** count operations that the hardware does badly; `--mode=compile` names them."""

COLUMNS = (
  *("recipe", "devices", "batch", "weights, momentum", "banks", "activations", "peak of limit"),
  *("kernels (tiny)", "traffic", "TFLOP", "step", "warnings", "compiled"),
)

_LINKS = {kind: f"{chip.link / 1e9:.0f} GB/s" for kind, chip in CHIPS.items()}
SCALING = f"""\
## Scaling

The time of messages is computed, not measured:

- A ring of n devices sends 2 (n-1)/n of the bytes of an all-reduce, and (n-1)/n of those of another message.
- It sends at the rate of all links of a device, by data sheets: \
{_LINKS["TPU v5 lite"]} for a v5e, {_LINKS["TPU v5"]} for a v5p, {_LINKS["TPU v6 lite"]} for a
  v6e, {_LINKS[GPUS["h100"].name]} for an H100 or H200 and \
{_LINKS[GPUS["a100"].name]} for an A100 (NVLink, one direction). Between hosts, each GPU has a
  network card of {8 * NETWORK_CARD / 1e9:.0f} Gbit/s, and all cards of a host send at the same time.
- Each message waits once. Assumed are {1e6 * HOP:.0f} us for each hop along the sides of a TPU slice and back,
  {1e6 * GPU_MESSAGE:.0f} us in a host of GPUs, and {1e6 * HOSTS_MESSAGE:.0f} us between hosts.

Efficiency is the step without messages divided by the step with all of them, as if none ran beside the arithmetic. The
compiler hides those of gradients behind the backward pass, so the efficiency is higher. A slice without a time takes
that of the same recipe and images on another slice of its generation. The step of a GPU is its bound; a real step is
longer, and loses a smaller fraction to messages."""


def sides(topology: str) -> list[int]:
  """Returns the numbers of a topology, ``v5e:4x8`` -> ``[4, 8]``: their product is the number of devices."""
  return [int(side) for side in topology.partition(":")[2].split("x")]


def is_gpu(topology: str) -> bool:
  """Whether a topology is of GPUs."""
  return topology.partition(":")[0] in GPUS


def batch_size(recipe: str, devices: int) -> int:
  """Returns the images of a batch over all devices."""
  return max(RECIPES[recipe], RECIPES[recipe] * devices // 8)


def message_seconds(topology: str, kind: str, collectives: list[dict[str, Any]]) -> float:
  """Returns the seconds that the messages of a step take if nothing else runs meanwhile.

  A ring of ``n`` devices sends ``2 (n-1)/n`` of the bytes of an all-reduce and ``(n-1)/n`` of those of another message.
  It waits once for each message. Between hosts, all network cards of a host send at the same time.

  Args:
    topology: as for ``costs.topology.topology_mesh``.
    kind: ``device_kind``.
    collectives: ``kind``, ``count`` and ``size`` of the messages of each device.
  """
  lengths = sides(topology)
  devices, link = math.prod(lengths), CHIPS[kind].link
  if not is_gpu(topology):
    wait = 2 * HOP * sum(lengths)
  elif len(lengths) == 2 and lengths[0] > 1:
    link, wait = min(link, lengths[1] * NETWORK_CARD), HOSTS_MESSAGE
  else:
    wait = GPU_MESSAGE
  ring = (devices - 1) / devices
  return sum(
    each["count"] * wait + (2 if each["kind"] == "all-reduce" else 1) * ring * each["size"] / link
    for each in collectives
  )


def measure(recipe: str, topology: str, fast: bool) -> dict[str, Any]:
  """Compiles one recipe for one topology in a new process; raises RuntimeError when that fails."""
  fast = fast and not is_gpu(topology)
  fields = {"train.batch_size": batch_size(recipe, math.prod(sides(topology)))}
  last_change = subprocess.run(
    ["git", "log", "-1", "--format=%h", "--", *SOURCES],
    capture_output=True,
    text=True,
    cwd=ROWS.parent.parent,
  )
  cost = compiled_step.measure(recipe, topology, fields, fast)
  row = {name: cost[name] for name in KEPT if name in cost}
  if kernels := cost.get("kernels"):
    row["kernels"] = {name: value for name, value in kernels.items() if not name.startswith("by_")}
  row["warnings"] = sum(warning["count"] for warning in cost.get("warnings", ()))
  compiler = "jax-cuda13-plugin" if is_gpu(topology) else "libtpu"
  versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", compiler))
  made = {"date": str(datetime.date.today()), "commit": last_change.stdout.strip(), "versions": versions}
  return {"recipe": recipe, "topology": topology, "fast": fast, **made, **row}


def page(rows: list[dict[str, Any]]) -> str:
  """Returns the page of rows, as Markdown."""
  lines = [
    *INTRODUCTION.splitlines(),
    "",
    f"| {' | '.join(COLUMNS)} |",
    "|---" * len(COLUMNS) + "|",
    *map(_row, rows),
    "",
    "The last column names the commit that last changed the programs before the row was compiled:",
    "",
  ]
  made = {(row["date"], row["commit"], row["versions"]) for row in rows}
  lines += [f"- {commit}, {date}: {versions}" for date, commit, versions in sorted(made)]
  return "\n".join([*lines, *_scaling(rows), *_messages(rows)])


def _name(row: dict[str, Any]) -> str:
  return f"`{row['recipe'].removeprefix('configs/')}` | {row['topology']}"


def _row(row: dict[str, Any]) -> str:
  start = f"| {_name(row)} | {batch_size(row['recipe'], math.prod(sides(row['topology'])))} |"
  if "does_not_fit" in row:
    return f"{start} {row['does_not_fit']} | | | | | | | | | {row['commit']} |"
  kernels = row.get("kernels")
  count = f"{kernels['kernels']} ({kernels['tiny']})" if kernels else ""
  traffic = _gb(row["traffic"]) if kernels else ""
  flops = kernels["flops"] if kernels else row["flops"]
  time = f"{1e3 * row['seconds']:.0f} ms, {100 * row['share']:.0f} %" if row["seconds"] else ""
  if kernels:
    time = f"{1e3 * kernels['bound']:.1f} ms ({1e3 * kernels['arithmetic']:.1f})"
  warnings = "" if row.get("warnings") is None else row["warnings"]
  return (
    f"{start} {_gb(row['parameters'])}, {_gb(row['momentum'])} | {_gb(row['banks'])} | {_gb(row['activations'])} "
    f"| {_gb(row['peak'])}, {100 * row['peak'] / row['limit']:.0f} % of {_gb(row['limit'])} | {count} | {traffic} "
    f"| {flops / 1e12:.2f} | {time} | {warnings} | {row['commit']} |"
  )


def _scaling(rows: list[dict[str, Any]]) -> list[str]:
  """Returns the lines of the section on the efficiency of many devices."""
  lines = [
    "",
    *SCALING.splitlines(),
    "",
    "| recipe | devices | step | messages | bytes | time of messages | efficiency, at least |",
    "|---|---|---|---|---|---|---|",
  ]
  for row in rows:
    if "does_not_fit" in row or math.prod(sides(row["topology"])) == 1:
      continue
    seconds = _step_seconds(row, rows)
    if seconds is None:
      continue
    messages = message_seconds(row["topology"], row["kind"], row["collectives"])
    count, size = (sum(each[name] for each in row["collectives"]) for name in ("count", "size"))
    lines.append(
      f"| {_name(row)} | {1e3 * seconds:.1f} ms | {count} | {_gb(size)} | {1e3 * messages:.1f} ms "
      f"| {100 * seconds / (seconds + messages):.0f} % |"
    )
  return lines


def _step_seconds(row: dict[str, Any], rows: list[dict[str, Any]]) -> float | None:
  if row.get("kernels"):
    return float(row["kernels"]["bound"])
  alike = [row, *(other for other in rows if _generation(other) == _generation(row))]
  return next((other["seconds"] for other in alike if other.get("seconds")), None)


def _generation(row: dict[str, Any]) -> tuple[str, str, int | None]:
  return row["recipe"], row["topology"].partition(":")[0], row.get("images")


def _messages(rows: list[dict[str, Any]]) -> list[str]:
  lines = [
    *("", "## Messages of a step", ""),
    "All-reduces carry the gradients, the sums of BatchNorm, metrics, and partial sums of the contrastive loss.",
    "All-gathers carry the region centers of the batch. Messages of the contrastive loss grow with the batch. None",
    "grows with the banks.",
    "",
    "| recipe | devices | kind | count | total size | largest |",
    "|---|---|---|---|---|---|",
  ]
  for row in rows:
    for each in row.get("collectives", ()):
      sizes = f"{_gb(each['size'])} | {_gb(each['largest'])}"
      lines.append(f"| {_name(row)} | {each['kind']} | {each['count']} | {sizes} |")
  return [*lines, ""]


def _gb(size: float) -> str:
  return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def read_rows(path: pathlib.Path) -> dict[tuple[str, str], dict[str, Any]]:
  """Returns the rows of a file by recipe and topology; a later row wins, except a fast one over one with times."""
  rows: dict[tuple[str, str], dict[str, Any]] = {}
  for line in path.read_text().splitlines() if path.is_file() else ():
    row = json.loads(line)
    known = rows.get((row["recipe"], row["topology"]))
    if known is None or known["fast"] or not row["fast"]:
      rows[row["recipe"], row["topology"]] = row
  return rows


def ordered(rows: dict[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns the rows of a page in its order: by recipe, then by topology."""
  return [
    rows[key] for key in ((recipe, topology) for recipe in RECIPES for topology in TOPOLOGIES) if key in rows
  ]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rows", type=pathlib.Path, default=ROWS, help="JSON lines of the measured rows")
  parser.add_argument("--page", type=pathlib.Path, help="the table, as Markdown; default: on the screen")
  parser.add_argument("--recipes", nargs="*", default=list(RECIPES))
  parser.add_argument("--topologies", nargs="*", default=list(TOPOLOGIES), help="none: only makes the page")
  parser.add_argument("--fast", action="store_true", help="only memory and messages of TPUs")
  parser.add_argument("--renew", action="store_true", help="compiles the chosen rows again")
  options = parser.parse_args()
  rows = read_rows(options.rows)
  for topology in options.topologies:
    for recipe in options.recipes:
      known = rows.get((recipe, topology))
      if known and not options.renew and (options.fast or not known["fast"]):
        continue
      row = measure(recipe, topology, options.fast)
      with options.rows.open("a") as file:
        file.write(json.dumps(row) + "\n")
      took = f"{row['compiled_in']:.0f} s" if "compiled_in" in row else row["does_not_fit"]
      print(f"{recipe} on {topology}: {took}", flush=True)
  text = page(ordered(read_rows(options.rows)))
  if options.page:
    options.page.write_text(text)
  else:
    print(text)


if __name__ == "__main__":
  main()
