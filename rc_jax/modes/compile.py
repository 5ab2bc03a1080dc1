"""``--mode=compile`` checks whether a recipe fits a TPU slice or GPUs, and estimates the time of a step, without them.

The train step is compiled for the devices of ``--topology``, or for the attached ones. It does not run.
"""

from typing import Any

from rc_jax.config import Config, set_field, validate
from rc_jax.console import duration
from rc_jax.costs.gpu_kernels import ATTAINABLE, TINY, Share
from rc_jax.costs.step_fit import CLASSES_IN_AN_IMAGE, PREALLOCATED, WORKSPACES, DoesNotFit, StepCost, measure
from rc_jax.fields import Flag
from rc_jax.files import one_line
from rc_jax.modes import CONFIG
from rc_jax.streams import write_output

FLAGS = (
  CONFIG,
  Flag(
    "topology",
    "",
    "Devices that need not be attached: a TPU slice such as v5e:4x8, GPUs of a host such as h100:8, or hosts and GPUs "
    "of each, h100:2x8. Default: the attached devices.",
  ),
  Flag("fast", False, "Reports only memory and messages, in a fraction of the time. Not for GPUs."),
  Flag(
    "alternatives",
    False,
    "Compiles also with rematerialization (model.remat) and the batch in parts (train.microbatches): what each needs.",
  ),
  Flag(
    "verbose", False, "Also prints the most expensive operations, and a GPU's kernels by kind and module."
  ),
)


def run(
  config: Config, topology: str = "", fast: bool = False, alternatives: bool = False, verbose: bool = False
) -> None:
  """Compiles the train step and prints its cost.

  Args:
    config: a validated config.
    topology: as for ``costs.topology.topology_mesh``; empty: the attached devices.
    fast: leaves out the time of a step, which needs the compiler's full effort.
    alternatives: compiles other settings that need less memory, too; also where the config's own do not fit.
    verbose: prints the most expensive operations too.

  Raises:
    DoesNotFit: the step needs more memory than the devices have; one line with remedies.
    ValueError: the config or the topology is invalid, or ``fast`` is set for a GPU.
  """
  if alternatives:
    write_output("\n".join(_alternatives_table(config, topology, fast)) + "\n")
    return
  cost = measure(config, topology, fast)
  write_output("\n".join([*table(cost), *(details(cost) if verbose else [])]) + "\n")


def memory_savers(config: Config) -> dict[str, dict[str, Any]]:
  """Returns name -> fields of settings that need less memory than a config; the first is the config's own.

  >>> from rc_jax.config import load_recipe
  >>> list(memory_savers(load_recipe("configs/demo.py")))
  ['as configured', 'model.remat=backbone', 'train.microbatches=2', 'both']
  """
  kept = [part for part in config.model.remat.split(",") if part.strip() == "head"]
  remat = {"model.remat": ",".join(["backbone", *kept])}
  parts = {"train.microbatches": 2 * config.train.microbatches}
  named: dict[str, dict[str, Any]] = {
    "as configured": {},
    f"model.remat={remat['model.remat']}": remat,
    f"train.microbatches={parts['train.microbatches']}": parts,
    "both": remat | parts,
  }
  return named


def _alternatives_table(config: Config, topology: str, fast: bool) -> list[str]:
  """Compiles a config's alternatives and returns the lines of a table."""
  rows = [("", "peak", "activations", "step")]
  for name, fields in memory_savers(config).items():
    changed = config.copy_and_resolve_references()
    for path, value in fields.items():
      set_field(changed, path, value)
    try:
      validate(changed)
      cost = measure(changed, topology, fast)
    except ValueError as error:
      if not fields and not isinstance(error, DoesNotFit):
        raise
      rows.append((name, one_line(error, 120), "", ""))
      continue
    of_limit = f" ({100 * cost.peak / cost.limit:.0f} %)" if cost.limit else ""
    seconds = cost.kernels.bound if cost.kernels else cost.seconds
    kind = " at best" if cost.kernels else " estimated"
    time = f"{1e3 * seconds:.1f} ms{kind}" if seconds else "-"
    rows.append((name, f"{_size(cost.peak)}{of_limit}", _size(cost.activations), time))
  widths = [max(len(row[column]) for row in rows if row[2]) for column in range(4)]
  return [
    "",
    *("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows),
  ]


def table(cost: StepCost) -> list[str]:
  """Returns the lines of a table for the screen."""
  limit = f" of {_size(cost.limit)} ({100 * cost.peak / cost.limit:.0f} %)" if cost.limit else ""
  rows = [
    ("parameters", _size(cost.parameters)),
    ("optimizer state", _size(cost.momentum)),
    ("banks", _size(cost.banks)),
    ("batch", f"{_size(cost.batch)}, {cost.images} images"),
    ("activations", _size(cost.activations)),
    ("peak", _size(cost.peak) + limit),
    ("convolutions and products", f"{cost.flops / 1e12:.2f} TFLOP"),
  ]
  if kernels := cost.kernels:
    tiny = f"of them {kernels.tiny} tiny (under {1e6 * TINY:.0f} us at best)"
    alone = f"arithmetic alone {1e3 * kernels.arithmetic:.1f} ms"
    rate = f"{cost.devices * cost.images / kernels.bound:.1f} images/s over all devices"
    rows += [
      ("as compiled", f"{kernels.flops / 1e12:.2f} TFLOP"),
      ("kernels", f"{kernels.kernels}, {tiny}"),
      ("rematerialised", f"{kernels.rematerialised} operations"),
      ("step, at best", f"{1e3 * kernels.bound:.1f} ms, {alone}, {rate}"),
    ]
  if cost.traffic:
    rows.append(("memory traffic", _size(cost.traffic)))
  if cost.seconds:
    share = f", {100 * cost.share_of_peak:.0f} % of the peak rate" if cost.share_of_peak else ""
    rate = f"{cost.devices * cost.images / cost.seconds:.1f} images/s over all devices"
    rows.append(("step, estimated", f"{1e3 * cost.seconds:.1f} ms{share}, {rate}"))
  for messages in cost.collectives:
    sizes = f"{_size(messages.size)} in total, {_size(messages.largest)} the largest"
    rows.append((messages.kind, f"{messages.count} x, {sizes}"))
  width = max(len(name) for name, _ in rows)
  notes = [
    f"compiled in {duration(cost.compiled_in)} for {cost.devices} x {cost.kind}; sizes are those of one device"
  ]
  if cost.seconds:
    notes.append(
      "estimated: from the compiler's cycles of each operation times the iterations of its loops, for full banks and "
      f"{CLASSES_IN_AN_IMAGE} classes an image, without waiting for messages; the step did not run"
    )
  if cost.kernels:
    notes.append(
      f"at best: each kernel at the data sheet's bandwidth, or at {ATTAINABLE} of its peak rate, without launches and "
      "messages; the step did not run"
    )
  if cost.kernels and not cost.attached:
    notes.append(
      f"memory of a GPU that is not attached: {PREALLOCATED} of the data sheet's, less {_size(WORKSPACES)} for "
      "workspaces of cuDNN and cuBLAS"
    )
  warnings = [f"warning: {warning}" for warning in cost.warnings]
  return ["", *(f"{name.ljust(width)}  {value}" for name, value in rows), "", *warnings, *notes]


def details(cost: StepCost) -> list[str]:
  """Returns the lines of the most expensive operations, and of a GPU's kernels by kind and by module."""
  lines = ["", "most expensive operations"]
  for module, kind, scope, seconds in cost.heaviest:
    lines.append(f"{1e3 * seconds:9.3f} ms  {module:<24}  {kind}  {scope}")
  if not cost.heaviest:
    lines = ["", "the compiler estimates no times of operations here"]
  if cost.kernels:
    lines += ["", "kernels by kind", *map(_share_line, cost.kernels.by_kind)]
    lines += ["", "kernels by module", *map(_share_line, cost.kernels.by_module)]
  return lines


def _share_line(share: Share) -> str:
  return f"{1e3 * share.seconds:9.3f} ms  {_size(share.size):>10}  {share.kernels:5d} kernels  {share.name}"


def _size(size: float) -> str:
  return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"
