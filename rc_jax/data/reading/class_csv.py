"""Reads tables of classes that a user wrote, from a spreadsheet or by hand."""

import csv
import io
import pathlib
import re
from collections.abc import Sequence

from rc_jax.files import one_line, read_text

IGNORED = "ignore"
_SEPARATORS = (",", ";", "\t")
_LONGEST_NAME = 200
# The csv module refuses cells of more than 131,072 letters.
_LONGEST_HEAD = 1000
# They would change what a terminal or a page shows.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def read_rows(
  path: pathlib.Path, forms: Sequence[tuple[str, ...]]
) -> tuple[list[str], list[tuple[int, list[str]]]]:
  """Reads the columns of a table and its other lines, with their numbers, in any of the forms of spreadsheets.

  These separate columns by commas, semicolons or tabs, write empty columns and lines at the end, and a first line
  ``sep=;``.

  Args:
    path: of the file.
    forms: the allowed columns, in lower case.

  Raises:
    ValueError: the first line names other columns, or a line cannot be read; one line.
  """
  lines = io.StringIO(read_text(path), newline="")
  first = lines.readline()
  skipped = 1 if re.fullmatch(r"sep=.\s*", first) else 0
  head = lines.readline() if skipped else first
  for separator in _SEPARATORS:
    columns = [
      column.lower() for column in _cells(next(csv.reader([head[:_LONGEST_HEAD]], delimiter=separator), []))
    ]
    if tuple(columns) in forms:
      break
  else:
    found = one_line(head, 80) or "nothing"
    expected = " or ".join(map(",".join, forms))
    raise ValueError(f"{path}: the first line is {found}, expected {expected}: add it")
  rows = csv.reader(lines, delimiter=separator, skipinitialspace=True)
  try:
    cells = [(rows.line_num + 1 + skipped, _cells(row)) for row in rows]
  except csv.Error as error:
    raise ValueError(
      f"{path}, line {rows.line_num + 1 + skipped}: is no line of a table ({one_line(error)}): change it"
    ) from None
  return columns, [(line, row) for line, row in cells if row]


def is_ignored(name: str) -> bool:
  """Returns whether the name of a class marks pixels that count nowhere."""
  return name.casefold() == IGNORED


def check_class_name(name: str, where: str) -> None:
  """Raises ValueError, in one line that begins with ``where``, for a name that a terminal cannot show."""
  if len(name) > _LONGEST_NAME or _CONTROL.search(name):
    raise ValueError(
      f"{where}: the name {one_line(repr(name), 80)} is longer than {_LONGEST_NAME} letters or holds control "
      "characters: choose another"
    )


def _cells(row: list[str]) -> list[str]:
  """Returns the cells of a line without the empty ones at its end."""
  cells = [cell.strip() for cell in row]
  while cells and not cells[-1]:
    cells.pop()
  return cells
