"""The recipes that come with rc_jax: ``configs/`` of the repository, which a wheel carries as ``rc_jax/configs/``."""

import difflib
import pathlib

# The first is where a wheel puts the recipes, the second where a checkout (or an editable installation of it) has them.
_PACKAGE = pathlib.Path(__file__).resolve().parent
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def resolve_recipe(name: str) -> str:
  """Finds the file of a recipe.

  A file of that path wins over a recipe of that name.

  Args:
    name: a path, such as ``configs/demo.py``, or the name of a recipe of ``names()``, such as ``demo``; no variant.

  Returns:
    The path of the file.

  Raises:
    ValueError: there is neither; one line that lists the recipes.

  >>> pathlib.Path(resolve_recipe("demo")).name
  'demo.py'
  """
  if pathlib.Path(name).is_file():
    return name
  if name in names():
    return str(_folder() / f"{name}.py")
  listed = names()
  close = difflib.get_close_matches(pathlib.Path(name).stem, listed, n=1)
  hint = f"; did you mean {close[0]}?" if close else ""
  raise ValueError(
    f"--config={name}: no such file, and no such recipe; the recipes are {', '.join(listed)}{hint}"
  )


def names() -> tuple[str, ...]:
  """Returns the names of the recipes that come with rc_jax, sorted."""
  return tuple(sorted(path.stem for path in _folder().glob("*.py")))


def _folder() -> pathlib.Path:
  # A checkout has no rc_jax/configs; a wheel has it, and a configs/ beside the package is then another project's.
  return next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[0])
