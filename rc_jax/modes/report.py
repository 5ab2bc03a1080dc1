"""``--mode=report`` draws a run: panels, curves, per-class IoU and confusion, and one page that shows them all."""

import base64
import collections
import html
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from PIL import Image

from rc_jax import data, distributed, models, sharding
from rc_jax.config import Config
from rc_jax.console import say
from rc_jax.drawing.panels import MANY_CLASSES, colorize, grid, legend, shrunk
from rc_jax.inference.batched import BatchedPredictor
from rc_jax.modes import CHECKPOINT, CONFIG, WORKDIR
from rc_jax.training.run_log import read_metrics
from rc_jax.weights import restore

FLAGS = (CONFIG, WORKDIR, CHECKPOINT, *distributed.FLAGS)

PANELS = 6  # images shown
PANEL_HEIGHT = 192  # pixels; larger images are shrunk to it


def run(config: Config, workdir: pathlib.Path, checkpoint: pathlib.Path | None = None) -> pathlib.Path:
  """Draws the report of a run from a checkpoint.

  Args:
    config: a validated config.
    workdir: the run's folder, with ``metrics.jsonl`` and ``eval/``.
    checkpoint: as for ``restore.locate``; None: the newest of ``workdir``.

  Returns:
    The path of the page, ``workdir/report/index.html``.

  Raises:
    FileNotFoundError: no checkpoint, or no data.
    ValueError: the checkpoint holds another network.
  """
  network = models.build(config.model, data.info(config.dataset.name, config.dataset.root).num_classes)
  restored = restore.restore(network, config, restore.locate(workdir, checkpoint))
  if jax.process_index() > 0:
    return workdir / "report" / "index.html"
  path = write(config, workdir, network, restored.params, restored.batch_stats)
  say(f"pictures of step {restored.step} are in {path.parent}; open {path}")
  return path


def write(
  config: Config, workdir: pathlib.Path, network: models.Network, params: Any, batch_stats: Any
) -> pathlib.Path:
  """Writes ``workdir/report/``: ``panels.png``, ``curves.png``, ``iou.png``, ``confusion.png``, ``index.html``.

  Args:
    config: the run's config.
    workdir: the run's folder, with ``metrics.jsonl`` and ``eval/``.
    network: functions of the network.
    params: replicated arrays.
    batch_stats: likewise.

  Returns:
    The path of the page, which needs no other file.
  """
  from rc_jax.drawing import plots  # imports matplotlib, which takes a second

  folder = workdir / "report"
  folder.mkdir(parents=True, exist_ok=True)
  captions = {"panels.png": "Image, ground truth, prediction"}
  panels(config, network, params, batch_stats).save(folder / "panels.png")
  lines = read_metrics(workdir)
  if any("loss" in line for line in lines):
    plots.save(plots.curves(lines), folder / "curves.png")
    captions["curves.png"] = (
      "Losses, fill of the memory banks (learning rate without banks) and mIoU over steps"
    )
  scores_path = workdir / "eval" / f"{config.eval.split}.json"
  scores = json.loads(scores_path.read_text()) if scores_path.is_file() else None
  if scores is not None:
    plots.save(plots.iou_bars(scores), folder / "iou.png")
    captions["iou.png"] = f"IoU of each class on {config.eval.split}, step {scores['step']}"
    confusion = np.load(workdir / "eval" / f"{config.eval.split}_confusion.npy")
    plots.save(plots.confusion_matrix(confusion, list(scores["iou"])), folder / "confusion.png")
    captions["confusion.png"] = (
      "Predictions for the pixels of each class (rows sum to 1)"
      if len(scores["iou"]) <= MANY_CLASSES
      else "Confused classes, the most frequent pairs first"
    )
  path = folder / "index.html"
  path.write_text(page(config, folder, captions, scores))
  return path


def panels(
  config: Config, network: models.Network, params: Any, batch_stats: Any, count: int = PANELS
) -> Image.Image:
  """Draws rows of image, ground truth and prediction, and a legend.

  Args:
    config: reads ``dataset`` and ``eval``.
    network: functions of the network.
    params: replicated arrays.
    batch_stats: likewise.
    count: of the rows, for images spread evenly over ``eval.split``.
  """
  source = data.load(config.dataset.name, config.dataset.root, config.eval.split)
  examples = [source[int(i)] for i in np.unique(np.linspace(0, len(source) - 1, count).round().astype(int))]
  sizes = [example["image"].shape[:2] for example in examples]
  predictor = BatchedPredictor(
    network, config.eval, sharding.local_mesh(), count_of_size=collections.Counter(sizes)
  )
  by_size = sorted(range(len(examples)), key=lambda row: sizes[row])
  params, batch_stats = sharding.local_copy((params, batch_stats))
  images = ((row, examples[row]["image"]) for row in by_size)
  predictions = predictor.labels(params, batch_stats, images)
  labels = {predicted.key: predicted.labels for predicted in predictions}

  info, rows, shown = source.info, [], set()
  for row, example in enumerate(examples):
    # Ignored pixels show the prediction too.
    shown |= set(np.unique(example["label"])) | set(np.unique(labels[row]))
    rows.append(
      [example["image"], colorize(example["label"], info.palette), colorize(labels[row], info.palette)]
    )
  drawn = grid([[Image.fromarray(shrunk(panel, PANEL_HEIGHT)) for panel in row] for row in rows])
  classes = list(range(info.num_classes))
  if len(classes) > MANY_CLASSES:
    classes = sorted(shown & set(classes))
  return grid([[drawn], [legend(info, classes, drawn.width)]])


def page(
  config: Config, folder: pathlib.Path, captions: Mapping[str, str], scores: Mapping[str, Any] | None
) -> str:
  """Returns a page of HTML that needs no other file.

  Args:
    config: shown at the end, and in the title.
    folder: of the pictures.
    captions: of each picture, by the name of its file.
    scores: of ``eval/<split>.json``; None: not scored yet.
  """
  title = html.escape(f"{config.dataset.name}: {config.model.name}, {config.model.backbone}")
  parts = [
    "<!doctype html><html lang='en'><meta charset='utf-8'>",
    "<meta name='viewport' content='width=device-width'>",
    f"<title>{title}</title>",
    "<style>body{font-family:sans-serif;max-width:1200px;margin:2em auto;padding:0 1em}",
    "img{max-width:100%}pre{background:#f4f4f4;padding:1em;overflow:auto}</style>",
    f"<h1>{title}</h1>",
  ]
  if scores is not None:
    parts.append(
      f"<p>mIoU <b>{100 * scores['miou']:.2f}</b>, pixel accuracy {100 * scores['pixel_accuracy']:.2f}, "
      f"mean accuracy {100 * scores['mean_accuracy']:.2f} on {html.escape(scores['split'])} "
      f"at step {scores['step']}.</p>"
    )
  for name, caption in captions.items():
    encoded = base64.b64encode((folder / name).read_bytes()).decode()
    caption = html.escape(caption)
    parts.append(f"<h2>{caption}</h2><img alt='{caption}' src='data:image/png;base64,{encoded}'>")
  parts.append(f"<h2>Configuration</h2><pre>{html.escape(str(config))}</pre></html>")
  return "\n".join(parts)
