"""The page of a study: its claims, the scores of each seed, the differences with their intervals, and the classes."""

import html
from collections.abc import Iterable, Sequence
from typing import get_args

import numpy as np

from rc_jax import __version__
from rc_jax.drawing.report.class_charts import difference_matrix
from rc_jax.drawing.report.page import Section, document
from rc_jax.drawing.report.seed_charts import SeedChart, SeedRow, seed_chart
from rc_jax.evaluation.bootstrap import COVERAGE
from rc_jax.study import wording
from rc_jax.study.comparisons import Comparison, ScoredRow, StudyTable, Verdict

_COVERAGE = f"{100 * COVERAGE:g} % interval"


def study_page(tables: Sequence[StudyTable]) -> str:
  """Returns a page of HTML that needs no other file.

  Args:
    tables: one for each split of one study.
  """
  study = tables[0].study
  sections = [
    section for index, table in enumerate(tables) for section in _sections(table, index, len(tables))
  ]
  sections.append(Section("reading", "How to read it", _sentences(wording.reading(tables))))
  return document(study.title, _header(tables), sections, f"Written by rc_jax {html.escape(__version__)}.")


def _header(tables: Sequence[StudyTable]) -> str:
  study = tables[0].study
  names = "".join(
    f"<dt>{html.escape(wording.claim(scored))}</dt><dd>{_verdict(scored.comparison)}</dd>"
    for scored in tables[0].claims
  )
  claims = (
    f'<p class="lead">{html.escape(wording.claims_title(tables[0]))}, on {html.escape(study.splits[0])}, '
    f"with the {_COVERAGE} over seeds:</p>"
    f'<dl class="beside">{names}</dl>'
    if names
    else ""
  )
  progress = "".join(f"<p>{html.escape(wording.progress(table))}</p>" for table in tables)
  return (
    f'<p class="kind">Study of the recipe {html.escape(study.recipe)}</p><h1>{html.escape(study.title)}</h1>'
    f"{progress}{claims}"
  )


def _verdict(comparison: Comparison) -> str:
  text = f'<span class="{comparison.verdict}">{comparison.verdict}</span>'
  if comparison.mean is not None:
    text += f", {wording.points(comparison.mean)}"
  if comparison.over_seeds is not None:
    text += f" ({wording.interval(comparison.over_seeds)})"
  return text


def _sections(table: StudyTable, index: int, splits: int) -> list[Section]:
  def section(anchor: str, title: str, body: str, half: bool = False) -> Section:
    if splits == 1:
      return Section(anchor, title, body, half)
    return Section(f"{anchor}{index}", f"{title}, {table.split}", body, half)

  sections = [
    section("scores", "Scores", seed_chart(_scores_chart(table)), half=True),
    section("differences", "Differences", seed_chart(_differences_chart(table)), half=True),
    section(
      "table", "Table", _tables(table) + _sentences([*wording.warnings(table), *wording.open_claims(table)])
    ),
  ]
  if table.results:
    sections.append(section("classes", "Classes", _classes(table)))
  return sections


def _scores_chart(table: StudyTable) -> SeedChart:
  seeds = table.study.seeds
  return SeedChart(
    title=f"mIoU in % on {table.split}",
    seeds=[str(seed) for seed in seeds],
    rows=[
      SeedRow(
        row.row.name,
        np.array([row.mious.get(seed, np.nan) for seed in seeds]),
        row.mean,
        [row.over_seeds],
      )
      for row in table.rows
    ],
    intervals=[f"mean of the seeds, {_COVERAGE}"],
    note=(
      "A line joins the runs of one seed, which have the same order of images. The axis does not start at 0. Intervals "
      "of two rows may overlap although their difference is clear, because the differences are taken seed by seed."
    ),
    joined=True,
  )


def _differences_chart(table: StudyTable) -> SeedChart:
  seeds = table.study.seeds
  rows = []
  for row in table.rows:
    if (difference := row.difference) is not None:
      of_seeds = dict(zip(difference.seeds, difference.differences, strict=True))
      values = np.array([of_seeds.get(seed, np.nan) for seed in seeds])
      intervals = [difference.over_seeds, difference.over_images]
      rows.append(SeedRow(row.row.name, values, difference.mean, intervals, difference.paper))
  return SeedChart(
    title=f"Difference to {_baseline(table)} in points of mIoU on {table.split}",
    seeds=[str(seed) for seed in seeds],
    rows=rows,
    intervals=[f"mean, {_COVERAGE} over seeds", f"mean, {_COVERAGE} over images"],
    mark="the paper's difference",
    note="An interval over seeds that contains 0 leaves open which of the two is better.",
    zero=True,
    signed=True,
  )


def _tables(table: StudyTable) -> str:
  caption = f"mIoU in %, differences to {_baseline(table)}"
  text = _table(caption, wording.row_heads(table), (wording.row_cells(row, table) for row in table.rows))
  if table.claims:
    text += _table(wording.claims_title(table), wording.CLAIM_HEADS, map(wording.claim_cells, table.claims))
  return text


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in heads)
  body = "".join(
    f'<tr><th scope="row">{html.escape(name)}</th>{"".join(_cell(cell) for cell in cells)}</tr>'
    for name, *cells in rows
  )
  return (
    f'<div class="scroll"><table class="study"><caption>{html.escape(caption)}</caption>'
    f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
  )


def _cell(text: str) -> str:
  kind = f' class="{text}"' if text in get_args(Verdict) else ""
  return f"<td{kind}>{html.escape(text)}</td>"


def _sentences(sentences: Iterable[str]) -> str:
  return "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences)


def _baseline(table: StudyTable) -> str:
  return table.baselines[0] if len(table.baselines) == 1 else "the baseline of the row"


def _classes(table: StudyTable) -> str:
  lead = (
    "First column: IoU of the baseline in %. Others: differences to it in points of IoU, means over the seeds that "
    "both have. They have no intervals: of many classes, some change by chance."
  )
  largest = max(
    (
      abs(value)
      for row in table.rows
      if row.difference is not None
      for value in row.difference.classes.values()
      if value is not None
    ),
    default=0.0,
  )
  matrices = "".join(
    _class_differences(table, row, largest) for row in table.rows if row.row.name in table.baselines
  )
  return f'<p class="lead">{html.escape(lead)}</p><div class="side-by-side">{matrices}</div>'


def _class_differences(table: StudyTable, baseline: ScoredRow, largest: float) -> str:
  """Returns a row for each class and a column for each row of the table that is compared with a baseline."""
  names = list(table.results[0][1].scores["iou"])
  compared = [
    (row.row.name, row.difference.classes)
    for row in table.rows
    if row.difference is not None and row.baseline == baseline.row.name
  ]
  differences = np.array([[_nan(classes.get(name)) for _, classes in compared] for name in names])
  reference = np.array([_nan(baseline.classes.get(name)) for name in names])
  return difference_matrix(
    names,
    [name for name, _ in compared],
    differences.reshape(len(names), len(compared)),
    (baseline.row.name, reference),
    largest,
  )


def _nan(value: float | None) -> float:
  return np.nan if value is None else value
