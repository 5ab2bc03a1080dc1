"""The loop of training refuses transfers between host and devices that nothing asks for explicitly.

On a CPU, JAX sees those to the devices alone.
"""

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax.modes import train
from rc_jax.training.finite import FiniteCheck, NonFiniteLoss
from rc_jax.training.step_programs import StepPrograms, no_implicit_transfers


class OnDevice:
  """A scalar whose copy to the host must be explicit, as that of an array on a GPU."""

  ndim, shape = 0, ()

  def __init__(self, value: float):
    self._value = value

  def __array__(self, dtype=None, copy=None) -> np.ndarray:  # of jax.device_get
    return np.asarray(self._value, np.float32)

  def __float__(self) -> float:
    raise AssertionError("an implicit copy to the host")


def run_with(program: Any) -> types.SimpleNamespace:
  """Returns the parts of a training run that the loop reads, with a step that is ``program``."""
  nothing = types.SimpleNamespace(
    add=lambda *_: None, start=lambda *_: None, restart=lambda: None, count_step=lambda *_: None
  )
  nothing.stop, nothing.flush = lambda *_: False, lambda: None
  programs = StepPrograms(lambda norms: program, lambda step: True)
  settings = types.SimpleNamespace(steps=3, log_every=1, checkpoint_every=9, eval_every=0)
  return types.SimpleNamespace(
    config=types.SimpleNamespace(train=settings),
    programs=programs,
    evaluation_due=lambda step: False,
    next_batch=lambda state: {"image": jnp.ones(3)},
    save=lambda *_, **__: None,
    log_step=lambda step, metrics: logged.append(float(metrics["loss"])),
    **dict.fromkeys(("progress", "finite", "throughput", "trace"), nothing),
  )


logged: list[float] = []


class Step(jax.tree_util.Partial):
  """A step that pretends to be a jitted function: what it does, it does in every call."""

  def lower(self, *_: Any) -> "Step":
    return self

  def compile(self) -> "Step":
    return self


@pytest.mark.parametrize(
  ("name", "moved"),
  [("an array of NumPy", np.ones(3, np.float32)), ("a number", 2.5)],
  ids=lambda value: str(value),
)
def test_an_implicit_transfer_in_a_step_ends_the_run(name: str, moved: Any) -> None:
  add = jax.jit(lambda state, other: state + other)
  watch = types.SimpleNamespace(stop_requested=lambda step: False, exit_status=0)
  state = types.SimpleNamespace(step=0)

  def step(state: Any, batch: dict) -> tuple[Any, dict]:
    return state, {"loss": add(batch["image"], moved).sum()}

  with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer") as raised:
    train.TrainingRun.train(run_with(Step(step)), state, watch)  # type: ignore[arg-type]
  assert "jax.device_put or jax.device_get" in "".join(raised.value.__notes__)

  moved = jax.device_put(moved)
  logged.clear()
  train.TrainingRun.train(run_with(Step(step)), state, watch)  # type: ignore[arg-type]
  assert len(logged) == 3


def test_the_check_of_the_loss_copies_explicitly() -> None:
  check = FiniteCheck(types.SimpleNamespace(latest_step=lambda: None, wait=lambda: None))  # type: ignore[arg-type]
  check.add(1, {"loss": OnDevice(1.0), "gradient_norm": OnDevice(2.0), "loss_pixel": OnDevice(1.0)})
  check.add(2, {"loss": OnDevice(np.nan), "loss_pixel": OnDevice(np.nan)})
  with pytest.raises(NonFiniteLoss, match=r"step 2: the loss is not finite \(loss nan, loss_pixel nan\)"):
    check.check()


def test_explicit_transfers_and_other_errors_pass_unchanged() -> None:
  with no_implicit_transfers():
    on_device = jax.device_put(np.ones(3, np.float32))
    assert jax.device_get(on_device).tolist() == [1.0, 1.0, 1.0]
  with pytest.raises(jax.errors.JaxRuntimeError, match="out of memory") as raised, no_implicit_transfers():
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
  assert not hasattr(raised.value, "__notes__")
