"""Compiles recipes for TPU slices that are not attached: a table of memory, operations, messages and estimated times.

  python -m benchmarks.pods --rows=pods.jsonl --page=docs/pods.md

Needs the extra ``tpu`` and no TPU. A process for each row runs ``--mode=compile``. All rows take hours; an interrupted
call resumes, because rows in ``--rows`` are kept. With ``--fast`` rows have no times.
"""

import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys
from importlib import metadata
from typing import Any

from rc_jax.console import say

# Recipe -> images of the batch on each chip: the paper's batch on 8 chips, and as many images for each chip on more.
RECIPES = {
  "configs/cityscapes.py:resnet50": 1,
  "configs/cityscapes.py:resnet101": 1,
  "configs/cityscapes.py:hrnetv2_w48": 1,
  "configs/ade20k.py:resnet101": 2,
}
SLICES = (
  *("v5e:2x4", "v5e:8x8", "v5e:16x16"),
  *("v5p:2x2x2", "v5p:4x8x8"),
  *("v6e:2x4", "v6e:16x16"),
)
_CODE = """
import dataclasses, json, sys
from rc_jax.config import load_recipe, validate
from rc_jax.costs import step_fit
recipe, topology, batch, fast = sys.argv[1:]
config = load_recipe(recipe)
config.train.batch_size = int(batch)
validate(config)
try:
  cost = step_fit.measure(config, topology, fast == "fast")
  row = {**dataclasses.asdict(cost), "share": cost.share_of_peak}
except step_fit.DoesNotFit as error:
  row = {"does_not_fit": str(error)}
print("ROW " + json.dumps(row), flush=True)
"""


def chips(topology: str) -> int:
  """Counts the chips of a slice, ``v5e:4x8`` -> 32."""
  count = 1
  for side in topology.partition(":")[2].split("x"):
    count *= int(side)
  return count


def measure(recipe: str, topology: str, fast: bool) -> dict[str, Any]:
  """Compiles one recipe for one slice in a new process; raises RuntimeError when that fails."""
  batch = RECIPES[recipe] * chips(topology)
  arguments = (recipe, topology, str(batch), "fast" if fast else "full")
  done = subprocess.run(
    [sys.executable, "-c", _CODE, *arguments],
    capture_output=True,
    text=True,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"},
  )
  rows = [line for line in done.stdout.splitlines() if line.startswith("ROW ")]
  if not rows:
    raise RuntimeError(f"{recipe} on {topology}: {done.stderr[-2000:]}")
  return {"recipe": recipe, "topology": topology, "fast": fast, **json.loads(rows[0][4:])}


def page(rows: list[dict[str, Any]]) -> str:
  """Returns the page of rows, as Markdown."""
  versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "libtpu"))
  lines = [
    "# TPU slices",
    "",
    f"`python -m benchmarks.pods` made this page on {datetime.date.today()} with {versions}, without a TPU. It",
    "compiles the train step of each recipe for each slice. Sizes are those of one chip. On up to 8 chips the batch is",
    "the paper's; on more, each chip gets as many images. Times are the compiler's estimate of cycles, with loop",
    "bodies multiplied by their trip counts, and without waiting for messages. Nothing ran. Rows without times were",
    "compiled with `--fast`, whose code says nothing about speed.",
    "",
    "| recipe | slice | chips | batch | weights, momentum | banks | activations | peak | TFLOP | step, share of peak |",
    "|---|---|---|---|---|---|---|---|---|---|",
  ]
  messages = [
    *("", "## Messages of a step", ""),
    "All-reduces carry the gradients, the sums of BatchNorm, metrics, and partial sums of the contrastive loss.",
    "All-gathers carry the region centers of the batch. Messages of the contrastive loss grow with the batch. None",
    "grows with the banks.",
    "",
    "| recipe | slice | kind | count | total size | largest |",
    "|---|---|---|---|---|---|",
  ]
  for row in rows:
    recipe = f"`{row['recipe'].removeprefix('configs/')}`"
    count = chips(row["topology"])
    start = f"| {recipe} | {row['topology']} | {count} | {count * RECIPES[row['recipe']]} |"
    if "does_not_fit" in row:
      lines.append(f"{start} {row['does_not_fit']} | | | | | |")
      continue
    weights = f"{_gb(row['parameters'])}, {_gb(row['momentum'])}"
    peak = f"{_gb(row['peak'])}, {100 * row['peak'] / row['limit']:.0f} % of {_gb(row['limit'])}"
    time = f"{1e3 * row['seconds']:.0f} ms, {100 * row['share']:.0f} %" if row["seconds"] else ""
    lines.append(
      f"{start} {weights} | {_gb(row['banks'])} | {_gb(row['activations'])} | {peak} "
      f"| {row['flops'] / 1e12:.2f} | {time} |"
    )
    for each in row["collectives"]:
      sizes = f"{_gb(each['size'])} | {_gb(each['largest'])}"
      messages.append(f"| {recipe} | {row['topology']} | {each['kind']} | {each['count']} | {sizes} |")
  return "\n".join([*lines, *messages, ""])


def _gb(size: float) -> str:
  return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
    "--rows", type=pathlib.Path, default=pathlib.Path("pods.jsonl"), help="JSON lines of the measured rows"
  )
  parser.add_argument("--page", type=pathlib.Path, help="the table, as Markdown; default: on the screen")
  parser.add_argument("--recipes", nargs="*", default=list(RECIPES))
  parser.add_argument("--slices", nargs="*", default=list(SLICES))
  parser.add_argument("--fast", action="store_true", help="only memory and messages")
  options = parser.parse_args()
  rows: dict[tuple[str, str], dict[str, Any]] = {}
  if options.rows.is_file():
    for line in options.rows.read_text().splitlines():
      row = json.loads(line)
      key = (row["recipe"], row["topology"])
      # A row of full effort also has times: it wins over a fast one.
      if key not in rows or not row["fast"]:
        rows[key] = row
  for topology in options.slices:
    for recipe in options.recipes:
      known = rows.get((recipe, topology))
      if known and (options.fast or not known["fast"]):
        continue
      row = measure(recipe, topology, options.fast)
      rows[recipe, topology] = row
      with options.rows.open("a") as file:
        file.write(json.dumps(row) + "\n")
      took = f"{row['compiled_in']:.0f} s" if "compiled_in" in row else row["does_not_fit"]
      say(f"{recipe} on {topology}: {took}")
  ordered = [
    rows[recipe, topology] for recipe in RECIPES for topology in SLICES if (recipe, topology) in rows
  ]
  text = page(ordered)
  if options.page:
    options.page.write_text(text)
  else:
    print(text)


if __name__ == "__main__":
  main()
