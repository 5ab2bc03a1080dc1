"""Logs to a run of MLflow, which a resumed run continues.

MLflow keeps every value of a step. A resumed run repeats the steps after its checkpoint, so MLflow holds two values of
these; on a CPU they are equal.
"""

import itertools
import os
import re
from collections.abc import Iterable

from rc_jax.training.log_writers.log_writer import LoggedRun

SERVICE = "mlflow"
EXPERIMENT = "rc_jax"
# Limits of one request to a server of MLflow.
_METRICS = 1000
_PARAMS = 100
_LONGEST_NAME = 250


class MlflowRun:
  """A run of MLflow. The variables ``MLFLOW_*`` of the environment choose server and experiment."""

  def __init__(self, run: LoggedRun):
    """Starts a run, or continues the one that the run's folder names.

    Args:
      run: what to log.

    Raises:
      Exception: of mlflow, as where its server does not answer.
    """
    import mlflow

    self._mlflow = mlflow
    run_id = run.read_id(SERVICE)
    if run_id is not None:
      mlflow.start_run(run_id=run_id)
      return
    if not any(os.environ.get(f"MLFLOW_{name}") for name in ("EXPERIMENT_NAME", "EXPERIMENT_ID", "RUN_ID")):
      mlflow.set_experiment(EXPERIMENT)
    started = mlflow.start_run(run_name=run.name)
    run.keep_id(SERVICE, started.info.run_id)
    # Once: MLflow refuses another value of a parameter, and a resumed run may have one.
    for fields in _chunks(run.fields.items(), _PARAMS):
      mlflow.log_params({mlflow_name(path): value for path, value in fields})

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Logs the scalars of a step; as ``LogWriter.write``."""
    for chunk in _chunks(scalars.items(), _METRICS):
      self._mlflow.log_metrics({mlflow_name(name): value for name, value in chunk}, step=step)

  def close(self) -> None:
    """Marks the run as finished."""
    self._mlflow.end_run()


def mlflow_name(name: str) -> str:
  """Returns a name in the letters that MLflow takes, of 250 at most; others become ``_``.

  >>> mlflow_name("iou/a class (of two)"), mlflow_name("iou/..")
  ('iou/a class _of two_', 'iou/_')
  """
  parts = (re.sub(r"[^\w.\- ]", "_", part) for part in name.split("/"))
  return "/".join("_" if part in ("", ".", "..") else part for part in parts)[:_LONGEST_NAME]


def _chunks(items: Iterable[tuple[str, object]], size: int) -> Iterable[tuple[tuple[str, object], ...]]:
  iterator = iter(items)
  while chunk := tuple(itertools.islice(iterator, size)):
    yield chunk
