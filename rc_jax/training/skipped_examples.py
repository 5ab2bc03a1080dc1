"""The training examples of a run that could not be read and were skipped: reported once, listed in a file, counted."""

import json
import pathlib
from typing import Any

import jax

from rc_jax import distributed, files
from rc_jax.console import say

FILE = "skipped.jsonl"


class SkippedExamples:
  """The skipped examples of all processes of a run, with a reason for each."""

  def __init__(self, workdir: pathlib.Path, max_skipped: int, data_position: dict[str, Any] | None):
    """Starts with the examples of the checkpoint that the run resumes from, and rewrites the file to hold these.

    Args:
      workdir: the run's folder.
      max_skipped: how many examples may be skipped.
      data_position: of ``TrainBatches.get_state``, or None.
    """
    self._path = workdir / FILE
    self._file = files.AppendedFile(self._path)
    self._max_skipped = max_skipped
    self._reasons: dict[str, str] = dict((data_position or {}).get("skipped", {}))
    if jax.process_index() == 0 and (self._reasons or self._path.is_file()):
      files.atomic_write_text(self._path, "".join(map(_line, self._reasons.items())))

  def add(self, data_position: dict[str, Any]) -> dict[str, Any]:
    """Adds the skipped examples of a position; prints and lists the new ones.

    Args:
      data_position: of this process. Each process reads other examples, so all must call this after the same step.

    Returns:
      The position with the skipped examples of all processes.

    Raises:
      ValueError: more than ``max_skipped`` examples were skipped; raised in all processes.
    """
    skipped = _merged_over_processes(data_position.get("skipped", {}))
    new = {index: skipped[index] for index in sorted(skipped.keys() - self._reasons.keys(), key=int)}
    self._reasons |= new
    for index, reason in new.items():
      say(f"skipped training example {index}: {reason}")
    if new and jax.process_index() == 0:
      try:
        self._file.append("".join(map(_line, new.items())).encode())
      except files.WriteError as error:
        # The checkpoints hold the list too, and the next start writes the file anew.
        say(f"WARNING: {error.problem}; training goes on, and the next start writes the file: free space")
    if len(self._reasons) > self._max_skipped:
      raise ValueError(
        f"{self._path}: {len(self._reasons)} training images cannot be read, expected at most {self._max_skipped} "
        "(dataset.max_skipped): repair the files or raise it"
      )
    return {**data_position, "skipped": dict(self._reasons)} if self._reasons else data_position


def _line(item: tuple[str, str]) -> str:
  return json.dumps({"index": int(item[0]), "reason": item[1]}) + "\n"


def _merged_over_processes(reasons: dict[str, str]) -> dict[str, str]:
  """Returns the union of the dicts of all processes."""
  if jax.process_count() == 1:
    return reasons
  # Mostly no process skipped anything: then only the lengths are exchanged.
  content = json.dumps(reasons).encode() if reasons else b""
  merged: dict[str, str] = {}
  for gathered in distributed.allgather_bytes(content):
    merged |= json.loads(gathered or b"{}")
  return merged
