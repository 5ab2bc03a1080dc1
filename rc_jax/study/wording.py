"""The numbers and sentences of a study's table, as Markdown and the page both show them."""

from collections.abc import Sequence

from rc_jax.evaluation.bootstrap import COVERAGE, RESAMPLES
from rc_jax.study.comparisons import Comparison, ScoredClaim, ScoredRow, StudyTable
from rc_jax.study.intervals import MANY_SEEDS, POWER, seeds_needed

MANY_RUNS = 10  # more are not named one by one
NONE = "-"


def percent(mean: float | None, deviation: float | None = None) -> str:
  """Formats a score with its standard deviation.

  >>> percent(37.018, 0.412), percent(37.0), percent(None)
  ('37.02 ± 0.41', '37.00', '-')
  """
  if mean is None:
    return NONE
  return f"{mean:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")


def points(value: float | None) -> str:
  """Formats a difference in points of mIoU.

  >>> points(0.2), points(-1.0), points(-0.001), points(None)
  ('+0.20', '-1.00', '+0.00', '-')
  """
  if value is None:
    return NONE
  return f"{round(value, 2) + 0.0:+.2f}"  # -0.0 + 0.0 is 0.0


def interval(ends: tuple[float, float] | None) -> str:
  """Formats an interval of a difference.

  >>> interval((-0.1, 0.5)), interval(None)
  ('-0.10 to +0.50', '-')
  """
  return NONE if ends is None else f"{points(ends[0])} to {points(ends[1])}"


def paper(value: float | None, sign: str = "") -> str:
  """Formats a number of the paper, with its one digit after the point, or two.

  >>> paper(79.0), paper(79.6 - 76.4, "+"), paper(81.25), paper(None)
  ('79.0', '+3.2', '81.25', '-')
  """
  if value is None:
    return NONE
  digits = 1 if abs(round(value, 1) - value) < 1e-6 else 2
  return f"{value:{sign}.{digits}f}"


def claim(scored: ScoredClaim) -> str:
  """Returns the order that the paper claims, ``better > worse``."""
  return f"{scored.claim.better} > {scored.claim.worse}"


_DIFFERENCE_HEADS = ("difference", "pairs", "over seeds", "over images")
CLAIM_HEADS = ("claim", "verdict", *_DIFFERENCE_HEADS, "paper's difference")


def row_heads(table: StudyTable) -> list[str]:
  """Returns the titles of the columns of the rows; of the baseline where the rows have several."""
  baseline = ["baseline"] if len(table.baselines) > 1 else []
  return ["row", "seeds", "mIoU", *baseline, *_DIFFERENCE_HEADS, "paper", "paper's difference"]


def row_cells(row: ScoredRow, table: StudyTable) -> list[str]:
  """Returns the cells of a row, below ``row_heads``."""
  scored, planned = len(row.mious), len(table.study.seeds)
  baseline = [NONE if row.difference is None else row.baseline] if len(table.baselines) > 1 else []
  return [
    row.row.name,
    str(planned) if scored == planned else f"{scored} of {planned}",
    percent(row.mean, row.deviation),
    *baseline,
    *_difference_cells(row.difference),
    paper(row.row.paper),
    paper(row.difference.paper if row.difference else None, "+"),
  ]


def claim_cells(scored: ScoredClaim) -> list[str]:
  """Returns the cells of a claim, below ``CLAIM_HEADS``."""
  comparison = scored.comparison
  return [
    claim(scored),
    comparison.verdict,
    *_difference_cells(comparison),
    paper(comparison.paper, "+"),
  ]


def _difference_cells(difference: Comparison | None) -> list[str]:
  if difference is None:
    return [NONE] * len(_DIFFERENCE_HEADS)
  return [
    points(difference.mean),
    str(len(difference.seeds)),
    interval(difference.over_seeds),
    interval(difference.over_images),
  ]


def claims_title(table: StudyTable) -> str:
  """Returns the title of the claims, with their source."""
  return f"Claims of {table.study.source}" if table.study.source else "Claims"


def progress(table: StudyTable) -> str:
  """Returns how many of the runs are scored, on how many images."""
  of_images = f", {table.images} images" if table.images else ""
  return f"{len(table.results)} of {len(table.study.runs)} runs are scored on {table.split}{of_images}."


def warnings(table: StudyTable) -> list[str]:
  """Returns a sentence for each reason for which the table is incomplete or a number shows less than it seems."""
  found = [f"Failed: {run}: {reason}." for run, reason in table.failed]
  if table.missing:
    names = [str(run) for run in table.missing[:MANY_RUNS]]
    more = len(table.missing) - len(names)
    found.append(f"Not scored yet: {'; '.join(names)}{f'; and {more} others' if more else ''}.")
  if table.left_out:
    more = len(table.left_out) - MANY_RUNS
    others = ", ".join(table.left_out[:MANY_RUNS]) + (f" and {more} others" if more > 0 else "")
    found.append(f"The folder also holds scored runs that this table leaves out: {others}.")
  steps = sorted({result.scores["step"] for _, result in table.results})
  if len(steps) > 1:
    found.append(f"The runs were scored after different numbers of steps ({', '.join(map(str, steps))}).")
  if len(table.protocols) > 1:
    found.append(
      f"The runs were scored in different ways ({'; '.join(table.protocols)}): part of a difference may be due to that."
    )
  if table.images == 1:
    found.append("One image says nothing about others: there is no interval over images.")
  compared = [(row.row.name, row.baseline, row.difference) for row in table.rows if row.difference]
  pairs = {(better, worse) for better, worse, _ in compared}
  for scored in table.claims:
    names_of_claim = (scored.claim.better, scored.claim.worse)
    if names_of_claim not in pairs:
      compared.append((*names_of_claim, scored.comparison))
  found += [sentence for entry in compared if (sentence := _no_interval(*entry))]
  return found


def _no_interval(better: str, worse: str, comparison: Comparison) -> str:
  """Returns why a comparison shows nothing about other seeds; empty where it has an interval with a width."""
  pair = f"{better} against {worse}"
  if not comparison.seeds:
    return f"{pair}: no seed is scored in both, so there is no difference."
  if comparison.over_seeds is None:
    return (
      f"{pair}: one seed is scored in both. It does not show by how much seeds differ, so there is no interval over "
      "seeds."
    )
  if comparison.all_equal:
    return (
      f"{pair}: the differences of all {len(comparison.seeds)} seeds are equal, so the interval over seeds has width "
      "0. It says nothing about other seeds, and supports no claim."
    )
  return ""


def open_claims(table: StudyTable) -> list[str]:
  """Returns how many seeds would settle each open claim, where the seeds show by how much they differ."""
  return [
    _seeds_for(scored, scored.comparison.mean, scored.comparison.deviation)
    for scored in table.claims
    if scored.comparison.verdict == "open"
    and scored.comparison.mean is not None
    and scored.comparison.deviation is not None
    and not scored.comparison.all_equal
  ]


def _seeds_for(scored: ScoredClaim, mean: float, deviation: float) -> str:
  comparison = scored.comparison
  needs = [f"{_number_of_seeds(mean, deviation)} for a difference of the observed size ({points(mean)})"]
  if comparison.paper is not None:
    needs.append(
      f"{_number_of_seeds(comparison.paper, deviation)} for the paper's difference ({paper(comparison.paper, '+')})"
    )
  return (
    f"{claim(scored)} is open. The differences have a standard deviation of {deviation:.2f} points, estimated from "
    f"{len(comparison.seeds)} seeds. With it, {100 * POWER:g} % power needs {' and '.join(needs)}."
  )


def _number_of_seeds(difference: float, deviation: float) -> str:
  needed = seeds_needed(difference, deviation)
  return f"more than {MANY_SEEDS:,} seeds" if needed is None else f"about {needed} seeds"


def reading(tables: Sequence[StudyTable]) -> list[str]:
  """Returns the sentences that say what the numbers mean."""
  study = tables[0].study
  baseline = tables[0].baselines[0] if len(tables[0].baselines) == 1 else "its baseline"
  pairs = {(row.name, study.baseline_of(row)) for row in study.rows if study.baseline_of(row) != row.name}
  pairs |= {(entry.better, entry.worse) for entry in study.claims}
  number = len({frozenset(pair) for pair in pairs}) * len(study.splits)
  coverage = f"{100 * COVERAGE:g} %"
  return [
    "Scores are mIoU in percent: the mean over seeds ± the standard deviation over seeds (n - 1). A difference is the "
    f"row minus {baseline} at the same seed, in points of mIoU, averaged over the seeds that both have.",
    f"The interval over seeds ({coverage}, Student's t on the differences of the seeds) estimates the difference for "
    "other seeds of training, scored on the same images. It takes these differences as normally distributed, and does "
    "not cover other images.",
    f"The interval over images ({coverage}, paired bootstrap of {RESAMPLES:,} resamples, the same for all runs) "
    "estimates the difference of these trained networks on other images like these. It does not cover other seeds, and "
    "is too narrow where images are few.",
    "A claim is supported where its interval over seeds lies above 0, contradicted where it lies below 0, and open "
    "otherwise.",
    f"The study makes {number} comparison{'' if number == 1 else 's'}, and no correction for several is applied: of 20 "
    "comparisons without a true difference, one interval is expected to leave out 0 by chance.",
  ]
