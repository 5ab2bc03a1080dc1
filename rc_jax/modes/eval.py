"""``--mode=eval`` scores a checkpoint on a split by the data set's own rules, as training does."""

import pathlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax

from rc_jax import data, distributed, files, models
from rc_jax.config import Config
from rc_jax.console import say, waiting
from rc_jax.evaluation.evaluator import Counts, Results, make_evaluator
from rc_jax.evaluation.image_scores import image_mious, pixel_accuracies, stacked, worst_images
from rc_jax.evaluation.protocol import protocol_text
from rc_jax.evaluation.results import results_table, write_results, written_files
from rc_jax.fields import Flag
from rc_jax.inference.batched import label_images
from rc_jax.modes import CHECKPOINT, CONFIG, WORKDIR
from rc_jax.weights import restore
from rc_jax.weights.checkpoint import FOLDER, Model, newest_step
from rc_jax.weights.checksums import weights_digest

if TYPE_CHECKING:
  from PIL import Image

FLAGS = (
  CONFIG,
  WORKDIR,
  CHECKPOINT,
  Flag("worst", 0, "Number of images with the lowest mIoU to draw in eval/<split>_worst.png. 0: no picture."),
  *distributed.FLAGS,
)

MOST_WORST = 100  # rows of a sheet, which all lie in memory


def run(
  config: Config, workdir: pathlib.Path, checkpoint: pathlib.Path | None = None, worst: int = 0
) -> Results:
  """Scores a checkpoint on ``config.eval.split``, writes the results and prints a table.

  Args:
    config: a validated config.
    workdir: the run's folder, for the results; it holds the newest checkpoint.
    checkpoint: as for ``restore.locate``; None: the newest of ``workdir``.
    worst: the number of images with the lowest mIoU that are drawn; 0: none.

  Returns:
    The results, as written to ``workdir/eval/<split>.json``, beside the files of ``results.written_files`` and
    ``<split>_worst.png``.

  Raises:
    FileNotFoundError: no checkpoint, or no data.
    ValueError: ``worst`` is out of range, the checkpoint holds another network or other classes, the split has no
      labels, or the processes do not agree.
    OSError: the results cannot be written; one line.
  """
  if not 0 <= worst <= MOST_WORST:
    raise ValueError(f"--worst={worst}: expected a number of images in 0..{MOST_WORST}")
  source = data.load(
    config.dataset.name, config.dataset.root, config.eval.split, classes=config.dataset.classes
  )
  for note in data.notes_of(source):
    say(f"note: {note}")
  path = restore.locate(workdir, checkpoint)
  if jax.process_count() > 1:
    facts, listings = data.split_facts(source, config.eval.split)
    distributed.check_agreement(data.class_facts(source.info) | restore.facts(path) | facts, listings)
  origin = restore.origin(path)  # first: where there is no checkpoint, no folder is created
  if jax.process_index() == 0:
    files.check_writable(workdir)
  network = models.build(config.model, source.info.num_classes)
  restored = restore.restore(network, config, path, source.info.table())
  scored = f"step {restored.step}" if restored.step else str(path)
  say(f"scoring {scored} on {len(source)} images of {config.dataset.name}/{config.eval.split}")
  own = is_of_run(origin, workdir)
  if not own and newest_step(workdir) is not None:
    say(
      f"note: {origin} is no checkpoint of the run in {workdir}, whose scores on {config.eval.split} these replace: to "
      "keep both, name another --workdir"
    )
  start = time.monotonic()
  results, counts = make_evaluator(network, source, config)(restored.params, restored.batch_stats, None)
  results["ema"] = restored.ema  # known by the checkpoint, whatever the recipe says
  if not restored.step or not own:
    results["checkpoint"] = str(origin)
  seconds = time.monotonic() - start
  if jax.process_index() == 0:
    weights = weights_digest((restored.params, restored.batch_stats))
    say(results_table(results))  # first: where the files cannot be written, the scores are not lost
    written = write_results(workdir, results, counts, restored.step, weights)
    rate = f"{len(source) / seconds:.2f} images/s ({seconds / len(source):.2f} s each)"
    say(f"{rate}, compilation included")
    confusion, of_images, table = written_files(written)
    names = [
      f"{written.name} (scores)",
      f"{confusion.name} (confusion matrix)",
      f"{table.name} (scores of each image)",
      f"{of_images.name} (counts of each image, for --mode=compare)",
    ]
    if worst:
      title = (
        f"{config.dataset.name}/{config.eval.split}, {scored}: images with the lowest mIoU of their classes",
        protocol_text(results),
      )
      with waiting("drawing the worst images"):
        sheet = draw_worst(config, network, restored, source, counts, worst, title)
        picture = written.with_name(f"{written.stem}_worst.png")
        with files.atomic_write(picture) as file:
          sheet.save(file, "PNG")
      names.append(f"{picture.name} (images with the lowest mIoU)")
    say(f"written to {written.parent}: {', '.join(names)}")
  return {"step": restored.step, **results}


def is_of_run(origin: pathlib.Path, workdir: pathlib.Path) -> bool:
  """Returns whether a checkpoint, a path of ``restore.origin``, lies in a run's folder."""
  # Where disks are small, ``checkpoints`` is a link to another one.
  return any(origin.is_relative_to(folder.resolve()) for folder in (workdir, workdir / FOLDER))


def draw_worst(
  config: Config,
  network: models.Network,
  restored: Model,
  source: data.Source,
  counts: Counts,
  number: int,
  title: Sequence[str],
) -> "Image.Image":
  """Draws the images with the lowest mIoU of their classes.

  Args:
    config: reads ``eval``.
    network: functions of the network.
    restored: the weights, which predict these images once more.
    source: the split.
    counts: of the evaluator, on the split.
    number: of the images.
    title: lines above the images.
  """
  # Imports SciPy, which scoring does not need.
  from rc_jax.drawing import contact_sheet
  from rc_jax.drawing.predicted_image import Picture

  of_images = stacked(counts)
  mious, accuracies = image_mious(of_images), pixel_accuracies(of_images)
  rows = worst_images(of_images, number)
  examples = [source[row] for row in rows]
  images = [example["image"] for example in examples]
  labels = label_images(network, config.eval, restored.params, restored.batch_stats, images)
  pictures = [
    Picture(
      counts.names[row], example["image"], example["label"], label, float(accuracies[row]), float(mious[row])
    )
    for row, example, label in zip(rows, examples, labels, strict=True)
  ]
  return contact_sheet.worst(pictures, source.info, title)
