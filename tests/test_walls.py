"""Reads every module's imports: a line of code knows its room (README, "The house")."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rc_jax"
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

# Library -> the only modules that may import it.
ROOMS = {
  "flax": ("models/",),
  "orbax": ("checkpoint.py",),
  "grain": ("data/",),
  "tensorflow_datasets": ("data/",),
  "absl": ("main.py",),
  "ml_collections.config_flags": ("main.py",),
  "tensorflow": (),
  "torch": ("weight_files.py",),
}

# From the top of the house to its foundations: a module imports from its own floor or from floors below.
FLOORS = (
  ("main.py",),
  ("ahead_of_time.py",),
  ("train.py", "export.py"),
  ("feed.py", "skipped.py"),
  ("inspection.py", "predict.py", "prepare.py", "report.py", "summary.py", "compare.py"),
  ("evaluate.py", "overlay.py", "pictures.py", "submission.py"),
  ("prediction_folder.py",),
  ("beginning.py",),
  ("train_step.py",),
  ("many_sizes.py",),
  ("inference.py", "contact_sheet.py"),
  ("drawing.py",),
  (
    "optimizer.py",
    "checkpoint.py",
    "pretrained.py",
    "weight_fields.py",
    "weight_files.py",
    "weight_names.py",
  ),
  ("train_state.py",),
  (
    "models/",
    "data/",
    "losses.py",
    "metrics.py",
    "contrast/",
    "sharding.py",
    "run_log.py",
    "program_cost.py",
  ),
  ("windows.py",),
  ("config.py", "resize.py", "whole_file.py", "__init__.py"),
)


def imported(module: pathlib.Path) -> set[str]:
  """Full names of all that a module imports, anywhere in it: ``from a.b import c`` gives ``a.b`` and ``a.b.c``."""
  names: set[str] = set()
  for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{module}: relative imports hide the room they come from"
      assert node.module
      names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def floor(module: str) -> int:
  for index, members in enumerate(FLOORS):
    if any(module == member or (member.endswith("/") and module.startswith(member)) for member in members):
      return index
  raise AssertionError(f"{module}: stands on no floor of the house; add it to FLOORS")


def file_of(name: str) -> str | None:
  """The module of the project that an imported name means, as a path below the package; None for other names."""
  parts = name.split(".")
  if parts[0] != "rc_jax":
    return None
  path = PACKAGE.joinpath(*parts[1:])
  if path.is_dir():
    return "/".join([*parts[1:], "__init__.py"])
  return "/".join(parts[1:]) + ".py" if path.with_suffix(".py").is_file() else None


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_libraries_stay_in_their_rooms(module: pathlib.Path) -> None:
  for name in imported(module):
    for library, rooms in ROOMS.items():
      if name == library or name.startswith(library + "."):
        allowed = any(str(module) == room or str(module).startswith(room) for room in rooms)
        assert allowed, f"{module} imports {name}, which only {rooms} may"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_point_down(module: pathlib.Path) -> None:
  here = floor(str(module))
  for name in imported(module):
    file = file_of(name)
    if file is None or file == "__init__.py":
      continue
    assert floor(file) >= here, f"{module} imports {file}, which stands above it"


def test_contrast_depends_on_jax_and_numpy_alone() -> None:
  for path in (PACKAGE / "contrast").glob("*.py"):
    for name in imported(path.relative_to(PACKAGE)):
      top = name.split(".")[0]
      known = top in ("jax", "numpy") or top in sys.stdlib_module_names or name.startswith("rc_jax")
      assert known, f"{path.name} imports {name}"
      if top == "rc_jax":
        assert name.startswith("rc_jax.contrast") or name == "rc_jax", f"{path.name} imports {name}"


def test_only_sharding_builds_a_mesh() -> None:
  for module in MODULES:
    tree = ast.parse((PACKAGE / module).read_text())
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    builds = {call for call in calls if call.split(".")[-1] in ("Mesh", "make_mesh", "create_device_mesh")}
    assert not builds or str(module) == "sharding.py", f"{module} calls {builds}"


def test_the_package_itself_imports_nothing() -> None:
  """So that a user of ``rc_jax.contrast`` alone waits for nothing else."""
  code = (
    "import sys, rc_jax; print(sorted(m for m in sys.modules if m.split('.')[0] in ('jax', 'flax', 'numpy')))"
  )
  printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
  assert printed.strip() == "[]"
