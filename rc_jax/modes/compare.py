"""``--mode=compare`` compares two results on the same images: the difference in mIoU with its interval."""

import os
import pathlib

from rc_jax.console import say
from rc_jax.evaluation import metrics
from rc_jax.evaluation.bootstrap import COVERAGE, RESAMPLES, Difference, difference
from rc_jax.evaluation.protocol import protocol_text
from rc_jax.evaluation.results import Result, read_result
from rc_jax.fields import Flag

FLAGS = (Flag("results", "", "Two runs, or two of their eval/<split>.json, separated by a comma."),)


def run(results: str) -> Difference:
  """Prints the difference of two results.

  Args:
    results: two paths, separated by a comma; each a JSON that ``--mode=eval`` wrote, or the folder of a run with the
      results of one split.

  Returns:
    The difference, second minus first.

  Raises:
    FileNotFoundError: a result is missing.
    ValueError: the paths are not two, or their results differ in images or classes.
  """
  paths = [pathlib.Path(os.path.expanduser(path.strip())) for path in results.split(",") if path.strip()]
  if len(paths) != 2:
    raise ValueError(
      f"--results={results}: lists {len(paths)} results; expected two, such as --results=runs/a,runs/b/eval/val.json"
    )
  first, second = (read_result(path) for path in paths)
  second_minus_first = difference(first, second)
  say(table(first, second, second_minus_first))
  return second_minus_first


def table(first: Result, second: Result, change: Difference) -> str:
  """Returns both results side by side for the screen, values in percent."""
  rows = [
    (name, first.scores["iou"][name], second.scores["iou"][name], of_class)
    for name, of_class in change.classes.items()
  ]
  overs = dict.fromkeys(metrics.over_classes(result.scores["iou"]) for result in (first, second))
  rows.append((f"mIoU {' and '.join(overs)}", first.scores["miou"], second.scores["miou"], change.miou))
  width = max(len(name) for name, *_ in rows)
  lines = [f"  {'IoU in %':<{width}}  first  second  change"]
  lines += [
    f"  {name:<{width}}  {_percent(a)}   {_percent(b)}   {_percent(delta, sign='+')}"
    for name, a, b, delta in rows
  ]
  return "\n".join(
    [
      f"first:  {first.path}, step {first.scores['step']}: {protocol_text(first.scores)}",
      f"second: {second.path}, step {second.scores['step']}: {protocol_text(second.scores)}",
      *lines,
      *_verdict(first, second, change),
    ]
  )


def _verdict(first: Result, second: Result, change: Difference) -> list[str]:
  """Returns the sentences below the table: which is better, by how much, how sure that is, and of what."""
  images = len(first.names)
  low, high = 100 * change.low, 100 * change.high
  interval = f"{100 * COVERAGE:g} % interval {low:+.2f} to {high:+.2f}"
  if change.miou == 0:
    better = "Both have the same mIoU"
  else:
    name, other = ("second", "first") if change.miou > 0 else ("first", "second")
    better = f"The {name} is better than the {other} by {100 * abs(change.miou):.2f} points of mIoU"
  if low <= 0 <= high:
    meaning = f"The interval contains 0, so these {images} images do not show which of the two is better."
  else:
    meaning = (
      "The interval does not contain 0, so other images like these would probably give the same order."
    )
  if images < 2:
    return [
      "",
      f"{better}. One image says nothing about others: there is no interval.",
      *_scored_differently(first, second),
    ]
  return [
    "",
    f"{better} (second minus first: {100 * change.miou:+.2f}, {interval}).",
    meaning,
    f"The interval is a bootstrap over the {images} images: the second is better in {100 * change.better:.1f} % of "
    f"{RESAMPLES:,} resamples.",
    "It does not cover other seeds of training, which also change the score: to compare two methods, train each with "
    "several values of --config.seed.",
    *_scored_differently(first, second),
  ]


def _scored_differently(first: Result, second: Result) -> list[str]:
  """Returns a sentence where the two results were not scored in the same way, or are not known to be."""
  one, other = protocol_text(first.scores), protocol_text(second.scores)
  if one != other:
    return [
      f"The two were scored in different ways ({one}; {other}): part of the difference may be due to that."
    ]
  if "not recorded" in one:
    return [
      "Both results are of an earlier version: whether they were scored in the same way is not fully recorded."
    ]
  return []


def _percent(value: float | None, sign: str = "") -> str:
  return "    -" if value is None else f"{100 * value:{sign}5.1f}"
