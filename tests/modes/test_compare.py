"""Two results on the same images: the bootstrap against a loop that draws images, the page, and refused inputs."""

import dataclasses
import html
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from rc_jax import data, files
from rc_jax.drawing.comparison import (
  NEITHER_COLOR,
  ONLY_FIRST_COLOR,
  ONLY_SECOND_COLOR,
  ComparedImage,
  ComparedResults,
  changed_pixels,
  comparison_page,
)
from rc_jax.evaluation import bootstrap, evaluator, metrics
from rc_jax.evaluation.results import read_result, write_results
from rc_jax.modes import compare
from rc_jax.modes import eval as eval_mode
from tests.support.saved_runs import save_run, use_small_runs

CLASSES = ("road", "car", "sky", "train")


def write(
  folder: pathlib.Path, confusions: np.ndarray, rule: str = "unless_predicted", **fields
) -> pathlib.Path:
  """Writes the files of an evaluation of images with these confusion matrices ``[I,N,N]``."""
  tp = np.einsum("inn->in", confusions)
  counts = evaluator.Counts(
    confusion=confusions.sum(0),
    names=[f"image{number}" for number in range(len(confusions))],
    true_positives=tp,
    false_positives=confusions.sum(1) - tp,
    false_negatives=confusions.sum(2) - tp,
    cross_entropy=np.zeros(len(confusions)),
  )
  scores = metrics.scores(counts.confusion, rule)
  scores["iou"] = dict(zip(CLASSES, scores["iou"], strict=True))
  results = {**scores, "dataset": "streets", "absent_class": rule, "split": "val"} | fields
  return write_results(folder, results, counts, step=7)


def confusions(seed: int, images: int, skill: float) -> np.ndarray:
  """Returns matrices of images that differ much in difficulty, equally for every ``skill``; class train is rare."""
  rng = np.random.default_rng(0)
  hard = rng.random(images) * 0.6
  frequency = rng.multinomial(1000, [0.6, 0.3, 0.0995, 0.0005], images)
  noise = np.random.default_rng(seed)
  found = np.zeros((images, 4, 4), np.int64)
  for number in range(images):
    for truth in range(4):
      probabilities = np.full(4, (hard[number] + 0.2 - skill) / 3)
      probabilities[truth] = 1 - probabilities.sum() + probabilities[truth]
      found[number, truth] = noise.multinomial(frequency[number, truth], probabilities)
  return found


def without_train(matrices: np.ndarray) -> None:
  """Removes class train from the truth, and from the predictions of the other classes, whose pixels stay."""
  matrices[:, 3] = 0
  for truth in range(3):
    matrices[:, truth, truth] += matrices[:, truth, 3]
  matrices[:, :, 3] = 0


def test_the_results_of_a_split_in_a_folder(tmp_path: pathlib.Path) -> None:
  written = write(tmp_path, confusions(1, 3, 0.0), split="fold0/val")
  assert written == tmp_path / "eval" / "fold0" / "val.json"
  assert read_result(tmp_path).path == read_result(written).path == written
  write(tmp_path, confusions(1, 3, 0.0), split="fold1/val")
  with pytest.raises(ValueError, match=r"fold0/val\.json, fold1/val\.json"):
    read_result(tmp_path)


@pytest.mark.parametrize("rule", ["unless_predicted", "not_in_truth", "zero"])
def test_bootstrap_agrees_with_a_plain_loop(rule: str, tmp_path: pathlib.Path) -> None:
  one, other = confusions(1, 12, 0.0), confusions(2, 12, 0.03)
  first = read_result(write(tmp_path / "a", one, rule))
  second = read_result(write(tmp_path / "b", other, rule))
  found = bootstrap.difference(first, second, resamples=4000)

  def miou(matrices: np.ndarray) -> float:
    return metrics.scores(matrices.sum(0), rule)["miou"]

  assert found.miou == pytest.approx(miou(other) - miou(one))
  rng = np.random.default_rng(5)
  drawn = []
  for _ in range(2000):
    images = rng.integers(0, 12, 12)
    drawn.append(miou(other[images]) - miou(one[images]))
  # Two samples of the same distribution: quantiles agree to a few standard errors.
  spread = np.std(drawn)
  np.testing.assert_allclose([found.low, found.high], np.quantile(drawn, [0.025, 0.975]), atol=0.25 * spread)
  assert found.better == pytest.approx(np.mean(np.array(drawn) > 0), abs=0.05)
  assert found.low < found.miou < found.high


@pytest.mark.parametrize("rule", ["unless_predicted", "not_in_truth", "zero"])
def test_intervals_of_classes_agree_with_a_plain_loop(rule: str, tmp_path: pathlib.Path) -> None:
  one, other = confusions(1, 12, 0.0), confusions(2, 12, 0.03)
  # Class train is in truth or prediction of four images, too few for an interval.
  for matrices in (one, other):
    without_train(matrices[4:])
  first, second = (
    read_result(write(tmp_path / name, matrices, rule)) for name, matrices in (("a", one), ("b", other))
  )
  found = bootstrap.class_intervals(first, second, resamples=4000)
  assert list(found) == list(CLASSES) and found["train"] is None
  rng = np.random.default_rng(5)
  drawn = []
  for _ in range(2000):
    images = rng.integers(0, 12, 12)
    before, after = (metrics.scores(matrices[images].sum(0), rule)["iou"] for matrices in (one, other))
    drawn.append([after[label] - before[label] for label in range(3)])
  for label, name in enumerate(CLASSES[:3]):
    of_class = np.array(drawn)[:, label]
    np.testing.assert_allclose(found[name], np.quantile(of_class, [0.025, 0.975]), atol=0.25 * of_class.std())
    assert found[name][0] < second.scores["iou"][name] - first.scores["iou"][name] < found[name][1]


def test_the_table_says_over_how_many_classes_each_score_is_a_mean(tmp_path: pathlib.Path) -> None:
  matrices = confusions(1, 12, 0.0)
  without_train(matrices)
  predicted = matrices.copy()
  predicted[0, 0, [0, 3]] += [-1, 1]  # one pixel of road as train, which no label holds
  first, second = write(tmp_path / "a", matrices), write(tmp_path / "b", predicted)
  results = [read_result(path) for path in (first, second)]
  change = bootstrap.difference(*results, resamples=10)
  intervals = bootstrap.class_intervals(*results, resamples=10)
  assert "mIoU over 3 of 4 classes and over 4 of 4 classes" in compare.table(*results, change, intervals)
  assert "  mIoU over 3 of 4 classes  " in compare.table(results[0], results[0], change, intervals)


def test_paired_images_make_the_interval_narrow(tmp_path: pathlib.Path) -> None:
  first = read_result(write(tmp_path / "a", confusions(1, 40, 0.0)))
  second = read_result(write(tmp_path / "b", confusions(1, 40, 0.02)))
  found = bootstrap.difference(first, second, resamples=1000)
  assert found.low > 0 and found.better == 1.0
  same = bootstrap.difference(first, first, resamples=100)
  assert same.miou == same.low == same.high == same.better == 0.0
  assert all(change in (0.0, None) for change in same.classes.values())


def test_mode_prints_both_results_and_the_interval(
  tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
  write(tmp_path / "a", confusions(1, 5, 0.0))
  path = write(tmp_path / "b", confusions(2, 5, 0.0))
  found = compare.run(f"{tmp_path / 'a'},{path}")
  printed = capsys.readouterr().out
  assert "road" in printed and "95 % interval" in printed and f"{100 * found.miou:+.2f}" in printed


PROTOCOL = {"images": 5, "scales": [1.0], "flip": False, "pad_to_grid": True, "crop_size": [], "stride": []}


@pytest.mark.parametrize(
  "other, text",
  [
    ({"scales": [0.5, 1.0]}, "scales 0.5 1"),
    ({"flip": True}, ", flip"),
    ({"pad_to_grid": False}, "without padding"),
    ({"crop_size": [33, 41], "stride": [22, 27]}, "windows of 33 x 41 every 22 x 27"),
    ({}, None),
  ],
)
def test_both_ways_of_scoring_are_shown_and_a_difference_is_named(tmp_path, capsys, other, text) -> None:
  write(tmp_path / "a", confusions(1, 5, 0.0), **PROTOCOL)
  write(tmp_path / "b", confusions(2, 5, 0.0), **{**PROTOCOL, **other})
  compare.run(f"{tmp_path / 'a'},{tmp_path / 'b'}", pictures=False)
  first, second, *rest = capsys.readouterr().out.splitlines()
  assert first.endswith(": 5 images, scales 1, no flip, full images padded to the grid")
  assert ("scored in different ways" in rest[-1]) == (text is not None)
  assert text is None or (text in second and text in rest[-1])


def test_results_that_do_not_record_how_they_were_scored_say_so(tmp_path, capsys) -> None:
  for name in ("a", "b"):
    write(tmp_path / name, confusions(1, 5, 0.0))
  compare.run(f"{tmp_path / 'a'},{tmp_path / 'b'}", pictures=False)
  assert "not fully recorded" in capsys.readouterr().out.splitlines()[-1]


def test_one_image_has_no_interval(tmp_path, capsys) -> None:
  for name, seed in (("a", 1), ("b", 2)):
    write(tmp_path / name, confusions(seed, 1, 0.0))
  compare.run(f"{tmp_path / 'a'},{tmp_path / 'b'}", pictures=False)
  printed = capsys.readouterr().out
  assert "One image says nothing about others" in printed and "interval does not contain 0" not in printed


def test_counts_of_earlier_versions_are_read(tmp_path: pathlib.Path) -> None:
  path = write(tmp_path, confusions(1, 5, 0.0))
  counts_path = path.with_name("val_images.npz")
  with np.load(counts_path) as arrays:
    assert set(arrays) == {"names", "tp", "fp", "fn"}
    old = {"names": arrays["names"], "right": arrays["tp"], "wrong": arrays["fp"], "missed": arrays["fn"]}
  expected = read_result(path)
  np.savez_compressed(counts_path, **old)
  found = read_result(path)
  assert found.names == expected.names
  np.testing.assert_array_equal(found.counts, expected.counts)


def test_a_space_after_the_comma_is_no_part_of_a_path(tmp_path: pathlib.Path) -> None:
  results = [write(tmp_path / name, confusions(1, 5, 0.0)) for name in "ab"]
  assert compare.run(f"{results[0]}, {results[1]},").miou == 0


def test_results_that_cannot_be_compared_are_refused(tmp_path: pathlib.Path) -> None:
  a = write(tmp_path / "a", confusions(1, 5, 0.0))
  with pytest.raises(ValueError, match="lists 1 results; expected two"):
    compare.run(str(a))
  with pytest.raises(FileNotFoundError, match="holds no result"):
    compare.run(f"{a},{tmp_path / 'nowhere'}")
  with pytest.raises(ValueError, match=r"number of images \(5, 6\)"):
    compare.run(f"{a},{write(tmp_path / 'b', confusions(1, 6, 0.0))}")
  with pytest.raises(ValueError, match=r"data set \(streets, woods\)"):
    compare.run(f"{a},{write(tmp_path / 'c', confusions(1, 5, 0.0), dataset='woods')}")
  with pytest.raises(ValueError, match="rule for absent classes"):
    compare.run(f"{a},{write(tmp_path / 'd', confusions(1, 5, 0.0), 'zero')}")
  write(tmp_path / "e", confusions(1, 5, 0.0), split="test")
  write(tmp_path / "e", confusions(1, 5, 0.0))
  with pytest.raises(ValueError, match=r"several splits \(test.json, val.json\)"):
    compare.run(f"{a},{tmp_path / 'e'}")
  stale = write(tmp_path / "f", confusions(1, 5, 0.0))
  stale.write_text(json.dumps(json.loads(stale.read_text()) | {"miou": 0.5}))
  with pytest.raises(ValueError, match="belongs to another evaluation than"):
    compare.run(f"{a},{stale}")
  stale.with_name("val_images.npz").unlink()
  with pytest.raises(FileNotFoundError, match="score again"):
    compare.run(f"{a},{stale}")


@pytest.mark.parametrize(
  ("file", "content", "found"),
  [
    ("val.json", b"", r"is empty \(0 bytes\)"),
    ("val.json", b"[]", "holds a list, expected a JSON object"),
    ("val.json", b'{"miou": 0.5}', "iou is missing, expected the IoU of each class"),
    ("val_images.npz", b"", "cannot be read .*"),
    ("val_images.npz", b"PK\x03\x04 cut", "cannot be read .*"),
    ("val_images.npz", b"no archive at all", "cannot be read .*"),
  ],
)
def test_a_damaged_result_is_named(file: str, content: bytes, found: str, tmp_path: pathlib.Path) -> None:
  result = write(tmp_path, confusions(1, 5, 0.0))
  result.with_name(file).write_bytes(content)
  with pytest.raises(ValueError, match=rf"{file}: {found}; score again with --mode=eval") as refusal:
    read_result(result)
  assert "\n" not in str(refusal.value)
  write(tmp_path, confusions(1, 5, 0.0))
  content = result.with_name("val_images.npz").read_bytes()
  result.with_name("val_images.npz").write_bytes(content[: len(content) // 2])
  with pytest.raises(ValueError, match=r"val_images.npz: cannot be read"):
    read_result(result)


IMAGES = 12


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[ComparedResults]:
  """Small runs can be scored and compared; returns what the pages show."""
  use_small_runs(monkeypatch, IMAGES)
  shown: list[ComparedResults] = []

  def kept(content: ComparedResults) -> str:
    shown.append(content)
    return comparison_page(content)

  monkeypatch.setattr(compare, "comparison_page", kept)
  return shown


def scored_run(folder: pathlib.Path, seed: int, fields: Mapping[str, Any] = {}, **options) -> pathlib.Path:
  """Writes a run and scores its first checkpoint; returns its folder."""
  config = save_run(folder, seed=seed, **options)
  config.eval.update(fields)
  eval_mode.run(config, folder, pathlib.Path("7"))
  return folder


@pytest.mark.long
@pytest.mark.parametrize(
  "fields", [{}, {"scales": (0.5, 1.0), "flip": True}, {"crop_size": (65, 97), "stride": (33, 49)}], ids=str
)
def test_the_page_shows_the_predictions_that_were_scored(
  fields: dict, tmp_path: pathlib.Path, drawn: list[ComparedResults]
) -> None:
  # The first run has trained on: the scored checkpoint is not its newest.
  first = scored_run(tmp_path / "ce" / "seed0", 1, fields, head="deeplabv3plus", steps=(7, 9))
  second = scored_run(tmp_path / "rc" / "seed0", 2, fields)
  compare.run(f"{first},{second}")
  page = second / "compare" / "ce_seed0" / "index.html"
  assert page.is_file() and page.with_name("panels.png").is_file()
  (content,) = drawn
  assert not content.notes
  source = data.load("synthetic", "", "val")
  results = [read_result(folder) for folder in (first, second)]
  images = [image for _, of_group in content.groups.values() for image in of_group]
  assert len({image.name for image in images}) == len(images) >= 3
  for image in images:
    row = results[0].names.index(image.name)
    np.testing.assert_array_equal(image.truth, source[row]["label"])
    for result, predicted, miou in zip(results, (image.first, image.second), image.mious, strict=True):
      ious = []
      for label in range(11):
        truth, labelled = image.truth == label, image.truth != 255
        true_positives = (truth & (predicted == label)).sum()
        union = ((truth | (predicted == label)) & labelled).sum()
        assert true_positives == result.counts[0, row, label]
        if union:
          ious.append(true_positives / union)
      assert miou == pytest.approx(np.mean(ious))
  text = page.read_text()
  for result in results:
    assert f"{100 * result.scores['miou']:.2f}" in text
  assert text.count('<div class="panels five"') == len(images)


def trained_on(first: pathlib.Path, second: pathlib.Path) -> None:
  (second / "checkpoints" / "7").rename(second / "checkpoints" / "8")


def other_weights(first: pathlib.Path, second: pathlib.Path) -> None:
  change_json(first / "eval" / "val.json", {"weights": "0123456789abcdef"})


def other_predictions(first: pathlib.Path, second: pathlib.Path) -> None:
  """A result that records no digest, as of an earlier version, and is of another checkpoint."""
  shutil.copytree(second / "checkpoints", first / "checkpoints", dirs_exist_ok=True)
  path = first / "eval" / "val.json"
  content = json.loads(path.read_text())
  del content["weights"]
  path.write_text(json.dumps(content))


def no_protocol(first: pathlib.Path, second: pathlib.Path) -> None:
  path = first / "eval" / "val.json"
  content = json.loads(path.read_text())
  del content["crop_size"]
  path.write_text(json.dumps(content))


def data_elsewhere(first: pathlib.Path, second: pathlib.Path) -> None:
  change_json(second / "config.json", {"dataset": {"name": "camvid", "root": "nowhere"}})


def no_config(first: pathlib.Path, second: pathlib.Path) -> None:
  (first / "config.json").unlink()


def change_json(path: pathlib.Path, change: dict) -> None:
  path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.long
@pytest.mark.parametrize(
  ("prepare", "reason"),
  [
    (trained_on, "scored step 7, and {second} holds none of that step any more (the newest: 8)"),
    (other_weights, "scored other weights than {first}/checkpoints/7 holds now"),
    (other_predictions, "was scored with other predictions or labels than those of today"),
    (no_protocol, "does not record crop_size of its scoring"),
    (data_elsewhere, "nowhere"),
    (no_config, "{first}/config.json: missing"),
  ],
)
def test_no_pictures_beside_scores_of_something_else(
  prepare: Callable[[pathlib.Path, pathlib.Path], None],
  reason: str,
  tmp_path: pathlib.Path,
  drawn: list[ComparedResults],
  capsys: pytest.CaptureFixture[str],
) -> None:
  first, second = (scored_run(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 2)))
  prepare(first, second)
  capsys.readouterr()
  compare.run(f"{first},{second}")
  printed = capsys.readouterr().out
  (line,) = [line for line in printed.splitlines() if line.startswith("no pictures: ")]
  assert reason.format(first=first, second=second) in line
  assert "95 % interval" in printed
  (content,) = drawn
  assert not content.groups and content.notes == [line]
  page = html.unescape((second / "compare" / "a" / "index.html").read_text())
  assert line in page and "road" in page and 'class="panels' not in page


def test_images_that_changed_their_places_have_no_pictures(
  tmp_path: pathlib.Path, drawn: list[ComparedResults], monkeypatch: pytest.MonkeyPatch
) -> None:
  first, second = (scored_run(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 2)))
  load = data.load
  for order, reason in (
    (range(IMAGES)[::-1], "when it was scored"),
    (range(IMAGES - 1), "has 11 images now, and"),
  ):
    monkeypatch.setattr(
      "rc_jax.data.load", lambda *args, order=order, **kwargs: data.Subset(load(*args, **kwargs), order)
    )
    compare.run(f"{first},{second}")
    assert reason in drawn[-1].notes[0] and not drawn[-1].groups


def test_a_result_without_its_run_gets_a_table_and_on_request_a_page(
  tmp_path: pathlib.Path, drawn: list[ComparedResults], capsys: pytest.CaptureFixture[str]
) -> None:
  run = scored_run(tmp_path / "run", 1)
  shutil.copytree(run / "eval", tmp_path / "kept")
  capsys.readouterr()
  compare.run(f"{run},{tmp_path / 'kept' / 'val.json'}")
  printed = capsys.readouterr().out
  assert "95 % interval" in printed and "no page: " in printed and "--output=FOLDER" in printed and not drawn
  compare.run(f"{run},{tmp_path / 'kept' / 'val.json'}", output=str(tmp_path / "page"))
  printed = capsys.readouterr().out
  assert "kept/val.json lies in no run's eval/ folder" in printed
  assert (tmp_path / "page" / "index.html").is_file()
  compare.run(f"{tmp_path / 'kept' / 'val.json'},{run}", pictures=False)
  assert not (run / "compare").exists()


def test_chosen_images_changed_most_least_and_as_usual() -> None:
  rng = np.random.default_rng(0)
  changes = rng.normal(0.02, 0.1, 30)
  changes[[4, 9]] = np.nan
  groups = {title: rows for title, (_, rows) in compare.choose_images(changes, 3).items()}
  known = [row for row in range(30) if row not in (4, 9)]
  assert groups["Most improved"] == sorted(known, key=lambda row: -changes[row])[:3]
  assert groups["Most worsened"] == sorted(known, key=lambda row: changes[row])[:3]
  median = np.median(changes[known])
  assert groups["Typical"] == sorted(known, key=lambda row: abs(changes[row] - median))[:3]
  # No image gets worse, and no image is in two groups.
  groups = {title: rows for title, (_, rows) in compare.choose_images(np.array([0.1, 0.2, 0.0]), 3).items()}
  assert groups == {"Most improved": [1, 0], "Most worsened": [], "Typical": [2]}
  assert not any(rows for _, rows in compare.choose_images(np.full(3, np.nan)).values())


def test_changed_pixels_have_the_colour_of_who_is_right() -> None:
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (7, 9, 3), np.uint8)
  truth, first, second = rng.integers(0, 3, (3, 7, 9), np.uint8)
  truth[rng.random(truth.shape) < 0.2] = 255
  drawn = changed_pixels(image, truth, first, second)
  colors = {
    (True, False): ONLY_FIRST_COLOR,
    (False, True): ONLY_SECOND_COLOR,
    (False, False): NEITHER_COLOR,
  }
  for y in range(7):
    for x in range(9):
      grey = 110 + 0.5 * image[y, x].mean()
      right = (bool(first[y, x] == truth[y, x]), bool(second[y, x] == truth[y, x]))
      expected = np.full(3, grey) if right == (True, True) else 0.2 * grey + 0.8 * np.array(colors.get(right))
      if truth[y, x] == 255:
        expected = np.zeros(3)
      np.testing.assert_allclose(drawn[y, x], expected, atol=0.51)


def test_a_change_that_rounds_to_zero_has_no_minus(
  tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
  matrices = 1000 * confusions(1, 6, 0.1)
  write(tmp_path / "a", matrices)
  matrices[0, 0, :2] += (-1, 1)
  second = write(tmp_path / "b", matrices)
  change = compare.run(f"{tmp_path / 'a'},{tmp_path / 'b'}")
  assert -1e-6 < change.miou < 0
  (page,) = second.parents[1].glob("compare/*/index.html")
  header = page.read_text().partition("<h1>")[2]
  for text in (capsys.readouterr().out, header.partition("<script>")[0]):
    assert "+0.00" in text and "+0.0 to +0.0" in text and not re.search(r"-0\.0+(?!\d)", text)


def test_a_folder_that_cannot_be_written_is_noticed_at_once(
  tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
  results = ",".join(str(write(tmp_path / name, confusions(1, 5, 0.0))) for name in "ab")
  (tmp_path / "b" / "compare").write_text("takes the place of the folder")
  with pytest.raises(
    files.WriteError, match=r"b/compare/a: cannot be created .*--output=FOLDER, or --nopict"
  ):
    compare.run(results)
  assert not capsys.readouterr().out
  compare.run(results, pictures=False)
  assert "95 % interval" in capsys.readouterr().out


def test_a_page_with_any_names(tmp_path: pathlib.Path, drawn: list[ComparedResults]) -> None:
  hostile = "<img src=//x.example/y onerror='throw 1'>\"&"
  first, second = (read_result(write(tmp_path / name, confusions(1, 6, 0.1))) for name in "ab")
  info = data.info("synthetic", "")
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 11, (3, 12, 16), np.uint8)
  image = ComparedImage(hostile, rng.integers(0, 256, (12, 16, 3), np.uint8), *labels, mious=(0.1, 0.2))
  compare.run(f"{first.path},{second.path}")
  content = drawn[0]
  changed = dataclasses.replace(
    content, names=(hostile, hostile), title=hostile, info=info, groups={"Typical": ("lead", [image])}
  )
  page = comparison_page(changed)
  assert hostile not in page and html.escape(hostile) in page and page.count("data-classes=") == 1
