"""The command line of a run as its user typed it, and further commands that work when they are pasted."""

import dataclasses
import pathlib
import shlex
import shutil
import sys
from collections.abc import Collection, Sequence


@dataclasses.dataclass(frozen=True)
class Command:
  """A command line of rc_jax.

  Attributes:
    program: what starts rc_jax: ``("rc_jax",)`` or ``("python", "-m", "rc_jax.main")``.
    recipe: with its variant, ``"demo:baseline"``.
    workdir: the run's folder.
    overrides: (path of a field, arguments that set it): ``("train.steps", ("--config.train.steps=20",))``.
  """

  program: tuple[str, ...]
  recipe: str
  workdir: pathlib.Path
  overrides: tuple[tuple[str, tuple[str, ...]], ...] = ()

  def text(self, *flags: str) -> str:
    """Returns the line for a shell, with further flags; without ``--workdir`` where it is the recipe's own."""
    arguments = [argument for _, override in self.overrides for argument in override]
    if self.workdir != default_workdir(self.recipe):
      arguments.append(f"--workdir={self.workdir}")
    return shlex.join([*self.program, f"--config={self.recipe}", *arguments, *flags])

  def bare(self, *flags: str) -> str:
    """Returns the line for a shell of a mode that reads no recipe."""
    return shlex.join([*self.program, *flags])


def default_workdir(recipe: str) -> pathlib.Path:
  """Returns the folder of a recipe's run or of a study, relative to the current one.

  >>> str(default_workdir("configs/cityscapes.py:resnet101"))
  'runs/cityscapes_resnet101'
  """
  file, _, variant = recipe.partition(":")
  return pathlib.Path("runs") / "_".join(filter(None, (pathlib.Path(file).stem, variant)))


def parse(argv: Sequence[str], recipe: str, workdir: pathlib.Path) -> Command:
  """Returns the command of a valid command line.

  Args:
    argv: the program's name and its arguments.
    recipe: the value of ``--config``.
    workdir: the run's folder.
  """
  overrides: list[tuple[str, tuple[str, ...]]] = []
  name = ""
  for argument in argv[1:]:
    if argument.startswith("-"):
      name = argument.lstrip("-").partition("=")[0].removeprefix("no")
      if name.startswith("config."):
        overrides.append((name.removeprefix("config."), (argument,)))
    elif name.startswith("config."):  # the value of the argument before
      path, arguments = overrides[-1]
      overrides[-1] = (path, (*arguments, argument))
  return Command(_program(argv), recipe, workdir, tuple(overrides))


def without(command: Command, paths: Collection[str], prefix: str = "") -> Command:
  """Returns a command without its values of some fields, and of those whose path starts with ``prefix``."""
  kept = (
    (path, arguments)
    for path, arguments in command.overrides
    if path not in paths and not (prefix and path.startswith(prefix))
  )
  return dataclasses.replace(command, overrides=tuple(kept))


def _program(argv: Sequence[str]) -> tuple[str, ...]:
  """Returns the words before the arguments that start rc_jax once more, in the same folder and environment."""
  before = len(sys.orig_argv) - len(argv[1:])
  program = sys.orig_argv[:before]
  if sys.orig_argv[before:] == list(argv[1:]) and "-m" in program:
    return tuple(program)
  found = shutil.which("rc_jax")
  if pathlib.Path(argv[0]).name == "rc_jax" and (
    found is None or pathlib.Path(found) != pathlib.Path(argv[0])
  ):
    return (argv[0],)  # a script that no PATH leads to
  return ("rc_jax",)
