"""Pictures of a run: panels, curves, per-class IoU, confusion, and one self-contained page that shows them."""

import base64
import html
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from rc_jax import data, distributed, models, sharding
from rc_jax.config import Config
from rc_jax.console import say
from rc_jax.drawing.panels import MANY_CLASSES, colorize, grid, legend, shrunk
from rc_jax.inference import predictor
from rc_jax.modes import CHECKPOINT, CONFIG, WORKDIR
from rc_jax.training.run_log import read_metrics
from rc_jax.weights import restore

FLAGS = (CONFIG, WORKDIR, CHECKPOINT, *distributed.FLAGS)


PANELS = 6  # images shown
PANEL_HEIGHT = 192  # pixels; larger images are shrunk to it


def panels(
  config: Config, network: models.Network, params: Any, batch_stats: Any, count: int = PANELS
) -> Image.Image:
  """Draws rows of image, ground truth and prediction, from images spread evenly over ``eval.split``, and a legend."""
  source = data.load(config.dataset.name, config.dataset.root, config.eval.split)
  predict = predictor.make_predictor(network, config.eval)
  params, batch_stats = sharding.local_copy((params, batch_stats))
  label = jax.jit(lambda *inputs: jnp.argmax(predict(*inputs), axis=-1).astype(jnp.uint8))
  rows, shown = [], set()
  for index in np.unique(np.linspace(0, len(source) - 1, count).round().astype(int)):
    example = source[int(index)]
    predicted = np.asarray(label(params, batch_stats, example["image"][None])[0])
    palette = source.info.palette
    truth = example["label"]
    # Where the truth says nothing, the prediction is shown all the same: a user's eye judges it there.
    shown |= set(np.unique(truth)) | set(np.unique(predicted))
    rows.append([example["image"], colorize(truth, palette), colorize(predicted, palette)])
  drawn = grid([[Image.fromarray(shrunk(panel, PANEL_HEIGHT)) for panel in row] for row in rows])
  classes = list(range(source.info.num_classes))
  if len(classes) > MANY_CLASSES:
    classes = sorted(shown & set(classes))
  return grid([[drawn], [legend(source.info, classes, drawn.width)]])


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
  pictures = {"panels.png": "Image, ground truth, prediction"}
  panels(config, network, params, batch_stats).save(folder / "panels.png")
  lines = read_metrics(workdir)
  if any("loss" in line for line in lines):
    plots.save(plots.curves(lines), folder / "curves.png")
    pictures["curves.png"] = (
      "Losses, fill of the memory banks (learning rate, where there are none) and mIoU over steps"
    )
  scores_path = workdir / "eval" / f"{config.eval.split}.json"
  scores = json.loads(scores_path.read_text()) if scores_path.is_file() else None
  if scores is not None:
    plots.save(plots.iou_bars(scores), folder / "iou.png")
    pictures["iou.png"] = f"IoU of each class on {config.eval.split}, step {scores['step']}"
    confusion = np.load(workdir / "eval" / f"{config.eval.split}_confusion.npy")
    plots.save(plots.confusion_matrix(confusion, list(scores["iou"])), folder / "confusion.png")
    pictures["confusion.png"] = (
      "Where the pixels of each class go (rows sum to 1)"
      if len(scores["iou"]) <= MANY_CLASSES
      else "What is taken for what, the most frequent first"
    )
  page = folder / "index.html"
  page.write_text(_page(config, folder, pictures, scores))
  return page


def run(config: Config, workdir: pathlib.Path, checkpoint: pathlib.Path | None = None) -> pathlib.Path:
  """Draws the report of a run from a checkpoint, see ``write``: ``--mode=report``."""
  network = models.build(config.model, data.info(config.dataset.name, config.dataset.root).num_classes)
  restored = restore.restore(network, config, restore.locate(workdir, checkpoint))
  if jax.process_index() > 0:
    return workdir / "report" / "index.html"
  page = write(config, workdir, network, restored.params, restored.batch_stats)
  say(f"pictures of step {restored.step} are in {page.parent}; open {page}")
  return page


def _page(
  config: Config, folder: pathlib.Path, pictures: dict[str, str], scores: dict[str, Any] | None
) -> str:
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
  for name, caption in pictures.items():
    encoded = base64.b64encode((folder / name).read_bytes()).decode()
    caption = html.escape(caption)
    parts.append(f"<h2>{caption}</h2><img alt='{caption}' src='data:image/png;base64,{encoded}'>")
  parts.append(f"<h2>Configuration</h2><pre>{html.escape(str(config))}</pre></html>")
  return "\n".join(parts)
