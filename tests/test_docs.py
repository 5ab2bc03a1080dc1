"""The documentation: pages in the navigation, links, messages that the code still prints, and a strict build."""

import ast
import csv
import pathlib
import re
import statistics
import subprocess
import sys

import pytest
import yaml

from benchmarks import bank_memory
from tests.support.paths import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
SHORTEST_PIECE = 4  # characters of a message's part that can be looked up


class _Loader(yaml.SafeLoader):
  """Reads mkdocs.yml, whose tags name Python objects of the theme, without them."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)


def in_navigation(entry: object) -> list[str]:
  """Returns the pages of a part of ``nav``."""
  if isinstance(entry, str):
    return [entry]
  children = entry.values() if isinstance(entry, dict) else entry
  return [page for child in children for page in in_navigation(child)]


def test_every_page_is_in_the_navigation() -> None:
  settings = yaml.load((ROOT / "mkdocs.yml").read_text(), _Loader)
  listed = in_navigation(settings["nav"])
  assert sorted(listed) == sorted(str(path.relative_to(DOCS)) for path in PAGES)


def test_the_troubleshooting_page_quotes_messages_of_the_code() -> None:
  constants = "\n".join(
    node.value
    for path in (ROOT / "rc_jax").rglob("*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
  )
  first_cells = re.findall(r"^\| (.*?) \|", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
  messages = [message for cell in first_cells for message in re.findall(r"`([^`]+)`", cell)]
  assert len(messages) > 30
  for message in messages:
    # Values stand as ... or NAME on the page, and between the constants of an f-string in the code.
    for piece in re.split(r"\.\.\.|NAME", message):
      if len(piece.strip()) >= SHORTEST_PIECE:
        assert piece.strip() in constants, f"no message of rc_jax holds {piece.strip()!r}: {message}"


def test_the_table_of_the_memory_of_banks_is_that_of_its_program() -> None:
  assert f"\n\n{bank_memory.table()}\n\n" in (DOCS / "decisions.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_examples_of_python_are_python(page: pathlib.Path) -> None:
  for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
    # An indented block is a line to add to a file.
    if not code.startswith(" "):
      compile(code, str(page), "exec")


@pytest.mark.run
def test_the_site_builds_without_a_warning(tmp_path: pathlib.Path) -> None:
  pytest.importorskip("mkdocs", reason="needs the extra docs")
  finished = subprocess.run(
    # Not --quiet: it hides warnings from --strict too.
    [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert finished.returncode == 0, finished.stderr
  site = tmp_path / "site"
  pages = {str(path.relative_to(site)): path.read_text() for path in site.rglob("*.html")}
  assert (
    "<!-- " not in re.sub(r"(?s)<script.*?</script>", "", pages["configuration.html"]).split("<article")[1]
  )
  for page, words in {
    "configuration.html": ("contrast", "temperature", "Temperature of the contrastive loss"),
    "command_line.html": ("--topology", "--images", "--results"),
    "api/contrast.html": ("region_contrast_loss", "positive_similarity"),
    "api/models.html": ("num_classes", "batch_stats"),
    "architecture.html": ("data_flow.svg", "Reads and writes parameters"),
  }.items():
    for word in words:
      assert word in pages[page], f"{page} lacks {word}"


def test_the_evidence_is_that_of_the_published_scores() -> None:
  """Each row's number of seeds, mean and deviation, and its difference to its baseline seed by seed."""
  with (DOCS / "evidence" / "open_questions_demo.csv").open(newline="") as file:
    runs = list(csv.DictReader(file))
  scores: dict[str, dict[str, float]] = {}
  for run in runs:
    scores.setdefault(run["row"], {})[run["seed"]] = float(run["miou"])
  page = (DOCS / "evidence.md").read_text()
  assert f"**State: in progress, {len(runs)} of 75 runs.**" in page or "in progress" not in page
  table = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in page.splitlines()
    if line.startswith("|")
  ]
  heads, rows = table[0], table[2:]
  assert [row[0] for row in rows] == list(scores)
  for row in rows:
    cells = dict(zip(heads, row, strict=True))
    own = scores[cells["row"]]
    deviation = f" ± {statistics.stdev(own.values()):.2f}" if len(own) > 1 else ""
    assert cells["mIoU"] == f"{statistics.mean(own.values()):.2f}{deviation}", row
    assert cells["seeds"].split(" of ")[0] == str(len(own)), row
    if cells["baseline"] != "-":
      baseline = scores[cells["baseline"]]
      differences = [own[seed] - baseline[seed] for seed in own if seed in baseline]
      assert cells["difference"] == f"{statistics.mean(differences):+.2f}", row
