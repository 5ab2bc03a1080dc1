"""Plots of a run: losses and scores over steps, IoU of each class, confusion."""

import pathlib
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from rc_jax.drawing.panels import MANY_CLASSES

matplotlib.use("Agg")  # no screen on a training machine

CONFUSIONS = 40  # pairs of classes listed instead of a matrix, if there are many classes


def curves(lines: list[dict[str, Any]]) -> plt.Figure:
  """Plots losses, fill of the memory banks and mIoU over steps, from the lines of ``metrics.jsonl``."""
  figure, axes = plt.subplots(1, 4, figsize=(18, 3.8), layout="constrained")
  steps = [line for line in lines if "loss" in line]
  scores = [line for line in lines if "miou" in line]
  x = [line["step"] for line in steps]
  for name in ("loss", "loss_pixel", "loss_aux"):
    axes[0].plot(x, [line[name] for line in steps], label=name, linewidth=1)
  axes[0].set_yscale("log")
  axes[0].legend()
  axes[1].plot(x, [line["loss_contrast"] for line in steps], label="loss_contrast", linewidth=1)
  axes[1].legend()
  if any("bank_fill" in line for line in steps):
    for name in steps[-1]["bank_fill"]:
      axes[2].plot(x, [line["bank_fill"][name] for line in steps], label=name, linewidth=1)
    axes[2].set_ylim(0, 1.02)
    if len(steps[-1]["bank_fill"]) <= 20:
      axes[2].legend(fontsize=6)
    axes[2].set_title("bank fill")
  else:
    axes[2].plot(x, [line["learning_rate"] for line in steps], linewidth=1)
    axes[2].set_title("learning rate")
  axes[3].plot([line["step"] for line in scores], [100 * line["miou"] for line in scores], marker="o")
  axes[3].set_title("mIoU, %")
  for axis in axes:
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
  return figure


def iou_bars(scores: dict[str, Any]) -> plt.Figure:
  """Plots the IoU of each class, from ``eval/<split>.json``."""
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
    axis.set_ylim(rows - 0.4, -0.6)  # the first class at the top, and bars of equal height in all columns
    axis.set_xlabel(f"IoU, % (dashed: mIoU {100 * scores['miou']:.2f})")
  return figure


def confusion_matrix(confusion: np.ndarray, names: list[str]) -> plt.Figure:
  """Plots a confusion matrix ``[N,N]`` (rows truth), or its largest entries if there are many classes."""
  fractions = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
  if len(names) > MANY_CLASSES:
    return _largest_confusions(confusion, fractions, names)
  side = 3 + 0.3 * len(names)
  figure, axis = plt.subplots(figsize=(side, side), layout="constrained")
  axis.imshow(fractions, vmin=0, vmax=1, cmap="viridis")
  axis.set_xticks(range(len(names)), names, rotation=90)
  axis.set_yticks(range(len(names)), names)
  axis.set_xlabel("prediction")
  axis.set_ylabel("ground truth")
  if len(names) <= 20:
    for row, column in np.argwhere(fractions >= 0.05):
      color = "white" if fractions[row, column] < 0.6 else "black"
      axis.text(
        column, row, f"{100 * fractions[row, column]:.0f}", ha="center", va="center", color=color, fontsize=7
      )
  return figure


def _largest_confusions(confusion: np.ndarray, fractions: np.ndarray, names: list[str]) -> plt.Figure:
  """Plots the pairs of classes with the most wrong pixels; a matrix of 150 classes is unreadable."""
  wrong = confusion * ~np.eye(len(names), dtype=bool)
  pairs = [divmod(int(pair), len(names)) for pair in np.argsort(-wrong, axis=None)[:CONFUSIONS]]
  pairs = [(truth, prediction) for truth, prediction in pairs if wrong[truth, prediction]]
  labels = [f"{names[truth]} predicted as {names[prediction]}" for truth, prediction in pairs]
  figure, axis = plt.subplots(figsize=(9, 1.2 + 0.28 * len(pairs)), layout="constrained")
  bars = axis.barh(labels, [100 * wrong[pair] / max(wrong.sum(), 1) for pair in pairs])
  axis.bar_label(
    bars, [f"{100 * fractions[pair]:.0f} % of the class" for pair in pairs], padding=3, fontsize=7
  )
  axis.set_ylim(len(pairs) - 0.4, -0.6)
  axis.margins(x=0.2)
  axis.set_xlabel("fraction of all wrong pixels, %")
  return figure


def save(figure: plt.Figure, path: pathlib.Path) -> None:
  """Writes a figure to a file and frees its memory."""
  figure.savefig(path, dpi=90)
  plt.close(figure)
