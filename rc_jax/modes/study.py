"""``--mode=study``: trains all runs of a study and writes its table, with intervals."""

import dataclasses
import pathlib
from collections.abc import Mapping

import jax

from rc_jax import data, files
from rc_jax.command import Command
from rc_jax.config import Config, flatten
from rc_jax.console import duration, say, waiting
from rc_jax.fields import Flag
from rc_jax.modes import CONFIG
from rc_jax.study import tables
from rc_jax.study.grid import Run, Study, load_study
from rc_jax.study.runner import Outcome, StudyRunner, other_runs, read_results

FLAGS = (
  dataclasses.replace(
    CONFIG, meaning="--config.path.to.field=value sets a field of all runs; the study names the recipe."
  ),
  Flag("study", "", "Study: a file or a name such as table1, with :VARIANT."),
  Flag("workdir", None, "Folder of the study. Default: runs/<name of the study>."),
  Flag("seeds", (), "Seeds in place of the study's, separated by commas."),
  Flag(
    "parallel",
    1,
    "How many runs go on at the same time on this machine; each gets an equal share of the GPUs.",
  ),
  Flag(
    "budget", 0.0, "Hours after which the runs are stopped, saved; the same command continues. 0: no limit."
  ),
)


def recipe_of(given: Mapping[str, str]) -> str:
  """Returns the recipe of the study that a command line names.

  Raises:
    ValueError: it names none, or a recipe besides; one line.
  """
  if not given.get("study"):
    raise ValueError("--study is missing; try: --mode=study --study=table1:demo")
  recipe = load_study(given["study"]).recipe
  if given.get("config"):
    raise ValueError(f"--config={given['config']}: the study names its recipe, {recipe}; leave it out")
  return recipe


def run(
  config: Config,
  study: str,
  workdir: pathlib.Path,
  seeds: list[str],
  parallel: int,
  budget: float,
  command: Command,
) -> int:
  """Trains the runs of a study that are not finished, one or several at a time, and writes the table of all.

  Args:
    config: the study's recipe, with the fields of the command line.
    study: as for ``load_study``.
    workdir: the study's folder; created where absent.
    seeds: in place of the study's; empty: the study's.
    parallel: how many runs at a time.
    budget: in hours; 0: no limit.
    command: the command line, which says what fields it sets.

  Returns:
    The exit status: 0 when all runs are finished, 1 when some failed, 143, 130 or 129 after a signal, 143 at the end of
    the budget.

  Raises:
    ValueError: the study, a field, the data or the folder is wrong; one line.
    FileNotFoundError: data are missing; one line.
  """
  # The runs need the accelerators; this process only starts them.
  jax.config.update("jax_platforms", "cpu")
  chosen = with_fields(load_study(study), config, [path for path, _ in command.overrides], seeds)
  if not 0 <= budget < float("inf"):
    raise ValueError(f"--budget={budget:g}: expected hours, or 0 for no limit")
  _check_data(chosen)
  numbers = {"row": len(chosen.rows), "seed": len(chosen.seeds), "run": len(chosen.runs)}
  rows, seed_number, runs = (
    f"{number} {noun}{'' if number == 1 else 's'}" for noun, number in numbers.items()
  )
  say(f"{chosen.title}: {rows} x {seed_number} = {runs}, folder {workdir}")
  outcome = StudyRunner(chosen, workdir, parallel, 3600 * budget if budget else None).run()
  return _finish(chosen, workdir, outcome, budget)


def _check_data(study: Study) -> None:
  """Checks the data and weights that the runs read: otherwise many runs would fail with the same message.

  Raises:
    FileNotFoundError: data or weights are missing; one line.
    ValueError: data are not those of the recipe, or rows have different data sets; one line.
  """
  configs = {row.name: study.config(Run(row, study.seeds[0])) for row in study.rows}
  names = {row: config.dataset.name for row, config in configs.items()}
  if len(set(names.values())) > 1:
    raise ValueError(
      f"study {study.title!r}: rows: have different data sets ({files.one_line(names)}), whose scores cannot be "
      "compared; expected one"
    )
  datasets = {
    (config.dataset.name, config.dataset.root, config.dataset.classes, config.dataset.train_split)
    for config in configs.values()
  }
  for name, root, classes, train_split in sorted(datasets):
    for split in dict.fromkeys((train_split, *study.splits)):
      data.load(name, root, split, classes=classes)
  for row in study.rows:
    weights = configs[row.name].model.pretrained
    if weights and not pathlib.Path(weights).exists():
      raise FileNotFoundError(
        f"study {study.title!r}: row {row.name!r}: config.model.pretrained: no file or folder {weights}"
      )
  untrained = [
    row.name for row in study.rows if row.paper is not None and not configs[row.name].model.pretrained
  ]
  if untrained:
    say(
      f"note: {', '.join(untrained)}: config.model.pretrained is empty, so these runs start from random weights; the "
      "paper's start from ImageNet's"
    )


def _finish(study: Study, workdir: pathlib.Path, outcome: Outcome, budget: float) -> int:
  """Names failed runs, writes the tables of the finished ones, and says what is missing; returns the exit status."""
  for reason in dict.fromkeys(outcome.failed.values()):
    runs = [str(run) for run, its_reason in outcome.failed.items() if its_reason == reason]
    say(f"failed: {'; '.join(runs)}: {reason}")
  if outcome.finished:
    with waiting("comparing the rows"):
      results = read_results(study, workdir)
      study_tables = tables.study_tables(study, results, outcome.failed, other_runs(study, workdir))
      page = tables.write(workdir, study_tables)
    say("\n".join([*map(tables.text, study_tables), "", f"tables and plots: {page}"]))
  done = f"{len(outcome.finished)} of {len(study.runs)} runs finished"
  if not outcome.exit_status:
    if outcome.failed:
      say(f"{done}, {len(outcome.failed)} failed; the same command tries these again")
  elif outcome.out_of_budget:
    say(f"stopped after {duration(3600 * budget)}, saved: {done}; the same command continues")
  else:
    say(f"stopped: {done}; the same command continues")
  return outcome.exit_status or int(bool(outcome.failed))


def with_fields(study: Study, config: Config, paths: list[str], seeds: list[str]) -> Study:
  """Returns a study with the fields and seeds of a command line.

  Args:
    study: the study.
    config: its recipe, with these fields.
    paths: of the fields that the command line sets.
    seeds: in place of the study's; empty: the study's.

  Raises:
    ValueError: the study sets one of the fields itself, or a seed is no number; one line.
  """
  flat = flatten(config.to_dict())
  fields = dict(study.fields)
  for path in paths:
    if path == "seed":
      raise ValueError("--config.seed: a study trains several seeds; expected --seeds=0,1,2")
    if path == "eval.split":
      raise ValueError(
        f"--config.eval.split: the study scores {', '.join(study.splits)}; change it in the study's file"
      )
    rows = [row.name for row in study.rows if path in row.fields]
    if rows:
      raise ValueError(
        f"--config.{path}: the study's rows set it themselves ({', '.join(rows)}); leave it out"
      )
    fields[path] = flat[path]
  try:
    numbers = tuple(int(seed) for seed in seeds)
  except ValueError:
    raise ValueError(f"--seeds={','.join(seeds)}: expected whole numbers, such as --seeds=0,1,2") from None
  return dataclasses.replace(study, fields=fields, seeds=numbers or study.seeds)
