"""The check of compiled programs: its rules, and its comparison with the committed figures."""

import json
import re

import pytest

from benchmarks import compiled_programs


def program(**changes):
  return {"operations": 1000, "traffic": 2e9, "warnings": [], "collectives": [], **changes}


def test_the_committed_figures_cover_all_programs() -> None:
  table = json.loads(compiled_programs.TABLE.read_text())
  assert table["programs"].keys() == set(compiled_programs.TOPOLOGIES)
  assert table["renew"] == "python -m benchmarks.compiled_programs --write"
  assert all(figures.keys() == {"operations", "bytes"} for figures in table["programs"].values())


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"warnings": [{"kind": "large_window", "count": 11, "modules": {"head": 11}}]},
      "11 x large_window in head",
    ),
    (
      {"warnings": [{"kind": "float32_convolution", "count": 2, "modules": {"a": 1, "b": 1}}]},
      "2 x .* in a, b",
    ),
    ({"warnings": [{"kind": "bfloat16_sum", "count": 1, "modules": {"a": 1}}]}, "1 x bfloat16_sum in a"),
    (
      {"collectives": [{"kind": "all-gather", "largest": 5e6}]},
      "an all-gather of 5.0 MB; expected at most 4 MB",
    ),
    ({"does_not_fit": "does not fit 8 x NVIDIA L4"}, "does not fit"),
  ],
)
def test_a_broken_rule_is_named(changes, message) -> None:
  (line,) = compiled_programs.broken_rules(program(**changes))
  assert re.search(message, line)


def test_other_warnings_and_messages_break_no_rule() -> None:
  warnings = [{"kind": "adding_scatter", "count": 1, "modules": {"backbone": 1}}]
  collectives = [{"kind": "all-gather", "largest": 1e6}, {"kind": "all-reduce", "largest": 1e8}]
  assert compiled_programs.broken_rules(program(warnings=warnings, collectives=collectives)) == []


def test_figures_may_differ_by_five_percent() -> None:
  figures = compiled_programs.figures(program())
  assert compiled_programs.differences(figures, {"operations": 960, "bytes": 2_090_000_000}) == []
  (line,) = compiled_programs.differences(figures, {"operations": 900, "bytes": 2_000_000_000})
  assert line.startswith("1000 operations, in compiled_programs.json 900") and "--write" in line


def test_writing_some_figures_keeps_the_others_of_the_same_versions(tmp_path, monkeypatch) -> None:
  monkeypatch.setattr(compiled_programs, "TABLE", tmp_path / "table.json")
  monkeypatch.setattr(compiled_programs, "versions", lambda: {"jax": "1"})
  first, second = {"operations": 1, "bytes": 2}, {"operations": 3, "bytes": 4}
  compiled_programs.write({"v5e:2x4": first})
  compiled_programs.write({"h100:1": second})
  assert json.loads(compiled_programs.TABLE.read_text())["programs"] == {"h100:1": second, "v5e:2x4": first}
  monkeypatch.setattr(compiled_programs, "versions", lambda: {"jax": "2"})
  compiled_programs.write({"h100:1": first})
  assert json.loads(compiled_programs.TABLE.read_text())["programs"] == {"h100:1": first}


def test_requirements_name_versions_that_fit_jax() -> None:
  plugin, runtime, libtpu = compiled_programs.requirements()
  assert plugin.startswith("jax-cuda13-plugin==") and runtime.startswith("jax-cuda13-pjrt==")
  assert libtpu.startswith("libtpu==")
