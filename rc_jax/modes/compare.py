"""``--mode=compare`` compares two results on the same images: the difference in mIoU with its interval."""

import pathlib

from rc_jax.console import say
from rc_jax.evaluation.bootstrap import COVERAGE, RESAMPLES, Difference, difference
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
  paths = [pathlib.Path(path) for path in results.split(",") if path]
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
  rows.append(("mIoU", first.scores["miou"], second.scores["miou"], change.miou))
  width = max(len(name) for name, *_ in rows)
  lines = [f"  {'':<{width}}  first  second  change"]
  lines += [
    f"  {name:<{width}}  {_percent(a)}   {_percent(b)}  {_percent(delta, sign='+')}"
    for name, a, b, delta in rows
  ]
  return "\n".join(
    [
      f"first:  {first.path}, step {first.scores['step']}",
      f"second: {second.path}, step {second.scores['step']}",
      *lines,
      f"mIoU of the second minus that of the first: {100 * change.miou:+.2f}, {100 * COVERAGE:g} % interval "
      f"{100 * change.low:+.2f} to {100 * change.high:+.2f}; better in {100 * change.better:.1f} % of {RESAMPLES} "
      f"resamples of the {len(first.names)} images",
    ]
  )


def _percent(value: float | None, sign: str = "") -> str:
  return "    -" if value is None else f"{100 * value:{sign}5.1f}"
