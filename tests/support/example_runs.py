"""Runs for the page that shows them: as they usually are, and with everything missing or unusual."""

import dataclasses

import numpy as np

from rc_jax.config import Config, defaults
from rc_jax.data import DatasetInfo
from rc_jax.drawing.predicted_image import Picture
from rc_jax.drawing.report.run_curves import Ages
from rc_jax.drawing.report.run_page import Run

HOSTILE = "<img src=//x.example/y onerror='throw 1'>\"&"


def make_run(num_classes: int = 5, lines: int = 40, name: str = "class", scope: str = "bank") -> Run:
  """A run with everything that the page can show; random values."""
  rng = np.random.default_rng(0)
  names = tuple(f"{name} {index}" for index in range(num_classes))
  palette = rng.integers(0, 256, (num_classes, 3), np.uint8)
  info = DatasetInfo(name, names, palette, np.arange(num_classes))
  config = make_config(scope)
  log = [_line(rng, 10 * (index + 1), names) for index in range(lines)]
  log += [
    {
      **{"step": step, "split": "val", "miou": rng.random(), "cross_entropy": rng.random()},
      "iou": dict.fromkeys(names, 0.5),
    }
    for step in (100, 200, 300, 400)
  ]
  confusion = rng.integers(0, 100, (num_classes, num_classes))
  scores = {
    **{"step": 400, "split": "val", "miou": 0.5, "pixel_accuracy": 0.75, "mean_accuracy": None},
    **{
      "iou": {label: rng.random() for label in names} | {names[0]: None},
      "absent_class": "unless_predicted",
    },
  }
  steps = np.arange(10, 10 * lines + 1, 10)
  mean = rng.random((lines, num_classes)) * 50
  mean[:, 0] = np.nan
  return Run(
    config=config,
    info=info,
    lines=log,
    pictures=[_picture(rng, f"{name} {index}", num_classes) for index in range(3)],
    step=400,
    scores=scores,
    scored_weights="step 400",
    confusion=confusion,
    constant=(names[1], 0.1),
    ages=Ages(steps, mean, 2 * mean),
    software="rc_jax",
  )


def make_config(scope: str) -> Config:
  """A config with a tuple, a string, a number and a flag that differ from the defaults."""
  config = defaults()
  config.dataset.name = "synthetic"
  config.contrast.scope = scope
  config.train.crop_size = (65,)
  config.train.batch_size = 2
  config.eval.flip = True
  return config


def _line(rng: np.random.Generator, step: int, names: tuple[str, ...]) -> dict:
  by_class = ("bank_fill", "contrast_positive_similarity_by_class", "contrast_negative_similarity_by_class")
  numbers = (
    *("loss", "loss_pixel", "loss_aux", "loss_contrast", "loss_presence", "loss_aux_scaled", "learning_rate"),
    *(
      "contrast_queries",
      "contrast_positive_similarity",
      "contrast_negative_similarity",
      "images_per_second",
    ),
    "gradient_norm",
  )
  line: dict = {"step": step, **{name: rng.random() for name in numbers}}
  for name in by_class:
    line[name] = {label: None if rng.random() < 0.2 else rng.random() for label in names}
  return line


def _picture(rng: np.random.Generator, name: str, num_classes: int) -> Picture:
  truth, prediction = rng.integers(0, num_classes, (2, 12, 16), np.uint8)
  truth[0] = 255
  return Picture(name, rng.integers(0, 256, (12, 16, 3), np.uint8), truth, prediction, 0.5, 0.25)


def unusual_runs() -> dict[str, Run]:
  """Runs with parts missing, and with values that a page must stand."""
  usual = make_run()
  not_finite = [
    line | {"loss": float("nan"), "loss_pixel": None, "gradient_norm": float("inf")} for line in usual.lines
  ]
  without = {"scores": None, "confusion": None, "constant": None}
  return {
    "150 classes with long names": make_run(150, name="a class with quite a long name, as in COCO-Stuff"),
    "baseline": dataclasses.replace(make_run(scope="none"), ages=None),
    "not finite": dataclasses.replace(usual, lines=not_finite),
    "not scored": dataclasses.replace(usual, lines=[x for x in usual.lines if "loss" in x], **without),
    "no log": dataclasses.replace(usual, lines=[], ages=None),
    "nothing": dataclasses.replace(usual, lines=[], ages=None, step=None, **without),
    "one line": make_run(lines=1),
    "hostile names": make_run(name=HOSTILE),
    "old log": dataclasses.replace(
      usual, ages=None, lines=[{"step": 1, "loss": 2.0, "loss_aux": 0.0, "learning_rate": 0.1}]
    ),
  }
