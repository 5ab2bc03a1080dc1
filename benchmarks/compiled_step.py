"""Compiles the train step of a recipe in a process of its own, for devices that are not attached."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

_CODE = """
import dataclasses, json, sys
from rc_jax.config import load_recipe, validate
from rc_jax.costs import step_fit
recipe, topology, fields, fast = sys.argv[1:]
config = load_recipe(recipe)
config.update_from_flattened_dict(json.loads(fields))
validate(config)
try:
  cost = step_fit.measure(config, topology, fast == "fast")
  row = {**dataclasses.asdict(cost), "share": cost.share_of_peak}
except step_fit.DoesNotFit as error:
  row = {"does_not_fit": str(error)}
print("ROW " + json.dumps(row), flush=True)
"""


def measure(recipe: str, topology: str, fields: Mapping[str, Any], fast: bool = False) -> dict[str, Any]:
  """Compiles the train step of a recipe.

  Args:
    recipe: a file of ``configs/``, with ``:VARIANT``.
    topology: as for ``rc_jax.costs.topology.topology_mesh``.
    fields: path of a field of the config -> its value.
    fast: as for ``rc_jax.costs.step_fit.measure``.

  Returns:
    The fields of ``step_fit.StepCost`` with ``share``, its share of the peak; or ``does_not_fit``, a message.

  Raises:
    RuntimeError: the process failed; with the end of its output.
  """
  arguments = (recipe, topology, json.dumps(fields), "fast" if fast else "full")
  done = subprocess.run(
    [sys.executable, "-c", _CODE, *arguments],
    capture_output=True,
    text=True,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"},
  )
  rows = [line for line in done.stdout.splitlines() if line.startswith("ROW ")]
  if not rows:
    raise RuntimeError(f"{recipe} on {topology}: {done.stderr[-2000:]}")
  row: dict[str, Any] = json.loads(rows[0].removeprefix("ROW "))
  return row
