"""What the README shows works as it stands there."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_of_the_loss_alone_runs() -> None:
  (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
  finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
  assert finished.returncode == 0, finished.stderr
  loss, queries = re.fullmatch(r"([\d.]+) over (\d+) queries\n", finished.stdout).groups()
  assert float(loss) > 0 and int(queries) == 4 * 19  # random labels: every class in every image


def test_recipes_and_scripts_that_it_names_exist() -> None:
  named = set(
    re.findall(r"\b(?:configs|launch|benchmarks|tests|docs|rc_jax)/[\w/]+\.(?:py|sh|png|md)\b", README)
  )
  assert len(named) >= 6
  for name in named:
    assert (ROOT / name).is_file(), f"the README names {name}"


def test_nothing_is_left_to_fill_in() -> None:
  assert not re.findall(r"@[A-Z_]+@|TODO|TBD", README)


def test_every_recipe_is_named() -> None:
  for recipe in (ROOT / "configs").glob("*.py"):
    assert f"configs/{recipe.name}" in README
