"""``--mode=compile`` checks whether a recipe fits a TPU slice, and estimates the time of a step, without a TPU.

The train step is compiled for the slice of ``--topology``, or for the attached devices. It does not run.
"""

from rc_jax.config import Config
from rc_jax.console import duration
from rc_jax.costs.step_fit import CLASSES_IN_AN_IMAGE, StepCost, measure
from rc_jax.fields import Flag
from rc_jax.modes import CONFIG
from rc_jax.streams import write_output

FLAGS = (
  CONFIG,
  Flag(
    "topology", "", "A TPU slice that need not be attached, such as v5e:4x8. Default: the attached devices."
  ),
  Flag("fast", False, "Reports only memory and messages, in a fraction of the time."),
)


def run(config: Config, topology: str = "", fast: bool = False) -> None:
  """Compiles the train step and prints its cost.

  Args:
    config: a validated config.
    topology: as for ``costs.topology.topology_mesh``; empty: the attached devices.
    fast: leaves out the time of a step, which needs the compiler's full effort.

  Raises:
    DoesNotFit: the step needs more memory than the devices have; one line with remedies.
    ValueError: the config or the topology is invalid.
  """
  write_output("\n".join(table(measure(config, topology, fast))) + "\n")


def table(cost: StepCost) -> list[str]:
  """Returns the lines of a table for the screen."""
  limit = f" of {_size(cost.limit)} ({100 * cost.peak / cost.limit:.0f} %)" if cost.limit else ""
  rows = [
    ("parameters", _size(cost.parameters)),
    ("momentum", _size(cost.momentum)),
    ("banks", _size(cost.banks)),
    ("batch", f"{_size(cost.batch)}, {cost.images} images"),
    ("activations", _size(cost.activations)),
    ("peak", _size(cost.peak) + limit),
    ("convolutions and products", f"{cost.flops / 1e12:.2f} TFLOP"),
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
  return ["", *(f"{name.ljust(width)}  {value}" for name, value in rows), "", *notes]


def _size(size: float) -> str:
  return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"
