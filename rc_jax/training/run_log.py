"""What a run tells: lines on the screen, ``metrics.jsonl``, TensorBoard events."""

import json
import pathlib
from typing import Any

import jax

from rc_jax import files

METRICS = "metrics.jsonl"


class RunLog:
  """``metrics.jsonl`` and TensorBoard events of a run; silent on all processes but the first."""

  def __init__(self, workdir: pathlib.Path, resumed_at: int):
    """Opens the log; drops what a killed run logged after the checkpoint that it resumes from.

    Args:
      workdir: the run's folder.
      resumed_at: updates made so far; lines of later steps would otherwise stand there twice.
    """
    self._path = workdir / METRICS
    self._active = jax.process_index() == 0
    if not self._active:
      return
    kept = [line for line in read(workdir) if line["step"] <= resumed_at]
    files.atomic_write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
    self._file = self._path.open("a")
    import tensorboardX  # imports PyTorch where that is installed, which takes two seconds

    self._events = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=resumed_at + 1)

  def write(self, line: dict[str, Any]) -> None:
    """Appends a line; ``step`` is required, nested dicts become ``outer/inner`` in TensorBoard."""
    if not self._active:
      return
    try:
      self._file.write(json.dumps(line) + "\n")
      self._file.flush()
    except OSError as error:
      raise OSError(f"{self._path}: cannot write ({error.strerror}); make room and start again") from error
    for name, value in line.items():
      values = value.items() if isinstance(value, dict) else [("", value)]
      for inner, number in values:
        if isinstance(number, int | float) and name != "step":
          self._events.add_scalar(f"{name}/{inner}" if inner else name, number, line["step"])

  def close(self) -> None:
    """Writes out what is buffered."""
    if self._active:
      self._file.close()
      self._events.close()


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the lines of a run's ``metrics.jsonl``; a last line cut by a kill is left out."""
  path = workdir / METRICS
  if not path.is_file():
    return []
  lines = []
  for text in path.read_text().splitlines():
    try:
      lines.append(json.loads(text))
    except json.JSONDecodeError:
      continue
  return lines
