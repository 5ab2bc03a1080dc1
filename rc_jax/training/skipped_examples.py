"""Training examples that could not be read: each told once, listed in the run's folder, the same on all hosts."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rc_jax import files
from rc_jax.console import say

FILE = "skipped.jsonl"


class SkippedExamples:
  """The examples of a run that were skipped so far, with the reason of each."""

  def __init__(self, workdir: pathlib.Path, most: int, data_position: dict[str, Any] | None):
    """Starts with those of the checkpoint that a run resumes from; what a killed run told after it is told again.

    Args:
      workdir: the run's folder.
      most: how many there may be.
      data_position: of ``TrainBatches.get_state``, or None.
    """
    self._path = workdir / FILE
    self._most = most
    self._reasons: dict[str, str] = dict((data_position or {}).get("skipped", {}))
    if jax.process_index() == 0 and (self._reasons or self._path.is_file()):
      files.atomic_write_text(self._path, "".join(map(_line, self._reasons.items())))

  def add(self, data_position: dict[str, Any]) -> dict[str, Any]:
    """Adds those of a position, and tells the new ones.

    Args:
      data_position: of this process. With several, all call this after the same step: each reads other examples.

    Returns:
      The position with all that were skipped by any process.

    Raises:
      ValueError: on all processes, when there are more than there may be.
    """
    found = _of_all_processes(data_position.get("skipped", {}))
    new = {index: found[index] for index in sorted(found.keys() - self._reasons.keys(), key=int)}
    self._reasons |= new
    for index, reason in new.items():
      say(f"skipped training example {index}: {reason}")
    if new and jax.process_index() == 0:
      with self._path.open("a") as file:
        file.writelines(map(_line, new.items()))
    if len(self._reasons) > self._most:
      raise ValueError(
        f"{self._path}: {len(self._reasons)} training images cannot be read, expected at most {self._most} "
        "(dataset.max_skipped): repair the files or raise it"
      )
    return {**data_position, "skipped": dict(self._reasons)} if self._reasons else data_position


def _line(item: tuple[str, str]) -> str:
  return json.dumps({"index": int(item[0]), "reason": item[1]}) + "\n"


def _of_all_processes(reasons: dict[str, str]) -> dict[str, str]:
  if jax.process_count() == 1:
    return reasons
  text = np.frombuffer(json.dumps(reasons).encode(), np.uint8)
  # Arrays must be of one size everywhere; usually nothing is skipped anywhere, and the sizes say so.
  sizes = multihost_utils.process_allgather(np.int32(text.size))
  if sizes.max() <= len("{}"):
    return {}
  padded = np.full(int(sizes.max()), ord(" "), np.uint8)
  padded[: text.size] = text
  merged: dict[str, str] = {}
  for row in multihost_utils.process_allgather(padded):
    merged |= json.loads(bytes(np.asarray(row, np.uint8)))
  return merged
