"""A mode and a config field are added to a copy of the package as ``docs/adding/`` shows."""

import json
import pathlib
import re

import numpy as np
import pytest

from rc_jax import data
from tests.support.package_copy import add_files, copy_package, insert, page, python

pytestmark = pytest.mark.run


def printed(folder: pathlib.Path, code: str) -> list:
  """Runs Python code on a copy; returns the JSON in its last line."""
  finished = python(folder, "-c", code)
  assert finished.returncode == 0, finished.stderr
  return json.loads(finished.stdout.splitlines()[-1])


# Runs commands in one process: status, output and errors of each.
COMMANDS = """
import contextlib, io, json, sys
import rc_jax
from rc_jax import main

results = [[rc_jax.__file__]]
for flags in {commands}:
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    status = main.main(["rc_jax", *flags])
  results.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""
RECIPE = """
from rc_jax.config import defaults

def get_config():
  config = defaults()
  config.dataset.name = "synthetic"
  config.train.crop_size = (65, 65)
  return config
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A copy of the package with the mode and the config field of the pages."""
  folder = tmp_path_factory.mktemp("checkout")
  copy_package(folder)
  text = page("mode.md")
  add_files(folder, text)
  (line,) = re.findall(r'```python\n(  "\w+": ".*",\n)```', text)
  main = folder / "rc_jax" / "main.py"
  (first,) = re.findall(r"MODES = {\n(.*\n)", main.read_text())  # the default mode stays the first
  insert(main, first, line)

  text = page("config_field.md")
  (field,) = re.findall(r"```python\n(  Field\(.*\),\n)```", text)
  insert(folder / "rc_jax" / "config.py", "FIELDS: tuple[Field, ...] = (\n", field)
  (call,) = re.findall(r"```python\n(shown = .*\n)```", text)
  report = folder / "rc_jax" / "modes" / "report.py"
  code, count = re.subn(r"(?m)^( +)shown = pictures\(config, .*\n", rf"\g<1>{call}", report.read_text())
  assert count == 1
  report.write_text(code)
  (folder / "recipe.py").write_text(RECIPE)
  return folder


@pytest.mark.long
def test_a_mode_runs_with_its_own_flags_and_is_in_help(checkout: pathlib.Path) -> None:
  commands = [
    ["--config=recipe.py", "--mode=frequencies", "--split=val", "--most=3"],
    ["--config=recipe.py", "--mode=frequencies", "--most=-1"],
    ["--config=recipe.py", "--mode=frequencies", "--workdir=x"],
    ["--config=recipe.py", "--mode=summary", "--most=3"],
    ["--help"],
    ["--mode=frequencies", "--help"],
  ]
  (file,), counted, negative, unread, of_other, general, own = printed(
    checkout, COMMANDS.format(commands=commands)
  )
  assert file == str(checkout / "rc_jax" / "__init__.py")

  source = data.load("synthetic", "", "val")
  labels = np.concatenate([source[index]["label"].ravel() for index in range(len(source))])
  pixels = {name: int((labels == index).sum()) for index, name in enumerate(source.info.class_names)}
  order = sorted(pixels, key=lambda name: -pixels[name])[:3]
  lines = [f"{name}: {100 * pixels[name] / sum(pixels.values()):.2f} %" for name in order]
  assert counted == [0, "\n".join(lines) + "\n", ""]

  assert negative == [2, "", "error: --most=-1: expected a number of classes, or 0 for all\n"]
  assert unread[0] == 2 and "--workdir: --mode=frequencies does not read it" in unread[2]
  assert of_other[0] == 2 and "--most: --mode=summary does not read it, only frequencies" in of_other[2]
  assert "--mode=frequencies: counts the pixels of each class in a split" in general[1]
  assert "  --most: Prints only this number of classes. 0: all." in own[1] and "--images" not in own[1]


FIELD = """
import json
from rc_jax.config import as_dict, defaults, different_run, load_recipe
from rc_jax.modes import report

config = load_recipe("recipe.py")
before = as_dict(config)
del before["eval"]["panels"]
config.eval.panels = 9
found = {"default": defaults().eval.panels, "different": different_run(as_dict(config), before)}

class Drawn(Exception):
  pass

def pictures(config, network, params, batch_stats, count):
  raise Drawn(count)

report.pictures = pictures
try:
  import pathlib
  report.write(config, pathlib.Path("run"), None, None, None)
except Drawn as drawn:
  found["read"] = drawn.args[0]
print(json.dumps(found))
"""


@pytest.mark.long
def test_a_config_field_has_its_default_check_and_meaning(checkout: pathlib.Path) -> None:
  commands = [
    ["--config=recipe.py", "--mode=frequencies", "--most=1", "--config.eval.panels=12"],
    ["--config=recipe.py", "--mode=frequencies", "--config.eval.panels=0"],
    ["--config=recipe.py", "--mode=frequencies", "--config.eval.panels=many"],
    ["--help=config"],
  ]
  _, accepted, refused, of_another_type, help_text = printed(checkout, COMMANDS.format(commands=commands))
  assert accepted[0] == 0
  (message,) = re.findall(r"```text\n(.*\n)```", page("config_field.md"))
  assert refused == [2, "", message]
  assert of_another_type[0] == 2 and "eval.panels" in of_another_type[2]
  assert "  eval.panels = 6\n      Images in the report of a run. Expected: 1 or more." in help_text[1]

  found = printed(checkout, FIELD)
  # A run of before continues, and the report gets the value.
  assert found == {"default": 6, "different": [], "read": 9}
