"""The scores of a study's rows, compared seed by seed with the baseline and as the paper claims."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from rc_jax.evaluation import bootstrap
from rc_jax.evaluation.protocol import protocol_text
from rc_jax.evaluation.results import Result
from rc_jax.study.grid import Claim, Row, Run, Study
from rc_jax.study.intervals import mean_interval

Verdict = Literal["supported", "contradicted", "open"]
Ious = Mapping[str, float | None]  # class -> IoU; None where it is not scored

# Points. Differences that agree to it are equal: rounding errors are smaller, and one pixel of 10^9 changes the mean of
# 150 classes by more.
EQUAL = 1e-10


@dataclasses.dataclass(frozen=True)
class Comparison:
  """The difference of two rows, better minus worse, in points of mIoU over the seeds that both have.

  Attributes:
    seeds: that both rows have.
    differences: one for each of them.
    mean: of the differences; None without seeds.
    deviation: their standard deviation, with ``n - 1``; None below two seeds.
    over_seeds: lower and upper end of Student's interval; None below two seeds.
    over_images: lower and upper end of the bootstrap's interval, of the same seeds; None without seeds or for one
      image.
    paper: the paper's difference; None: it has none.
    classes: class -> mean difference of its IoU; None where no seed scores the class in both rows.
  """

  seeds: tuple[int, ...]
  differences: tuple[float, ...]
  mean: float | None
  deviation: float | None
  over_seeds: tuple[float, float] | None
  over_images: tuple[float, float] | None
  paper: float | None
  classes: Mapping[str, float | None]

  @property
  def all_equal(self) -> bool:
    """Whether two or more seeds have one and the same difference, of which the interval over seeds says nothing."""
    return len(self.differences) > 1 and max(self.differences) - min(self.differences) <= EQUAL

  @property
  def verdict(self) -> Verdict:
    """Whether the interval over seeds lies above 0, below 0, or says neither."""
    if self.over_seeds is None or self.all_equal:
      return "open"
    low, high = self.over_seeds
    return "supported" if low > 0 else "contradicted" if high < 0 else "open"


@dataclasses.dataclass(frozen=True)
class ScoredRow:
  """A row of the table.

  Attributes:
    row: of the study.
    mious: seed -> mIoU in percent, of the runs that are scored.
    mean: of them; None without runs.
    deviation: their standard deviation, with ``n - 1``; None below two seeds.
    over_seeds: lower and upper end of Student's interval of the mean; None below two seeds.
    classes: class -> mean IoU in percent over the seeds that score it; None where none does.
    baseline: the name of the row that it is compared with; of a baseline, its own.
    difference: to the baseline; None for a baseline.
  """

  row: Row
  mious: Mapping[int, float]
  mean: float | None
  deviation: float | None
  over_seeds: tuple[float, float] | None
  classes: Mapping[str, float | None]
  baseline: str
  difference: Comparison | None


@dataclasses.dataclass(frozen=True)
class ScoredClaim:
  """A claim of the paper and the comparison of its rows, better minus worse."""

  claim: Claim
  comparison: Comparison


@dataclasses.dataclass(frozen=True, eq=False)
class StudyTable:
  """All scores of a study on one split.

  Attributes:
    study: of the runs.
    split: that was scored.
    rows: in the order of the study.
    claims: in the order of the study.
    results: of the runs that are scored, in the order of the study.
    failed: run -> reason, of the runs that failed and are not scored.
    images: number of the split's images; 0 without results.
    left_out: folders of scored runs that the study does not name, such as those of other seeds.
    protocols: the ways in which the split was scored, see ``protocol_text``; more than one is a warning.
  """

  study: Study
  split: str
  rows: tuple[ScoredRow, ...]
  claims: tuple[ScoredClaim, ...]
  results: tuple[tuple[Run, Result], ...]
  failed: tuple[tuple[Run, str], ...]
  images: int
  left_out: tuple[str, ...]
  protocols: tuple[str, ...]

  @property
  def baselines(self) -> tuple[str, ...]:
    """The names of the rows that others are compared with, in the order of the study."""
    return tuple(dict.fromkeys(row.baseline for row in self.rows))

  @property
  def missing(self) -> tuple[Run, ...]:
    """The runs that are neither scored nor failed."""
    known = {run.path for run, _ in (*self.results, *self.failed)}
    return tuple(run for run in self.study.runs if run.path not in known)


def study_tables(
  study: Study,
  results: Mapping[tuple[str, int, str], Result],
  failed: Mapping[Run, str],
  left_out: Sequence[str] = (),
) -> tuple[StudyTable, ...]:
  """Compares the rows of a study on each of its splits.

  Args:
    study: its rows, seeds, splits and claims.
    results: (name of the row, seed, split) -> result. Runs may be missing.
    failed: run -> reason, of the runs that failed.
    left_out: folders of scored runs that the study does not name.

  Returns:
    One table for each split.

  Raises:
    ValueError: results of one split differ in images, classes or rule, or score no class; one line.
  """
  return tuple(_split_table(study, split, results, failed, tuple(left_out)) for split in study.splits)


def _split_table(
  study: Study,
  split: str,
  results: Mapping[tuple[str, int, str], Result],
  failed: Mapping[Run, str],
  left_out: tuple[str, ...],
) -> StudyTable:
  scored = [(run, results[key]) for run in study.runs if (key := (run.row.name, run.seed, split)) in results]
  for _, result in scored:
    if result.scores["miou"] is None:
      raise ValueError(f"{result.path}: miou is null, because no class is scored; expected labels in {split}")
  split_scores = _Scores(study, scored)
  rows = tuple(split_scores.scored_row(row) for row in study.rows)
  claims = tuple(
    ScoredClaim(claim, split_scores.comparison(study.row(claim.worse), study.row(claim.better)))
    for claim in study.claims
  )
  known = {run.path for run, _ in scored}
  return StudyTable(
    study=study,
    split=split,
    rows=rows,
    claims=claims,
    results=tuple(scored),
    failed=tuple((run, reason) for run, reason in failed.items() if run.path not in known),
    images=len(scored[0][1].names) if scored else 0,
    left_out=left_out,
    protocols=tuple(dict.fromkeys(protocol_text(result.scores) for _, result in scored)),
  )


class _Scores:
  """The results of a study on one split, and their mIoU on the resamples of its images."""

  def __init__(self, study: Study, scored: Sequence[tuple[Run, Result]]):
    self._study = study
    self._results: dict[str, dict[int, Result]] = {row.name: {} for row in study.rows}
    self._resampled: dict[str, dict[int, np.ndarray]] = {row.name: {} for row in study.rows}
    if not scored:
      return
    resampled = bootstrap.resampled_mious([result for _, result in scored])
    for (run, result), mious in zip(scored, 100 * resampled, strict=True):
      self._results[run.row.name][run.seed] = result
      self._resampled[run.row.name][run.seed] = mious

  def scored_row(self, row: Row) -> ScoredRow:
    """Returns the scores of a row and its difference to the baseline."""
    results = self._results[row.name]
    baseline = self._study.baseline_of(row)
    mious = {seed: 100 * result.scores["miou"] for seed, result in results.items()}
    return ScoredRow(
      row=row,
      mious=mious,
      mean=_mean(mious.values()),
      deviation=_deviation(mious.values()),
      over_seeds=_interval(mious.values()),
      classes=_means_of_classes([_percent(result.scores["iou"]) for result in results.values()]),
      baseline=baseline,
      difference=None if baseline == row.name else self.comparison(self._study.row(baseline), row),
    )

  def comparison(self, worse: Row, better: Row) -> Comparison:
    """Returns the difference of two rows over the seeds that both have."""
    first, second = self._results[worse.name], self._results[better.name]
    seeds = tuple(seed for seed in first if seed in second)
    differences = [100 * (second[seed].scores["miou"] - first[seed].scores["miou"]) for seed in seeds]
    over_images = None
    if seeds and len(first[seeds[0]].names) > 1:
      of_rows = [np.stack([self._resampled[row.name][seed] for seed in seeds]) for row in (worse, better)]
      over_images = bootstrap.interval_of_means(of_rows[0], of_rows[1])
    return Comparison(
      seeds=seeds,
      differences=tuple(differences),
      mean=_mean(differences),
      deviation=_deviation(differences),
      over_seeds=_interval(differences),
      over_images=over_images,
      paper=None if better.paper is None or worse.paper is None else better.paper - worse.paper,
      classes=_means_of_classes(
        [_class_differences(first[seed].scores["iou"], second[seed].scores["iou"]) for seed in seeds]
      ),
    )


def _mean(values: Iterable[float]) -> float | None:
  known = list(values)
  return float(np.mean(known)) if known else None


def _deviation(values: Iterable[float]) -> float | None:
  known = list(values)
  return float(np.std(known, ddof=1)) if len(known) > 1 else None


def _interval(values: Iterable[float]) -> tuple[float, float] | None:
  known = list(values)
  if len(known) < 2:
    return None
  low, high = mean_interval(np.array(known))
  return float(low), float(high)


def _percent(ious: Ious) -> Ious:
  return {name: None if iou is None else 100 * iou for name, iou in ious.items()}


def _class_differences(first: Ious, second: Ious) -> Ious:
  pairs = ((name, first[name], second[name]) for name in first)
  return {name: None if a is None or b is None else 100 * (b - a) for name, a, b in pairs}


def _means_of_classes(of_seeds: Sequence[Ious]) -> Ious:
  """Returns class -> mean of the values that are known."""
  names = of_seeds[0] if of_seeds else ()
  return {name: _mean([value for ious in of_seeds if (value := ious[name]) is not None]) for name in names}
