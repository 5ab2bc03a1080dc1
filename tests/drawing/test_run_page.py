"""The page of a run: its sections, its configuration, no reference to another file; and in a browser."""

import dataclasses
import html
import json
import pathlib
import re

import numpy as np
import pytest

from rc_jax.config import defaults
from rc_jax.drawing.report.configuration import recipe_lines
from rc_jax.drawing.report.run_curves import contrast_section
from rc_jax.drawing.report.run_page import run_page
from tests.support.browser import browse, in_browser
from tests.support.example_runs import HOSTILE, make_config, make_run, unusual_runs

ALL = ["pictures", "classes", "confusion", "curves", "contrast", "configuration"]
SECTIONS = {
  "150 classes with long names": ALL,
  "baseline": [name for name in ALL if name != "contrast"],
  "not finite": ALL,
  "not scored": ["pictures", "curves", "contrast", "configuration"],
  "no log": ["pictures", "classes", "confusion", "configuration"],
  "nothing": ["pictures", "configuration"],
  "one line": ALL,
  "hostile names": ALL,
  "old log": [name for name in ALL if name != "contrast"],
}


def sections(page: str) -> list[str]:
  return re.findall(r'<section id="([^"]*)"', page)


def test_a_page_has_every_section_and_its_numbers() -> None:
  page = run_page(make_run())
  assert sections(page) == ALL
  links = re.findall(r'<a href="#([^"]*)"', page)
  assert links == ALL
  for text in (
    "<b>50.0</b>",
    "mIoU of predicting class 1 everywhere",
    "Presence loss",
    "Mean age of the keys",
  ):
    assert text in page, text
  assert len(re.findall(r'class="picture"', page)) == 4 * 3
  assert "loss_aux_scaled" not in page and "Aux scaled" not in page


@pytest.mark.parametrize("name", SECTIONS)
def test_unusual_runs_have_a_page_too(name: str) -> None:
  page = run_page(unusual_runs()[name])
  assert sections(page) == SECTIONS[name]
  assert not re.search(r"\bnan\b|\binf\b", re.sub(r"base64,[^\"]*", "", page))


def test_the_validation_loss_has_a_chart_where_the_log_has_it() -> None:
  run = make_run()
  page = run_page(dataclasses.replace(run, scores={**run.scores, "cross_entropy": 0.4567}))
  assert "Validation loss: cross entropy on val" in page
  assert "<dt>validation loss, cross entropy in nats</dt><dd>0.457</dd>" in page
  earlier = [{name: value for name, value in line.items() if name != "cross_entropy"} for line in run.lines]
  page = run_page(dataclasses.replace(run, lines=earlier))
  assert "alidation loss" not in page and "mIoU on val, %" in page


def test_scores_and_pictures_name_their_weights() -> None:
  run = make_run()
  page = run_page(dataclasses.replace(run, step=0, scored_weights="/net.pth"))
  assert page.count("on val, /net.pth") == 2 and "with the weights of a file for 3 images" in page
  assert "step 0" not in page and "best mIoU at another step" in page
  scores = {**run.scores, "step": 90_000, "checkpoint": "/runs/other/checkpoints/90000"}
  page = run_page(dataclasses.replace(run, scores=scores, scored_weights="step 90,000 of /runs/other"))
  assert "Trained for 400 of" in page  # not 90,000, the step of the other run
  # Of this run, each step is another one.
  best = max(run.lines, key=lambda line: line.get("miou", 0))["step"]
  page = run_page(dataclasses.replace(run, scores={**scores, "step": best}, scored_weights="the other run's"))
  assert f"best mIoU at another step, {best:,}" in page


def test_a_page_names_the_contrastive_method() -> None:
  run = make_run()
  assert '<p class="kind">RegionContrast, scope bank</p>' in run_page(run)
  run.config.contrast.method = "pixels"  # of an extension
  assert '<p class="kind">pixels, scope bank</p>' in run_page(run)


def test_of_many_classes_lines_without_a_value_have_no_summary() -> None:
  """The ages of keys while all banks are empty: 0 would mean that they are new."""
  run = make_run(num_classes=30)
  mean = run.ages.mean.copy()
  mean[0] = np.nan
  steps = [line for line in run.lines if "loss" in line]
  (section,) = contrast_section(steps, run.info, run.ages._replace(mean=mean))
  charts = map(json.loads, map(html.unescape, re.findall(r'data-chart="(.*?)"', section.body)))
  (ages,) = (
    chart
    for chart in charts
    if chart["steps"][0] == 10 and len(chart["series"]) == 3 and None in chart["series"][0]["values"]
  )
  for series, expected in zip(ages["series"], (np.nanmin, np.nanmedian, np.nanmax), strict=True):
    assert series["values"][0] is None
    assert series["values"][1] == pytest.approx(expected(mean[1]), rel=1e-3)


def test_a_term_that_is_always_zero_has_no_chart() -> None:
  assert "Auxiliary loss" not in run_page(unusual_runs()["old log"])


@pytest.mark.parametrize("name", SECTIONS)
def test_a_page_needs_no_other_file_and_no_network(name: str) -> None:
  page = run_page(unusual_runs()[name])
  references = re.findall(r"<[^>]*?\s(?:src|href|srcset|action|poster)=\"([^\"]*)\"", page)
  assert references and all(reference.startswith(("data:", "#")) for reference in references)
  assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|<link[^>]*stylesheet", page)
  assert "!!python" not in page


def test_strings_from_outside_are_escaped() -> None:
  page = run_page(unusual_runs()["hostile names"])
  assert HOSTILE not in page and "<img src=//" not in page
  assert html.escape(HOSTILE) in page


def test_the_configuration_is_python_that_makes_the_config() -> None:
  for config in (make_config("bank"), make_config("none"), defaults()):
    changed, others = recipe_lines(config)
    made = defaults()
    exec("\n".join(changed), {"config": made})
    assert made.to_dict() == config.to_dict()
    exec("\n".join(others), {"config": made})
    assert made.to_dict() == config.to_dict()
  assert recipe_lines(make_config("none"))[0] == [
    'config.dataset.name = "synthetic"',
    "config.train.batch_size = 2",
    "config.train.crop_size = (65,)",
    'config.contrast.scope = "none"',
    "config.eval.flip = True",
  ]


def test_a_string_with_quotes_stays_a_python_string() -> None:
  for root in ('a "quoted" folder', "it's", "back\\slash", "both ' and \"", "\u2028é😀\n"):
    config, made = defaults(), defaults()
    config.dataset.root = root
    exec("\n".join(recipe_lines(config)[0]), {"config": made})
    assert made.dataset.root == root


@pytest.mark.long
@pytest.mark.run
@in_browser
@pytest.mark.parametrize("name", ["usual", *SECTIONS])
def test_a_browser_finds_no_error(name: str, tmp_path: pathlib.Path) -> None:
  found = browse(tmp_path, run_page({"usual": make_run(), **unusual_runs()}[name]))
  assert sections(found) == SECTIONS.get(name, ALL)


# What a reader does: moves over a chart, a bar, a cell and a picture, enlarges a picture and goes to the next.
USE = """
<script>
addEventListener("load", () => {
  const said = [];
  const say = () => said.push(document.getElementById("tip").innerText);
  const over = (selector) => {
    const element = document.querySelector(selector), box = element.getBoundingClientRect();
    const [clientX, clientY] = [box.left + 0.95 * box.width, box.top + box.height / 2];
    element.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX, clientY }));
    say();
  };
  const press = (selector, key) =>
    document.querySelector(selector).dispatchEvent(new KeyboardEvent("keydown", { bubbles: true, key }));
  ["#curves svg", "#classes li", "#confusion td[data-tip]", "#pictures img"].forEach(over);
  press("#curves svg", "ArrowLeft");
  say();
  press("#confusion table", "ArrowRight");
  press("#confusion table", "ArrowDown");
  say();
  document.querySelector(".picture").click();
  press("dialog", "ArrowRight");
  said.push(document.querySelector("dialog[open] figcaption").innerText);
  document.querySelector("dialog .close").click();
  said.push(String(document.querySelector("dialog[open]")));
  document.documentElement.dataset.said = JSON.stringify(said);
});
</script>
"""


@pytest.mark.run
@in_browser
def test_a_reader_sees_values_and_enlarges_pictures(tmp_path: pathlib.Path) -> None:
  run = make_run()
  found = browse(tmp_path, run_page(run).replace("</body>", USE + "</body>"))
  (said,) = re.findall(r'data-said="([^"]*)"', found)
  chart, bar, cell, picture, before, below, enlarged, closed = json.loads(html.unescape(said))
  losses = {line["step"]: line["loss"] for line in run.lines if "loss" in line}
  step, before = (int(re.findall(r"step (\d+)", text)[0]) for text in (chart, before))
  assert f"{losses[step]:.3g}" in chart and 350 < step <= 400 and before == step - 10
  assert bar.startswith("class 0: not in the mean;")
  assert cell.startswith("class 0 predicted as class 0: ")
  shown = run.pictures[0]
  names = [run.info.class_names[int(labels[6, 15])] for labels in (shown.truth, shown.prediction)]
  assert picture == f"truth: {names[0]}, prediction: {names[1]}"
  assert below.startswith("class 1 predicted as class 0: ")
  assert enlarged == "Ground truth: class 0" and closed == "null"
