"""The pages of region centers and of comparisons in a browser: no error, and what a reader does on them."""

import html
import json
import pathlib
import re

import numpy as np
import pytest

from rc_jax import data
from rc_jax.drawing.comparison import ClassChange, ComparedImage, ComparedResults, comparison_page
from rc_jax.drawing.embedding import EmbeddedRun, Measure, centers_page
from tests.support.browser import browse, in_browser

INFO = data.info("synthetic", "")

# Runs a function after the page's script, and keeps its result in the page.
REPORT = """
<script>
addEventListener("load", () => {
  const tip = () => document.getElementById("tip").innerText;
  const over = (element, type) => {
    const box = element.getBoundingClientRect();
    const [clientX, clientY] = [box.left + 0.5 * box.width, box.top + 0.5 * box.height];
    element.dispatchEvent(new PointerEvent(type, { bubbles: true, clientX, clientY }));
  };
  const found = (() => { %s })();
  document.documentElement.dataset.found = JSON.stringify(found);
});
</script>
"""


def ask(folder: pathlib.Path, page: str, script: str) -> object:
  """Opens a page, runs a script in it, and returns its result."""
  dumped = browse(folder, page.replace("</body>", REPORT % script + "</body>"))
  (found,) = re.findall(r'<html[^>]*data-found="([^"]*)"', dumped)
  return json.loads(html.unescape(found))


@pytest.mark.run
@in_browser
def test_a_class_below_the_pointer_stands_out_in_all_charts(tmp_path: pathlib.Path) -> None:
  rng = np.random.default_rng(0)
  runs = [EmbeddedRun(name, "a run", rng.normal(size=(20, 2)), np.arange(20) % 4) for name in ("a", "b")]
  values = (0.5, 0.25)
  measure = Measure("silhouette", "meaning", (0, 1), values, values, (values,) * INFO.num_classes)
  page = centers_page(runs, [measure], INFO, "val", [], "")
  chosen, named, left = ask(
    tmp_path,
    page,
    """
    const shown = () => [...document.querySelectorAll(".points.chosen > .chosen")].map((g) => g.dataset.class);
    over(document.querySelectorAll(".legend li")[2], "pointerover");
    const chosen = shown();
    over(document.querySelector('.points [data-class="3"] path'), "pointermove");
    const named = tip();
    over(document.querySelector("h1"), "pointerover");
    return [chosen, named, shown()];
    """,
  )
  assert chosen == ["2", "2"] and left == []
  assert named == f"{INFO.class_names[3]}: 5 centers"


@pytest.mark.run
@in_browser
def test_the_pointer_reads_truth_and_both_predictions(tmp_path: pathlib.Path) -> None:
  rng = np.random.default_rng(0)
  labels = np.stack([np.full((12, 16), label, np.uint8) for label in (0, 8, 10)])
  image = ComparedImage("val_0", rng.integers(0, 256, (12, 16, 3), np.uint8), *labels, mious=(0.1, 0.2))
  content = ComparedResults(
    title="second against first",
    names=("first", "second"),
    mious=(0.5, 0.6),
    change=0.1,
    interval=(-0.1, 0.3),
    coverage=0.95,
    sentences=["a sentence"],
    classes=[
      ClassChange("road", 0.5, 0.75, (0.2, 0.3)),
      ClassChange("sky", None, 0.5, None),
      ClassChange("car", 0.5, 0.4, None),
    ],
    groups={"Typical": ("lead", [image])},
    info=INFO,
  )
  page = comparison_page(content)
  read, bars = ask(
    tmp_path,
    page,
    """
    const images = document.querySelectorAll(".panels img");
    over(images[0], "pointermove");
    return [tip(), [...document.querySelectorAll(".changes [data-tip]")].map((row) => row.dataset.tip)];
    """,
  )
  assert read == "truth: road, first: sky, second: car"
  assert bars == [
    "road: 50.0 and 75.0, change +25.0, interval +20.0 to +30.0",
    "car: 50.0 and 40.0, change -10.0, interval –",
  ]
