"""What a second signal does while a run saves."""

import signal

import pytest

from rc_jax import parent_process
from rc_jax.training.preemption import PreemptionWatch


@pytest.fixture(autouse=True)
def default_handlers():
  previous = {
    number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGINT)
  }
  yield
  for number, handler in previous.items():
    signal.signal(number, handler)


def test_a_run_of_a_study_ignores_a_second_sigterm_until_it_has_ended(monkeypatch, capfd) -> None:
  """A scheduler sends it to all processes of a job, and the runner then sends it to its runs."""
  monkeypatch.setattr(parent_process, "started_by_runner", lambda: True)
  with PreemptionWatch() as watch:
    for _ in range(2):
      signal.raise_signal(signal.SIGTERM)
    assert watch.stop_requested(1)
  signal.raise_signal(signal.SIGTERM)
  assert watch.exit_status == 128 + signal.SIGTERM
  assert capfd.readouterr().out == "SIGTERM: finishing this step and saving\n"


@pytest.mark.parametrize(
  "number, by_runner", [(signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGINT, True)]
)
def test_any_other_second_signal_ends_a_run_at_once(number, by_runner: bool, monkeypatch, capfd) -> None:
  monkeypatch.setattr(parent_process, "started_by_runner", lambda: by_runner)
  with PreemptionWatch() as watch:
    signal.raise_signal(number)
    assert watch.stop_requested(1) and signal.getsignal(number) == signal.SIG_DFL
  assert signal.getsignal(number) == signal.default_int_handler
  assert f"a second {number.name} stops at once" in capfd.readouterr().out
