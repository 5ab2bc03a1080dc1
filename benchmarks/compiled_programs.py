"""Compiles a small network for GPUs and TPUs that are not attached, and checks the programs.

  python -m benchmarks.compiled_programs            compares with benchmarks/compiled_programs.json
  python -m benchmarks.compiled_programs --write    renews that file

Needs JAX's plugin for CUDA and libtpu, and neither a GPU nor a TPU: ``--requirements`` prints the packages that fit
the installed JAX, for ``pip install --no-deps --target=FOLDER``; then set ``PYTHONPATH=FOLDER``. In any version, no
program may have a convolution with a large filter, a float32 convolution outside classifiers, a sum over devices in
bfloat16, or a large all-gather. Operations and bytes may differ from the file by 5 %; they are compared in the versions
in which it was written. Exits with 1 if a program breaks a rule.
"""

import argparse
import json
import pathlib
import re
import sys
from importlib import metadata
from typing import Any

from benchmarks import compiled_step

TABLE = pathlib.Path(__file__).with_suffix(".json")
RECIPE = "configs/demo.py"
# Grids of 17 x 25 features: larger than the largest filter that is allowed.
FIELDS = {"model.dtype": "bfloat16", "train.batch_size": 8, "train.crop_size": [129, 193]}
TOPOLOGIES = ("h100:1", "h100:8", "v5e:2x4")
PACKAGES = ("jax", "jax-cuda13-plugin", "libtpu")

# Kinds of ``costs/program_warnings.py``.
FORBIDDEN = ("large_window", "float32_convolution", "bfloat16_sum")
LARGEST_GATHER = 4_000_000  # bytes
TOLERANCE = 0.05


def requirements() -> list[str]:
  """Returns the packages that compile for GPUs and TPUs, in the versions that belong to the installed JAX."""
  version = metadata.version("jax")
  libtpu = [
    re.split(r"[;\s]", each)[0] for each in metadata.requires("jax") or [] if each.startswith("libtpu")
  ]
  return [f"jax-cuda13-plugin=={version}", f"jax-cuda13-pjrt=={version}", *libtpu]


def versions() -> dict[str, str]:
  """Returns the versions of the packages that decide on the programs."""
  return {name: metadata.version(name) for name in PACKAGES}


def measure(topology: str) -> dict[str, Any]:
  """Returns the cost of the step, as ``compiled_step.measure``."""
  return compiled_step.measure(RECIPE, topology, FIELDS, fast=topology.startswith("v"))


def figures(row: dict[str, Any]) -> dict[str, int]:
  """Returns the figures of a program that the file holds."""
  return {"operations": row["operations"], "bytes": int(row["traffic"])}


def broken_rules(row: dict[str, Any]) -> list[str]:
  """Returns what a program has and must not have, a line each."""
  if "does_not_fit" in row:
    return [row["does_not_fit"]]
  broken = [
    f"{warning['count']} x {warning['kind']} in {', '.join(warning['modules'])}"
    for warning in row["warnings"]
    if warning["kind"] in FORBIDDEN
  ]
  for each in row["collectives"]:
    if each["kind"] == "all-gather" and each["largest"] > LARGEST_GATHER:
      broken.append(
        f"an all-gather of {each['largest'] / 1e6:.1f} MB; expected at most {LARGEST_GATHER / 1e6:.0f} MB"
      )
  return broken


def differences(found: dict[str, int], expected: dict[str, int]) -> list[str]:
  """Returns the figures that differ by more than `TOLERANCE`, a line each."""
  return [
    f"{found[name]} {name}, in {TABLE.name} {value}; expected at most {100 * TOLERANCE:.0f} % of difference: if it is "
    "meant, run python -m benchmarks.compiled_programs --write"
    for name, value in expected.items()
    if abs(found[name] - value) > TOLERANCE * value
  ]


def write(programs: dict[str, dict[str, int]]) -> None:
  """Writes figures into the file; those of other programs stay if they are of the same versions."""
  known = json.loads(TABLE.read_text()) if TABLE.is_file() else {}
  kept = known["programs"] if known.get("versions") == versions() else {}
  document = {
    "renew": "python -m benchmarks.compiled_programs --write",
    "versions": versions(),
    "programs": {name: (kept | programs)[name] for name in TOPOLOGIES if name in kept | programs},
  }
  TABLE.write_text(json.dumps(document, indent=2) + "\n")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--write", action="store_true", help=f"renews {TABLE.name}")
  parser.add_argument(
    "--strict", action="store_true", help="fails where the table is of other versions than those installed"
  )
  parser.add_argument("--requirements", action="store_true", help="prints the packages to install")
  parser.add_argument("--topologies", nargs="*", default=list(TOPOLOGIES), help="default: all")
  options = parser.parse_args()
  if options.requirements:
    print(" ".join(requirements()))
    return
  expected: dict[str, dict[str, int]] = {}
  if not options.write:
    table = json.loads(TABLE.read_text())
    if table["versions"] == versions():
      expected = table["programs"]
    else:
      message = (
        f"{TABLE.name} is of {table['versions']}, installed are {versions()}: figures are not compared"
      )
      if options.strict:
        sys.exit(f"{message}; renew the table with --write, or install its versions")
      print(message)
  programs: dict[str, dict[str, int]] = {}
  broken: list[str] = []
  for topology in options.topologies:
    row = measure(topology)
    lines = broken_rules(row)
    if "does_not_fit" not in row:
      programs[topology] = figures(row)
      print(f"{topology}: {programs[topology]}, compiled in {row['compiled_in']:.0f} s", flush=True)
      lines += differences(programs[topology], expected.get(topology, {}))
    broken += [f"{topology}: {line}" for line in lines]
  if options.write:
    write(programs)
  if broken:
    sys.exit("\n".join(broken))


if __name__ == "__main__":
  main()
