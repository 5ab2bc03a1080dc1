"""The report of a run: its pictures, the score of a constant prediction, the ages of keys, and a page of old files."""

import html
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from rc_jax import data
from rc_jax.drawing.panels import MARGIN, colorize, differences
from rc_jax.evaluation.evaluator import make_evaluator
from rc_jax.evaluation.protocol import protocol_text
from rc_jax.evaluation.results import write_results
from rc_jax.inference.predictor import make_predictor
from rc_jax.modes import eval as eval_mode
from rc_jax.modes import report
from rc_jax.training.bank_age import key_ages
from rc_jax.weights.checksums import weights_digest
from tests.support import run_tiny, saved_runs, tiny_predictions


@pytest.fixture(scope="module")
def pictures() -> list[report.Picture]:
  network, variables = tiny_predictions.color_network(), tiny_predictions.color_variables()
  return report.pictures(run_tiny.get_config(), network, *variables, count=4)


def test_pictures_and_panels_follow_the_order_of_the_split(pictures) -> None:
  source = data.load("synthetic", "", "val")
  drawn = np.asarray(report.panels(pictures, source.info))
  network, variables = tiny_predictions.color_network(), tiny_predictions.color_variables()
  predict = jax.jit(make_predictor(network, run_tiny.get_config().eval))
  for row, index in enumerate((0, 20, 39, 59)):
    example = source[index]
    image, truth = example["image"], example["label"]
    labels = np.asarray(predict(*variables, image[None])[0]).argmax(-1)
    assert len(np.unique(labels)) > 1
    height, width = truth.shape
    panels = (
      image,
      colorize(truth, source.info.palette),
      colorize(labels, source.info.palette),
      differences(image, truth, labels),
    )
    for column, expected in enumerate(panels):
      top, left = row * (height + MARGIN), column * (width + MARGIN)
      np.testing.assert_array_equal(drawn[top : top + height, left : left + width], expected)


def test_a_picture_has_the_accuracy_and_iou_of_its_image(pictures) -> None:
  for picture in pictures:
    truth, prediction = picture.truth, picture.prediction
    scored = truth != 255
    assert picture.pixel_accuracy == pytest.approx(np.mean((truth == prediction)[scored]))
    ious = []
    for label in set(truth[scored].tolist()) | set(prediction[scored].tolist()):
      one, other = (truth == label) & scored, (prediction == label) & scored
      ious.append((one & other).sum() / (one | other).sum())
    assert picture.miou == pytest.approx(np.mean(ious))


def test_the_constant_score_is_that_of_the_most_frequent_class() -> None:
  confusion = np.array([[5, 5, 0, 0], [10, 50, 0, 0], [0, 0, 30, 0], [0, 0, 0, 0]])
  names = dict.fromkeys(["a", "b", "c", "d"], 0.5)
  # IoU 60 / 100 of b, 0 of a and c. The rule decides on d, which the truth lacks.
  for rule, miou in (("unless_predicted", 0.2), ("not_in_truth", 0.2), ("zero", 0.15)):
    name, found = report.constant_score({"iou": names, "absent_class": rule}, confusion)
    assert name == "b" and found == pytest.approx(miou)
  assert report.constant_score({"iou": names, "absent_class": "zero"}, np.zeros((4, 4), int)) is None


def log_of_banks(every: int, steps: int = 40, capacity: int = 100) -> list[dict]:
  """The lines of a run whose class ``a`` gets two keys in a step, and class ``b`` one in two steps."""
  lines = []
  for step in [1, *range(every, steps + 1, every)]:
    entered = {"a": 2 * step, "b": step // 2}
    lines.append(
      {
        "step": step,
        "bank_fill": {name: min(1.0, number / capacity) for name, number in entered.items()},
        "bank_cursor": {name: number % capacity for name, number in entered.items()},
      }
    )
  return lines


def test_ages_need_cursors_and_lines_that_are_close_enough() -> None:
  config = run_tiny.get_config()
  config.contrast.bank_size, config.train.batch_size = 0, 4
  lines = log_of_banks(every=10)
  ages = report.ages(lines, ("a", "b"), config)
  assert ages is not None and ages.steps.tolist() == [1, 10, 20, 30, 40]
  # The capacity follows from the log.
  fill, cursor = (
    np.array([list(line[name].values()) for line in lines]) for name in ("bank_fill", "bank_cursor")
  )
  expected = key_ages(ages.steps, fill, cursor, 100)
  np.testing.assert_array_equal((ages.mean, ages.oldest), expected)
  assert ages.oldest[-1, 0] == 39 and abs(ages.oldest[-1, 1] - 38) < 10

  config.contrast.bank_size = 40  # as many keys as may enter between two lines
  assert report.ages(log_of_banks(every=10, capacity=40), ("a", "b"), config) is None
  without = [{name: value for name, value in line.items() if name != "bank_cursor"} for line in lines]
  assert report.ages(without, ("a", "b"), config) is None and report.ages([], ("a", "b"), config) is None


def test_a_folder_of_an_earlier_version_has_a_page(tmp_path: pathlib.Path) -> None:
  config = run_tiny.get_config()
  lines = [
    {"step": 1, "loss": 2.0, "loss_pixel": 1.0, "loss_aux": 1.0, "loss_contrast": 0.5, "learning_rate": 0.1},
    {"step": 1, "split": "val", "miou": 0.25},
  ]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  network, variables = tiny_predictions.color_network(), tiny_predictions.color_variables()
  path = report.write(config, tmp_path, network, *variables, step=1)
  assert sorted(file.name for file in path.parent.iterdir()) == ["index.html", "panels.png"]
  page = path.read_text()
  assert re.findall(r'<section id="(\w+)"', page) == ["pictures", "curves", "configuration"]
  assert len(re.findall(r'src="data:image/png;base64,', page)) == 4 * report.PICTURES
  assert "Not scored yet" in page


def scored(folder: pathlib.Path, step: int, **fields) -> None:
  """Writes an evaluation of ``color_network`` on the split, as ``--mode=eval`` does, and its line of the log."""
  config = run_tiny.get_config()
  variables = tiny_predictions.color_variables()
  evaluator = make_evaluator(tiny_predictions.color_network(), data.load("synthetic", "", "val"), config)
  results, counts = evaluator(*variables, None)
  weights = fields.pop("weights", weights_digest(tuple(variables)))
  write_results(folder, results | fields, counts, step, weights)
  line = {"step": step, "split": "val", "miou": results["miou"], "protocol": protocol_text(results)}
  other = {"step": 1, "split": "val", "miou": 0.99, "protocol": "60 images, scales 1 2"}
  (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(other) + "\n")


NOTES = {
  "another step": ({"step": 2}, "The pictures are of step 4, the scores of step 2"),
  "other weights of this step": ({"weights": "0" * 16}, "the scores of other weights of step 4"),
  "another protocol": (
    {"scales": [1.0, 2.0]},
    "The scores were computed in another way (60 images, scales 1 2",
  ),
  "other classes": (
    {"iou": {"road": 0.5, "void": None}, "miou": 0.5},
    "eval/val.json scores other classes than those of this run and is left out",
  ),
  "the same": ({}, None),
}


def test_a_page_shows_the_config_and_the_weights_of_the_run(
  tmp_path: pathlib.Path, monkeypatch, capsys
) -> None:
  """The recipe lacks what the run's command set: no contrastive loss, another batch size, a moving average."""
  saved_runs.use_small_runs(monkeypatch, 2)
  run = tmp_path / "run"
  saved_runs.save_run(run, scope="none", ema=True)
  (run / "metrics.jsonl").write_text(json.dumps({"step": 7, "loss": 1.0}) + "\n")
  recipe = run_tiny.get_config()
  assert recipe.contrast.scope == "bank"
  eval_mode.run(recipe, run)
  recipe.data.threads += 1  # which is no property of the run
  page = html.unescape(report.run(recipe, run).read_text())
  assert "Baseline, without contrastive loss" in page and 'config.contrast.scope = "none"' in page
  assert "in another way" not in page  # both are of the average, of which the recipe knows nothing
  printed = capsys.readouterr().out
  assert f"shows the configuration that {run / 'config.json'} records" in printed
  assert "(contrast.scope: bank, there none)" in printed

  recipe.contrast.scope = "none"
  report.run(recipe, run)
  assert "shows the configuration" not in capsys.readouterr().out
  (run / "config.json").unlink()
  assert report.config_of_page(recipe, run) is recipe


def page_of_step_4(workdir: pathlib.Path) -> str:
  network, variables = tiny_predictions.color_network(), tiny_predictions.color_variables()
  return report.write(run_tiny.get_config(), workdir, network, *variables, step=4).read_text()


def test_a_page_says_what_was_not_computed_together(tmp_path: pathlib.Path, capsys) -> None:
  scored(tmp_path, 4)
  path = tmp_path / "eval" / "val.json"
  scores = json.loads(path.read_text())
  for changes, note in NOTES.values():
    path.write_text(json.dumps(scores | changes))
    page = page_of_step_4(tmp_path)
    printed = capsys.readouterr().out
    for text in (html.unescape(page), printed):
      assert (note in text) if note else ("The pictures are of" not in text and "another way (60" not in text)
    if note is None:
      # The score with other scales is not "the best at another step", and no point of the curve.
      assert "99.0" not in page and "1 of the logged scores were computed in another way" in page


@pytest.mark.parametrize(
  ("file", "content", "words"),
  [
    (
      "val.json",
      b"{}",
      r"val.json: miou is missing, expected a share in 0..1 or null; score again",
    ),
    ("val_confusion.npy", b"", "val_confusion.npy: cannot be read"),
  ],
)
def test_a_damaged_score_is_named(tmp_path: pathlib.Path, file: str, content: bytes, words: str) -> None:
  scored(tmp_path, 4)
  (tmp_path / "eval" / file).write_bytes(content)
  with pytest.raises(ValueError, match=words):
    page_of_step_4(tmp_path)


@pytest.mark.parametrize("array", [np.arange(3), np.ones((2, 2)), np.full((2, 2), -1)])
def test_an_array_that_is_no_confusion_matrix_is_left_out(tmp_path: pathlib.Path, array: np.ndarray) -> None:
  scored(tmp_path, 4)
  np.save(tmp_path / "eval" / "val_confusion.npy", array)
  page = page_of_step_4(tmp_path)
  assert (
    "val_confusion.npy belongs to another evaluation than val.json" in page and 'id="confusion"' not in page
  )


def test_a_confusion_matrix_of_another_evaluation_is_left_out(tmp_path: pathlib.Path) -> None:
  scored(tmp_path, 4)
  path = tmp_path / "eval" / "val_confusion.npy"
  np.save(path, np.load(path)[::-1])
  page = page_of_step_4(tmp_path)
  assert "val_confusion.npy belongs to another evaluation than val.json" in page
  assert 'id="confusion"' not in page and 'id="classes"' in page
