"""Notebooks of the documentation, as Markdown and as Python."""

import json
import pathlib
from typing import Any

COMMANDS = ("!", "%")  # start the lines that are not Python


def read(path: pathlib.Path) -> dict[str, Any]:
  """Returns the JSON of a notebook."""
  notebook: dict[str, Any] = json.loads(path.read_text())
  return notebook


def python_of(cell: dict[str, Any]) -> str:
  """Returns the lines of a code cell that are Python; empty lines take the place of commands."""
  return "".join("\n" if line.startswith(COMMANDS) else line for line in cell["source"])


def as_markdown(path: pathlib.Path) -> str:
  """Returns a notebook as a page: code cells are blocks of Python and of the shell."""
  parts = []
  for cell in read(path)["cells"]:
    if cell["cell_type"] == "markdown":
      parts.append("".join(cell["source"]))
      continue
    code = python_of(cell).strip("\n")
    commands = [line[1:].rstrip("\n") for line in cell["source"] if line.startswith(COMMANDS)]
    parts += [f"```python\n{code}\n```"] * bool(code) + [f"```sh\n{chr(10).join(commands)}\n```"] * bool(
      commands
    )
  return "\n\n".join(parts)
