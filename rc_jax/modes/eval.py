"""Scores a network on a split by the data set's own rules: JSON, confusion matrix, counts of every image.

The loop of training and ``--mode=eval`` call the same function.
"""

import pathlib
import time

import jax

from rc_jax import data, distributed, models
from rc_jax.config import Config
from rc_jax.console import say
from rc_jax.evaluation.evaluator import Results, make_evaluator
from rc_jax.evaluation.results import results_table, write_results
from rc_jax.modes import CHECKPOINT, CONFIG, WORKDIR
from rc_jax.weights import restore

FLAGS = (CONFIG, WORKDIR, CHECKPOINT, *distributed.FLAGS)


def run(config: Config, workdir: pathlib.Path, checkpoint: pathlib.Path | None = None) -> Results:
  """Scores a checkpoint on ``config.eval.split`` and prints the table: ``--mode=eval``.

  Args:
    config: a validated config.
    workdir: where results go, and where the newest checkpoint is looked for.
    checkpoint: as for ``restore.locate``; None: the newest of ``workdir``.

  Returns:
    The results, as written to ``workdir/eval/<split>.json``.

  Raises:
    FileNotFoundError: no checkpoint, or no data.
    ValueError: the checkpoint holds another network.
  """
  source = data.load(config.dataset.name, config.dataset.root, config.eval.split)
  path = restore.locate(workdir, checkpoint)
  network = models.build(config.model, source.info.num_classes)
  restored = restore.restore(network, config, path)
  what = f"step {restored.step}" if restored.step else str(path)
  say(f"scoring {what} on {len(source)} images of {config.dataset.name}/{config.eval.split}")
  start = time.monotonic()
  results, counts = make_evaluator(network, source, config)(restored.params, restored.batch_stats, None)
  seconds = time.monotonic() - start
  if jax.process_index() == 0:
    written = write_results(workdir, results, counts, restored.step)
    say(results_table(results))
    rate = f"{len(source) / seconds:.2f} images/s ({seconds / len(source):.2f} s each)"
    say(f"{rate}, compilation included; written to {written}")
  return {"step": restored.step, **results}
