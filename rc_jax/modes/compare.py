"""Compares two results on the same images: the difference in mIoU and how sure it is, ``--mode=compare``."""

import pathlib

from rc_jax.console import say
from rc_jax.evaluation.bootstrap import COVERAGE, RESAMPLES, Difference, difference
from rc_jax.evaluation.results import Result, read_result
from rc_jax.fields import Flag

FLAGS = (Flag("results", "", "Two runs, or two of their eval/<split>.json, separated by a comma."),)


def run(results: str) -> Difference:
  """Prints a comparison: ``--mode=compare --results=FIRST,SECOND``.

  Args:
    results: two paths, separated by a comma; each a JSON that ``--mode=eval`` wrote, or the folder of a run that holds
      the results of one split alone.

  Raises:
    FileNotFoundError: a result is missing.
    ValueError: the two are not of the same images and classes, or not two.
  """
  paths = [pathlib.Path(path) for path in results.split(",") if path]
  if len(paths) != 2:
    raise ValueError(
      f"--results={results}: names {len(paths)} results; expected two, such as --results=runs/a,runs/b/eval/val.json"
    )
  first, second = (read_result(path) for path in paths)
  found = difference(first, second)
  say(table(first, second, found))
  return found


def table(first: Result, second: Result, found: Difference) -> str:
  """Returns both results side by side for the screen, values in percent."""
  rows = [
    (name, first.scores["iou"][name], second.scores["iou"][name], change)
    for name, change in found.classes.items()
  ]
  rows.append(("mIoU", first.scores["miou"], second.scores["miou"], found.miou))
  width = max(len(name) for name, *_ in rows)
  lines = [f"  {'':<{width}}  first  second  change"]
  lines += [
    f"  {name:<{width}}  {_percent(a)}   {_percent(b)}  {_percent(change, sign='+')}"
    for name, a, b, change in rows
  ]
  return "\n".join(
    [
      f"first:  {first.path}, step {first.scores['step']}",
      f"second: {second.path}, step {second.scores['step']}",
      *lines,
      f"mIoU of the second minus that of the first: {100 * found.miou:+.2f}, {100 * COVERAGE:g} % interval "
      f"{100 * found.low:+.2f} to {100 * found.high:+.2f}; better in {100 * found.better:.1f} % of {RESAMPLES} "
      f"resamples of the {len(first.names)} images",
    ]
  )


def _percent(value: float | None, sign: str = "") -> str:
  return "    -" if value is None else f"{100 * value:{sign}5.1f}"
