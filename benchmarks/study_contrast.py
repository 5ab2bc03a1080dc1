"""Tabulates what the contrastive loss does at the end of a study's runs, from their logs.

  python -m benchmarks.study_contrast --study=open_questions:demo --workdir=runs/open_questions_demo --csv=contrast.csv

Means over the last steps of each run: cosine similarity of queries with positive and negative keys, the loss ``L_RC``,
its share of the objective, and its saturation ``1 - exp(-L_RC)``. Eq. 4 of RegionContrast is ``softplus(log S - q.k+ /
tau)``, and ``1 - exp(-loss)`` is the factor of ``1 / tau`` in its gradient by ``q.k+``: near 1, each positive key has
the same weight in the gradient, however similar it is already. The script writes a line for each run, and prints the
means over seeds as Markdown.
"""

import argparse
import csv
import itertools
import math
import pathlib
import statistics
from collections.abc import Sequence

from rc_jax.study.grid import Run, load_study
from rc_jax.training import run_log

COLUMNS = ("positive_similarity", "negative_similarity", "loss", "share_of_objective", "saturation")


def last_steps(workdir: pathlib.Path, steps: int) -> dict[str, float] | None:
  """Returns the means of a run's last logged steps; None for a run without contrast."""
  lines = [line for line in run_log.read_metrics(workdir) if "loss_contrast" in line]
  lines = [line for line in lines if line["step"] > lines[-1]["step"] - steps]
  if not any(line.get("contrast_queries") for line in lines):
    return None

  def mean(name: str) -> float:
    return statistics.fmean(line[name] for line in lines)

  return {
    "positive_similarity": mean("contrast_positive_similarity"),
    "negative_similarity": mean("contrast_negative_similarity"),
    "loss": mean("loss_contrast"),
    "share_of_objective": mean("loss_contrast_scaled") / mean("loss"),
    "saturation": 1 - math.exp(-mean("loss_contrast")),
  }


def table(rows: dict[str, list[dict[str, float]]]) -> list[str]:
  """Returns the means over seeds as Markdown; ``rows``: name -> ``last_steps`` of each seed."""
  lines = [
    f"| row | seeds | {' | '.join(name.replace('_', ' ') for name in COLUMNS)} |",
    f"|{'---|' * (2 + len(COLUMNS))}",
  ]
  for name, runs in rows.items():
    means = [statistics.fmean(run[column] for run in runs) for column in COLUMNS]
    lines.append(f"| {name} | {len(runs)} | {' | '.join(_digits(value) for value in means)} |")
  return lines


def _digits(value: float) -> str:
  return f"{value:.4f}" if value > 0.99 and value < 1 else f"{value:.3g}"


def read(path: pathlib.Path) -> dict[str, list[dict[str, float]]]:
  """Reads what ``main`` writes: name of a row -> the runs of its seeds."""
  rows: dict[str, list[dict[str, float]]] = {}
  with path.open(newline="") as file:
    for line in csv.DictReader(file):
      rows.setdefault(line["row"], []).append({name: float(line[name]) for name in COLUMNS})
  return rows


def main(arguments: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--study", required=True)
  parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of the study")
  parser.add_argument("--csv", type=pathlib.Path, required=True)
  parser.add_argument("--steps", type=int, default=100)
  options = parser.parse_args(arguments)
  with options.csv.open("w", newline="") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("row", "seed", *COLUMNS))
    study = load_study(options.study)
    for row, seed in itertools.product(study.rows, study.seeds):
      folder = options.workdir / Run(row, seed).path
      values = last_steps(folder, options.steps) if any(folder.glob("eval/*.json")) else None
      if values:
        writer.writerow((row.name, seed, *(f"{values[name]:.6f}" for name in COLUMNS)))
  print("\n".join(table(read(options.csv))))


if __name__ == "__main__":
  main()
