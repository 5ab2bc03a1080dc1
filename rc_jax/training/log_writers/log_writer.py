"""What a log writer is, what it gets to know of a run, and the ids of runs at services that several writers use."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, Protocol

from rc_jax import files

RUN_IDS = "log_runs.json"  # in a run's folder: {"wandb": id}


class LogWriter(Protocol):
  """Logs the scalars of one run. One process of a run has writers, its first."""

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Logs scalars; a step may have several calls, and a resumed run repeats the steps after its checkpoint.

    Args:
      step: updates made so far.
      scalars: finite numbers; those of a class are named ``iou/road``.

    Raises:
      WriteError: the scalars could not be written, and the next call writes them too.
      Exception: any other; the run goes on without this writer.
    """

  def close(self) -> None:
    """Ends the log of this process, at the end of the run or where it was stopped; raises as ``write``."""


@dataclasses.dataclass(frozen=True)
class LoggedRun:
  """What a log writer gets to know of a run.

  Attributes:
    workdir: the run's folder, which exists.
    first_step: the first step that this process will log.
    fields: every field of the config by its path, ``{"train.steps": 30000}``, as JSON has them.
  """

  workdir: pathlib.Path
  first_step: int
  fields: Mapping[str, Any]

  @property
  def name(self) -> str:
    """The folder's name; of a run in a study, with its row, ``RegionContrast/seed0``."""
    parts = self.workdir.resolve().parts
    in_study = parts[-3:-2] == ("runs",) and re.fullmatch(r"seed\d+", parts[-1])
    return "/".join(parts[-2:]) if in_study else parts[-1]

  def read_id(self, service: str) -> str | None:
    """Returns the id of this run at a service, as ``keep_id`` kept it; None before.

    Raises:
      ValueError: the file of ids is damaged; one line.
    """
    path = self.workdir / RUN_IDS
    if not path.is_file():
      return None
    found = files.read_json_object(path, lambda: "delete the file to log to new runs").get(service)
    return found if isinstance(found, str) and found else None

  def keep_id(self, service: str, run_id: str) -> None:
    """Keeps the id of this run at a service in the run's folder, for the processes that resume the run.

    Raises:
      WriteError: the folder cannot be written; one line.
    """
    path = self.workdir / RUN_IDS
    ids = files.read_json_object(path, lambda: "delete the file to log to new runs") if path.is_file() else {}
    files.atomic_write_text(path, json.dumps(ids | {service: run_id}, indent=2) + "\n")
