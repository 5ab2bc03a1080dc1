"""Saving of checkpoints in a run: training continues after one failure, and ends after two in a row."""

from typing import Any

import jax

from rc_jax.console import say
from rc_jax.files import WriteError
from rc_jax.train_state import TrainState
from rc_jax.training.run_log import RunLog
from rc_jax.weights.checkpoint import Checkpoints


class Saving:
  """Saves the checkpoints of a run, and tolerates one failure: the next save may find space on the disk again."""

  def __init__(self, checkpoints: Checkpoints, log: RunLog):
    """Starts without a save that failed.

    Args:
      checkpoints: of the run.
      log: of the run. A checkpoint is saved after the lines of its steps, because a resumed run does not write them.
    """
    self._checkpoints, self._log = checkpoints, log
    self._failed = False  # the newest save

  def save(self, state: TrainState, position: dict[str, Any], *, required: bool) -> None:
    """Saves a state, in the background unless the save before failed.

    Args:
      state: the train state.
      position: of the training data.
      required: the run ends with this state, so that there is no next save.

    Raises:
      WriteError: the state cannot be saved, and it is required or the save before failed too. With several processes,
        at the first failure: the others may have saved.
    """
    try:
      self._checkpoints.wait()
    except WriteError as error:
      self._note(error)
    try:
      self._flush_log()
      self._checkpoints.save(state, position)
      if self._failed:
        self._checkpoints.wait()
    except WriteError as error:
      if required or self._failed:
        raise
      self._note(error)
    else:
      self._failed = False

  def _flush_log(self) -> None:
    try:
      self._log.flush()
    except WriteError as error:
      raise self._checkpoints.cannot_save(error.problem) from error

  def _note(self, error: WriteError) -> None:
    if jax.process_count() > 1:
      raise error
    say(
      f"WARNING: {error.problem}; training goes on, and ends if the next one cannot be saved either: free space"
    )
    self._failed = True
