"""Compares the folders of two finished runs bit for bit: checkpoints, log, scores, and files that are left over."""

import json
import pathlib
from collections import Counter
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rc_jax.files import REPLACED
from rc_jax.weights.checkpoint import FOLDER as CHECKPOINTS

TIMES = ("images_per_second", "data_wait")  # of a line of the log; no two runs share them
# In the names of files that are not complete, or that belong to a running process.
LEFTOVERS = (".part", ".orbax-checkpoint-tmp", ".lock", REPLACED)


def differences(reference: pathlib.Path, other: pathlib.Path) -> list[str]:
  """Lists what differs between two finished runs of one config; empty where nothing does.

  Compared are the arrays of all checkpoints (parameters, statistics, momentum, banks, cursors, step), the positions in
  the training data, the lines of the log apart from times, the files of the scores, the config and the classes. Not
  compared are TensorBoard events and the page of the report, which hold times.

  Args:
    reference: folder of the undisturbed run.
    other: folder of the run that was killed and resumed.
  """
  return [
    *_checkpoint_differences(reference / CHECKPOINTS, other / CHECKPOINTS),
    *_log_differences(log_lines(reference), log_lines(other)),
    *_score_differences(reference / "eval", other / "eval"),
    *(f"{name}: differs" for name in _differing_files(reference, other)),
    *([] if (other / "report" / "index.html").is_file() else ["report/index.html: is missing"]),
    *(f"{path.relative_to(other)}: is left over" for path in sorted(other.rglob("*")) if _is_leftover(path)),
  ]


def log_lines(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the lines of a run's ``metrics.jsonl`` without times.

  Raises:
    ValueError: a line is no JSON.
  """
  lines = [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def checkpoint_arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the arrays of the folder of one step, by item and path such as ``trainer/bank/keys``."""
  arrays = {}
  for item in ("model", "trainer"):
    checkpointer = ocp.PyTreeCheckpointer()
    tree = checkpointer.metadata(folder / item).item_metadata.tree
    # As NumPy arrays, because a run may have had more devices than this process.
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    restored = checkpointer.restore(folder / item, args=ocp.args.PyTreeRestore(restore_args=how))
    for path, leaf in jax.tree.leaves_with_path(restored):
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      arrays[f"{item}/{name}"] = np.asarray(leaf)
  return arrays


def _checkpoint_differences(reference: pathlib.Path, other: pathlib.Path) -> list[str]:
  expected, present = _steps(reference), _steps(other)
  found = []
  if present != expected:
    found.append(f"{CHECKPOINTS}: steps {sorted(present)}, expected {sorted(expected)}")
  for step in sorted(expected & present):
    arrays, wanted = checkpoint_arrays(other / str(step)), checkpoint_arrays(reference / str(step))
    for name in sorted(arrays.keys() | wanted.keys()):
      if name not in arrays or name not in wanted:
        found.append(f"step {step}, {name}: is in one checkpoint only")
      elif (arrays[name].dtype, arrays[name].shape) != (wanted[name].dtype, wanted[name].shape):
        kind, wanted_kind = (f"{array.dtype} {list(array.shape)}" for array in (arrays[name], wanted[name]))
        found.append(f"step {step}, {name}: {kind}, expected {wanted_kind}")
      elif arrays[name].tobytes() != wanted[name].tobytes():
        count = np.count_nonzero(np.atleast_1d(arrays[name] != wanted[name]))
        found.append(f"step {step}, {name}: {count} of {wanted[name].size} values differ")
    positions = [
      json.loads((folder / str(step) / "data" / "metadata").read_text()) for folder in (reference, other)
    ]
    if positions[0] != positions[1]:
      found.append(f"step {step}, data: {positions[1]}, expected {positions[0]}")
  return found


def _steps(folder: pathlib.Path) -> set[int]:
  return {int(path.name) for path in folder.iterdir() if path.name.isdigit()}


def _log_differences(expected: list[dict[str, Any]], lines: list[dict[str, Any]]) -> list[str]:
  """Compares the lines of steps and of scores: one for each, in the same order, with the same values."""
  found = []
  wanted, counts = (Counter(map(_label, each)) for each in (expected, lines))
  for label in wanted | counts:
    if counts[label] != wanted[label]:
      found.append(f"metrics.jsonl: {counts[label]} lines of {label}, expected {wanted[label]}")
  if found:
    return found
  for index, (line, reference) in enumerate(zip(lines, expected, strict=True), start=1):
    names = sorted(name for name in line.keys() | reference.keys() if line.get(name) != reference.get(name))
    if names:
      found.append(f"metrics.jsonl: line {index} ({_label(reference)}) differs in {', '.join(names)}")
  return found


def _label(line: dict[str, Any]) -> str:
  return f"{'score' if 'miou' in line else 'step'} {line['step']}"


def _score_differences(reference: pathlib.Path, other: pathlib.Path) -> list[str]:
  found = []
  names = {
    path.relative_to(folder) for folder in (reference, other) for path in folder.rglob("*") if path.is_file()
  }
  for name in sorted(names):
    paths = (reference / name, other / name)
    if not all(path.is_file() for path in paths):
      found.append(f"eval/{name}: is in one run only")
    elif name.suffix == ".npz":
      with np.load(paths[0]) as wanted, np.load(paths[1]) as arrays:
        same = wanted.files == arrays.files and all(
          np.array_equal(wanted[key], arrays[key]) for key in wanted.files
        )
      if not same:
        found.append(f"eval/{name}: arrays differ")
    elif paths[0].read_bytes() != paths[1].read_bytes():
      found.append(f"eval/{name}: differs")
  return found


def _differing_files(reference: pathlib.Path, other: pathlib.Path) -> list[str]:
  names = ("config.json", "classes.json")
  return [name for name in names if (reference / name).read_bytes() != (other / name).read_bytes()]


def _is_leftover(path: pathlib.Path) -> bool:
  return any(mark in path.name for mark in LEFTOVERS)
