"""Recipes and studies: how their files are run, and those that come with rc_jax.

The latter are ``configs/`` of the repository, which a wheel carries as ``rc_jax/configs/``; studies are in its
``studies/``.
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import inspect
import os
import pathlib
import re
from collections.abc import Iterator

# The first is where a wheel puts the recipes, the second where a checkout (or an editable installation of it) has them.
_PACKAGE = pathlib.Path(__file__).resolve().parent
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


@dataclasses.dataclass(frozen=True)
class FileKind:
  """A kind of Python file that a flag names.

  Attributes:
    noun: its plural is with an s, except "studies".
    flag: that names such a file.
    function: that the file defines.
    result: what the function returns, for error messages.
    folder: of those that come with rc_jax, below ``configs``.
  """

  noun: str
  flag: str
  function: str
  result: str
  folder: str = ""

  @property
  def nouns(self) -> str:
    """The plural of the noun."""
    return f"{self.noun[:-1]}ies" if self.noun.endswith("y") else f"{self.noun}s"

  @property
  def example(self) -> str:
    """The path of a file of this kind that comes with rc_jax."""
    return str(pathlib.PurePosixPath("configs", self.folder, f"{names(self)[0]}.py"))


RECIPE = FileKind("recipe", "--config", "get_config", "rc_jax.config.defaults(), changed")
STUDY = FileKind("study", "--study", "get_study", "an rc_jax.study.Study", "studies")


def resolve_recipe(name: str, kind: FileKind = RECIPE) -> str:
  """Finds the file of a recipe or a study.

  A file of that path wins over a recipe of that name.

  Args:
    name: a path, such as ``configs/demo.py``, or the name of a recipe of ``names()``, such as ``demo``; no variant.
    kind: ``RECIPE`` or ``STUDY``.

  Returns:
    The path of the file.

  Raises:
    ValueError: there is neither; one line that lists the recipes.

  >>> pathlib.Path(resolve_recipe("demo")).name
  'demo.py'
  """
  if pathlib.Path(name).is_file():
    return name
  listed = names(kind)
  if name in listed:
    return str(_folder() / kind.folder / f"{name}.py")
  close = difflib.get_close_matches(pathlib.Path(name).stem, listed, n=1)
  hint = f"; did you mean {close[0]}?" if close else ""
  raise ValueError(
    f"{kind.flag}={name}: no such file, and no such {kind.noun}; the {kind.nouns} are {', '.join(listed)}{hint}"
  )


def names(kind: FileKind = RECIPE) -> tuple[str, ...]:
  """Returns the names of the recipes or studies that come with rc_jax, sorted."""
  return tuple(sorted(path.stem for path in (_folder() / kind.folder).glob("*.py")))


def _folder() -> pathlib.Path:
  # A checkout has no rc_jax/configs; a wheel has it, and a configs/ beside the package is then another project's.
  return next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[0])


def run_recipe(recipe: str, kind: FileKind = RECIPE) -> object:
  """Runs ``get_config`` of a recipe's file, or ``get_study`` of a study's, and returns its result.

  Args:
    recipe: a file, or the name of one that comes with rc_jax, and its variant: ``cityscapes:resnet101``.
    kind: ``RECIPE`` or ``STUDY``.

  Raises:
    ValueError: there is no such file or variant, or the file itself fails; one line with file and line number.
  """
  file, _, variant = recipe.partition(":")
  path = pathlib.Path(resolve_recipe(os.path.expanduser(file), kind))
  spec = importlib.util.spec_from_file_location(f"rc_jax_recipe_{path.stem}", path)
  if spec is None or spec.loader is None:
    raise ValueError(f"{kind.flag}={file}: is no Python file; expected a {kind.noun} such as {kind.example}")
  module = importlib.util.module_from_spec(spec)
  with _errors_of(file, path):
    spec.loader.exec_module(module)
  function = getattr(module, kind.function, None)
  if not callable(function):
    raise ValueError(f"{file}: defines no function {kind.function}; expected one that returns {kind.result}")
  arguments = (variant,) if variant else ()
  signature = inspect.signature(function)
  try:
    signature.bind(*arguments)
  except TypeError:
    if variant:
      problem = f"has no variants ({kind.function}{signature}), found :{variant}; leave it out"
    else:
      name = kind.function
      problem = f"needs arguments ({name}{signature}); expected {name}() or {name}(variant='NAME')"
    raise ValueError(f"{file}: {problem}") from None
  with _errors_of(file, path):
    return function(*arguments)


@contextlib.contextmanager
def _errors_of(file: str, path: pathlib.Path) -> Iterator[None]:
  """Turns whatever a user's file raises into one line: its last line there is what they can mend."""
  try:
    yield
  except Exception as error:
    text = " ".join(str(error).replace("\\n", " ").split())
    line = _line_in(error, path)
    where = f"{file}:{line}" if line else file
    # Some versions of Python raise a ValueError without the file for UTF-16.
    if re.search("null bytes|'utf-8' codec", text) and isinstance(error, SyntaxError | ValueError):
      raise ValueError(
        f"{where}: is Python in another encoding than UTF-8: save the file as UTF-8"
      ) from error
    if isinstance(error, ValueError) and path.name in text:
      raise  # a recipe's own refusal says all
    suggestion = re.search(r"""Did you mean "(\w+)" instead of "(\w+)\"""", text)
    if suggestion and isinstance(error, AttributeError | KeyError):
      raise ValueError(f"{where}: {suggestion[2]}: no such field; did you mean {suggestion[1]!r}?") from error
    raise ValueError(f"{where}: {type(error).__name__}: {text}") from error


def _line_in(error: BaseException, path: pathlib.Path) -> int | None:
  """Returns the last line of a file that an error passed through; a syntax error names its own."""
  if isinstance(error, SyntaxError):
    return error.lineno
  line, trace = None, error.__traceback__
  while trace is not None:
    if pathlib.Path(trace.tb_frame.f_code.co_filename) == path:
      line = trace.tb_lineno
    trace = trace.tb_next
  return line
