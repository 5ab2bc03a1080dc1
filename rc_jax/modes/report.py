"""``--mode=report`` shows a run on one page: scores, pictures, IoU of each class, confusion, curves, configuration."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from rc_jax import __version__, data, distributed, files, models
from rc_jax.config import Config, as_dict, different_run
from rc_jax.console import say
from rc_jax.drawing.panels import MANY_CLASSES, grid, legend
from rc_jax.drawing.predicted_image import Picture, panels_of
from rc_jax.drawing.report.run_curves import Ages
from rc_jax.drawing.report.run_page import Run, run_page
from rc_jax.drawing.report.series import Lines, column, columns
from rc_jax.evaluation import metrics
from rc_jax.evaluation.protocol import protocol_text, scoring_protocol, step_text, weights_text
from rc_jax.evaluation.results import read_results_json
from rc_jax.inference.batched import label_images
from rc_jax.modes import CHECKPOINT, CONFIG, WORKDIR
from rc_jax.training.bank_age import bank_capacity, key_ages
from rc_jax.training.run_log import is_score, read_metrics
from rc_jax.weights import restore
from rc_jax.weights.checksums import weights_digest

FLAGS = (CONFIG, WORKDIR, CHECKPOINT, *distributed.FLAGS)

PICTURES = 6  # images shown
PANEL_HEIGHT = 192  # pixels in panels.png; larger images are shrunk to it


def run(config: Config, workdir: pathlib.Path, checkpoint: pathlib.Path | None = None) -> pathlib.Path:
  """Draws the report of a run from a checkpoint.

  Args:
    config: a validated config; where the folder records that of its run, the page shows the recorded one, with the
      ``eval`` and ``dataset.root`` of this one.
    workdir: the run's folder, with ``metrics.jsonl`` and ``eval/``.
    checkpoint: as for ``restore.locate``; None: the newest of ``workdir``.

  Returns:
    The path of the page, ``workdir/report/index.html``.

  Raises:
    FileNotFoundError: no checkpoint, or no data.
    ValueError: the checkpoint holds another network or other classes.
  """
  info = data.info(config.dataset.name, config.dataset.root, config.dataset.classes)
  network = models.build(config.model, info.num_classes)
  path = restore.locate(workdir, checkpoint)
  if jax.process_count() > 1:
    distributed.check_agreement(data.class_facts(info) | restore.facts(path))
  restored = restore.restore(network, config, path, info.table())
  if jax.process_index() > 0:
    return workdir / "report" / "index.html"
  shown = config_of_page(config, workdir)
  weights = (restored.params, restored.batch_stats)
  page = write(shown, workdir, network, *weights, step=restored.step, ema=restored.ema)
  say(f"pictures of {step_text(restored.step)} are in {page.parent}; open {page}")
  return page


def config_of_page(config: Config, workdir: pathlib.Path) -> Config:
  """Returns the config that a run's folder records, with the ``eval`` and ``dataset.root`` of the command's config.

  A recipe without the fields that the run's command set would call a baseline a run of the contrastive loss. The
  command's own config is returned where the folder records none. A line says where the two differ.

  Args:
    config: of the command.
    workdir: the run's folder.
  """
  if not (workdir / "config.json").is_file():
    return config
  recorded = restore.config_of_run(workdir)
  recorded.dataset.root, recorded.eval = config.dataset.root, config.eval
  differences = different_run(as_dict(config), as_dict(recorded))
  if differences:
    say(
      f"report: shows the configuration that {workdir / 'config.json'} records, which differs from that of this "
      f"command ({'; '.join(differences)})"
    )
  return recorded


def write(
  config: Config,
  workdir: pathlib.Path,
  network: models.Network,
  params: Any,
  batch_stats: Any,
  step: int | None = None,
  ema: bool | None = None,
) -> pathlib.Path:
  """Writes ``workdir/report/``: ``index.html``, and ``panels.png`` with its pictures.

  Args:
    config: the run's config.
    workdir: the run's folder, with ``metrics.jsonl`` and ``eval/``.
    network: functions of the network.
    params: replicated arrays.
    batch_stats: likewise.
    step: updates behind the parameters, 0 for a file of weights; None: unknown.
    ema: whether the parameters are a moving average; None: as in the training of ``config``.

  Returns:
    The path of the page, which needs no other file.
  """
  folder = workdir / "report"
  files.check_writable(folder)
  shown = pictures(config, network, params, batch_stats)
  info = data.info(config.dataset.name, config.dataset.root, config.dataset.classes)
  with files.atomic_write(folder / "panels.png") as file:
    panels(shown, info).save(file, "PNG")
  lines = read_metrics(workdir)
  scores, confusion, notes = read_evaluation(workdir, config.eval.split)
  if scores is not None and list(scores["iou"]) != list(info.class_names):
    scores = confusion = None
    notes.append(
      f"eval/{config.eval.split}.json scores other classes than those of this run and is left out."
    )
  images = len(
    data.load(config.dataset.name, config.dataset.root, config.eval.split, classes=config.dataset.classes)
  )
  protocol = protocol_text(scoring_protocol(config, network.align_corners, images, ema))
  if scores is not None:
    notes += _notes_on_scores(scores, protocol, weights_digest((params, batch_stats)), step)
    protocol = protocol_text(scores)
  # The curve and the best score are those that compare with the score above them.
  shown_lines = [line for line in lines if "split" not in line or is_score(line, config.eval.split, protocol)]
  left_out = sum(line.get("split") == config.eval.split for line in lines) - sum(
    "split" in line for line in shown_lines
  )
  if left_out:
    notes.append(
      f"{left_out} of the logged scores were computed in another way than those shown ({protocol}) and are left out."
    )
  for note in notes:
    say(f"report: {note}")
  content = Run(
    config=config,
    info=info,
    lines=shown_lines,
    pictures=shown,
    step=step,
    scores=scores,
    scored_weights="" if scores is None else weights_text(scores),
    confusion=confusion,
    constant=None if scores is None or confusion is None else constant_score(scores, confusion),
    ages=ages(lines, info.class_names, config),
    notes=tuple(notes),
    software=f"Written by rc_jax {__version__} with jax {jax.__version__} on {jax.devices()[0].device_kind}.",
  )
  path = folder / "index.html"
  files.atomic_write_text(path, run_page(content))
  return path


def pictures(
  config: Config, network: models.Network, params: Any, batch_stats: Any, count: int = PICTURES
) -> list[Picture]:
  """Predicts images that are evenly spaced over ``eval.split``, from its first to its last.

  Args:
    config: reads ``dataset`` and ``eval``.
    network: functions of the network.
    params: replicated arrays.
    batch_stats: likewise.
    count: of the images.
  """
  source = data.load(
    config.dataset.name, config.dataset.root, config.eval.split, classes=config.dataset.classes
  )
  indices = np.unique(np.linspace(0, len(source) - 1, count).round().astype(int)).tolist()
  examples = [source[index] for index in indices]
  labels = label_images(network, config.eval, params, batch_stats, [example["image"] for example in examples])
  return [
    _picture(example, f"{config.eval.split} {index}", predicted, source.info.num_classes)
    for index, example, predicted in zip(indices, examples, labels, strict=True)
  ]


def _picture(example: data.Example, place: str, prediction: np.ndarray, num_classes: int) -> Picture:
  truth = example["label"]
  confusion = np.asarray(metrics.confusion_matrix(prediction, truth, num_classes))
  scores = metrics.scores(confusion, "unless_predicted")
  name = example.get("name", place)
  return Picture(name, example["image"], truth, prediction, scores["pixel_accuracy"], scores["miou"])


def panels(shown: Sequence[Picture], info: data.DatasetInfo) -> Image.Image:
  """Draws rows of image, ground truth, prediction and differences, and a legend."""
  rows, labels = [], set()
  for picture in shown:
    # Ignored pixels show the prediction too.
    labels |= set(np.unique(picture.truth).tolist()) | set(np.unique(picture.prediction).tolist())
    rows.append([Image.fromarray(panel) for panel in panels_of(picture, info, PANEL_HEIGHT)])
  drawn = grid(rows)
  classes = list(range(info.num_classes))
  if len(classes) > MANY_CLASSES:
    classes = sorted(labels & set(classes))
  return grid([[drawn], [legend(info, classes, drawn.width)]])


def read_evaluation(
  workdir: pathlib.Path, split: str
) -> tuple[dict[str, Any] | None, np.ndarray | None, list[str]]:
  """Returns the scores and the confusion matrix of a split, None where they are missing, and notes on them.

  Raises:
    ValueError: a file is damaged; one line.
  """
  folder = workdir / "eval"
  scores_path, confusion_path = folder / f"{split}.json", folder / f"{split}_confusion.npy"
  remedy = "score again with --mode=eval"
  scores = read_results_json(scores_path) if scores_path.is_file() else None
  if scores is None or not confusion_path.is_file():
    return scores, None, []
  try:
    confusion = np.load(confusion_path, allow_pickle=False)
  except Exception as error:  # damaged files raise errors of any type
    raise ValueError(f"{confusion_path}: cannot be read ({files.one_line(error)}); {remedy}") from error
  # Both are written one after the other: a kill in between leaves those of two evaluations.
  classes = len(scores["iou"])
  fits = (
    confusion.shape == (classes, classes) and confusion.dtype.kind in "iu" and bool((confusion >= 0).all())
  )
  miou = metrics.scores(confusion, scores["absent_class"])["miou"] if fits else None
  if miou is None or scores["miou"] is None or not np.isclose(miou, scores["miou"], rtol=0, atol=1e-9):
    note = f"{confusion_path.name} belongs to another evaluation than {scores_path.name} and is left out."
    return scores, None, [note]
  return scores, confusion, []


def _notes_on_scores(scores: dict[str, Any], protocol: str, weights: str, step: int | None) -> list[str]:
  """Returns a sentence for each way in which the scores were not computed as the pictures were.

  Args:
    scores: of ``eval/<split>.json``.
    protocol: of the pictures.
    weights: digest of the weights behind the pictures.
    step: updates behind them; None: unknown.
  """
  notes = []
  known_step = step is not None and step != scores["step"]
  if known_step or scores.get("weights", weights) != weights:
    of_step = "other weights" if step is None else step_text(step)
    other = weights_text(scores)
    if step and not known_step and "checkpoint" not in scores:
      other = f"other weights of {other}"
    notes.append(
      f"The pictures are of {of_step}, the scores of {other}: score the checkpoint of the pictures with --mode=eval."
    )
  if protocol_text(scores) != protocol:
    notes.append(
      f"The scores were computed in another way ({protocol_text(scores)}) than the pictures ({protocol})."
    )
  return notes


def constant_score(scores: dict[str, Any], confusion: np.ndarray) -> tuple[str, float] | None:
  """Returns the name of the most frequent class, and the mIoU of predicting it at every pixel.

  Args:
    scores: of ``eval/<split>.json``, with the names of the classes and the rule for absent ones.
    confusion: ``[N,N]``, rows truth; the sums of its rows are the pixels of the classes.

  Returns:
    None where no pixel is labelled.
  """
  pixels = confusion.sum(axis=1)
  if not pixels.any():
    return None
  constant = np.zeros_like(confusion)
  most = int(pixels.argmax())
  constant[:, most] = pixels
  return list(scores["iou"])[most], metrics.scores(constant, scores["absent_class"])["miou"]


def ages(lines: Lines, class_names: Sequence[str], config: Config) -> Ages | None:
  """Returns the ages of the keys in the banks, from the lines that hold cursors.

  Returns:
    None where the log has no cursors, as that of an older version or of a run without banks, or where a whole turn of
    a bank fits between two lines: the cursors do not show it.
  """
  logged = [line for line in lines if "bank_cursor" in line and "bank_fill" in line]
  if not logged:
    return None
  steps = column(logged, "step").astype(int)
  fill, cursor = (columns(logged, name, class_names) for name in ("bank_fill", "bank_cursor"))
  capacity = config.contrast.bank_size or bank_capacity(fill, cursor)
  widest = int(np.diff([0, *steps]).max())
  if capacity is None or widest * config.train.batch_size >= capacity:
    return None
  return Ages(steps, *key_ages(steps, fill, cursor, capacity))
