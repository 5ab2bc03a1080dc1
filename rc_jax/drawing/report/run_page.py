"""The page of a run: its scores, pictures, classes, curves, contrast and configuration."""

import dataclasses
import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rc_jax.config import Config, contrast_title, height_width, uses_contrast
from rc_jax.console import duration
from rc_jax.data import DatasetInfo
from rc_jax.drawing.panels import IGNORED_COLOR, MANY_CLASSES, WRONG_COLOR
from rc_jax.drawing.predicted_image import PANELS, Picture, panels_of
from rc_jax.drawing.report.class_charts import NUMBERED_CLASSES, confusion_chart, css_color, iou_bars, swatch
from rc_jax.drawing.report.configuration import configuration_section
from rc_jax.drawing.report.page import Section, document, picture_button
from rc_jax.drawing.report.run_curves import Ages, contrast_section, curves_section
from rc_jax.drawing.report.series import Lines, column

# Pixels; larger pictures are shrunk to it, which keeps six rows of Cityscapes below 3 MB.
_PICTURE_HEIGHT, _PICTURE_WIDTH = 512, 768
_PHOTOGRAPHS = ("Image", "Differences")  # panels of more colours than those of the classes


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """All that the page shows.

  Attributes:
    config: of the run.
    info: names and colours of the ``N`` classes.
    lines: of ``metrics.jsonl``.
    pictures: of ``eval.split``.
    step: updates behind the pictures, 0 for a file of weights; None: unknown.
    scores: of ``eval/<split>.json``; None: not scored.
    scored_weights: a phrase on the weights behind the scores, such as ``step 4,000``.
    confusion: ``[N,N]``, rows truth, of the same evaluation; None: unknown.
    constant: the name of the most frequent class, and the mIoU of predicting it everywhere; None: unknown.
    ages: of the keys in the banks; None: the log does not show them.
    software: versions and device, for the last line.
    notes: sentences on parts of the page that were not computed together.
  """

  config: Config
  info: DatasetInfo
  lines: Lines
  pictures: Sequence[Picture]
  step: int | None = None
  scores: Mapping[str, Any] | None = None
  scored_weights: str = ""
  confusion: np.ndarray | None = None
  constant: tuple[str, float] | None = None
  ages: Ages | None = None
  software: str = ""
  notes: Sequence[str] = ()


def run_page(run: Run) -> str:
  """Returns a page of HTML that needs no other file."""
  sections = [_pictures(run)]
  if run.scores is not None:
    sections.append(_classes(run))
    if run.confusion is not None:
      sections.append(_confusion(run.confusion, run.info))
  steps = [line for line in run.lines if "loss" in line]
  evaluations = [line for line in run.lines if line.get("split") == run.config.eval.split]
  if steps or evaluations:
    sections.append(curves_section(steps, evaluations, run.config.eval.split))
  if steps and uses_contrast(run.config):
    sections += contrast_section(steps, run.info, run.ages)
  sections.append(configuration_section(run.config))
  return document(_title(run.config), _header(run, steps), sections, html.escape(run.software))


def _title(config: Config) -> str:
  return f"{config.dataset.name}: {config.model.name} on {config.model.backbone}"


def _header(run: Run, steps: Lines) -> str:
  config = run.config
  kind = contrast_title(config) if uses_contrast(config) else "Baseline, without contrastive loss"
  score = (
    '<p class="lead">Not scored yet: <code>--mode=eval</code> scores the newest checkpoint.</p>'
    if run.scores is None
    else _scores(run, run.scores)
  )
  title = html.escape(_title(config))
  notes = "".join(f'<p class="note"><b>Note:</b> {html.escape(note)}</p>' for note in run.notes)
  return (
    f'<p class="kind">{html.escape(kind)}</p><h1>{title}</h1>{score}{notes}<p>{_training(run, steps)}</p>'
  )


def _scores(run: Run, scores: Mapping[str, Any]) -> str:
  """Returns the mIoU in large digits and the scores to compare it with."""
  beside = []
  if run.constant is not None:
    name, miou = run.constant
    beside.append((f"mIoU of predicting {name} everywhere", _percent(miou)))
  scored = [line for line in run.lines if line.get("split") == scores["split"]]
  own_step = None if "checkpoint" in scores else scores["step"]  # of another run's weights, none
  logged = dict(zip((line["step"] for line in scored), column(scored, "miou").tolist(), strict=True))
  logged = {step: miou for step, miou in logged.items() if math.isfinite(miou) and step != own_step}
  if logged:
    best = max(logged, key=lambda step: logged[step])
    beside.append((f"best mIoU at another step, {best:,}", _percent(logged[best])))
  beside.append(("pixel accuracy", _percent(scores["pixel_accuracy"])))
  beside.append(("mean accuracy of classes", _percent(scores["mean_accuracy"])))
  if scores.get("cross_entropy") is not None:  # files of earlier versions lack it
    beside.append(("validation loss, cross entropy in nats", f"{scores['cross_entropy']:.3f}"))
  terms = "".join(f"<dt>{html.escape(term)}</dt><dd>{value}</dd>" for term, value in beside)
  ious = scores["iou"].values()
  classes = f"{sum(iou is not None for iou in ious)} of {len(ious)} classes"
  where = f"mIoU in % over {classes} on {scores['split']}, {run.scored_weights}"
  return (
    f'<div class="scores"><div class="score"><b>{_percent(scores["miou"])}</b><span>{html.escape(where)}</span></div>'
    f'<dl class="beside">{terms}</dl></div>'
  )


def _percent(value: float | None) -> str:
  return "–" if value is None else f"{100 * value:.1f}"


def _training(run: Run, steps: Lines) -> str:
  """Returns one sentence on the training."""
  train = run.config.train
  size = " × ".join(map(str, height_width(train.crop_size)))
  text = f"of {train.steps:,} steps, each on {train.batch_size} crops of {size} pixels"
  if not steps:
    return html.escape(f"The recipe trains {text[3:]}. This folder has no log of the training.")
  trained = steps[-1]["step"]
  if run.scores is not None and "checkpoint" not in run.scores:
    trained = max(trained, run.scores["step"])
  text = f"Trained for {trained:,} {text}"
  speeds = column(steps, "images_per_second")
  number = np.diff([0, *(line["step"] for line in steps)]) * train.batch_size
  known = np.isfinite(speeds) & (speeds > 0)
  if known.any():
    seconds = float((number[known] / speeds[known]).sum())
    text += (
      f", at {np.median(speeds[known]):.3g} images/s, in {duration(seconds)} without compiling and scoring"
    )
  return html.escape(text + ".")


def _pictures(run: Run) -> Section:
  step = "" if run.step is None else f" at step {run.step:,}" if run.step else " with the weights of a file"
  count = len(run.pictures)
  lead = (
    f"Predictions{step} for {count} images, evenly spaced over {run.config.eval.split} from its first to its last. "
    "Differences: wrong pixels are red, ignored pixels black, both over a grey image. "
    "A click on a picture enlarges it."
  )
  rows = "".join(_picture_row(picture, run.info) for picture in run.pictures)
  return Section("pictures", "Pictures", f'<p class="lead">{html.escape(lead)}</p>{_legend(run)}{rows}')


def _legend(run: Run) -> str:
  """Returns the colours of the classes, of many only of those in the pictures, and of ignored and wrong pixels."""
  info = run.info
  classes = list(range(info.num_classes))
  if len(classes) > MANY_CLASSES:
    shown: set[int] = set()
    for picture in run.pictures:
      shown |= set(np.unique(picture.truth).tolist()) | set(np.unique(picture.prediction).tolist())
    classes = sorted(shown & set(classes))
  entries = [(info.class_names[label], info.palette[label]) for label in classes]
  entries += [("ignored", np.array(IGNORED_COLOR)), ("wrong", np.array(WRONG_COLOR))]
  items = "".join(f"<li>{swatch(color)}{html.escape(name)}</li>" for name, color in entries)
  # Of classes with one colour the first keeps it. The script reads the class of a pixel from its colour.
  names = {css_color(np.array(IGNORED_COLOR))[4:-1]: "ignored"}
  for label in reversed(classes):
    names[css_color(info.palette[label])[4:-1]] = info.class_names[label]
  return f'<ul class="legend" data-classes="{html.escape(json.dumps(names), quote=True)}">{items}</ul>'


def _picture_row(picture: Picture, info: DatasetInfo) -> str:
  panels = panels_of(picture, info, _PICTURE_HEIGHT, _PICTURE_WIDTH)
  buttons = "".join(
    picture_button(panel, title, f"{title}: {picture.name}", title in _PHOTOGRAPHS)
    for title, panel in zip(PANELS, panels, strict=True)
  )
  caption = f"<b>{html.escape(picture.name)}</b>"
  if picture.pixel_accuracy is not None:
    accuracy, miou = _percent(picture.pixel_accuracy), _percent(picture.miou)
    caption += f": pixel accuracy {accuracy} %, mean IoU of its classes {miou} %"
  return (
    f'<figure class="image"><figcaption>{caption}</figcaption><div class="panels">{buttons}</div></figure>'
  )


def _classes(run: Run) -> Section:
  scores = run.scores
  assert scores is not None
  pixels = None if run.confusion is None else run.confusion.sum(axis=1)
  names, ious = list(scores["iou"]), list(scores["iou"].values())
  palette = dict(zip(run.info.class_names, run.info.palette, strict=True))
  grey = np.array([128, 128, 128])
  colors = np.stack([palette.get(name, grey) for name in names])
  lead = f"IoU of each class in % on {scores['split']}, {run.scored_weights}. The dashed line is the mean."
  bars = iou_bars(names, colors, ious, scores["miou"] or 0.0, pixels)
  return Section(
    "classes", "IoU of each class", f'<p class="lead">{html.escape(lead)}</p>{bars}', half=_beside(run.info)
  )


def _confusion(confusion: np.ndarray, info: DatasetInfo) -> Section:
  lead = (
    "Predictions for the pixels of each class, in % of the class."
    if info.num_classes <= MANY_CLASSES
    else "Confused classes, the pairs with the most wrong pixels first."
  )
  chart = confusion_chart(confusion, info.class_names)
  return Section("confusion", "Confusion", f'<p class="lead">{lead}</p>{chart}', half=_beside(info))


def _beside(info: DatasetInfo) -> bool:
  """Returns whether bars and confusion of the classes fit beside each other."""
  return info.num_classes <= NUMBERED_CLASSES
