"""What the README and the pages behind it show works as it stands there."""

import json
import pathlib
import re
import subprocess
import sys

from tests.support.paths import ROOT

PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}
README, ALL = PAGES["README.md"], "\n".join(PAGES.values())


def example(word: str) -> str:
  """The one block of Python in all pages that holds ``word``."""
  (code,) = [code for code in re.findall(r"```python\n(.*?)```", ALL, re.DOTALL) if word in code]
  return code


def test_the_network_of_ones_own_trains_and_is_scored(tmp_path: pathlib.Path) -> None:
  code = example("models.BACKBONES")
  assert len(code.splitlines()) < 40
  (tmp_path / "mine.py").write_text(code)
  fields = {
    "train.steps": 8,
    "train.log_every": 4,
    "train.crop_size": 65,
    "contrast.bank_size": 10,
    "eval.batch_size": 20,
  }
  given = [f"--config.{field}={value}" for field, value in fields.items()]
  flags = [f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}", *given]
  finished = subprocess.run(
    [sys.executable, "-m", "rc_jax.main", *flags], capture_output=True, text=True, cwd=ROOT
  )
  assert finished.returncode == 0, finished.stderr
  lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  assert lines[-1]["step"] == 8 and lines[-1]["miou"] > 0
  assert lines[-2]["loss_contrast"] > 0  # the first steps have put keys into the banks


def test_the_example_of_the_loss_alone_runs() -> None:
  code = example("region_contrast_loss")
  finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
  assert finished.returncode == 0, finished.stderr
  loss, queries = re.fullmatch(r"([\d.]+) over (\d+) queries\n", finished.stdout).groups()
  assert float(loss) > 0 and int(queries) == 4 * 19  # random labels: every class in every image


def test_recipes_and_scripts_that_it_names_exist() -> None:
  named = set(
    re.findall(r"\b(?:configs|launch|benchmarks|tests|docs|rc_jax)/[\w/]+\.(?:py|sh|png|md)\b", ALL)
  )
  assert len(named) >= 6
  for name in named:
    assert (ROOT / name).is_file(), f"a page names {name}"


def test_links_lead_to_files() -> None:
  for page, text in PAGES.items():
    folder = ROOT if page == "README.md" else ROOT / "docs"
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
      assert (folder / target).is_file(), f"{page} links to {target}"


def test_nothing_is_left_to_fill_in() -> None:
  assert not re.findall(r"@[A-Z_]+@|TODO|TBD", ALL)


def test_every_recipe_is_named() -> None:
  for recipe in (ROOT / "configs").glob("*.py"):
    assert f"configs/{recipe.name}" in README
