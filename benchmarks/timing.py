"""Times functions side by side: many rounds, medians, and ratios within a round."""

import statistics
import time
from collections.abc import Callable, Mapping

import jax

PAUSE = (
  0.2  # seconds before each call, in which the threads of another library stop to wait for work on the cores
)


def in_turn(
  candidates: Mapping[str, Callable[[], object]], rounds: int, warm: bool = False
) -> dict[str, list[float]]:
  """Runs each candidate once in each round, after a first round that does not count.

  The speed of a shared machine drifts. Candidates of one round drift together, so trust ratios within a round only.

  Args:
    candidates: name -> function; its result is waited for.
    rounds: the number of rounds that count.
    warm: whether each call follows another of the same candidate, which does not count. In a loop of its own a
      candidate does not meet threads of another library that still wait for work, or memory that went back to the
      system.

  Returns:
    Seconds of each round for each name.
  """
  seconds: dict[str, list[float]] = {name: [] for name in candidates}
  for counted in range(-1, rounds):
    # Every other round in reverse order, so that no candidate always follows the same other one.
    order = list(candidates.items())
    for name, function in order if counted % 2 else order[::-1]:
      if warm:
        jax.block_until_ready(function())
      start = time.perf_counter()
      jax.block_until_ready(function())
      if counted >= 0:
        seconds[name].append(time.perf_counter() - start)
  return seconds


def table(seconds: Mapping[str, list[float]], reference: str) -> str:
  """Returns a Markdown table: median, least and most seconds, and the median ratio to ``reference``."""
  lines = ["| | median s | least | most | ratio |", "|---|---|---|---|---|"]
  for name, values in seconds.items():
    ratio = statistics.median(v / r for v, r in zip(values, seconds[reference], strict=True))
    lines.append(
      f"| {name} | {statistics.median(values):.4f} | {min(values):.4f} | {max(values):.4f} | {ratio:.3f} |"
    )
  return "\n".join(lines)
