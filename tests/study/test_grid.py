"""Studies as data: their checks, their runs, and the files that come with rc_jax."""

import pathlib

import pytest

from rc_jax import recipes
from rc_jax.study import Claim, Row, Study
from rc_jax.study.grid import Run, load_study

VARIANTS = ("cityscapes", "camvid", "demo")
# RegionContrast, Tables 1 to 4: mIoU on Cityscapes val.
PAPER = {
  "table1": [76.4, 77.5, 79.6],
  "table2": [76.4, 78.2, 78.8, 79.6],
  "table3": [77.5, 78.5, 79.1, 79.6],
  "table4": [76.4, 79.6, 79.0, 81.3, 80.4, 81.9],
}


def make_study(**fields) -> Study:
  rows = (Row("CE", {"contrast.scope": "none"}), Row("RC", {"contrast.scope": "bank"}))
  values = {"title": "two rows", "recipe": "demo", "rows": rows, "baseline": "CE", "seeds": (0, 1)}
  return Study(**values | fields)


@pytest.mark.parametrize("name", recipes.names(recipes.STUDY))
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_study_that_comes_with_rc_jax_has_valid_runs(name: str, variant: str) -> None:
  study = load_study(f"{name}:{variant}")
  configs = [study.config(run) for run in study.runs]
  assert len(study.seeds) >= 5
  assert len({str(config) for config in configs}) == len(study.rows) * len(study.seeds)
  assert {row.paper is None for row in study.rows} == {variant != "cityscapes" or name not in PAPER}


@pytest.mark.parametrize("name", PAPER)
def test_the_studies_hold_the_papers_numbers(name: str) -> None:
  study = load_study(f"{name}:cityscapes")
  assert [row.paper for row in study.rows] == PAPER[name]
  for claim in study.claims:  # the paper's claims hold in its own numbers
    assert study.row(claim.better).paper > study.row(claim.worse).paper
  claimed = {row for claim in study.claims for row in (claim.better, claim.worse)}
  assert claimed == {row.name for row in study.rows}


def test_runs_come_seed_by_seed_and_have_their_fields() -> None:
  study = make_study(fields={"train.steps": 7}, splits=("val", "train"))
  assert [(run.row.name, run.seed) for run in study.runs] == [("CE", 0), ("RC", 0), ("CE", 1), ("RC", 1)]
  config = study.config(study.runs[2])
  assert (config.seed, config.train.steps, config.contrast.scope, config.eval.split) == (1, 7, "none", "val")
  assert study.runs[3].path == pathlib.Path("runs/rc/seed1") and str(study.runs[3]) == "RC, seed 1"


def test_a_row_is_compared_with_its_own_baseline() -> None:
  rows = (Row("A"), Row("A + RC", baseline="A"), Row("B"), Row("B + RC", baseline="B"))
  study = make_study(rows=rows, baseline="A")
  assert [study.baseline_of(row) for row in study.rows] == ["A", "A", "B", "B"]


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"seeds": ()}, "seeds: is empty"),
    ({"seeds": (1, 2, 1)}, "seeds: 1 occurs twice"),
    ({"splits": ("val", "val")}, "splits: 'val' occurs twice"),
    ({"rows": (Row("CE"), Row("CE"))}, "rows: 'CE' occurs twice"),
    ({"rows": (Row("CE"), Row("ce!"))}, "'CE' and 'ce!' both have the folder 'ce'; rename one"),
    ({"rows": (Row("CE"), Row("-"))}, "the name '-' has no letter or digit"),
    ({"splits": "val"}, "splits: is 'val'; expected a tuple such as ('val',)"),
    ({"seeds": ("0",)}, "seeds: is ('0',); expected a tuple such as (0, 1, 2)"),
    ({"rows": ("CE",)}, "rows: is ('CE',); expected a tuple such as (Row(...),)"),
    ({"rows": (Row("CE"), Row("RC", None))}, "row 'RC': fields: is None; expected a dict"),
    ({"rows": (Row("CE"), Row("RC", {"seed": 7}))}, "row 'RC': fields: seed: is 7; expected seeds=(0, 1, 2)"),
    ({"fields": {"eval.split": "train"}}, "fields: eval.split: is 'train'; expected splits=('val',)"),
    ({"rows": (Row("CE"), Row("RC", paper="76.4"))}, "row 'RC': paper: is '76.4'; expected mIoU in percent"),
    ({"baseline": "XE"}, "baseline: no row is named 'XE'; the rows are CE, RC"),
    ({"claims": (Claim("RC", "XE"),)}, "claims: no row is named 'XE'"),
    ({"rows": (Row("CE"), Row("RC", baseline="XE"))}, "row 'RC': baseline: no row is named 'XE'"),
  ],
)
def test_a_wrong_study_is_refused_in_one_line(fields: dict, message: str) -> None:
  with pytest.raises(ValueError) as error:
    make_study(**fields)
  assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"contrast.scop": "image"}, "config.contrast.scop"),
    (
      {"contrast.temperature": "warm"},
      "row 'RC': config.contrast.temperature: is 'warm'; expected a value like 0.2",
    ),
    ({"contrast.temperature": -1.0}, "row 'RC': config.contrast.temperature: is -1.0; expected above 0"),
  ],
)
def test_a_wrong_field_of_a_row_is_refused_in_one_line(fields: dict, message: str) -> None:
  study = make_study(rows=(Row("CE"), Row("RC", fields)))
  study.config(study.runs[0])
  with pytest.raises(ValueError) as error:
    study.config(Run(study.rows[1], 0))
  assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("def get_study():\n  return 1\n", "get_study returned int; expected an rc_jax.study.Study"),
    ("x = 1\n", "defines no function get_study"),
    ("def get_study():\n  return nothing\n", ":2: NameError"),
  ],
)
def test_a_wrong_study_file_is_refused_with_its_line(text: str, message: str, tmp_path: pathlib.Path) -> None:
  path = tmp_path / "mine.py"
  path.write_text(text)
  with pytest.raises(ValueError) as error:
    load_study(str(path))
  assert message in str(error.value) and "mine.py" in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_study_is_answered_with_those_that_exist() -> None:
  with pytest.raises(
    ValueError, match=r"--study=tabel1: no such file, and no such study.*did you mean table1\?"
  ):
    load_study("tabel1:demo")
