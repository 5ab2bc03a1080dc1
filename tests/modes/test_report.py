"""The page that a run leaves: it needs no other file, and many classes stay readable on it."""

import json
import pathlib
import re

import numpy as np

from rc_jax.drawing import plots
from rc_jax.modes import report
from tests.support import run_tiny


def test_the_page_needs_no_other_file(tmp_path: pathlib.Path) -> None:
  config = run_tiny.get_config()
  lines = [
    {"step": 1, "loss": 2.0, "loss_pixel": 1.0, "loss_aux": 1.0, "loss_contrast": 0.5, "learning_rate": 0.1},
    {"step": 1, "split": "val", "miou": 0.25},
  ]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  figure = plots.curves(lines)
  plots.save(figure, tmp_path / "curves.png")
  page = report._page(config, tmp_path, {"curves.png": "Curves & <more>"}, None)
  sources = re.findall(r"src='([^']*)'", page)
  assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
  assert "Curves &amp; &lt;more&gt;" in page


def test_many_classes_are_listed_by_what_is_confused_most() -> None:
  names = [f"class {n}" for n in range(plots.MANY_CLASSES + 5)]
  confusion = np.diag(np.full(len(names), 100))
  confusion[7, 3], confusion[1, 44], confusion[44, 1] = 50, 300, 0
  figure = plots.confusion_matrix(confusion, names)
  shown = [text.get_text() for text in figure.axes[0].get_yticklabels()]
  assert shown == ["class 1 taken for class 44", "class 7 taken for class 3"]
  assert [text.get_text() for text in figure.axes[0].texts] == ["75 % of the class", "33 % of the class"]
  bars = plots.iou_bars({"iou": dict.fromkeys(names, 0.5), "miou": 0.5})
  assert sum(len(axis.patches) for axis in bars.axes) == len(names) and len(bars.axes) == 2
