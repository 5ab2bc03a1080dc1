"""``--mode=compile``: does a recipe fit a slice, and how long may a step take? Nothing runs, no data are read.

The train step is compiled for the attached devices, or for a TPU slice that need not be attached (``--topology``).
"""

from rc_jax.config import Config
from rc_jax.console import duration
from rc_jax.costs.step_fit import CLASSES_IN_AN_IMAGE, StepCost, measure
from rc_jax.fields import Flag
from rc_jax.modes import CONFIG

FLAGS = (
  CONFIG,
  Flag(
    "topology", "", "A TPU slice that need not be attached, such as v5e:4x8. Default: the attached devices."
  ),
  Flag("fast", False, "Reports sizes and messages alone, in a fraction of the time."),
)


def run(config: Config, topology: str = "", fast: bool = False) -> None:
  """Compiles and prints.

  Args:
    config: a validated config.
    topology: as for ``sharding.topology_mesh``; empty: the attached devices.
    fast: leaves out what needs the compiler's full effort, time.

  Raises:
    DoesNotFit: one line that says what to change.
    ValueError: the config, or the topology, cannot work.
  """
  print("\n".join(table(measure(config, topology, fast))), flush=True)


def table(fit: StepCost) -> list[str]:
  """Lays a ``StepCost`` out in lines."""
  limit = f" of {_size(fit.limit)} ({100 * fit.peak / fit.limit:.0f} %)" if fit.limit else ""
  rows = [
    ("parameters", _size(fit.parameters)),
    ("momentum", _size(fit.momentum)),
    ("banks", _size(fit.banks)),
    ("batch", f"{_size(fit.batch)}, {fit.images} images"),
    ("activations", _size(fit.activations)),
    ("peak", _size(fit.peak) + limit),
    ("convolutions and products", f"{fit.flops / 1e12:.2f} TFLOP"),
  ]
  if fit.traffic:
    rows.append(("memory traffic", _size(fit.traffic)))
  if fit.seconds:
    share = f", {100 * fit.share_of_peak:.0f} % of the peak rate" if fit.share_of_peak else ""
    rate = f"{fit.devices * fit.images / fit.seconds:.1f} images/s over all"
    rows.append(("step, estimated", f"{1e3 * fit.seconds:.1f} ms{share}, {rate}"))
  for one in fit.collectives:
    rows.append((one.kind, f"{one.count} x, {_size(one.size)} in all, {_size(one.largest)} the largest"))
  width = max(len(name) for name, _ in rows)
  notes = [
    f"compiled in {duration(fit.compiled_in)} for {fit.devices} x {fit.kind}; sizes are those of one device"
  ]
  if fit.seconds:
    notes.append(
      "estimated: the compiler's cycles of each operation, loops multiplied out, for full banks and "
      f"{CLASSES_IN_AN_IMAGE} classes an image; without waiting for messages. Nothing ran."
    )
  return ["", *(f"{name.ljust(width)}  {value}" for name, value in rows), "", *notes]


def _size(size: float) -> str:
  return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"
