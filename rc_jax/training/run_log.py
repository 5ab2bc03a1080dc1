"""The log of a run: ``metrics.jsonl``, and the writers of ``train.log_to`` such as TensorBoard."""

import contextlib
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rc_jax import files
from rc_jax.console import say
from rc_jax.training.log_writers import LOG_WRITERS, LoggedRun, LogWriter
from rc_jax.training.objective import Metrics
from rc_jax.training.throughput import Speed

METRICS = "metrics.jsonl"
PROTOCOL = "protocol"  # in a line of an evaluation: how the images were scored


class RunLog:
  """``metrics.jsonl`` and the log writers of a run; does nothing in all processes but the first.

  Training goes on where a line cannot be written, as on a full disk. The line waits for the next, or for ``flush``. It
  also goes on where a writer fails, without that writer.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    resumed_at: int,
    log_to: Sequence[str] = ("tensorboard",),
    fields: Mapping[str, Any] | None = None,
  ):
    """Opens the log, without the lines that a killed run wrote after the checkpoint that this run resumes from.

    Args:
      workdir: the run's folder.
      resumed_at: updates made so far; the run will log the steps after it again.
      log_to: keys of ``LOG_WRITERS``.
      fields: of the config, by path, for the writers; None: none.

    Raises:
      WriteError: the log cannot be written; one line.
    """
    path = workdir / METRICS
    self._active = jax.process_index() == 0
    if not self._active:
      return
    kept = [line for line in read_metrics(workdir) if line["step"] <= resumed_at]
    files.atomic_write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
    self._lines = files.AppendedFile(path)
    self._warned: set[str] = set()
    self._writers: dict[str, LogWriter] = {}
    run = LoggedRun(workdir, first_step=resumed_at + 1, fields=fields or {})
    for name in log_to:
      with self._left_out_if_it_fails(name):
        self._writers[name] = LOG_WRITERS[name](run)

  def write(self, line: dict[str, Any]) -> None:
    """Appends a line; prints once that lines cannot be written.

    Args:
      line: JSON-able, with ``step``. The writers log its numbers, those of a nested dict as ``outer/inner``; they log
        no None.
    """
    if not self._active:
      return
    try:
      self._lines.append((json.dumps(line) + "\n").encode())
    except files.WriteError as error:
      self._warn(METRICS, f"{error.problem}; training goes on, and the lines are written when there is space")
    scalars = {}
    for name, value in line.items():
      values = value.items() if isinstance(value, dict) else [("", value)]
      for inner, number in values:
        if isinstance(number, int | float) and name != "step":
          scalars[f"{name}/{inner}" if inner else name] = number
    later = "training goes on, and the curves are written when there is space"
    for name, writer in list(self._writers.items()):
      with self._left_out_if_it_fails(name, later):
        writer.write(line["step"], scalars)

  def flush(self) -> None:
    """Writes the lines that could not be written before: a checkpoint needs those of the steps before it.

    Raises:
      WriteError: they cannot be written; one line.
    """
    if self._active:
      self._lines.flush()

  def close(self) -> None:
    """Writes what could not be written before, and closes the writers.

    Raises:
      WriteError: lines of ``metrics.jsonl`` cannot be written; one line.
    """
    if not self._active:
      return
    for name, writer in list(self._writers.items()):
      with self._left_out_if_it_fails(name):
        writer.close()
    self._lines.flush()

  @contextlib.contextmanager
  def _left_out_if_it_fails(self, name: str, later: str = f"{METRICS} holds all values") -> Iterator[None]:
    """Leaves a writer out that raises within the block, with a warning.

    Args:
      name: of the writer.
      later: what becomes of values that a writer keeps, which raises ``WriteError``; such a writer stays.
    """
    try:
      yield
    except files.WriteError as error:
      self._warn(name, f"{error.problem}; {later}")
    except Exception as error:  # of a service, or of a writer that is not ours
      self._writers.pop(name, None)
      self._warn(
        f"{name} left out",
        f"logging to {name} failed ({type(error).__name__}: {files.one_line(error)}); training goes on without it, and "
        f"{METRICS} holds all values",
      )

  def _warn(self, name: str, message: str) -> None:
    if name not in self._warned:
      say(f"WARNING: {message}")
    self._warned.add(name)


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the lines of a run's ``metrics.jsonl``, without a last line that a kill has cut.

  Raises:
    ValueError: another line is no JSON object with a step; one line with its number and the remedy.
  """
  path = workdir / METRICS
  if not path.is_file():
    return []
  *complete, last = path.read_bytes().split(b"\n")
  lines = []
  for number, text in enumerate(complete, start=1):
    line = _parsed(text)
    if line is None:
      raise ValueError(_refusal(path, number, text))
    lines.append(line)
  final = _parsed(last)
  if final is None and not complete and not _is_cut(last):
    raise ValueError(_refusal(path, 1, last))
  return lines if final is None else [*lines, final]


def _is_cut(text: bytes) -> bool:
  """Returns whether a kill or a power failure may have left this of the first line."""
  text = text.rstrip(b"\0")
  # A file with other ends of lines is one long line, of which nothing was cut.
  return not text or (text.startswith(b"{") and b"\r" not in text)


def _refusal(path: pathlib.Path, number: int, text: bytes) -> str:
  line = f"{path}: line {number} is {_shown(text)}"
  return f"{line}, expected a JSON object with a step; delete that line and start again"


def _parsed(text: bytes) -> dict[str, Any] | None:
  """Returns a line's object; None where it is none or lacks the step."""
  try:
    line = json.loads(text)
  except (ValueError, RecursionError):
    return None
  if not isinstance(line, dict) or type(line.get("step")) is not int or not 0 <= line["step"] < 2**63:
    return None
  is_named = all(isinstance(line.get(name, ""), str) for name in ("split", PROTOCOL))
  return line if is_named else None


def _shown(text: bytes) -> str:
  decoded = text[:40].decode(errors="replace")
  return repr(decoded if len(text) <= 40 else f"{decoded}...")


def read_scores(workdir: pathlib.Path, split: str, protocol: str) -> dict[int, float]:
  """Returns step -> mIoU, in 0..1, of the evaluations on a split that ``metrics.jsonl`` holds.

  Args:
    workdir: the run's folder.
    split: its name.
    protocol: how the images were scored. Lines of earlier versions, which do not record it, count as scored so.
  """
  return {
    line["step"]: line["miou"]
    for line in read_metrics(workdir)
    if is_score(line, split, protocol) and isinstance(line.get("miou"), int | float)
  }


def is_score(line: Mapping[str, Any], split: str, protocol: str) -> bool:
  """Returns whether a line of ``metrics.jsonl`` is an evaluation on a split; arguments as for ``read_scores``."""
  return bool(line.get("split") == split and line.get(PROTOCOL, protocol) == protocol)


def notes_on_protocols(workdir: pathlib.Path, split: str, protocol: str) -> list[str]:
  """Returns lines for the screen on scores that do not compare, or may not compare, with those of a protocol.

  Arguments as for ``read_scores``.
  """
  evaluations = [line for line in read_metrics(workdir) if line.get("split") == split]
  others = sorted({line[PROTOCOL] for line in evaluations if line.get(PROTOCOL, protocol) != protocol})
  count = sum(line.get(PROTOCOL, protocol) != protocol for line in evaluations)
  unrecorded = sum(PROTOCOL not in line for line in evaluations)
  notes = []
  if others:
    notes.append(
      f"{count} earlier score{'s' if count > 1 else ''} on {split} ({'; '.join(others)}) will not be compared with "
      f"those of this run now ({protocol}), in the search for the best checkpoint neither"
    )
  if unrecorded:
    notes.append(
      f"{unrecorded} earlier score{'s do' if unrecorded > 1 else ' does'} not record how {split} was scored, as those "
      f"of earlier versions; taken to be scored as now ({protocol}), unchecked"
    )
  return notes


def step_line(step: int, metrics: Metrics, class_names: tuple[str, ...], speed: Speed) -> dict[str, Any]:
  """Returns the line of ``metrics.jsonl`` for a training step.

  Args:
    step: updates made.
    metrics: float32 scalars, and arrays ``[N]``, which become dicts by class name.
    class_names: of the ``N`` classes.
    speed: since the last logged step.

  Returns:
    A line of valid JSON: None, ``null`` in the file, stands for NaN and infinite values.
  """
  line: dict[str, Any] = {"step": step}
  for name, value in metrics.items():
    if np.ndim(value) == 0:
      line[name] = _finite_or_none(value)
    else:
      line[name] = {label: _finite_or_none(entry) for label, entry in zip(class_names, value, strict=True)}
  return line | {name: round(value, 3) for name, value in speed._asdict().items()}


def _finite_or_none(value: Any) -> float | None:
  return float(value) if math.isfinite(value) else None
