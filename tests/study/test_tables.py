"""The tables of a study: numbers against plain NumPy, claims, missing runs, CSV, Markdown and refused results."""

import csv
import functools
import io
import pathlib
from collections.abc import Mapping

import numpy as np
import pytest
from scipy import stats

from rc_jax.evaluation import bootstrap
from rc_jax.evaluation.evaluator import Counts
from rc_jax.evaluation.results import Result, write_results
from rc_jax.study import Claim, Row
from rc_jax.study.grid import Run, Study
from rc_jax.study.runner import read_results
from rc_jax.study.tables import StudyTable, markdown, study_tables, write
from tests.support.example_studies import (
  CE,
  CLASSES,
  INTER,
  INTRA,
  SKILLS,
  Key,
  confusions,
  make_result,
  make_results,
  make_study,
)
from tests.support.resampling import mious_of_resamples

FILES = ("table.md", "table.csv", "runs.csv", "index.html")


def only_table(
  study: Study, results: Mapping[Key, Result], failed: Mapping[Run, str] | None = None
) -> StudyTable:
  (table,) = study_tables(study, results, failed or {})
  return table


def with_mious(mious: Mapping[str, list[float]], **fields) -> StudyTable:
  """Returns the table of rows whose runs have these mIoUs in percent, of two images of one class each."""
  rows = tuple(Row(name) for name in mious)
  seeds = range(len(next(iter(mious.values()))))
  study = make_study(seeds, **{"rows": rows, "baseline": rows[0].name, "claims": (), "source": "", **fields})
  results = {}
  for name, values in mious.items():
    for seed, miou in enumerate(values):
      # IoU = c / (2 T - c) with c of T pixels of each class right
      right = round(2_000_000_000 * (miou / 100) / (1 + miou / 100))
      matrix = np.array([[right, 1_000_000_000 - right], [1_000_000_000 - right, right]])
      results[name, seed, "val"] = make_result(np.stack([matrix, matrix]), f"{name}{seed}.json")
  return only_table(study, results)


def test_each_number_is_that_of_plain_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
  resamples = 200  # a loop over 10,000 takes minutes
  resampled_mious = functools.partial(bootstrap.resampled_mious, resamples=resamples)
  monkeypatch.setattr(bootstrap, "resampled_mious", resampled_mious)
  study = make_study()
  results = make_results(study)
  table = only_table(study, results)
  of_row = {
    name: 100 * np.array([results[name, seed, "val"].scores["miou"] for seed in study.seeds])
    for name in (CE, INTRA, INTER)
  }
  keys = list(results)
  matrices = [confusions(seed, SKILLS[name]) for name, seed, _ in keys]
  resampled = 100 * mious_of_resamples(matrices, "unless_predicted", resamples)

  def resampled_mean(name: str) -> np.ndarray:
    return np.mean([resampled[keys.index((name, seed, "val"))] for seed in study.seeds], axis=0)

  baseline, *others = table.rows
  assert baseline.difference is None
  for row in table.rows:
    mious = of_row[row.row.name]
    np.testing.assert_allclose(list(row.mious.values()), mious)
    np.testing.assert_allclose([row.mean, row.deviation], [mious.mean(), mious.std(ddof=1)])
    expected = stats.ttest_1samp(mious, 0).confidence_interval(0.95)
    np.testing.assert_allclose(row.over_seeds, expected)
  pairs = [(row.row.name, CE, row.difference) for row in others]
  pairs += [(scored.claim.better, scored.claim.worse, scored.comparison) for scored in table.claims]
  assert len(pairs) == 5
  for better, worse, found in pairs:
    assert found is not None and found.seeds == study.seeds
    np.testing.assert_allclose(found.differences, of_row[better] - of_row[worse], atol=1e-12)
    np.testing.assert_allclose(found.mean, of_row[better].mean() - of_row[worse].mean())
    expected = stats.ttest_rel(of_row[better], of_row[worse]).confidence_interval(0.95)
    np.testing.assert_allclose(found.over_seeds, expected)
    expected = np.quantile(resampled_mean(better) - resampled_mean(worse), [0.025, 0.975])
    np.testing.assert_allclose(found.over_images, expected)
    for label, name in enumerate(CLASSES):
      ious = [
        [100 * results[row, seed, "val"].scores["iou"][name] for seed in study.seeds]
        for row in (worse, better)
      ]
      assert found.classes[name] == pytest.approx(np.mean(ious[1]) - np.mean(ious[0])), label
  assert [found.paper for _, _, found in pairs] == pytest.approx([1.1, 3.2, 1.1, 3.2, 2.1])


def test_rows_are_compared_over_the_seeds_that_both_have() -> None:
  study = make_study(range(4))
  results = make_results(study)
  complete = only_table(study, results)
  for key in ((CE, 0, "val"), (INTER, 3, "val")):
    del results[key]
  table = only_table(study, results)
  assert [len(row.mious) for row in table.rows] == [3, 4, 3]
  assert [scored.comparison.seeds for scored in table.claims] == [(1, 2, 3), (1, 2), (0, 1, 2)]
  found, before = table.rows[2].difference, complete.rows[2].difference
  assert found is not None and before is not None
  assert found.differences == before.differences[1:3]
  assert [str(run) for run in table.missing] == ["CE, seed 0", "CE + inter-image, seed 3"]


def test_a_row_is_compared_with_its_own_baseline(tmp_path: pathlib.Path) -> None:
  rows = (Row("a, CE"), Row("a, RC", baseline="a, CE"), Row("b, CE"), Row("b, RC", baseline="b, CE"))
  mious = {"a, CE": [40.0, 41.0], "a, RC": [42.0, 44.0], "b, CE": [50.0, 51.0], "b, RC": [49.0, 49.5]}
  table = with_mious(mious, rows=rows)
  assert [row.baseline for row in table.rows] == ["a, CE", "a, CE", "b, CE", "b, CE"]
  assert table.rows[0].difference is None and table.rows[2].difference is None
  assert table.rows[1].difference.differences == pytest.approx([2.0, 3.0])
  assert table.rows[3].difference.differences == pytest.approx([-1.0, -1.5])
  text = markdown(table)
  assert (
    "| row | seeds | mIoU | baseline | difference |" in text and "row minus its baseline at the same" in text
  )
  assert "| b, RC | 2 | 49.25 ± 0.35 | b, CE | -1.25 | 2 |" in text and "makes 2 comparisons" in text
  write(tmp_path, [table])
  assert [record["baseline"] for record in read_csv(tmp_path / "table.csv")] == [
    row.baseline for row in table.rows
  ]
  page = (tmp_path / "index.html").read_text()
  assert (
    "Difference to the baseline of the row" in page and page.count('<table class="matrix differences"') == 2
  )


@pytest.mark.parametrize(
  ("differences", "verdict"),
  [
    ([1.0, 1.2, 0.9, 1.1], "supported"),
    ([-1.0, -1.2, -0.9, -1.1], "contradicted"),
    ([1.0, -1.0, 3.0, 0.5], "open"),
    ([1.0, 1.2], "open"),  # t of one degree of freedom is 12.7
    ([1.0], "open"),
    ([1.0, 1.0, 1.0], "open"),
    ([0.0, 0.0, 0.0], "open"),
  ],
)
def test_a_claim_is_judged_by_the_interval_over_seeds(differences: list[float], verdict: str) -> None:
  mious = {"a": [40.0] * len(differences), "b": [40 + difference for difference in differences]}
  table = with_mious(mious, claims=(Claim("b", "a"),))
  (scored,) = table.claims
  assert scored.comparison.verdict == verdict
  assert f"| b > a | {verdict} |" in markdown(table)
  opposite = {"supported": "contradicted", "contradicted": "supported", "open": "open"}[verdict]
  (scored,) = with_mious(mious, claims=(Claim("a", "b"),)).claims
  assert scored.comparison.verdict == opposite


def test_equal_differences_claim_nothing_and_the_table_says_why() -> None:
  table = with_mious({"a": [40.0, 41.0, 42.0], "b": [40.0, 41.0, 42.0]}, claims=(Claim("b", "a"),))
  comparison = table.claims[0].comparison
  assert comparison.over_seeds == comparison.over_images == (0.0, 0.0) and comparison.deviation == 0.0
  text = markdown(table)
  assert "| b | 3 | 41.00 ± 1.00 | +0.00 | 3 | +0.00 to +0.00 | +0.00 to +0.00 | - | - |" in text
  assert (
    "b against a: the differences of all 3 seeds are equal, so the interval over seeds has width 0." in text
  )
  assert "80 % power" not in text


def test_one_seed_has_no_interval_over_seeds_and_the_table_says_why() -> None:
  study = make_study([7])
  text = markdown(only_table(study, make_results(study)))
  for row in (INTRA, INTER):
    assert (
      f"- {row} against CE: one seed is scored in both. It does not show by how much seeds differ" in text
    )
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {row} | 1 |"))
    cells = line.split(" | ")
    assert cells[4] == "1" and cells[5] == "-" and " to " in cells[6]
  assert "±" not in text.split("- Scores are")[0] and "80 % power" not in text


def test_two_seeds_have_an_interval_of_one_degree_of_freedom() -> None:
  table = with_mious({"a": [40.0, 41.0], "b": [41.0, 43.0]}, claims=(Claim("b", "a"),))
  low, high = table.claims[0].comparison.over_seeds
  np.testing.assert_allclose([low, high], [1.5 - 12.7062 * 0.5, 1.5 + 12.7062 * 0.5], rtol=1e-4)
  assert "estimated from 2 seeds. With it, 80 % power needs about" in markdown(table)


def test_one_image_has_no_interval_over_images() -> None:
  study = make_study()
  table = only_table(study, make_results(study, images=1))
  assert all(row.difference.over_images is None for row in table.rows[1:])
  assert "One image says nothing about others: there is no interval over images." in markdown(table)


def test_a_table_of_no_run_at_all(tmp_path: pathlib.Path) -> None:
  study = make_study(range(6))
  table = only_table(study, {})
  text = markdown(table)
  assert (
    "0 of 18 runs are scored on val." in text and "| CE | 0 of 6 | - | - | - | - | - | 76.4 | - |" in text
  )
  assert "CE, seed 3; and 8 others." in text and "no seed is scored in both" in text
  write(tmp_path, [table])
  assert (tmp_path / "runs.csv").read_text() == "row,seed,split,step,miou,pixel_accuracy\n"


def test_a_failed_run_is_named_with_its_reason() -> None:
  study = make_study(range(2))
  results = make_results(study)
  failed = {Run(study.row(CE), 1): "ValueError: the loss is not finite"}
  # A run that failed at first and was scored later is no failed run.
  assert only_table(study, results, failed).failed == ()
  del results[CE, 1, "val"]
  text = markdown(only_table(study, results, failed))
  assert "5 of 6 runs are scored on val, 30 images." in text
  assert "- Failed: CE, seed 1: ValueError: the loss is not finite." in text and "Not scored yet" not in text
  assert "| CE | 1 of 2 |" in text


def test_runs_that_were_scored_in_other_ways_or_steps_are_named() -> None:
  study = make_study(range(2))
  results = make_results(study)
  clean = markdown(only_table(study, results))
  assert "different" not in clean.split("- Scores are")[0]
  key = (INTER, 1, "val")
  results[key] = make_result(confusions(1, 0.0), step=900, flip=True)
  text = markdown(only_table(study, results))
  assert "scored after different numbers of steps (900, 1000)" in text
  assert "scored in different ways" in text and "no flip" in text and ", flip" in text


def test_results_of_other_images_are_refused_in_one_line() -> None:
  study = make_study(range(2))
  results = make_results(study)
  result = results[INTER, 0, "val"]
  names = ["another", *result.names[1:]]
  other = Result(result.path, result.scores, names, result.counts)
  with pytest.raises(
    ValueError, match=r"runs/ce/seed0/eval/val.json and runs/ce_plus_inter_image/seed0/.* different"
  ) as one:
    study_tables(study, {**results, (INTER, 0, "val"): other}, {})
  assert "image0 and another" in str(one.value) and "\n" not in str(one.value)
  nothing = make_result(np.zeros((3, 4, 4), int), "empty.json")
  with pytest.raises(
    ValueError, match=r"^empty.json: miou is null, because no class is scored; expected labels in val$"
  ):
    study_tables(study, {(CE, 0, "val"): nothing}, {})


@pytest.mark.parametrize(("lacking", "mean"), [((1,), 0.0), ((0, 1), None)], ids=["one seed", "both seeds"])
def test_a_class_that_some_runs_lack_is_averaged_over_the_others(
  lacking: tuple[int, ...], mean: float | None
) -> None:
  """No label holds the class: a run scores it, with IoU 0, where it predicts the class."""
  study = make_study(range(2))
  results = {}
  for run in study.runs:
    matrices = confusions(run.seed, SKILLS[run.row.name])
    matrices[:, 3] = 0
    if run.row.name == CE and run.seed in lacking:
      matrices[:, range(3), range(3)] += matrices[:, :3, 3]
      matrices[:, :3, 3] = 0
    results[run.row.name, run.seed, "val"] = make_result(matrices, f"{run}.json")
  table = only_table(study, results)
  assert table.rows[0].classes["train"] == mean and table.rows[2].classes["train"] == 0
  assert table.rows[2].difference.classes["train"] == mean


def read_csv(path: pathlib.Path) -> list[dict[str, str]]:
  return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_the_csv_files_hold_what_the_tables_show(tmp_path: pathlib.Path) -> None:
  rows = (Row('a, "b" | c', {}, 76.4), Row("d", {}, 77.5))
  study = make_study(range(3), rows=rows, baseline=rows[0].name, claims=(), splits=("val", "test"))
  results = make_results(study, dict.fromkeys((row.name for row in rows), 0.0))
  del results["d", 1, "test"]
  tables = study_tables(study, results, {})
  write(tmp_path, tables)
  records = read_csv(tmp_path / "table.csv")
  assert [(record["split"], record["row"]) for record in records] == [
    (split, row.name) for split in study.splits for row in rows
  ]
  for record, row in zip(records, [row for table in tables for row in table.rows], strict=True):
    assert float(record["miou"]) == pytest.approx(row.mean, abs=1e-4)
    assert int(record["seeds"]) == len(row.mious) and record["planned_seeds"] == "3"
    if row.difference is None:
      assert (
        record["difference"] == record["seeds_low"] == record["pairs"] == record["paper_difference"] == ""
      )
      continue
    interval = [float(record[name]) for name in ("seeds_low", "seeds_high", "images_low", "images_high")]
    np.testing.assert_allclose(interval, [*row.difference.over_seeds, *row.difference.over_images], atol=1e-4)
    assert int(record["pairs"]) == len(row.difference.seeds) and record["paper_difference"] == "1.1000"
  runs = read_csv(tmp_path / "runs.csv")
  assert len(runs) == len(results) == 11
  for run in runs:
    scores = results[run["row"], int(run["seed"]), run["split"]].scores
    expected = [scores["miou"], scores["pixel_accuracy"], *scores["iou"].values()]
    found = [float(run[name]) for name in ("miou", "pixel_accuracy", *(f"iou {name}" for name in CLASSES))]
    np.testing.assert_allclose(found, 100 * np.array(expected), atol=1e-6)
    assert int(run["step"]) == scores["step"]


def test_writing_twice_gives_the_same_bytes(tmp_path: pathlib.Path) -> None:
  study = make_study(range(2), splits=("val", "test"))
  written = []
  for folder in (tmp_path / "a", tmp_path / "a", tmp_path / "b"):
    results = make_results(study)
    page = write(folder, study_tables(study, dict(reversed(results.items())), {}))
    assert page == folder / "index.html"
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    written.append([(folder / name).read_bytes() for name in FILES])
  assert written[0] == written[1] == written[2]


def test_the_markdown_of_a_small_study() -> None:
  rows = (Row("CE", {}, 76.4), Row("CE + inter", {}, 79.6), Row("without | paper"))
  claims = (Claim("CE + inter", "CE"), Claim("CE", "without | paper"))
  mious = {"CE": [40.0, 41.0, 42.0], "CE + inter": [41.0, 41.5, 44.0], "without | paper": [39.0, 39.9, 41.1]}
  table = with_mious(mious, rows=rows, claims=claims, source="RegionContrast, Table 1")
  expected = """\
## Table 1 on streets, val

9 of 9 runs are scored on val, 2 images.

| row | seeds | mIoU | difference | pairs | over seeds | over images | paper | paper's difference |
|---|---|---|---|---|---|---|---|---|
| CE | 3 | 41.00 ± 1.00 | - | - | - | - | 76.4 | - |
| CE + inter | 3 | 42.17 ± 1.61 | +1.17 | 3 | -0.73 to +3.06 | +1.17 to +1.17 | 79.6 | +3.2 |
| without \\| paper | 3 | 40.00 ± 1.05 | -1.00 | 3 | -1.25 to -0.75 | -1.00 to -1.00 | - | - |

Claims of RegionContrast, Table 1:

| claim | verdict | difference | pairs | over seeds | over images | paper's difference |
|---|---|---|---|---|---|---|
| CE + inter > CE | open | +1.17 | 3 | -0.73 to +3.06 | +1.17 to +1.17 | +3.2 |
| CE > without \\| paper | supported | +1.00 | 3 | +0.75 to +1.25 | +1.00 to +1.00 | - |

- CE + inter > CE is open. The differences have a standard deviation of 0.76 points, estimated from 3 seeds. With it, \
80 % power needs about 6 seeds for a difference of the observed size (+1.17) and about 3 seeds for the paper's \
difference (+3.2).
- Scores are mIoU in percent: the mean over seeds ± the standard deviation over seeds (n - 1). A difference is the row \
minus CE at the same seed, in points of mIoU, averaged over the seeds that both have.
- The interval over seeds (95 %, Student's t on the differences of the seeds) estimates the difference for other seeds \
of training, scored on the same images. It takes these differences as normally distributed, and does not cover other \
images.
- The interval over images (95 %, paired bootstrap of 10,000 resamples, the same for all runs) estimates the \
difference of these trained networks on other images like these. It does not cover other seeds, and is too narrow \
where images are few.
- A claim is supported where its interval over seeds lies above 0, contradicted where it lies below 0, and open \
otherwise.
- The study makes 2 comparisons, and no correction for several is applied: of 20 comparisons without a true \
difference, one interval is expected to leave out 0 by chance.
"""
  assert markdown(table) == expected


def test_tables_of_the_files_that_runs_write(tmp_path: pathlib.Path) -> None:
  study = make_study(range(2), fields={"train.steps": 7, "train.eval_every": 7})
  results = make_results(study, step=7)
  for run in study.runs[:-1]:  # the last run is not finished
    result = results[run.row.name, run.seed, "val"]
    tp, fp, fn = result.counts.astype(np.int32)
    confusion = np.zeros((len(CLASSES), len(CLASSES)), np.int64)  # which the tables do not read
    counts = Counts(confusion, result.names, tp, fp, fn, np.zeros(len(result.names)))
    write_results(tmp_path / run.path, result.scores, counts, step=7)
  found = read_results(study, tmp_path)
  expected = {key: results[key] for key in list(results)[:-1]}
  assert list(found) == list(expected) and len(found) == 5
  assert markdown(only_table(study, found)) == markdown(only_table(study, expected))
