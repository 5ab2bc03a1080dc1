"""Installations of rc_jax: the wheel's files and licence, the command, recipes by name, one version."""

import os
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest

import rc_jax
from rc_jax import recipes
from tests.support.paths import CONFIGS, ROOT

pytestmark = pytest.mark.run

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """The wheel of this checkout."""
  folder = tmp_path_factory.mktemp("wheel")
  subprocess.run(
    [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
    cwd=ROOT,
    check=True,
    capture_output=True,
  )
  (path,) = folder.glob("*.whl")
  return path


@pytest.fixture(scope="module")
def installed(wheel: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """The wheel's files, as in ``site-packages``."""
  folder = tmp_path_factory.mktemp("site-packages")
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(folder)
  return folder


def run(*command: str, path: pathlib.Path, cwd: pathlib.Path) -> subprocess.CompletedProcess[str]:
  environment = {**os.environ, "PYTHONPATH": str(path), "JAX_PLATFORMS": "cpu"}
  return subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True)


def test_the_wheel_carries_recipes_styles_licence_and_types(installed: pathlib.Path) -> None:
  carried = {path.name: path.read_text() for path in (installed / "rc_jax" / "configs").glob("*.py")}
  assert carried == {path.name: path.read_text() for path in CONFIGS.glob("*.py")}
  for name in ("py.typed", "drawing/report/page.css", "drawing/report/page.js"):
    assert (installed / "rc_jax" / name).read_text() == (ROOT / "rc_jax" / name).read_text()
  (information,) = installed.glob("*.dist-info")
  for name in ("LICENSE", "NOTICE"):
    assert (information / "licenses" / name).read_text() == (ROOT / name).read_text()
  assert "License-Expression: Apache-2.0" in (information / "METADATA").read_text()
  assert {path.name for path in installed.iterdir()} == {"rc_jax", information.name}


def test_recipes_are_found_by_name_from_any_folder(installed: pathlib.Path, tmp_path: pathlib.Path) -> None:
  code = "from rc_jax import recipes; print(*(recipes.resolve_recipe(name) for name in recipes.names()))"
  finished = run("-c", code, path=installed, cwd=tmp_path)
  assert finished.returncode == 0, finished.stderr
  expected = sorted(path.name for path in CONFIGS.glob("*.py"))
  assert [pathlib.Path(path).parent for path in finished.stdout.split()] == [
    installed / "rc_jax" / "configs"
  ] * len(expected)
  assert [pathlib.Path(path).name for path in finished.stdout.split()] == expected


def test_a_file_wins_over_a_recipe_of_that_name(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.chdir(tmp_path)
  assert recipes.resolve_recipe("demo") == str(CONFIGS / "demo.py")
  (tmp_path / "demo").write_text("")
  assert recipes.resolve_recipe("demo") == "demo"
  (tmp_path / "mine.py").write_text("")
  assert recipes.resolve_recipe("mine.py") == "mine.py"


@pytest.mark.parametrize("name", ["citiscapes", "configs/citiscapes.py"])
def test_an_unknown_recipe_is_one_line_with_those_that_exist(name: str) -> None:
  with pytest.raises(ValueError) as raised:
    recipes.resolve_recipe(name)
  message = str(raised.value)
  assert "\n" not in message and name in message and "did you mean cityscapes?" in message
  for recipe in CONFIGS.glob("*.py"):
    assert recipe.stem in message


def test_without_the_extra_the_command_names_it(installed: pathlib.Path, tmp_path: pathlib.Path) -> None:
  # An interpreter that sees rc_jax and none of the packages of this environment (-S).
  finished = run("-S", "-m", "rc_jax", "--config=demo", path=installed, cwd=tmp_path)
  assert finished.returncode == 2 and not finished.stdout
  assert finished.stderr.count("\n") == 1 and "pip install 'rc_jax[train]'" in finished.stderr
  assert all(name in finished.stderr for name in ("flax", "grain", "scipy"))


def test_the_command_runs_from_any_folder(installed: pathlib.Path, tmp_path: pathlib.Path) -> None:
  finished = run("-m", "rc_jax", "--help", path=installed, cwd=tmp_path)
  assert finished.returncode == 0, finished.stderr
  assert "--mode=train" in finished.stdout
  console_script = PROJECT["scripts"]["rc_jax"]
  module, _, function = console_script.partition(":")
  code = f"import sys; from {module} import {function}; sys.exit({function}())"
  assert run("-c", code, path=installed, cwd=tmp_path).returncode == 2  # no --config


def test_the_loss_needs_jax_and_numpy_alone() -> None:
  assert {re.match(r"[\w-]+", requirement)[0] for requirement in PROJECT["dependencies"]} == {"jax", "numpy"}


def test_the_version_stands_in_one_place(installed: pathlib.Path) -> None:
  assert "version" in PROJECT["dynamic"]
  (information,) = installed.glob("*.dist-info")
  assert f"\nVersion: {rc_jax.__version__}\n" in (information / "METADATA").read_text()
  # CITATION.cff and the changelog cannot read it; they must not differ.
  assert f"\nversion: {rc_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
  assert f"## [{rc_jax.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
