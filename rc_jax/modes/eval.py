"""``--mode=eval`` scores a checkpoint on a split by the data set's own rules, as training does."""

import pathlib
import time

import jax

from rc_jax import data, distributed, files, models
from rc_jax.config import Config
from rc_jax.console import say
from rc_jax.evaluation.evaluator import Results, make_evaluator
from rc_jax.evaluation.results import results_table, write_results
from rc_jax.modes import CHECKPOINT, CONFIG, WORKDIR
from rc_jax.weights import restore
from rc_jax.weights.checksums import weights_digest

FLAGS = (CONFIG, WORKDIR, CHECKPOINT, *distributed.FLAGS)


def run(config: Config, workdir: pathlib.Path, checkpoint: pathlib.Path | None = None) -> Results:
  """Scores a checkpoint on ``config.eval.split``, writes the results and prints a table.

  Args:
    config: a validated config.
    workdir: the run's folder, for the results; it holds the newest checkpoint.
    checkpoint: as for ``restore.locate``; None: the newest of ``workdir``.

  Returns:
    The results, as written to ``workdir/eval/<split>.json``. ``<split>_confusion.npy`` and ``<split>_images.npz`` are
    written beside it.

  Raises:
    FileNotFoundError: no checkpoint, or no data.
    ValueError: the checkpoint holds another network or other classes, the split has no labels, or the processes do not
      agree.
    OSError: the results cannot be written; one line.
  """
  source = data.load(
    config.dataset.name, config.dataset.root, config.eval.split, classes=config.dataset.classes
  )
  for note in data.notes_of(source):
    say(f"note: {note}")
  path = restore.locate(workdir, checkpoint)
  if jax.process_count() > 1:
    facts, listings = data.split_facts(source, config.eval.split)
    distributed.check_agreement(data.class_facts(source.info) | restore.facts(path) | facts, listings)
  restore.origin(path)  # first: where there is no checkpoint, no folder is created
  if jax.process_index() == 0:
    files.check_writable(workdir)
  network = models.build(config.model, source.info.num_classes)
  restored = restore.restore(network, config, path, source.info.table())
  scored = f"step {restored.step}" if restored.step else str(path)
  say(f"scoring {scored} on {len(source)} images of {config.dataset.name}/{config.eval.split}")
  start = time.monotonic()
  results, counts = make_evaluator(network, source, config)(restored.params, restored.batch_stats, None)
  seconds = time.monotonic() - start
  if jax.process_index() == 0:
    weights = weights_digest((restored.params, restored.batch_stats))
    say(results_table(results))  # first: where the files cannot be written, the scores are not lost
    written = write_results(workdir, results, counts, restored.step, weights)
    rate = f"{len(source) / seconds:.2f} images/s ({seconds / len(source):.2f} s each)"
    say(f"{rate}, compilation included; written to {written}")
  return {"step": restored.step, **results}
