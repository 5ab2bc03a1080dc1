"""Times the train steps of several recipes on one GPU, and the same networks in PyTorch.

  python -m benchmarks.gpu_recipes [--seconds=400] [--out=gpu.txt] [--traces=FOLDER]

Each row is a process of ``benchmarks/gpu.py``. All compile at the same time, the first with the highest priority. A row
that has compiled is timed at once, while the others are stopped (``SIGSTOP``).
"""

import argparse
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

CITYSCAPES, ADE20K = "configs/cityscapes.py", "configs/ade20k.py"
# The niceness of a row's process, and its arguments.
ROWS = (
  (0, "step", CITYSCAPES, "--top=100"),
  (0, "torch", CITYSCAPES),
  (4, "step", f"{ADE20K}:resnet101", "--top=30"),
  (8, "step", f"{CITYSCAPES}:resnet101"),
  (8, "step", f"{CITYSCAPES}:hrnetv2_w48", "--top=30"),
  (12, "torch", f"{ADE20K}:resnet101"),
  (12, "torch", f"{CITYSCAPES}:hrnetv2_w48"),
  (12, "torch", f"{CITYSCAPES}:resnet101"),
)


@dataclasses.dataclass
class Row:
  """A row's process, and what it printed so far.

  Attributes:
    name: its arguments.
    process: of ``benchmarks/gpu.py``.
    lines: its output.
    ready: it has compiled, and waits.
    done: it has ended.
  """

  name: str
  process: subprocess.Popen[str]
  lines: list[str] = dataclasses.field(default_factory=list)
  ready: threading.Event = dataclasses.field(default_factory=threading.Event)
  done: threading.Event = dataclasses.field(default_factory=threading.Event)

  def read(self) -> None:
    """Gathers the process's lines until its end."""
    assert self.process.stdout is not None
    for line in self.process.stdout:
      self.lines.append(line)
      if line.startswith('{"ready"'):
        self.ready.set()
    self.done.set()


def start(nice: int, *arguments: str) -> Row:
  """Starts the process of a row."""
  what, config, *more = arguments
  command = [
    "nice",
    f"-n{nice}",
    sys.executable,
    "-m",
    "benchmarks.gpu",
    what,
    f"--config={config}",
    "--wait",
  ]
  process = subprocess.Popen(
    [*command, *more],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
  )
  row = Row(" ".join(arguments), process)
  threading.Thread(target=row.read, daemon=True).start()
  return row


def take_turn(row: Row, others: list[Row], seconds: float) -> None:
  """Lets a row time its steps, while the others are stopped."""
  for other in others:
    other.process.send_signal(signal.SIGSTOP)
  time.sleep(0.5)  # until the kernels that they started have ended
  assert row.process.stdin is not None
  row.process.stdin.write("\n")
  row.process.stdin.flush()
  row.done.wait(seconds)
  for other in others:
    other.process.send_signal(signal.SIGCONT)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
    "--seconds", type=float, default=400.0, help="for everything; what is not done then ends"
  )
  parser.add_argument("--out", default="", help="a file for all that the rows print")
  parser.add_argument("--traces", default="", help="a folder for traces and programs of the rows with --top")
  parser.add_argument("--rows", type=int, default=len(ROWS), help="how many; more take longer to compile")
  parser.add_argument(
    "--contrast_only", action="store_true", help="not with cross entropy alone, but for the first"
  )
  options = parser.parse_args()
  begin = time.monotonic()
  waiting = []
  for number, arguments in enumerate(ROWS[: options.rows]):
    more = ["--contrast_only"] if options.contrast_only and number else []
    if options.traces and any(argument.startswith("--top") for argument in arguments[1:]):
      more.append(f"--trace={options.traces}/{number}")
    waiting.append(start(*arguments, *more))
  while waiting and time.monotonic() - begin < options.seconds:
    row = next((row for row in waiting if row.ready.is_set() or row.done.is_set()), None)
    if row is None:
      time.sleep(0.2)
      continue
    compiled = time.monotonic() - begin
    waiting.remove(row)
    if not row.done.is_set():
      take_turn(row, waiting, begin + options.seconds - time.monotonic())
    row.process.kill()
    row.done.wait(5)
    report(row, f"compiled at {compiled:.0f} s, ended at {time.monotonic() - begin:.0f} s", options.out)
  for row in waiting:
    row.process.kill()
    row.done.wait(5)
    report(row, "not compiled in time", options.out)


def report(row: Row, state: str, out: str) -> None:
  """Prints a row's results, and writes all that it printed to a file."""
  results = [line for line in row.lines if line.startswith('{"step"')] or row.lines[-3:]
  print(f"{row.name}: {state}", *map(str.rstrip, results), sep="\n  ", flush=True)
  if out:
    with pathlib.Path(out).open("a") as file:
      file.write(f"# {row.name}: {state}\n{''.join(row.lines)}")


if __name__ == "__main__":
  main()
