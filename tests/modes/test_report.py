"""The report of a run: panels, plots of many classes, and a page that needs no other file."""

import json
import pathlib
import re

import jax
import numpy as np

from rc_jax import data
from rc_jax.drawing import plots
from rc_jax.drawing.panels import MARGIN, colorize
from rc_jax.inference.predictor import make_predictor
from rc_jax.modes import report
from tests.support import run_tiny, tiny_predictions


def test_panels_show_image_truth_and_prediction_in_the_order_of_the_split() -> None:
  config = run_tiny.get_config()
  network, variables = tiny_predictions.color_network(), tiny_predictions.color_variables()
  drawn = np.asarray(report.panels(config, network, *variables, count=4))
  source = data.load("synthetic", "", "val")
  predict = jax.jit(make_predictor(network, config.eval))
  for row, index in enumerate((0, 20, 39, 59)):
    example = source[index]
    image, truth = example["image"], example["label"]
    labels = np.asarray(predict(*variables, image[None])[0]).argmax(-1)
    assert len(np.unique(labels)) > 1
    height, width = truth.shape
    panels = (image, colorize(truth, source.info.palette), colorize(labels, source.info.palette))
    for column, expected in enumerate(panels):
      top, left = row * (height + MARGIN), column * (width + MARGIN)
      np.testing.assert_array_equal(drawn[top : top + height, left : left + width], expected)


def test_page_needs_no_other_file(tmp_path: pathlib.Path) -> None:
  config = run_tiny.get_config()
  lines = [
    {"step": 1, "loss": 2.0, "loss_pixel": 1.0, "loss_aux": 1.0, "loss_contrast": 0.5, "learning_rate": 0.1},
    {"step": 1, "split": "val", "miou": 0.25},
  ]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  figure = plots.curves(lines)
  plots.save(figure, tmp_path / "curves.png")
  page = report.page(config, tmp_path, {"curves.png": "Curves & <more>"}, None)
  sources = re.findall(r"src='([^']*)'", page)
  assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
  assert "Curves &amp; &lt;more&gt;" in page


def test_plots_of_many_classes_list_the_most_frequent_confusions() -> None:
  names = [f"class {n}" for n in range(plots.MANY_CLASSES + 5)]
  confusion = np.diag(np.full(len(names), 100))
  confusion[7, 3], confusion[1, 44], confusion[44, 1] = 50, 300, 0
  figure = plots.confusion_matrix(confusion, names)
  shown = [text.get_text() for text in figure.axes[0].get_yticklabels()]
  assert shown == ["class 1 predicted as class 44", "class 7 predicted as class 3"]
  assert [text.get_text() for text in figure.axes[0].texts] == ["75 % of the class", "33 % of the class"]
  bars = plots.iou_bars({"iou": dict.fromkeys(names, 0.5), "miou": 0.5})
  assert sum(len(axis.patches) for axis in bars.axes) == len(names) and len(bars.axes) == 2
