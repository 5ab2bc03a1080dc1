"""Two results on the same images: the bootstrap against a loop that draws images, and refused inputs."""

import json
import pathlib

import numpy as np
import pytest

from rc_jax.evaluation import bootstrap, evaluator, metrics
from rc_jax.evaluation.results import read_result, write_results
from rc_jax.modes import compare

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


def test_the_table_says_over_how_many_classes_each_score_is_a_mean(tmp_path: pathlib.Path) -> None:
  matrices = confusions(1, 12, 0.0)
  matrices[:, 3] = matrices[:, :, 3] = 0  # class train neither occurs nor is predicted
  first, second = write(tmp_path / "a", matrices), write(tmp_path / "b", confusions(2, 12, 0.0))
  results = [read_result(path) for path in (first, second)]
  change = bootstrap.difference(*results, resamples=10)
  assert "mIoU over 3 of 4 classes and over 4 of 4 classes" in compare.table(*results, change)
  assert "  mIoU over 3 of 4 classes  " in compare.table(results[0], results[0], change)


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
  compare.run(f"{tmp_path / 'a'},{tmp_path / 'b'}")
  first, second, *rest = capsys.readouterr().out.splitlines()
  assert first.endswith(": 5 images, scales 1, no flip, full images padded to the grid")
  assert ("scored in different ways" in rest[-1]) == (text is not None)
  assert text is None or (text in second and text in rest[-1])


def test_results_that_do_not_record_how_they_were_scored_say_so(tmp_path, capsys) -> None:
  for name in ("a", "b"):
    write(tmp_path / name, confusions(1, 5, 0.0))
  compare.run(f"{tmp_path / 'a'},{tmp_path / 'b'}")
  assert "not fully recorded" in capsys.readouterr().out.splitlines()[-1]


def test_one_image_has_no_interval(tmp_path, capsys) -> None:
  for name, seed in (("a", 1), ("b", 2)):
    write(tmp_path / name, confusions(seed, 1, 0.0))
  compare.run(f"{tmp_path / 'a'},{tmp_path / 'b'}")
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
