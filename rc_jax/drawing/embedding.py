"""Region centers of runs side by side, by t-SNE, and how well they separate the classes: a picture and a page.

RegionContrast, Figure 3.
"""

import dataclasses
import html
import importlib.util
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from rc_jax.data import DatasetInfo
from rc_jax.drawing.panels import captioned, grid, legend
from rc_jax.drawing.report.class_charts import css_color, dot_pairs, swatch
from rc_jax.drawing.report.page import Section, document

LEAST_CENTERS = 4  # fewer have no neighbourhoods to draw
PERPLEXITY = 30  # scikit-learn's default; less for few centers
SEED = 0

_PNG_SIDE = 480  # pixels of a panel
_PNG_DOT = 6.0  # diameter in pixels
_OVERSAMPLING = 4  # dots are drawn larger by this factor and averaged, because Pillow's have jagged edges
_SVG_SIDE, _SVG_MARGIN = 400, 8  # of a panel, in its units
_SVG_DOT = 5.0  # diameter
_FULL_SIZE = 1000  # centers, up to which dots have these diameters
_SMALLEST_DOT = 0.4  # of the diameter, for many centers


@dataclasses.dataclass(frozen=True, eq=False)
class EmbeddedRun:
  """The centers of a run in two dimensions.

  Attributes:
    name: of the run.
    description: a phrase on its loss, step and centers.
    positions: float ``[K,2]``.
    labels: int ``[K]``, classes ``0..N-1``.
  """

  name: str
  description: str
  positions: np.ndarray
  labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Measure:
  """A number on the centers of each of ``R`` runs.

  Attributes:
    title: with the unit.
    meaning: a sentence.
    limits: of its axis.
    total: ``R`` values for all centers together; None where a run has none.
    mean: likewise, the means of the classes.
    classes: ``N`` tuples of ``R`` values.
  """

  title: str
  meaning: str
  limits: tuple[float, float]
  total: tuple[float | None, ...]
  mean: tuple[float | None, ...]
  classes: tuple[tuple[float | None, ...], ...]

  def text(self, value: float | None) -> str:
    """Returns a value with the digits of its axis."""
    return "–" if value is None else f"{value:.3f}" if self.limits[1] <= 1 else f"{value:.1f}"


def check_installed() -> None:
  """Checks that scikit-learn is installed.

  Raises:
    ValueError: it is not; one line with the remedy.
  """
  if importlib.util.find_spec("sklearn") is None:
    raise ValueError("t-SNE needs scikit-learn, which is not installed; run: pip install 'rc_jax[figures]'")


def project(vectors: np.ndarray) -> np.ndarray:
  """Projects unit vectors to two dimensions by t-SNE, from their two principal components.

  The same vectors give the same positions on the same machine: the seed is fixed, and one thread computes, because
  sums of several threads have no fixed order.

  Args:
    vectors: float ``[K,C]``, ``K`` at least ``LEAST_CENTERS``. Their Euclidean distances have the order of the cosines.

  Returns:
    float32 ``[K,2]``.

  Raises:
    ValueError: scikit-learn is not installed, or there are too few vectors.
  """
  check_installed()
  import sklearn.manifold
  import threadpoolctl

  if len(vectors) < LEAST_CENTERS:
    raise ValueError(
      f"t-SNE: {len(vectors)} centers; expected {LEAST_CENTERS} or more, of more images or classes"
    )
  if not np.ptp(vectors, axis=0).any():
    return np.zeros((len(vectors), 2), np.float32)  # equal vectors have no principal components
  tsne = sklearn.manifold.TSNE(
    init="pca", perplexity=min(PERPLEXITY, (len(vectors) - 1) / 3), random_state=SEED
  )
  with threadpoolctl.threadpool_limits(1):
    return np.asarray(tsne.fit_transform(vectors.astype(np.float32)), np.float32)


def embedding_picture(runs: Sequence[EmbeddedRun], info: DatasetInfo) -> Image.Image:
  """Draws the centers of runs side by side, in the colours of their classes, above a legend."""
  drawn = grid([[captioned(_dots(run, info), f"{run.name}: {run.description}") for run in runs]])
  return grid([[drawn], [legend(info, _occurring(runs), drawn.width)]])


def _dots(run: EmbeddedRun, info: DatasetInfo) -> Image.Image:
  side = _PNG_SIDE * _OVERSAMPLING
  canvas = Image.new("RGB", (side, side), "white")
  draw = ImageDraw.Draw(canvas)
  draw.rectangle((0, 0, side - 1, side - 1), outline=(200, 205, 210), width=_OVERSAMPLING)
  radius = _PNG_DOT * _dot_size(run) * _OVERSAMPLING / 2
  places = _places(run.positions, side, 3 * radius)
  for label in _largest_first(run.labels):
    color = tuple(info.palette[label].tolist())
    for x, y in places[run.labels == label]:
      box = (x - radius, y - radius, x + radius, y + radius)
      draw.ellipse(box, fill=color, outline=(90, 90, 90), width=_OVERSAMPLING // 2)
  return canvas.resize((_PNG_SIDE, _PNG_SIDE), Image.Resampling.LANCZOS)


def _dot_size(run: EmbeddedRun) -> float:
  """Returns a factor on the diameter of dots: many small ones cover as much of the panel as few large ones."""
  return max(_SMALLEST_DOT, min(1.0, (_FULL_SIZE / len(run.labels)) ** 0.5))


def _places(positions: np.ndarray, side: float, margin: float) -> np.ndarray:
  """Returns positions ``[K,2]`` in a square, with one scale for both axes and ``y`` downwards."""
  low, high = positions.min(axis=0), positions.max(axis=0)
  scale = (side - 2 * margin) / max(float((high - low).max()), 1e-9)
  return (positions - (low + high) / 2) * scale * (1, -1) + side / 2


def _largest_first(labels: np.ndarray) -> list[int]:
  """Returns the classes with their dots, those of few on top of the others."""
  counts = np.bincount(labels)
  return [int(label) for label in np.argsort(-counts, kind="stable") if counts[label]]


def _occurring(runs: Sequence[EmbeddedRun]) -> list[int]:
  return np.unique(np.concatenate([run.labels for run in runs])).tolist()


def centers_page(
  runs: Sequence[EmbeddedRun],
  measures: Sequence[Measure],
  info: DatasetInfo,
  split: str,
  notes: Sequence[str],
  software: str,
) -> str:
  """Returns a page of HTML that needs no other file.

  Args:
    runs: at least one.
    measures: of the same runs in the same order.
    info: names and colours of the ``N`` classes.
    split: of the data set.
    notes: sentences on what makes the runs hard to compare.
    software: versions and device, for the last line.
  """
  sections = [_embedding(runs, info), _totals(runs, measures), _by_class(runs, measures, info)]
  title = f"{info.name}: region centers of {split}"
  shown = "".join(f'<p class="note"><b>Note:</b> {html.escape(note)}</p>' for note in notes)
  header = f'<p class="kind">Region centers, RegionContrast, Figure 3</p><h1>{html.escape(title)}</h1>{shown}'
  return document(title, header, sections, html.escape(software))


def _embedding(runs: Sequence[EmbeddedRun], info: DatasetInfo) -> Section:
  lead = (
    "Each dot is the region center of one class in one image. t-SNE places centers beside those with a large cosine. "
    "Gaps and sizes of groups mean little, so compare the numbers below."
  )
  entries = "".join(
    f'<li data-class="{label}">{swatch(info.palette[label])}{html.escape(info.class_names[label])}</li>'
    for label in _occurring(runs)
  )
  panels = "".join(_svg(run, info) for run in runs)
  body = (
    f'<p class="lead">{lead}</p><ul class="legend">{entries}</ul><div class="charts broad">{panels}</div>'
  )
  return Section("embedding", "t-SNE of the centers", body)


def _svg(run: EmbeddedRun, info: DatasetInfo) -> str:
  places = _places(run.positions, _SVG_SIDE, _SVG_MARGIN)
  groups = []
  for label in _largest_first(run.labels):
    # A line of no length with round ends is a dot: one path for all centers of a class.
    dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places[run.labels == label])
    count = int((run.labels == label).sum())
    tip = html.escape(
      f"{info.class_names[label]}: {count} {'center' if count == 1 else 'centers'}", quote=True
    )
    groups.append(
      f'<g data-class="{label}" data-tip="{tip}"><path class="edge" d="{dots}"/>'
      f'<path d="{dots}" style="color:{css_color(info.palette[label])}"/></g>'
    )
  described = html.escape(f"t-SNE of {len(run.labels)} region centers of {run.name}", quote=True)
  return (
    f'<figure class="chart"><figcaption>{html.escape(run.name)}</figcaption><p class="note">'
    f'{html.escape(run.description)}</p><svg class="points" viewBox="0 0 {_SVG_SIDE} {_SVG_SIDE}" role="img" '
    f'aria-label="{described}" tabindex="0" data-rove="1" style="--dot:{_SVG_DOT * _dot_size(run):.1f}">'
    f"{''.join(groups)}</svg></figure>"
  )


def _totals(runs: Sequence[EmbeddedRun], measures: Sequence[Measure]) -> Section:
  rows = []
  for measure in measures:
    for kind, values in (("all centers", measure.total), ("mean of classes", measure.mean)):
      rows.append((f"{measure.title}, {kind}", [measure.text(value) for value in values]))
  meanings = "".join(
    f'<p class="note"><b>{html.escape(measure.title)}</b>: {html.escape(measure.meaning)}</p>'
    for measure in measures
  )
  body = f"{_table([run.name for run in runs], rows)}{meanings}"
  return Section("numbers", "Separation of the classes", body)


def _by_class(runs: Sequence[EmbeddedRun], measures: Sequence[Measure], info: DatasetInfo) -> Section:
  classes = _occurring(runs)
  names = [info.class_names[label] for label in classes]
  figures = []
  for measure in measures:
    values = [measure.classes[label] for label in classes]
    if len(runs) == 2:
      columns = np.array([[np.nan if value is None else value for value in row] for row in values])
      pair = [(run.name, columns[:, place]) for place, run in enumerate(runs)]
      low = min(measure.limits[0], float(np.nanmin(columns, initial=measure.limits[0])))
      chart = dot_pairs(names, info.palette[classes], pair[0], pair[1], (low, measure.limits[1]))
    else:
      rows = [(name, [measure.text(value) for value in row]) for name, row in zip(names, values, strict=True)]
      chart = _table([run.name for run in runs], rows)
    figures.append(f'<div class="chart"><h3>{html.escape(measure.title)}</h3>{chart}</div>')
  return Section("classes", "Class by class", f'<div class="charts broad">{"".join(figures)}</div>')


def _table(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
  head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
  body = "".join(
    f'<tr><th scope="row">{html.escape(name)}</th>{"".join(f"<td>{html.escape(text)}</td>" for text in texts)}</tr>'
    for name, texts in rows
  )
  return (
    f'<div class="scroll"><table class="numbers"><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>'
    "</div>"
  )
