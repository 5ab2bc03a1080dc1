"""``--mode=summary`` prints the stages of a network as a table, without data and without running it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rc_jax import data, models
from rc_jax.config import Config, height_width, reads_banks
from rc_jax.costs.stage_cost import NetworkCost, StageCost, measure
from rc_jax.modes import CONFIG
from rc_jax.streams import write_output

FLAGS = (CONFIG,)

HEADER = ("stage", "output", "parameters", "GFLOP", "GFLOP dense", "kept MB", "")
IS_TEXT = (True, True, False, False, False, False, True)

# Networks with fewer operations get four decimals of a GFLOP; with two, the stages of the demo would all be 0.00.
SMALL = 10e9


def run(config: Config) -> None:
  """Prints the network of a config as a table of its stages.

  Args:
    config: a validated config; its data set is not read.

  Raises:
    ValueError: ``dataset.name`` or a field of ``model`` has no such choice.
  """
  network = models.build(
    config.model, data.info(config.dataset.name, config.dataset.root, config.dataset.classes).num_classes
  )
  cost = measure(network, height_width(config.train.crop_size))
  lines = [*_title(config, network, cost), "", *table(cost.stages), "", *_notes(config, network, cost)]
  write_output("\n".join(lines) + "\n")


def table(stages: Sequence[StageCost]) -> list[str]:
  """Returns the lines of a table of stages and totals."""
  decimals = 4 if sum(stage.dense_flops for stage in stages) < SMALL else 2

  def row(name: str, output: str, parameters: int, of: Sequence[StageCost], remark: str) -> list[str]:
    mark = "" if all(stage.compiled for stage in of) else "~"
    flops = f"{mark}{sum(stage.flops for stage in of) / 1e9:,.{decimals}f}"
    dense = f"{sum(stage.dense_flops for stage in of) / 1e9:,.{decimals}f}"
    return [name, output, f"{parameters:,}", flops, dense, _megabytes(_kept(of)), remark]

  rows = []
  for stage in stages:
    shapes = ", ".join("x".join(map(str, shape)) for shape in stage.shapes)
    rows.append(row(stage.name, shapes, stage.parameters, [stage], _remark(stage)))
  total = sum(stage.parameters for stage in stages)
  predicting = sum(stage.predicting for stage in stages)
  totals = [row("total", "", total, stages, "")]
  if predicting < total:
    extra = [stage for stage in stages if _is_extra(stage)]
    totals.append(row("only in training", "", total - predicting, extra, ""))
    totals.append(row("in prediction", "", predicting, [s for s in stages if not _is_extra(s)], ""))
    totals[-1][HEADER.index("kept MB")] = ""  # prediction keeps nothing

  cells = [list(HEADER), *rows, *totals]
  widths = [max(len(line[i]) for line in cells) for i in range(len(HEADER))]
  lines = []
  for line in cells:
    columns = zip(line, widths, IS_TEXT, strict=True)
    lines.append("  ".join(cell.ljust(n) if text else cell.rjust(n) for cell, n, text in columns).rstrip())
  rule = "-" * max(map(len, lines))
  return [lines[0], rule, *lines[1 : 1 + len(rows)], rule, *lines[1 + len(rows) :]]


def _title(config: Config, network: models.Network, cost: NetworkCost) -> list[str]:
  height, width = height_width(config.train.crop_size)
  (rows, columns), aligned = cost.grid, network.align_corners
  # With aligned corners, sides of 769 and 97 have a ratio of 8, as 768 and 96 have without.
  exact = aligned and rows > 1 and (height - 1) % (rows - 1) == 0
  stride = (height - 1) // (rows - 1) if exact else round(height / rows)
  return [
    f"{config.model.name} on {config.model.backbone}: {network.num_classes} classes of {config.dataset.name}, "
    f"activations in {config.model.dtype}",
    f"one image of {height} x {width} in training: logits on {rows} x {columns} (output stride {stride}), "
    f"{network.channels} channels for the contrast",
  ]


def _notes(config: Config, network: models.Network, cost: NetworkCost) -> list[str]:
  total = sum(stage.parameters for stage in cost.stages)
  batch = config.train.batch_size
  platform = jax.default_backend()
  copies, buffers = (4, "AdamW's two means") if config.optimizer.name == "adamw" else (3, "momentum")
  notes = [
    f"parameters, gradients and {buffers}: {_megabytes(copies * 4 * total)} MB in float32"
    f"{' with nothing frozen' if config.model.freeze else ''}",
    f"kept for a batch of {batch}: {_megabytes(batch * _kept(cost.stages))} MB over all devices",
    banks(config, network),
    "",
    f"GFLOP: 10^9 operations of one forward pass, as compiled for {platform}: with elementwise operations, without "
    "those on padding.",
  ]
  if not all(stage.compiled for stage in cost.stages):
    notes.append(
      f"  ~: counted before optimisation, because {platform} calls libraries there, in which XLA cannot count."
    )
  return [
    *notes,
    "GFLOP dense: 2 x multiply-adds of convolutions and matrix products, with those on padding.",
    f"kept MB: arrays of the forward pass that the backward pass keeps on {platform}, without parameters, upsampled "
    "logits and losses.",
    "Operations of a module between two of its submodules count with the submodule before them.",
  ]


def banks(config: Config, network: models.Network) -> str:
  """Returns the line on the size of the memory banks."""
  contrast = config.contrast
  if not reads_banks(config) or contrast.method != "region":
    return "memory banks: none"
  keys = f"{network.num_classes} classes x {network.channels} of {contrast.bank_dtype}"
  size = network.num_classes * network.channels * jnp.dtype(contrast.bank_dtype).itemsize
  if contrast.bank_size:
    return f"memory banks: {contrast.bank_size:,} keys x {keys}, {_megabytes(contrast.bank_size * size)} MB"
  return f"memory banks: for each training image {keys}, {_megabytes(1000 * size)} MB for a thousand images"


def _is_extra(stage: StageCost) -> bool:
  return stage.parameters > 0 and stage.predicting == 0


def _remark(stage: StageCost) -> str:
  if stage.predicting == stage.parameters:
    return ""
  return (
    "only in training" if _is_extra(stage) else f"{stage.parameters - stage.predicting:,} only in training"
  )


def _kept(stages: Sequence[StageCost]) -> int:
  return sum(stage.kept_bytes for stage in stages)


def _megabytes(size: int) -> str:
  return f"{size / 1e6:,.1f}"
