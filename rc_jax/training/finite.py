"""The check that each step's loss is finite, one step late, so that the host never waits for the running step."""

import contextlib
import math
from typing import Any

import jax
import numpy as np
import optax

from rc_jax.training.objective import Metrics
from rc_jax.weights.checkpoint import Checkpoints

# The loss is computed from the parameters before the update, so it misses an update that made them infinite.
# On GPUs most steps have no norms; those before a checkpoint have.
_CHECKED = ("loss", "gradient_norm", "parameter_norm")


class NonFiniteLoss(ValueError):
  """The loss became NaN or infinite; the message names step, terms and the last good checkpoint."""


class FiniteCheck:
  """Checks the metrics of each step when the next step has been started."""

  def __init__(self, checkpoints: Checkpoints):
    """Starts without a step.

    Args:
      checkpoints: of the run; the error message names the last one.
    """
    self._checkpoints = checkpoints
    self._pending: tuple[int, Metrics] | None = None

  def add(self, step: int, metrics: Metrics) -> None:
    """Checks the step before, which the devices have finished or nearly so, and keeps this one for the next call.

    Args:
      step: updates made, with this one.
      metrics: of this step; may still be computed by the devices.

    Raises:
      NonFiniteLoss: the loss, the gradient or the parameters of the step before are not finite.
    """
    self.check()
    self._pending = (step, metrics)

  def check(self, params: Any = None) -> None:
    """Checks the newest step; waits until the devices have finished it.

    Args:
      params: the parameters after this step, to check where its metrics lack their norm; None: not needed.

    Raises:
      NonFiniteLoss: its loss, gradient or parameters are not finite.
    """
    if self._pending is None:
      return
    step, metrics = self._pending
    if params is not None and "parameter_norm" not in metrics:
      metrics = {**metrics, "parameter_norm": jax.jit(optax.tree.norm)(params)}
    checked = jax.device_get({name: metrics[name] for name in _CHECKED if name in metrics})
    if not all(math.isfinite(value) for value in checked.values()):
      with jax.transfer_guard("allow"):  # waiting for a checkpoint may exchange arrays between processes
        raise NonFiniteLoss(self._message(step, metrics))

  def devices_idle(self) -> bool:
    """Returns whether the devices have finished every step that was started."""
    if self._pending is None:
      return True
    loss: Any = self._pending[1]["loss"]  # JAX's types leave `is_ready` out
    return bool(loss.is_ready())

  def _message(self, step: int, metrics: Metrics) -> str:
    values = {name: float(value) for name, value in jax.device_get(metrics).items() if np.ndim(value) == 0}
    terms = ", ".join(
      f"{name} {value:.4g}" for name, value in values.items() if name.startswith(("loss", "parameter_norm"))
    )
    if "gradient_norm" in values:
      terms += f", gradient norm {values['gradient_norm']:.4g}"
    with contextlib.suppress(OSError):  # of a full disk; the checkpoints before are good
      self._checkpoints.wait()
    last = self._checkpoints.latest_step()
    kept = (
      "no checkpoint yet"
      if last is None
      else f"the last good checkpoint is {self._checkpoints.folder / str(last)}"
    )
    return (
      f"step {step}: the loss is not finite ({terms}); {kept}; "
      f"try a lower --config.optimizer.learning_rate in another --workdir"
    )
