"""Examples in docstrings print what they show."""

import doctest
import importlib

import pytest

from tests.support.paths import ROOT

MODULES = [
  ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
  for path in sorted((ROOT / "rc_jax").rglob("*.py"))
  if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module(name: str) -> None:
  result = doctest.testmod(importlib.import_module(name))
  assert result.attempted > 0 and result.failed == 0
