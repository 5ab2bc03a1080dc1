"""README and documentation pages: their examples run, their links lead somewhere, the README is short."""

import functools
import importlib
import json
import pathlib
import re
import shlex
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax import config, contrast, main
from tests.support import notebooks
from tests.support.paths import ROOT

pytestmark = pytest.mark.run

DOCS = ROOT / "docs"
FILES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md")))
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in FILES} | {
  str(path.relative_to(ROOT)): notebooks.as_markdown(path) for path in sorted(DOCS.rglob("*.ipynb"))
}
MOST_WORDS = 900  # of the README
README, ALL = PAGES["README.md"], "\n".join(PAGES.values())


PLACEHOLDERS = {"RECIPE", "mine.py"}  # for recipes of a user


def example(page: str, word: str) -> str:
  """Returns the one block of Python of a page that holds ``word``."""
  (code,) = [code for code in re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL) if word in code]
  return code


@pytest.mark.long
def test_the_recipe_with_a_network_of_the_users_trains_and_is_scored(tmp_path: pathlib.Path) -> None:
  code = example("docs/networks.md", "models.BACKBONES")
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
  code = example("README.md", "region_contrast_loss")
  finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
  assert finished.returncode == 0, finished.stderr
  loss, queries = re.fullmatch(r"([\d.]+) over (\d+) queries\n", finished.stdout).groups()
  assert float(loss) > 0 and int(queries) == 4 * 19  # random labels: every class in every image


def test_the_example_of_a_jitted_step_runs() -> None:
  scope: dict[str, Any] = {}
  exec(example("docs/api/contrast.md", "loss_of_step"), scope)
  classes, channels = 3, 4
  bank = contrast.MemoryBank.create(num_classes=classes, capacity=8, dim=channels)
  labels = jnp.asarray(np.random.default_rng(0).integers(0, classes, (2, 16, 24)))
  images = jax.random.normal(jax.random.key(1), (2, 2, 3, channels))  # as large as the feature grid

  def apply(params: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    return images @ params, (images @ params)[..., :classes]

  params, losses = jnp.eye(channels), []
  for _ in range(2):
    (loss, (bank, stats)), gradient = scope["step"](params, bank, images, labels, apply=apply)
    losses.append(float(loss))
  assert losses[0] == 0 and losses[1] > 0  # the first step reads empty banks
  assert float(stats["queries"]) > 0 and bool(jnp.any(gradient != 0))


def test_recipes_and_scripts_that_the_pages_name_exist() -> None:
  named = set(
    re.findall(
      r"\b(?:configs|launch|benchmarks|tests|docs|rc_jax)/[\w/]+(?:\.(?:py|sh|png|md|ipynb|yaml)\b|Dockerfile)",
      ALL,
    )
  )
  assert len(named) >= 6
  # Files that a reader of docs/adding/ makes.
  made = set(re.findall(r"^```python\n# (rc_jax/\S+)$", ALL, re.MULTILINE))
  for name in named - made:
    assert (ROOT / name).is_file(), f"a page names {name}"


def anchors(text: str) -> set[str]:
  """Returns the anchors of a page's headings."""
  headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
  return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_links_lead_to_files_and_headings() -> None:
  for page, text in PAGES.items():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", text):
      file, _, anchor = target.partition("#")
      path = (ROOT / page).parent / file if file else ROOT / page
      assert path.is_file(), f"{page} links to {target}"
      if anchor:
        assert anchor in anchors(path.read_text()), f"{page} links to {target}"


def test_nothing_is_left_to_fill_in() -> None:
  assert not re.findall(r"@[A-Z_]+@|TODO|TBD", ALL)


def test_the_readme_is_short() -> None:
  assert len(README.split()) <= MOST_WORDS


def test_every_recipe_and_variant_that_the_pages_name_loads() -> None:
  named = set(re.findall(r"--config=([\w/]+(?:\.py)?(?::\w+)?)(?![\w.])", ALL)) | set(
    re.findall(r"^\| `(\w+(?::\w+)?)` \|", README, re.MULTILINE)
  )
  recipes = {path.stem for path in (ROOT / "configs").glob("*.py")}
  for name in named - PLACEHOLDERS:
    config.load_recipe(name)
  assert recipes <= {name.partition(":")[0] for name in named}


def commands_of_pages() -> list[tuple[str, str]]:
  """Returns the pages and the flags of all commands ``rc_jax`` in their shell blocks."""
  found = []
  for page, text in PAGES.items():
    for block in re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.DOTALL):
      for line in block.replace("\\\n", " ").splitlines():
        found += [(page, flags) for flags in re.findall(r"(?:^|&& |rc_jax:cuda )rc_jax (.*)", line)]
  return [(page, flags) for page, flags in found if "RECIPE" not in flags]


def test_the_command_line_accepts_all_commands_of_the_pages(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
  commands = commands_of_pages()
  assert len(commands) > 25 and "docs/examples/demo.ipynb" in dict(commands)
  (tmp_path / "mine.py").write_text(example("docs/data.md", "# mine.py"))
  monkeypatch.chdir(tmp_path)
  for mode in main.MODES:
    module = importlib.import_module(f"rc_jax.modes.{mode}")
    monkeypatch.setattr(module, "run", functools.wraps(module.run)(lambda *unused, **values: 0))
  for page, flags in commands:
    status = main.main(["rc_jax", *shlex.split(flags, comments=True)])
    assert status == 0, f"{page}: rc_jax {flags}: {capsys.readouterr().err}"
