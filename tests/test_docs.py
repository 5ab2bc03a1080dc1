"""The documentation: pages in the navigation, links, messages that the code still prints, and a strict build."""

import ast
import csv
import json
import pathlib
import re
import statistics
import subprocess
import sys

import pytest
import scipy.stats
import yaml

from benchmarks import bank_memory, study_contrast
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


EVIDENCE = DOCS / "evidence"


def tables_of(page: pathlib.Path) -> list[list[dict[str, str]]]:
  """The tables of a page: the cells of each line by the heads of their columns."""
  tables: list[list[list[str]]] = []
  previous = ""
  for line in page.read_text().splitlines():
    if line.startswith("|"):
      if not previous.startswith("|"):
        tables.append([])
      tables[-1].append([cell.strip() for cell in line.strip("|").split("|")])
    previous = line
  return [[dict(zip(table[0], row, strict=True)) for row in table[2:]] for table in tables]


def evidence_table(*heads: str) -> list[dict[str, str]]:
  """The table of the evidence page that has these columns."""
  (found,) = [table for table in tables_of(DOCS / "evidence.md") if set(heads) <= set(table[0])]
  return found


def published_scores(study: str = "open_questions_demo") -> dict[str, dict[str, float]]:
  """Row -> seed -> mIoU of a study's finished runs."""
  scores: dict[str, dict[str, float]] = {}
  with (EVIDENCE / f"{study}.csv").open(newline="") as file:
    for run in csv.DictReader(file):
      scores.setdefault(run["row"], {})[run["seed"]] = float(run["miou"])
  return scores


def test_the_evidence_is_that_of_the_published_scores() -> None:
  """Each row's number of seeds, mean and deviation, and its difference to its baseline seed by seed."""
  scores = published_scores()
  assert sum(map(len, scores.values())) == 75
  rows = evidence_table("row", "mIoU", "baseline")
  assert [row["row"] for row in rows] == list(scores)
  for cells in rows:
    own = scores[cells["row"]]
    deviation = f" ± {statistics.stdev(own.values()):.2f}" if len(own) > 1 else ""
    assert cells["mIoU"] == f"{statistics.mean(own.values()):.2f}{deviation}", cells
    assert cells["seeds"].split(" of ")[0] == str(len(own)), cells
    if cells["baseline"] != "-":
      baseline = scores[cells["baseline"]]
      differences = [own[seed] - baseline[seed] for seed in own if seed in baseline]
      assert cells["difference"] == f"{statistics.mean(differences):+.2f}", cells


def test_the_differences_to_cross_entropy_are_those_of_the_published_scores() -> None:
  scores = published_scores()
  rows = evidence_table("row", "difference to CE")
  assert [row["row"] for row in rows] == [name for name in scores if name != "CE"]
  for cells in rows:
    own = scores[cells["row"]]
    paired = [(own[seed], scores["CE"][seed]) for seed in own if seed in scores["CE"]]
    assert cells["difference to CE"] == f"{statistics.mean(a - b for a, b in paired):+.2f}", cells
    low, high = scipy.stats.ttest_rel(*zip(*paired, strict=True)).confidence_interval(0.95)
    assert cells["95 % over seeds"] == f"{low:+.2f} to {high:+.2f}", cells


@pytest.mark.parametrize("study, first_column", [("camvid", "CamVid"), ("confirmation", "new seeds")])
def test_the_tables_of_single_runs_are_those_of_the_published_scores(study: str, first_column: str) -> None:
  scores = published_scores(study)
  rows = evidence_table(first_column, "difference to CE")
  assert [row[first_column] for row in rows] == list(scores)
  for cells in rows:
    own = scores[cells[first_column]]
    seeds = {name.removeprefix("seed "): value for name, value in cells.items() if name.startswith("seed ")}
    assert seeds == {seed: f"{score:.2f}" for seed, score in own.items()}
    assert cells["mean"] == f"{statistics.mean(own.values()):.2f} ± {statistics.stdev(own.values()):.2f}"
    if cells[first_column] == "CE":
      continue
    paired = [(own[seed], scores["CE"][seed]) for seed in own]
    assert cells["difference to CE"] == f"{statistics.mean(a - b for a, b in paired):+.2f}", cells
    low, high = scipy.stats.ttest_rel(*zip(*paired, strict=True)).confidence_interval(0.95)
    assert cells["95 % over seeds"] == f"{low:+.2f} to {high:+.2f}", cells


def test_the_differences_of_seeds_and_classes_are_those_of_the_published_scores() -> None:
  with (EVIDENCE / "camvid.csv").open(newline="") as file:
    runs = list(csv.DictReader(file))
  baseline, ours = ([run for run in runs if run["row"] == row] for row in ("CE", "RegionContrast"))

  def differences(column: str) -> list[float]:
    return [float(b[column]) - float(a[column]) for a, b in zip(baseline, ours, strict=True)]

  page = " ".join((DOCS / "evidence.md").read_text().split())
  first, second, third = (f"{value:+.2f}" for value in differences("miou"))
  assert f"positive at all three seeds: {first}, {second} and {third}" in page
  for name, said in {"fence": "({} points on average)", "pedestrian": "({})", "road": "({})"}.items():
    values = differences(f"iou {name}")
    assert min(values) > 0 and f"{name} {said.format(f'{statistics.mean(values):+.1f}')}" in page.lower(), (
      name
    )


@pytest.mark.parametrize("name, heads", [("demo", ("seed", "silhouette")), ("camvid", ("CamVid, seed",))])
def test_the_separation_of_centers_is_that_of_the_published_runs(name: str, heads: tuple[str, ...]) -> None:
  rows = evidence_table(*heads)
  published = [
    (str(study["seed"]), run)
    for study in json.loads((EVIDENCE / f"centers_{name}.json").read_text())
    for run in study["runs"]
  ]
  assert len(rows) == len(published)
  for cells, (seed, run) in zip(rows, published, strict=True):
    values = run["mean_of_classes"]
    assert list(cells.values()) == [
      seed,
      "CE" if run["loss"] == "baseline" else "RegionContrast",
      *(f"{values[key]:.3f}" for key in ("within", "between", "silhouette")),
      f"{100 * values['accuracy']:.1f} %",
    ]


def test_the_similarities_are_those_of_the_published_runs() -> None:
  lines = study_contrast.table(study_contrast.read(EVIDENCE / "open_questions_demo_contrast.csv"))
  assert "\n".join(lines) in (DOCS / "evidence.md").read_text()


def test_the_readme_says_what_the_evidence_says() -> None:
  readme = " ".join((ROOT / "README.md").read_text().split())
  said = [("row", "RegionContrast"), ("CamVid", "RegionContrast")]
  said += [("new seeds", "RegionContrast"), ("new seeds", "temperature 0.07")]
  for first_column, name in said:
    rows = evidence_table(first_column, "difference to CE")
    (row,) = [row for row in rows if row[first_column] == name]
    assert f"{row['difference to CE']} ({row['95 % over seeds']})" in readme
