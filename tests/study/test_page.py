"""The page of a study: its sections and numbers, nothing from other files, and in a browser."""

import html
import pathlib
import re
from collections.abc import Callable

import pytest

from rc_jax.study import Row
from rc_jax.study.comparisons import StudyTable, study_tables
from rc_jax.study.grid import Run
from rc_jax.study.page import study_page
from tests.support.browser import browse, in_browser
from tests.support.example_runs import HOSTILE
from tests.support.example_studies import CE, INTER, INTRA, make_results, make_study

SECTIONS = ["scores", "differences", "table", "classes", "reading"]


def usual() -> tuple[StudyTable, ...]:
  study = make_study()
  return study_tables(study, make_results(study), {})


def incomplete() -> tuple[StudyTable, ...]:
  study = make_study(range(3), splits=("val", "test"))
  results = make_results(study)
  for key in ((CE, 2, "val"), (INTER, 0, "val"), (INTRA, 1, "test")):
    del results[key]
  return study_tables(study, results, {Run(study.row(CE), 2): "ValueError: the loss is not finite"})


def one_seed_many_classes() -> tuple[StudyTable, ...]:
  study = make_study(range(1))
  return study_tables(study, make_results(study, num_classes=150, images=5), {})


def no_run() -> tuple[StudyTable, ...]:
  return study_tables(make_study(range(2)), {}, {})


def only_the_baseline() -> tuple[StudyTable, ...]:
  study = make_study(range(2), rows=(Row(CE),), claims=(), source="")
  return study_tables(study, make_results(study), {})


def hostile() -> tuple[StudyTable, ...]:
  rows = (Row(f"a{HOSTILE}"), Row(f"b{HOSTILE}"))
  study = make_study(range(2), rows=rows, baseline=rows[0].name, claims=(), title=HOSTILE, source=HOSTILE)
  results = make_results(study, {row.name: 0.0 for row in rows})
  return study_tables(study, results, {Run(rows[1], 3): HOSTILE})


PAGES: dict[str, tuple[Callable[[], tuple[StudyTable, ...]], list[str]]] = {
  "usual": (usual, SECTIONS),
  "incomplete": (
    incomplete,
    [f"{name}{split}" for split in range(2) for name in SECTIONS[:-1]] + ["reading"],
  ),
  "one seed": (one_seed_many_classes, SECTIONS),
  "no run": (no_run, ["scores", "differences", "table", "reading"]),
  "only the baseline": (only_the_baseline, SECTIONS),
  "hostile": (hostile, SECTIONS),
}


def sections(page: str) -> list[str]:
  return re.findall(r'<section id="([^"]*)"', page)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_its_sections_and_needs_no_other_file(name: str) -> None:
  make, expected = PAGES[name]
  page = study_page(make())
  assert sections(page) == expected
  references = re.findall(r"<[^>]*?\s(?:src|href|srcset|action|poster)=\"([^\"]*)\"", page)
  assert all(reference.startswith(("data:", "#")) for reference in references)
  assert not re.search(r"\bnan\b|\binf\b", page)


def test_the_numbers_of_the_table_and_the_charts_agree() -> None:
  tables = usual()
  page = html.unescape(study_page(tables))
  assert "15 of 15 runs are scored on val, 30 images." in page
  for row in tables[0].rows:
    for seed, miou in row.mious.items():
      assert f'data-tip="{row.row.name}, seed {seed}: {miou:.2f}"' in page
    assert f"<td>{row.mean:.2f} ± {row.deviation:.2f}</td>" in page
  for row in tables[0].rows[1:]:
    low, high = row.difference.over_seeds
    assert f"<td>{low:+.2f} to {high:+.2f}</td>" in page
    assert f"95 % interval over seeds: {low:+.2f} to {high:+.2f}" in page
  assert page.count('<path class="mark"') == 2 and page.count('<path class="join"') == 5


def test_a_page_names_what_is_missing() -> None:
  page = html.unescape(study_page(incomplete()))
  for text in (
    "7 of 9 runs are scored on val",
    "8 of 9 runs are scored on test",
    "Failed: CE, seed 2: ValueError: the loss is not finite.",
    "one seed is scored in both. It does not show by how much seeds differ",
  ):
    assert text in page, text


def test_strings_from_outside_are_escaped() -> None:
  page = study_page(hostile())
  assert HOSTILE not in page and "<img src=//" not in page and html.escape(HOSTILE) in page


# What a reader does: moves over a dot and a cell, and goes along the dots of a chart by keys.
USE = """
<script>
addEventListener("load", () => {
  const said = [];
  const say = () => said.push(document.getElementById("tip").innerText);
  const over = (selector) => {
    const element = document.querySelector(selector), box = element.getBoundingClientRect();
    const [clientX, clientY] = [box.left + box.width / 2, box.top + box.height / 2];
    element.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX, clientY }));
    say();
  };
  const press = (selector, key) =>
    document.querySelector(selector).dispatchEvent(new KeyboardEvent("keydown", { bubbles: true, key }));
  over("#scores circle");
  over("#classes td[data-tip]");
  ["ArrowDown", "ArrowDown"].forEach((key) => press("#differences svg", key));
  say();
  said.push(String(document.documentElement.scrollWidth <= innerWidth));
  document.documentElement.dataset.said = said.join("|");
});
</script>
"""


@pytest.mark.run
@in_browser
@pytest.mark.parametrize("name", PAGES)
def test_a_browser_finds_no_error(name: str, tmp_path: pathlib.Path) -> None:
  make, expected = PAGES[name]
  assert sections(browse(tmp_path, study_page(make()))) == expected


@pytest.mark.run
@in_browser
def test_a_reader_sees_the_value_of_a_dot(tmp_path: pathlib.Path) -> None:
  tables = usual()
  found = browse(tmp_path, study_page(tables).replace("</body>", USE + "</body>"))
  (said,) = re.findall(r'data-said="([^"]*)"', found)
  dot, cell, difference, fits = html.unescape(said).split("|")
  assert dot == f"CE, seed 0: {tables[0].rows[0].mious[0]:.2f}"
  assert cell.startswith("road, CE: IoU ")
  assert difference == f"{INTRA}, seed 0: {tables[0].rows[1].difference.differences[0]:+.2f}"
  assert fits == "true"
