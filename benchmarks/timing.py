"""Times functions against each other: in turn, many rounds, medians, ratios within a round."""

import statistics
import time
from collections.abc import Callable, Mapping

import jax


def in_turn(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
  """Runs each candidate once a round, after one round that is not counted.

  Machines drift and are shared; what runs side by side drifts together, so only ratios within a round are to be
  trusted.

  Args:
    candidates: name -> function; what it returns is waited for.
    rounds: how many to count.

  Returns:
    Seconds of each round for each name.
  """
  seconds: dict[str, list[float]] = {name: [] for name in candidates}
  for counted in range(-1, rounds):
    # Every other round backwards, so that none always runs in another's wake.
    order = list(candidates.items())
    for name, function in order if counted % 2 else order[::-1]:
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
