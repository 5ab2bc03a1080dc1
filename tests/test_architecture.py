"""The architecture of docs/architecture.md: which package may import which, and which library each may use."""

import ast
import pathlib
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "rc_jax"
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

# What any package but `contrast` and `ops` may import.
GROUND = {
  *(
    "fields",
    "config",
    "sharding",
    "distributed",
    "command",
    "console",
    "files",
    "recipes",
    "huge_pages",
    "compilation_cache",
  ),
  *("agreement", "class_table", "folder_lock", "parent_process", "process_group", "rendezvous", "streams"),
}

# Package or module -> the packages of ours that it may import, besides itself and the ground.
MAY_IMPORT: dict[str, set[str]] = {
  "__main__": {"main"},
  "main": {"modes"},
  "api": {"modes", "weights", "inference", "models", "data"},
  "modes": {
    *("study", "costs", "training", "evaluation", "weights", "inference", "predictions", "drawing"),
    *("models", "data", "train_state", "contrast", "ops"),
  },
  "study": {"evaluation", "drawing"},
  "costs": {"training", "models", "data", "contrast"},
  "training": {"weights", "contrast", "models", "losses", "data", "ops", "train_state"},
  "evaluation": {"inference", "models", "data"},
  "weights": {"models", "train_state"},
  "inference": {"models", "data", "ops"},
  "predictions": {"data"},
  "drawing": {"data"},
  "models": {"ops", "losses"},
  "losses": {"ops"},
  "data": set(),
  "train_state": set(),
  "contrast": set(),
  "ops": set(),
}
ALONE = {"contrast", "ops"}  # they import nothing of ours, not even the ground
GROUND_IMPORTS: dict[str, set[str]] = {
  **{name: set() for name in GROUND},
  # Heads, backbones, pixel losses and augmentations state their own fields.
  "config": {"fields", "models", "losses", "data", "recipes", "files"},
  "agreement": {"process_group"},
  "class_table": {"console", "files"},
  "compilation_cache": {"console"},
  "console": {"streams"},
  "distributed": {"agreement", "fields", "files", "process_group", "rendezvous", "streams"},
  "folder_lock": {"console", "files"},
  "huge_pages": {"streams"},
  "process_group": {"console", "streams"},
  "rendezvous": {"agreement", "console", "process_group", "streams"},
}

# Networks are described by fields, not by a run's config, which is made of their fields.
BELOW_CONFIG = {name: {"config", "sharding"} for name in ("models", "losses", "data")}

# Of each other, modes import only these: training ends with the report of its run.
BETWEEN_MODES = {("train", "report")}

# Library -> the packages or modules that alone may import it.
LIBRARIES: dict[str, tuple[str, ...]] = {
  "flax": ("models",),
  "orbax": ("weights/checkpoint.py",),
  "grain": ("data",),
  "tensorflow_datasets": ("data",),
  "matplotlib": (),
  "absl": ("main.py", "api.py"),
  "ml_collections.config_flags": ("main.py",),
  "tensorflow": (),
  "torch": ("weights/file_formats.py",),
  "sklearn": ("drawing/embedding.py",),
  "threadpoolctl": ("drawing/embedding.py",),
  "wandb": ("training/log_writers/wandb_run.py",),
  "mlflow": ("training/log_writers/mlflow_run.py",),
}


def imports_of(path: pathlib.Path) -> set[str]:
  """Returns the full names of all that a module imports anywhere: ``from a.b import c`` gives ``a.b`` and ``a.b.c``."""
  names: set[str] = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: write relative imports in full"
      assert node.module
      names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def package_of(module: str) -> str:
  """Returns the first part of a module's path or name below ``rc_jax``: ``data/reading/decode.py`` -> ``data``."""
  return module.replace("/", ".").removesuffix(".py").split(".")[0]


def project_imports(module: pathlib.Path) -> set[str]:
  """Returns the modules of the project that a module imports, as dotted names below ``rc_jax``."""
  found = set()
  for name in imports_of(PACKAGE / module):
    parts = name.split(".")
    while len(parts) > 1 and parts[0] == "rc_jax":
      path = PACKAGE.joinpath(*parts[1:])
      if path.is_dir() or path.with_suffix(".py").is_file():
        found.add(".".join(parts[1:]))
        break
      parts.pop()
  return found


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_packages_import_only_what_the_table_allows(module: pathlib.Path) -> None:
  package = package_of(str(module))
  if package == "__init__":
    allowed: set[str] = {"api"}  # imported at the first use of one of its names
  elif package in GROUND:
    allowed = GROUND_IMPORTS[package]
  else:
    assert package in MAY_IMPORT, f"{module}: add the package {package} to the table"
    allowed = MAY_IMPORT[package] | (set() if package in ALONE else GROUND - BELOW_CONFIG.get(package, set()))
  for name in project_imports(module):
    other = package_of(name)
    assert other in allowed | {package, "__init__"}, (
      f"{module} imports rc_jax.{name}, which {package} may not"
    )
    if package == "modes" and other == "modes" and str(module) != "modes/__init__.py":
      pair = (module.stem, name.split(".")[-1])
      assert pair[0] == pair[1] or pair in BETWEEN_MODES or name == "modes", f"{module} imports rc_jax.{name}"


def test_no_module_imports_itself_through_others() -> None:
  edges = {}
  for module in MODULES:
    dotted = ".".join(module.with_suffix("").parts).removesuffix(".__init__")
    # A package's __init__ collects its modules; they do not import the package.
    edges[dotted] = project_imports(module) - {dotted}

  done: set[str] = set()

  def visit(name: str, trail: tuple[str, ...]) -> None:
    assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
    if name in done:
      return
    for other in sorted(edges.get(name, ())):
      visit(other, (*trail, name))
    done.add(name)

  for name in sorted(edges):
    visit(name, ())


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_libraries_stay_in_their_packages(module: pathlib.Path) -> None:
  for name in imports_of(PACKAGE / module):
    for library, places in LIBRARIES.items():
      if name == library or name.startswith(library + "."):
        allowed = any(str(module) == place or package_of(str(module)) == place for place in places)
        assert allowed, f"{module} imports {name}, which only {places} may"


@pytest.mark.parametrize("package", sorted(ALONE))
def test_contrast_and_ops_depend_on_jax_and_numpy_alone(package: str) -> None:
  for path in (PACKAGE / package).glob("*.py"):
    for name in imports_of(path):
      top = name.split(".")[0]
      assert top in ("jax", "numpy", "rc_jax") or top in sys.stdlib_module_names, (
        f"{path.name} imports {name}"
      )


def test_only_sharding_builds_a_mesh() -> None:
  for module in MODULES:
    tree = ast.parse((PACKAGE / module).read_text())
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    builds = {call for call in calls if call.split(".")[-1] in ("Mesh", "make_mesh", "create_device_mesh")}
    assert not builds or str(module) == "sharding.py", f"{module} calls {builds}"


def modules_after(statement: str, names: tuple[str, ...]) -> set[str]:
  """Returns which of the libraries ``names`` a fresh interpreter holds after a statement."""
  code = f"{statement}\nimport sys; print(*(name for name in {names!r} if name in sys.modules))"
  printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
  return set(printed.split())


@pytest.mark.run
@pytest.mark.parametrize(
  ("statement", "libraries"),
  [
    # A user of `rc_jax.contrast` alone waits for nothing else.
    ("import rc_jax", ("jax", "flax", "numpy")),
    (
      "from rc_jax import contrast",
      ("flax", "optax", "orbax", "grain", "ml_collections", "PIL"),
    ),
    # Pictures are drawn after training, and the built-in data sets are read without TFDS.
    ("import rc_jax.modes.train", ("tensorflow_datasets", "torch", "scipy", "pyarrow")),
    ("import rc_jax.console", ("tensorboardX", "flax", "orbax")),
  ],
)
def test_imports_stay_light(statement: str, libraries: tuple[str, ...]) -> None:
  assert modules_after(statement, libraries) == set()
