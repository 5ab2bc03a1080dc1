"""What MkDocs adds to the pages: files of the repository's top folder, and tables made from the code."""

import ast
import importlib
import pathlib
import re
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Page -> the file at the top of the repository whose text it shows.
INCLUDED = {
  "index.md": "README.md",
  "contributing.md": "CONTRIBUTING.md",
  "changelog.md": "CHANGELOG.md",
  "license.md": "LICENSE",
}
# Links in those files lead to files as GitHub sees them; on the site these pages show them.
PAGES_OF_FILES = {name: page for page, name in INCLUDED.items()}


def on_config(config: Any) -> None:
  """Makes the tables those of this checkout, not of another installed rc_jax; called by MkDocs."""
  del config
  sys.path.insert(0, str(ROOT))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
  """Replaces the markers of a page, such as ``<!-- fields -->``, by what they stand for; called by MkDocs."""
  path = page.file.src_uri
  for marker, text in (
    ("include", lambda: included(INCLUDED[path])),
    ("fields", fields_tables),
    ("modes", modes_tables),
    ("packages", packages_table),
  ):
    if f"<!-- {marker} -->" in markdown:
      block = text()
      if marker in ("fields", "modes"):
        block = f'<div class="reference" markdown>\n\n{block}\n\n</div>'
      markdown = markdown.replace(f"<!-- {marker} -->", block)
  return re.sub(r"<!-- script (\S+) -->", lambda match: script(match[1]), markdown)


def included(name: str) -> str:
  """Returns the text of a file of the top folder, with its links as the site needs them."""
  text = (ROOT / name).read_text()
  if not name.endswith(".md"):
    return f"```text\n{text.strip(chr(10))}\n```"
  for file, page in PAGES_OF_FILES.items():
    text = text.replace(f"]({file})", f"]({page})")
  return text.replace("](docs/", "](")


def script(name: str) -> str:
  """Returns a script of ``docs`` as a block of code."""
  return f"```python\n{(ROOT / 'docs' / name).read_text().strip(chr(10))}\n```"


def fields_tables() -> str:
  """Returns the fields of a recipe, a table for each group."""
  from rc_jax import models
  from rc_jax.config import FIELDS

  groups: dict[str, list[str]] = {}
  for field in FIELDS:
    meaning = field.meaning
    readers = models.readers(field.path)
    if readers:
      meaning += f" *Read by {', '.join(readers)}.*"
    if field.read_when:
      other, values = field.read_when
      meaning += f" *Read with `{other}={' or '.join(map(str, values))}`.*"
    if field.resumable:
      meaning += " *A resumed run may have another value.*"
    group, _, name = field.path.rpartition(".")
    row = f"| `{name}` | `{field.default!r}` | {cell(field.expects)} | {cell(meaning)} |"
    groups.setdefault(group, []).append(row)
  head = "| field | default | expected | meaning |\n|---|---|---|---|"
  return "\n\n".join(
    f"## {group or 'Top level'}\n\n{head}\n" + "\n".join(rows) for group, rows in groups.items()
  )


def modes_tables() -> str:
  """Returns the modes of the command: flags that several modes read, then each mode with its other flags."""
  from rc_jax.main import MODES

  flags = {mode: importlib.import_module(f"rc_jax.modes.{mode}").FLAGS for mode in MODES}
  readers = {flag: [mode for mode in MODES if flag in flags[mode]] for mode in MODES for flag in flags[mode]}
  rows = [
    f"| `--{flag.name}` | {default(flag)} | {cell(flag.meaning)} | {', '.join(modes)} |"
    for flag, modes in readers.items()
    if len(modes) > 1
  ]
  parts = [
    "## Flags of several modes",
    "| flag | default | meaning | modes |\n|---|---|---|---|\n" + "\n".join(rows),
  ]
  for mode, purpose in MODES.items():
    parts.append(f"## {mode}\n\n`--mode={mode}` {cell(purpose)}.")
    rows = [
      f"| `--{flag.name}` | {default(flag)} | {cell(flag.meaning)} |"
      for flag in flags[mode]
      if len(readers[flag]) == 1
    ]
    if rows:
      parts.append("| flag | default | meaning |\n|---|---|---|\n" + "\n".join(rows))
  return "\n\n".join(parts)


def packages_table() -> str:
  """Returns the packages with their purposes and what they may import, as a test holds them."""
  # Not imported: other projects also install a package named tests.
  tree = ast.parse((ROOT / "tests" / "test_architecture.py").read_text())
  (table,) = [node.value for node in tree.body if ast.unparse(node).startswith("MAY_IMPORT:")]
  may_import: dict[str, set[str]] = eval(ast.unparse(table))
  rows = []
  for name, others in may_import.items():
    path = ROOT / "rc_jax" / name
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.is_file():
      continue  # a package whose place is known, and which is not there yet
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
    listed = ", ".join(f"`{other}`" for other in sorted(others)) or "–"
    rows.append(f"| `{name}` | {cell(docstring.splitlines()[0])} | {listed} |")
  return "| package | holds | may import, of rc_jax |\n|---|---|---|\n" + "\n".join(rows)


def default(flag: Any) -> str:
  """Returns a flag's default as a cell; empty where the meaning states it."""
  return f"`{flag.default_text}`" if flag.default_text else ""


def cell(text: str) -> str:
  """Returns a text of the code as Markdown for a cell: its double backquotes, and what would end a cell or a tag."""
  parts = text.replace("``", "`").replace("|", "\\|").split("`")
  # What stands between backquotes is shown as it is.
  return "`".join(part if index % 2 else part.replace("<", "&lt;") for index, part in enumerate(parts))
