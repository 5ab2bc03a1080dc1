"""Lines on the screen: a terminal has one that is rewritten and fits its width; a log file gets one now and then."""

import pathlib
import sys
import time

import pytest

from rc_jax import command, console, streams


class Terminal:
  """Standard output as a terminal that knows the control sequence of the console."""

  def __init__(self, capsys: pytest.CaptureFixture[str]):
    self._capsys, self.printed = capsys, ""

  def screen(self) -> list[str]:
    """Returns the lines that a person sees, the last without a line break."""
    self.printed += self._capsys.readouterr().out
    lines = []
    for line in self.printed.split("\n"):
      # Each rewriting starts at the left margin and erases the line.
      assert "\r" not in line.replace(console.CLEAR_LINE, "")
      lines.append(line.rsplit(console.CLEAR_LINE, maxsplit=1)[-1])
    return lines


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
  """The seconds that the console's clock shows, in a list of one."""
  now = [100.0]
  monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
  return now


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
  """A terminal of 40 columns as standard output."""
  # pytest replaces sys.stdout between the fixtures and the test.
  monkeypatch.setattr(streams, "_is_a_screen", lambda stream: True)
  monkeypatch.setattr(console, "_line_shown", False)  # also after the test, which may leave a line
  monkeypatch.setenv("COLUMNS", "40")
  monkeypatch.setenv("TERM", "xterm")
  return Terminal(capsys)


@pytest.mark.parametrize(
  ("seconds", "shown"),
  [
    (0.4, "0 s"),
    (59.4, "59 s"),
    (59.6, "1:00 min"),
    (187, "3:07 min"),
    (7500, "2:05 h"),
    (float("inf"), "?"),
  ],
)
def test_a_duration_has_the_unit_that_fits(seconds: float, shown: str) -> None:
  assert console.duration(seconds) == shown


def test_a_terminal_shows_the_longest_text_that_fits(terminal: Terminal, clock: list[float]) -> None:
  line = console.UpdatingLine()
  line.show("x" * 40, "y" * 39, "z")
  assert terminal.screen() == ["y" * 39]
  clock[0] += 1
  line.show("x" * 60, "y" * 50)
  assert terminal.screen() == ["y" * 39]


def test_a_terminal_is_rewritten_twice_a_second(terminal: Terminal, clock: list[float]) -> None:
  line = console.UpdatingLine()
  for step in range(100):
    line.show(f"step {step}")
    clock[0] += 0.01
  assert terminal.screen() == ["step 50"]


def test_nothing_of_the_line_is_left_beside_a_message(terminal: Terminal, clock: list[float]) -> None:
  line = console.UpdatingLine()
  line.show("a long state of the task")
  console.say("short")
  clock[0] += 1
  line.show("next")
  line.flush()
  console.say("end")
  assert terminal.screen() == ["short", "end", ""]


def test_a_file_gets_the_first_state_then_one_every_ten_seconds_and_the_last(
  clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
  line = console.UpdatingLine()
  for step in range(1, 26):
    line.show(f"step {step} of 25", f"{step}")
    clock[0] += 1
  line.flush()
  line.flush()
  assert capsys.readouterr().out.splitlines() == [f"step {step} of 25" for step in (1, 11, 21, 25)]


def test_progress_says_rate_and_time_left(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
  progress = console.Progress("scoring", 40, unit="images")
  clock[0] += 100.0  # a program was compiled
  progress.advance(10)
  clock[0] += 20.0
  progress.advance(10)
  progress.close()
  assert capsys.readouterr().out == "scoring: 20/40 images, 0.50/s, 40 s left\n"


def test_a_short_task_leaves_no_line_in_a_file(
  clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
  progress = console.Progress("scoring", 4, unit="images")
  for _ in range(4):
    clock[0] += 1
    progress.advance(1)
  progress.close()
  assert capsys.readouterr().out == ""


def test_progress_of_a_terminal_is_cleared(terminal: Terminal, clock: list[float]) -> None:
  progress = console.Progress("scoring", 40, unit="images")
  assert terminal.screen() == ["scoring: 0/40 images"]
  for _ in range(3):
    clock[0] += 1
    progress.advance(10)
  assert terminal.screen() == ["scoring: 30/40, 1 s left"]
  progress.close()
  assert terminal.screen() == [""]


def test_waiting_counts_the_seconds_in_a_terminal(
  terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(console, "_WAITING_SECONDS", 0.005)
  with console.waiting("compiling"):
    time.sleep(0.1)
  assert terminal.screen() == [""] and terminal.printed.count("compiling, 0 s") > 1


def test_waiting_is_one_line_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
  with pytest.raises(KeyError), console.waiting("compiling"):
    raise KeyError
  assert capsys.readouterr().out == "compiling ...\n"


def test_a_terminal_that_cannot_erase_is_a_file(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setenv("TERM", "dumb")
  console.UpdatingLine().show("step 1")
  assert terminal.screen() == ["step 1", ""] and console.CLEAR_LINE not in terminal.printed


def started(monkeypatch: pytest.MonkeyPatch, program: list[str], *arguments: str) -> command.Command:
  """Returns the command of a process that was started with these words."""
  monkeypatch.setattr(sys, "orig_argv", [*program, *arguments])
  return command.parse(["main.py", *arguments], "demo", pathlib.Path("a run"))


def test_a_command_repeats_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
  typed = ["--config=demo", "--config.train.steps", "20", "--noconfig.eval.flip", "--workdir", "a run"]
  typed += ["--config.train.crop_size=(97,97)", "--processes=2", "--mode=train"]
  found = started(monkeypatch, ["python3", "-m", "rc_jax.main"], *typed)
  assert found.text("--mode=eval") == (
    "python3 -m rc_jax.main --config=demo --config.train.steps 20 --noconfig.eval.flip "
    "'--config.train.crop_size=(97,97)' '--workdir=a run' --mode=eval"
  )
  assert [path for path, _ in found.overrides] == ["train.steps", "eval.flip", "train.crop_size"]
  assert "crop_size" not in command.without(found, ["train.crop_size"]).text()
  assert command.without(found, [], prefix="train.").text() == (
    "python3 -m rc_jax.main --config=demo --noconfig.eval.flip '--workdir=a run'"
  )


def test_a_command_leaves_out_the_recipes_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(sys, "orig_argv", ["python", "/venv/bin/rc_jax", "--config=demo:baseline"])
  monkeypatch.setattr(command.shutil, "which", lambda name: "/venv/bin/rc_jax")
  arguments = (["/venv/bin/rc_jax", "--config=demo:baseline"], "demo:baseline")
  workdir = pathlib.Path("runs/demo_baseline")
  assert command.parse(*arguments, workdir).text() == "rc_jax --config=demo:baseline"
  monkeypatch.setattr(command.shutil, "which", lambda name: None)
  assert command.parse(*arguments, workdir).text() == "/venv/bin/rc_jax --config=demo:baseline"
