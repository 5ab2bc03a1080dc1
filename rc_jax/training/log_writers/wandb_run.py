"""Logs to a run of Weights & Biases, which a resumed run continues.

W&B ignores values of a step that lies before the newest it has. A resumed run repeats the steps after its checkpoint,
so W&B keeps their first values; those of ``metrics.jsonl`` are the last ones.
"""

import os
import uuid
from typing import Any

from rc_jax.training.log_writers.log_writer import LoggedRun

SERVICE = "wandb"
PROJECT = "rc_jax"


class WandbRun:
  """A run of Weights & Biases. The variables ``WANDB_*`` of the environment choose project, entity, name and mode."""

  def __init__(self, run: LoggedRun):
    """Starts a run, or continues the one that the run's folder names.

    Args:
      run: what to log.

    Raises:
      Exception: of wandb, as where nobody is logged in.
    """
    import wandb

    run_id = run.read_id(SERVICE) or os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8]
    run.keep_id(SERVICE, run_id)
    self._run: Any = wandb.init(
      project=os.environ.get("WANDB_PROJECT") or PROJECT,
      name=os.environ.get("WANDB_NAME") or run.name,
      id=run_id,
      resume="allow",
      dir=str(run.workdir),
      config=dict(run.fields),
      allow_val_change=True,  # a resumed run may have other values of some fields
      settings=wandb.Settings(console="off"),  # it would replace the streams of the updating line
    )

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Logs the scalars of a step; as ``LogWriter.write``."""
    self._run.log(scalars, step=step)

  def close(self) -> None:
    """Sends what has not been sent."""
    self._run.finish()
