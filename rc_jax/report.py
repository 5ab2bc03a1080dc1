"""Pictures of a run: panels, curves, per-class IoU, confusion, and one self-contained page that shows them."""

import base64
import html
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from PIL import Image

from rc_jax import data, evaluate, inference, models, sharding
from rc_jax.config import Config
from rc_jax.drawing import colorize, grid, legend, shrunk
from rc_jax.run_log import read, say

matplotlib.use("Agg")  # no screen on a training machine
import matplotlib.pyplot as plt

PANELS = 6  # images shown
PANEL_HEIGHT = 192  # pixels; larger images are shrunk to it
MANY_CLASSES = 40  # above so many, what no reader would find is left out
CONFUSIONS = 40  # listed then, instead of a matrix


def panels(
  config: Config, network: models.Network, params: Any, batch_stats: Any, count: int = PANELS
) -> Image.Image:
  """Draws rows of image, ground truth and prediction, from images spread evenly over ``eval.split``, and a legend."""
  source = data.load(config.dataset.name, config.dataset.root, config.eval.split)
  predict = inference.make_predictor(network, config.eval)
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
  folder = workdir / "report"
  folder.mkdir(parents=True, exist_ok=True)
  pictures = {"panels.png": "Image, ground truth, prediction"}
  panels(config, network, params, batch_stats).save(folder / "panels.png")
  lines = read(workdir)
  if any("loss" in line for line in lines):
    _save(_curves(lines), folder / "curves.png")
    pictures["curves.png"] = (
      "Losses, fill of the memory banks (learning rate, where there are none) and mIoU over steps"
    )
  scores_path = workdir / "eval" / f"{config.eval.split}.json"
  scores = json.loads(scores_path.read_text()) if scores_path.is_file() else None
  if scores is not None:
    _save(_bars(scores), folder / "iou.png")
    pictures["iou.png"] = f"IoU of each class on {config.eval.split}, step {scores['step']}"
    confusion = np.load(workdir / "eval" / f"{config.eval.split}_confusion.npy")
    _save(_confusion(confusion, list(scores["iou"])), folder / "confusion.png")
    pictures["confusion.png"] = (
      "Where the pixels of each class go (rows sum to 1)"
      if len(scores["iou"]) <= MANY_CLASSES
      else "What is taken for what, the most frequent first"
    )
  page = folder / "index.html"
  page.write_text(_page(config, folder, pictures, scores))
  return page


def run(config: Config, workdir: pathlib.Path, checkpoint_path: pathlib.Path | None) -> pathlib.Path:
  """Draws the report of a run from a checkpoint, see ``write``: ``--mode=report``."""
  network = models.build(config.model, data.info(config.dataset.name, config.dataset.root).num_classes)
  restored = evaluate.restore(network, config, checkpoint_path or workdir)
  if jax.process_index() > 0:
    return workdir / "report" / "index.html"
  page = write(config, workdir, network, restored.params, restored.batch_stats)
  say(f"pictures of step {restored.step} are in {page.parent}; open {page}")
  return page


def _curves(lines: list[dict[str, Any]]) -> plt.Figure:
  figure, axes = plt.subplots(1, 4, figsize=(18, 3.8), layout="constrained")
  steps = [line for line in lines if "loss" in line]
  scores = [line for line in lines if "miou" in line]
  at = [line["step"] for line in steps]
  for name in ("loss", "loss_pixel", "loss_aux"):
    axes[0].plot(at, [line[name] for line in steps], label=name, linewidth=1)
  axes[0].set_yscale("log")
  axes[0].legend()
  axes[1].plot(at, [line["loss_contrast"] for line in steps], label="loss_contrast", linewidth=1)
  axes[1].legend()
  if any("bank_fill" in line for line in steps):
    for name in steps[-1]["bank_fill"]:
      axes[2].plot(at, [line["bank_fill"][name] for line in steps], label=name, linewidth=1)
    axes[2].set_ylim(0, 1.02)
    if len(steps[-1]["bank_fill"]) <= 20:
      axes[2].legend(fontsize=6)
    axes[2].set_title("bank fill")
  else:
    axes[2].plot(at, [line["learning_rate"] for line in steps], linewidth=1)
    axes[2].set_title("learning rate")
  axes[3].plot([line["step"] for line in scores], [100 * line["miou"] for line in scores], marker="o")
  axes[3].set_title("mIoU, %")
  for axis in axes:
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
  return figure


def _bars(scores: dict[str, Any]) -> plt.Figure:
  names = list(scores["iou"])
  columns = -(-len(names) // MANY_CLASSES)
  rows = -(-len(names) // columns)
  figure, axes = plt.subplots(
    1, columns, figsize=(2 + 5 * columns, 0.8 + 0.28 * rows), layout="constrained", squeeze=False
  )
  for column, axis in enumerate(axes[0]):
    part = names[column * rows : (column + 1) * rows]
    axis.barh(part, [100 * (scores["iou"][name] or 0) for name in part])
    axis.axvline(100 * scores["miou"], color="black", linestyle="--", linewidth=1)
    axis.set_xlim(0, 100)
    axis.set_ylim(rows - 0.4, -0.6)  # the first at the top, and bars of one height in all columns
    axis.set_xlabel(f"IoU, % (dashed: mIoU {100 * scores['miou']:.2f})")
  return figure


def _confusion(confusion: np.ndarray, names: list[str]) -> plt.Figure:
  shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
  if len(names) > MANY_CLASSES:
    return _largest_confusions(confusion, shares, names)
  side = 3 + 0.3 * len(names)
  figure, axis = plt.subplots(figsize=(side, side), layout="constrained")
  axis.imshow(shares, vmin=0, vmax=1, cmap="viridis")
  axis.set_xticks(range(len(names)), names, rotation=90)
  axis.set_yticks(range(len(names)), names)
  axis.set_xlabel("prediction")
  axis.set_ylabel("ground truth")
  if len(names) <= 20:
    for row, column in np.argwhere(shares >= 0.05):
      color = "white" if shares[row, column] < 0.6 else "black"
      axis.text(
        column, row, f"{100 * shares[row, column]:.0f}", ha="center", va="center", color=color, fontsize=7
      )
  return figure


def _largest_confusions(confusion: np.ndarray, shares: np.ndarray, names: list[str]) -> plt.Figure:
  """The pairs that most wrong pixels belong to; a matrix of 150 classes is a carpet."""
  wrong = confusion * ~np.eye(len(names), dtype=bool)
  pairs = [divmod(int(pair), len(names)) for pair in np.argsort(-wrong, axis=None)[:CONFUSIONS]]
  pairs = [(truth, taken_for) for truth, taken_for in pairs if wrong[truth, taken_for]]
  labels = [f"{names[truth]} taken for {names[taken_for]}" for truth, taken_for in pairs]
  figure, axis = plt.subplots(figsize=(9, 1.2 + 0.28 * len(pairs)), layout="constrained")
  bars = axis.barh(labels, [100 * wrong[pair] / max(wrong.sum(), 1) for pair in pairs])
  axis.bar_label(bars, [f"{100 * shares[pair]:.0f} % of the class" for pair in pairs], padding=3, fontsize=7)
  axis.set_ylim(len(pairs) - 0.4, -0.6)
  axis.margins(x=0.2)
  axis.set_xlabel("share of all wrong pixels, %")
  return figure


def _save(figure: plt.Figure, path: pathlib.Path) -> None:
  figure.savefig(path, dpi=90)
  plt.close(figure)


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
