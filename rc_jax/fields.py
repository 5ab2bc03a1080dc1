"""The parts that the fields of a config and the flags of a mode are stated with: name, default, check and meaning."""

import dataclasses
import keyword
import pathlib
from collections.abc import Callable
from typing import Any, TypeAlias

import ml_collections

Config: TypeAlias = ml_collections.ConfigDict


@dataclasses.dataclass(frozen=True)
class Check:
  """What a value must be.

  Attributes:
    expects: a noun phrase for error messages and the reference page, such as ``"1 or more"``.
    holds: whether a value is such.
  """

  expects: str
  holds: Callable[[Any], bool]


def one_of(*choices: Any) -> Check:
  """A value among ``choices``."""
  return Check("one of " + ", ".join(map(repr, choices)), lambda value: value in choices)


def at_least(low: float, note: str = "") -> Check:
  """A number not below ``low``; ``note`` says what ``low`` itself means."""
  return Check(f"{low:g}{f' ({note})' if note else ''} or more", lambda value: value >= low)


def above(low: float) -> Check:
  """A number above ``low``."""
  return Check(f"above {low:g}", lambda value: value > low)


def within(low: float, high: float, expects: str) -> Check:
  """A number in ``low..high``, both included."""
  return Check(expects, lambda value: low <= value <= high)


def below_one(expects: str) -> Check:
  """A number in ``0..1`` without 1."""
  return Check(expects, lambda value: 0 <= value < 1)


def positive_numbers(expects: str) -> Check:
  """A tuple of one or more numbers above 0."""
  return Check(expects, _are_positive)


def size(expects: str, optional: bool = False) -> Check:
  """A tuple of height and width in pixels, or of one number for both; with ``optional`` also ``()``."""

  def holds(value: Any) -> bool:
    if optional and value == ():
      return True
    return (
      isinstance(value, tuple) and len(value) in (1, 2) and all(isinstance(s, int) and s > 0 for s in value)
    )

  return Check(expects, holds)


def _are_splits(value: Any) -> bool:
  """Whether a value names splits, each a path within the folders that are read and written for it."""
  if not isinstance(value, str):
    return False
  paths = [(part, pathlib.PurePosixPath(part)) for part in value.split("+")]
  return all(
    path.parts and not path.is_absolute() and ".." not in path.parts and str(path) == part
    for part, path in paths
  )


def _are_positive(value: Any) -> bool:
  numbers = isinstance(value, tuple) and len(value) > 0 and all(isinstance(n, int | float) for n in value)
  return numbers and min(value) > 0


SPLITS = Check(
  "the name of a split, or of several joined by +, without .., // or a / at its ends", _are_splits
)
ANYTHING = Check("", lambda value: True)
PROBABILITY = within(0, 1, "a probability in 0..1")
LOW_HIGH = Check(
  "(low, high) with 0 < low <= high",
  lambda value: _are_positive(value) and len(value) == 2 and value[0] <= value[1],
)


@dataclasses.dataclass(frozen=True)
class Field:
  """One field of a config.

  Attributes:
    path: ``"train.batch_size"``.
    default: the value that a recipe starts from; also says the type.
    meaning: one or two sentences for the reference page, with units and source.
    check: what the value must be.
    resumable: whether a resumed run may have another value than the run that it continues.
    training_only: whether weights compute the same with another value; of ``model.*`` alone.
    read_when: ``(path, values)`` where the field is read only while another field has one of ``values``.
    is_path: whether the value is a path, in which ``~`` stands for the home folder.
    per_process: whether the processes of one run may have different values; of paths, their content is compared.
    parts: from a value to those of its parts that the ``read_when`` of other fields names; None: the value itself.
  """

  path: str
  default: Any
  meaning: str
  check: Check = ANYTHING
  resumable: bool = False
  training_only: bool = False
  read_when: tuple[str, tuple[Any, ...]] | None = None
  is_path: bool = False
  per_process: bool = False
  parts: Callable[[Any], tuple[Any, ...]] | None = None

  @property
  def expects(self) -> str:
    """What the value must be, as a noun phrase; empty where the type says all."""
    return self.check.expects


def require(holds: bool, path: str, found: Any, expected: str) -> None:
  """Raises the ``ValueError`` of a config field with a wrong value, one line, unless ``holds``."""
  if not holds:
    raise ValueError(f"config.{path}: is {found!r}; expected {expected}")


@dataclasses.dataclass(frozen=True)
class Flag:
  """One flag of the command line, ``--name=value``.

  Attributes:
    name: without the dashes.
    default: its type is the flag's: ``bool``, ``int``, ``float``, ``str``, ``pathlib.Path``, or a tuple of strings,
      which the command line separates by commas; ``None``: a path that may be absent.
    meaning: one sentence for ``--help``.
    choices: the allowed values; empty: any.
  """

  name: str
  default: bool | int | float | str | tuple[str, ...] | None
  meaning: str
  choices: tuple[str, ...] = ()

  @property
  def argument(self) -> str:
    """The name of the argument of the mode's ``run``: that of the flag, ``as_`` for ``--as``, a word of Python."""
    return f"{self.name}_" if keyword.iskeyword(self.name) else self.name

  @property
  def default_text(self) -> str:
    """The default as the command line takes it; empty where the meaning states it.

    >>> Flag("splits", ("train", "val"), "").default_text, Flag("budget", 0.0, "").default_text
    ('train,val', '0')
    """
    if isinstance(self.default, bool):
      return str(self.default).lower()
    if isinstance(self.default, tuple):
      return ",".join(self.default)
    return f"{self.default:g}" if isinstance(self.default, int | float) else self.default or ""
