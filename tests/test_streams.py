"""Standard output and error that fail: nothing is raised, and what can be shown is shown."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import TextIO

import pytest

from rc_jax import console, streams
from rc_jax.training.preemption import PreemptionWatch
from tests.support.paths import ROOT


def without_reader() -> TextIO:
  reader, writer = os.pipe()
  os.close(reader)
  return os.fdopen(writer, "w")


def on_a_full_disk() -> TextIO:
  return open("/dev/full", "w")


def closed() -> TextIO:
  stream = io.StringIO()
  stream.close()
  return stream


@pytest.mark.parametrize("make", [without_reader, on_a_full_disk, closed, lambda: None])
def test_printing_never_raises(make: Callable[[], TextIO | None], monkeypatch: pytest.MonkeyPatch) -> None:
  stream = make()
  with monkeypatch.context() as patch:
    patch.setattr(sys, "stdout", stream)
    patch.setattr(sys, "stderr", stream)
    console.say("a message")
    line = console.UpdatingLine()
    line.show("step 1")
    line.flush()
    with console.waiting("compiling"):
      pass
    streams.write_error("error\n" * 10_000)
    streams.flush()
  if stream is not None:
    stream.close()  # as at the end of the interpreter


def test_a_line_that_did_not_fit_on_the_disk_appears_later(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
  path = tmp_path / "log.txt"
  with path.open("w") as stream, monkeypatch.context() as patch:
    patch.setattr(sys, "stdout", stream)
    real = os.dup(stream.fileno())
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, stream.fileno())
    streams.write_output("first\n")
    os.dup2(real, stream.fileno())
    streams.write_output("second\n")
    os.close(real)
    os.close(full)
  assert path.read_text() == "first\nsecond\n"


@pytest.mark.parametrize(
  ("encoding", "shown"),
  [
    ("ascii", "Stra\\xdfe \\u9053 \\udce9"),
    ("latin-1", "Straße \\u9053 \\udce9"),
    ("utf-8", "Straße 道 \\udce9"),
  ],
)
def test_a_screen_of_another_encoding_gets_escapes(
  encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
  content = io.BytesIO()
  stream = io.TextIOWrapper(content, encoding)
  with monkeypatch.context() as patch:
    patch.setattr(sys, "stdout", stream)
    console.say("Straße 道 \udce9")
  assert content.getvalue().decode(encoding) == shown + "\n"


@pytest.mark.run
@pytest.mark.parametrize("redirection", ["2>&1 | true", "2>&-", "2>/dev/full"])
def test_the_exit_status_stays(redirection: str) -> None:
  command = f"set -o pipefail; {sys.executable} -m rc_jax.main --mode=fly {redirection}"
  finished = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
  assert finished.returncode == 2 and not finished.stderr, finished.stderr


def test_a_signal_to_a_run_without_a_screen_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
  def fail(*arguments: object) -> int:
    raise OSError(5, "Input/output error")

  with PreemptionWatch() as watch, monkeypatch.context() as patch:
    patch.setattr(os, "write", fail)
    signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGHUP)  # as the kernel does when the shell of a closed terminal ends
    assert watch.stop_requested(1) and watch.exit_status == 128 + signal.SIGHUP
  assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # until the process has ended
  signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_under_nohup_a_closed_terminal_stops_nothing() -> None:
  previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with PreemptionWatch() as watch:
      signal.raise_signal(signal.SIGHUP)
      assert not watch.stop_requested(1)
  finally:
    signal.signal(signal.SIGHUP, previous)
