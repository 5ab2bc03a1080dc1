"""The tables of a study: Markdown, CSV and a page, written to its folder."""

import csv
import io
import pathlib
from collections.abc import Iterable, Sequence

from rc_jax import files
from rc_jax.study import wording
from rc_jax.study.comparisons import Comparison, StudyTable, study_tables
from rc_jax.study.page import study_page

__all__ = ["StudyTable", "markdown", "study_tables", "text", "write"]


def markdown(table: StudyTable) -> str:
  """Returns the table of one split, its claims and the sentences on both as Markdown."""
  study = table.study
  lines = [f"## {_cell(study.title)}, {_cell(table.split)}", "", wording.progress(table), ""]
  lines += _markdown_table(wording.row_heads(table), (wording.row_cells(row, table) for row in table.rows))
  if table.claims:
    lines += ["", f"{_text(wording.claims_title(table))}:", ""]
    lines += _markdown_table(wording.CLAIM_HEADS, map(wording.claim_cells, table.claims))
  sentences = [*wording.warnings(table), *wording.open_claims(table), *wording.reading([table])]
  lines += ["", *(f"- {_text(sentence)}" for sentence in sentences)]
  return "\n".join(lines) + "\n"


def text(table: StudyTable) -> str:
  """Returns the rows and the claims of one split for the screen, in aligned columns."""
  blocks = [_aligned(wording.row_heads(table), [wording.row_cells(row, table) for row in table.rows])]
  if table.claims:
    blocks.append(_aligned(wording.CLAIM_HEADS, list(map(wording.claim_cells, table.claims))))
  return "\n\n".join([f"\n{wording.progress(table)}", *blocks])


def _aligned(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns a table in which the first column is aligned left, and empty columns are left out."""
  kept = [place for place in range(len(heads)) if any(row[place] != wording.NONE for row in rows)]
  lines = [[line[place] for place in kept] for line in (heads, *rows)]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join(
      cell.ljust(width) if place == 0 else cell.rjust(width)
      for place, (cell, width) in enumerate(zip(line, widths, strict=True))
    )
    for line in lines
  )


def _markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
  return [
    f"| {' | '.join(heads)} |",
    "|" + "---|" * len(heads),
    *(f"| {' | '.join(map(_cell, row))} |" for row in rows),
  ]


def _text(text: str) -> str:
  """Returns a text in one line, with the characters escaped that Markdown would read as marks."""
  escaped = " ".join(text.split())
  for mark in "\\`*_<[":
    escaped = escaped.replace(mark, f"\\{mark}")
  return escaped


def _cell(text: str) -> str:
  return _text(text).replace("|", "\\|")


def write(folder: pathlib.Path, tables: Sequence[StudyTable]) -> pathlib.Path:
  """Writes ``table.md``, ``table.csv`` (a line for each split and row), ``runs.csv`` (a line for each scored run) and
  ``index.html``.

  The same tables give the same bytes.

  Args:
    folder: of the study; it need not exist.
    tables: of ``study_tables``.

  Returns:
    The path of the page.

  Raises:
    OSError: a file cannot be written; one line.
  """
  files.make_folder(folder)
  files.atomic_write_text(folder / "table.md", "\n".join(map(markdown, tables)))
  files.atomic_write_text(folder / "table.csv", _csv(_row_records(tables)))
  files.atomic_write_text(folder / "runs.csv", _csv(_run_records(tables)))
  page = folder / "index.html"
  files.atomic_write_text(page, study_page(tables))
  return page


Record = dict[str, str | int | None]  # None: an empty cell
_RUN_COLUMNS = ("row", "seed", "split", "step", "miou", "pixel_accuracy")


_DIFFERENCE_COLUMNS = (
  *("pairs", "difference", "difference_deviation", "seeds_low", "seeds_high", "images_low", "images_high"),
  "paper_difference",
)


def _row_records(tables: Iterable[StudyTable]) -> list[Record]:
  return [
    {
      "split": table.split,
      "row": row.row.name,
      "seeds": len(row.mious),
      "planned_seeds": len(table.study.seeds),
      "miou": _decimal(row.mean),
      "miou_deviation": _decimal(row.deviation),
      "paper": _decimal(row.row.paper),
      "baseline": row.baseline,
      **dict(zip(_DIFFERENCE_COLUMNS, _difference_values(row.difference), strict=True)),
    }
    for table in tables
    for row in table.rows
  ]


def _difference_values(difference: Comparison | None) -> list[str | int | None]:
  if difference is None:
    return [None] * len(_DIFFERENCE_COLUMNS)
  values = [
    *(difference.mean, difference.deviation),
    *(difference.over_seeds or (None, None)),
    *(difference.over_images or (None, None)),
    difference.paper,
  ]
  return [len(difference.seeds), *map(_decimal, values)]


def _run_records(tables: Sequence[StudyTable]) -> list[Record]:
  classes = dict.fromkeys(
    name for table in tables for _, result in table.results for name in result.scores["iou"]
  )
  records: list[Record] = []
  for table in tables:
    for run, result in table.results:
      scores = result.scores
      shares = [scores["miou"], scores.get("pixel_accuracy"), *(scores["iou"].get(name) for name in classes)]
      values = [run.row.name, run.seed, table.split, scores["step"], *map(_percent_decimal, shares)]
      columns = [*_RUN_COLUMNS, *(f"iou {name}" for name in classes)]
      records.append(dict(zip(columns, values, strict=True)))
  return records


def _decimal(value: float | None) -> str | None:
  return None if value is None else f"{value:.4f}"


def _percent_decimal(share: float | None) -> str | None:
  return None if share is None else f"{100 * share:.6f}"


def _csv(records: Sequence[Record]) -> str:
  text = io.StringIO()
  writer = csv.DictWriter(text, list(records[0]) if records else _RUN_COLUMNS, lineterminator="\n")
  writer.writeheader()
  writer.writerows(records)
  return text.getvalue()
