"""A study as data: rows of settings times seeds, with the paper's numbers and claims, and the runs that it needs."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from rc_jax.config import (
  Config,
  check_override,
  expand_home,
  flatten,
  load_recipe,
  set_field,
  validate,
)
from rc_jax.recipes import STUDY, run_recipe

# Variant of the studies that come with rc_jax -> its recipe: the paper's, one for two CPU cores, synthetic scenes.
VARIANTS = {"cityscapes": "cityscapes", "camvid": "camvid:cpu", "demo": "demo"}


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of a study's table: a setting of the recipe.

  Attributes:
    name: as the table shows it; its letters and digits name the folder of the row's runs.
    fields: path of a config field -> its value, such as ``{"contrast.scope": "image"}``.
    paper: the paper's mIoU in percent; None: the paper has no such row.
    baseline: the name of the row that this one is compared with; empty: the study's baseline.
  """

  name: str
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
  paper: float | None = None
  baseline: str = ""

  @property
  def folder(self) -> str:
    """The name of the folder of the row's runs.

    >>> Row("EP + HP, M = 1000").folder
    'ep_plus_hp_m_1000'
    """
    return re.sub(r"[^a-z0-9.]+", "_", self.name.lower().replace("+", "plus")).strip("_.")


@dataclasses.dataclass(frozen=True)
class Claim:
  """An order that the paper claims: ``better`` has a higher mIoU than ``worse``. Both are names of rows."""

  better: str
  worse: str


@dataclasses.dataclass(frozen=True)
class Run:
  """One training run of a study: a row at a seed."""

  row: Row
  seed: int

  @property
  def path(self) -> pathlib.Path:
    """The run's folder, relative to the study's.

    >>> str(Run(Row("inter-image"), 3).path)
    'runs/inter_image/seed3'
    """
    return pathlib.Path("runs") / self.row.folder / f"seed{self.seed}"

  def __str__(self) -> str:
    return f"{self.row.name}, seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Study:
  """A recipe trained once for each row and seed.

  Runs of one seed have the same initial weights (of the arrays that both networks have), the same order of images and
  the same augmentation in all rows, so that rows are compared seed by seed.

  Attributes:
    title: of the table.
    recipe: what ``--config`` takes, ``"cityscapes:resnet101"``.
    rows: in the order of the table.
    baseline: the name of the row that the others are compared with.
    seeds: of the runs of each row.
    fields: path of a config field -> its value, for all rows; a row's own come after.
    splits: the splits to score; the first is also that of ``eval.split`` in training.
    claims: the orders that the paper states.
    source: of the numbers and claims, ``"RegionContrast, Table 1"``; empty: there is none.

  Raises:
    ValueError: two rows have one name or folder, a name is missing, a seed occurs twice; one line.
  """

  title: str
  recipe: str
  rows: tuple[Row, ...]
  baseline: str
  seeds: tuple[int, ...]
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  splits: tuple[str, ...] = ("val",)
  claims: tuple[Claim, ...] = ()
  source: str = ""

  def __post_init__(self) -> None:
    _check_types(self)
    names = [row.name for row in self.rows]
    for kind, values in (("seeds", self.seeds), ("splits", self.splits), ("rows", names)):
      if not values:
        raise ValueError(f"study {self.title!r}: {kind}: is empty; expected at least one")
      twice = [value for place, value in enumerate(values) if value in values[:place]]
      if twice:
        raise ValueError(f"study {self.title!r}: {kind}: {twice[0]!r} occurs twice; expected each once")
    self._check_folders()
    for field, name in [
      ("baseline", self.baseline),
      *((f"row {row.name!r}: baseline", row.baseline) for row in self.rows if row.baseline),
      *(("claims", name) for claim in self.claims for name in (claim.better, claim.worse)),
    ]:
      if name not in names:
        raise ValueError(
          f"study {self.title!r}: {field}: no row is named {name!r}; the rows are {', '.join(names)}"
        )

  def _check_folders(self) -> None:
    folders: dict[str, str] = {}
    for row in self.rows:
      if not row.folder:
        raise ValueError(
          f"study {self.title!r}: rows: the name {row.name!r} has no letter or digit to name a folder"
        )
      if row.folder in folders:
        raise ValueError(
          f"study {self.title!r}: rows: {folders[row.folder]!r} and {row.name!r} both have the folder "
          f"{row.folder!r}; rename one"
        )
      folders[row.folder] = row.name

  @property
  def runs(self) -> tuple[Run, ...]:
    """All runs: the rows of the first seed, then those of the next, so that a part of a study compares all rows."""
    return tuple(Run(row, seed) for seed in self.seeds for row in self.rows)

  def baseline_of(self, row: Row) -> str:
    """Returns the name of the row that a row is compared with; its own where it is a baseline."""
    return row.baseline or (row.name if self._is_baseline(row.name) else self.baseline)

  def _is_baseline(self, name: str) -> bool:
    return any(row.baseline == name for row in self.rows)

  def row(self, name: str) -> Row:
    """Returns the row of a name."""
    return next(row for row in self.rows if row.name == name)

  def overrides(self, run: Run) -> dict[str, Any]:
    """Returns path of a field -> value, of the fields that a run sets in place of its recipe."""
    return {"eval.split": self.splits[0], **self.fields, **run.row.fields, "seed": run.seed}

  def config(self, run: Run) -> Config:
    """Returns the validated config of a run.

    Raises:
      ValueError: the recipe or a field is wrong; one line.
    """
    config = load_recipe(self.recipe)
    for path, value in self.overrides(run).items():
      check_override(path)
      try:
        set_field(config, path, value)
      except TypeError as error:
        raise ValueError(
          f"study {self.title!r}: row {run.row.name!r}: config.{path}: is {value!r}; expected a value like "
          f"{flatten(config.to_dict())[path]!r}"
        ) from error
    try:
      validate(config)
    except ValueError as error:
      raise ValueError(f"study {self.title!r}: row {run.row.name!r}: {error}") from error
    expand_home(config)
    return config


def _check_types(study: Study) -> None:
  """Checks what a study's file has written, before anything runs.

  Raises:
    ValueError: a value has another type, or a field is set that the study sets itself; one line.
  """

  def require(holds: bool, field: str, found: Any, expected: str) -> None:
    if not holds:
      raise ValueError(f"study {study.title!r}: {field}: is {found!r}; expected {expected}")

  for name, kind, example in (
    ("rows", Row, "(Row(...),)"),
    ("seeds", int, "(0, 1, 2)"),
    ("splits", str, "('val',)"),
    ("claims", Claim, "(Claim(...),)"),
  ):
    values = getattr(study, name)
    holds = isinstance(values, tuple | list) and all(isinstance(value, kind) for value in values)
    require(holds, name, values, f"a tuple such as {example}")
  for field, fields in [
    ("fields", study.fields),
    *((f"row {row.name!r}: fields", row.fields) for row in study.rows),
  ]:
    require(isinstance(fields, Mapping), field, fields, "a dict such as {'contrast.scope': 'image'}")
    for path, instead in (
      ("seed", "seeds=(0, 1, 2) of the study"),
      ("eval.split", "splits=('val',) of the study"),
    ):
      require(path not in fields, f"{field}: {path}", fields.get(path), instead)
  for row in study.rows:
    is_number = isinstance(row.paper, int | float) and not isinstance(row.paper, bool)
    require(
      row.paper is None or is_number, f"row {row.name!r}: paper", row.paper, "mIoU in percent, such as 76.4"
    )


def recipe_of_variant(study: str, variant: str) -> str:
  """Returns the recipe of a study's variant, one of ``VARIANTS``.

  Args:
    study: name of the study, for the error message.
    variant: as the command line names it.

  Raises:
    ValueError: there is no such variant; one line.
  """
  if variant not in VARIANTS:
    raise ValueError(
      f"configs/studies/{study}.py:{variant}: no such variant; expected one of {', '.join(VARIANTS)}"
    )
  return VARIANTS[variant]


def load_study(name: str) -> Study:
  """Loads a study.

  Args:
    name: a file, or the name of a study that comes with rc_jax, and its variant: ``"table1:demo"``. The file defines
      ``get_study``, which takes the variant where it has any, and returns a ``Study``.

  Raises:
    ValueError: there is no such file or variant, the file itself fails, or a run's config is not valid; one line.
  """
  study = run_recipe(name, STUDY)
  if not isinstance(study, Study):
    raise ValueError(f"{name}: get_study returned {type(study).__name__}; expected {STUDY.result}")
  return study
