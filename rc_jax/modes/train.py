"""The training loop, top to bottom: batch -> step -> log -> save -> evaluate."""

import json
import math
import os
import pathlib
import signal
import time
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rc_jax import data, distributed, files, models, sharding
from rc_jax.config import Config, as_dict, different_run, height_width, uses_contrast
from rc_jax.console import duration, say
from rc_jax.evaluation.evaluator import Results, make_evaluator
from rc_jax.evaluation.results import write_results
from rc_jax.modes import CONFIG, WORKDIR
from rc_jax.train_state import TrainState
from rc_jax.training import initial_state
from rc_jax.training.prefetch import Prefetcher
from rc_jax.training.run_log import RunLog, read
from rc_jax.training.skipped_examples import SkippedExamples
from rc_jax.weights.checkpoint import Checkpoints

PREEMPTED = 143  # 128 + SIGTERM: a scheduler sees that the run was stopped and starts it again


FLAGS = (CONFIG, WORKDIR, *distributed.FLAGS)


class NonFiniteLoss(ValueError):
  """The loss became NaN or infinite; the message names step, terms and the last good checkpoint."""


class _Stop:
  """Remembers that SIGTERM or SIGINT came, so that the running step can end in peace."""

  def __init__(self) -> None:
    self.status = 0
    self._previous: dict[int, Any] = {}

  def __enter__(self) -> "_Stop":
    # Several processes: JAX's own SIGTERM handler spreads the notice among hosts, and must not be replaced.
    if jax.process_count() == 1:
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._remember)
    return self

  def __exit__(self, *unused: object) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _remember(self, number: int, frame: types.FrameType | None) -> None:
    self.status = 128 + number
    # Not `print`: the signal may have come in the middle of one, which must not be entered twice.
    os.write(
      1, f"{signal.Signals(number).name}: finishing this step and saving; once more stops at once\n".encode()
    )
    signal.signal(number, signal.SIG_DFL)

  def requested(self, step: int) -> bool:
    """True when the run shall stop after ``step`` updates; all processes agree on the same step."""
    if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
      # Signals reach hosts at different moments; one that stopped alone would leave the others waiting.
      self.status = PREEMPTED
    return bool(self.status)

  def poll(self) -> None:
    """Raises to leave a long evaluation; only where no other process would go on with it."""
    if self.status:
      raise _StopDuringEvaluation


class _StopDuringEvaluation(Exception):
  pass


def run(config: Config, workdir: pathlib.Path) -> int:
  """Trains, or goes on training, the run of a config in a folder.

  Args:
    config: a validated config.
    workdir: the run's folder; made where absent.

  Returns:
    The process's exit status: 0 when the run is finished, 143 after SIGTERM (130 after Ctrl-C), saved.

  Raises:
    ValueError: data, config or checkpoint that cannot work; one line.
    FileNotFoundError: data or weights are missing; one line.
    NonFiniteLoss: the loss became NaN or infinite.
    OSError: the disk is full.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  refuse_other_run(config, workdir)
  mesh = sharding.global_mesh()
  sharding.check_batch(config.train.batch_size, mesh)
  kind = jax.devices()[0].device_kind
  say(f"{jax.device_count()} x {kind} in {jax.process_count()} process(es), run folder {workdir}")

  source = data.load(config.dataset.name, config.dataset.root, config.dataset.train_split)
  eval_source = data.load(config.dataset.name, config.dataset.root, config.eval.split)
  info = source.info
  say(
    f"{info.name}: {len(source)} training images, {len(eval_source)} of {config.eval.split}, "
    f"{info.num_classes} classes"
  )

  network = models.build(config.model, info.num_classes)
  checkpoints = Checkpoints(workdir, config.train.keep_checkpoints, scores=_scores(workdir, config))

  # Where a run begins: 1. its own newest checkpoint, 2. imported weights, 3. random.
  state, update_rule = initial_state.initial_state(
    config, network, len(source), mesh, fresh=checkpoints.latest_step() is None
  )
  start_step, data_position = 0, None
  if checkpoints.latest_step() is not None:
    state, data_position = checkpoints.restore(state)
    start_step = int(state.step)
    say(f"resuming at step {start_step} of {config.train.steps}")
  write_config(config, workdir)
  log = RunLog(workdir, resumed_at=start_step)

  may_skip = config.dataset.on_error == "skip"
  batches = data.train_batches(
    source,
    seed=config.seed,
    batch_size=config.train.batch_size,
    crop_size=height_width(config.train.crop_size),
    augment=config.augment,
    workers=config.data.workers,
    threads=config.data.threads,
    cache_gb=config.data.cache_gb,
    max_skipped=config.dataset.max_skipped if may_skip else None,
    host_index=jax.process_index(),
    host_count=jax.process_count(),
  )
  if data_position is not None:
    batches.set_state(data_position)
  feed = Prefetcher(batches, lambda batch: sharding.put_batch(batch, mesh))
  skipped = SkippedExamples(workdir, batches.most_skipped or 0, data_position)
  step_fn = initial_state.jitted_step(config, network, update_rule, state, mesh)
  evaluator = make_evaluator(network, eval_source, config)

  def score(state: TrainState, stop: _Stop) -> None:
    step = int(state.step)
    results, counts = evaluator(state.params, state.batch_stats, stop.poll)
    say(f"step {step}: mIoU {100 * results['miou']:.2f} on {config.eval.split}")
    if jax.process_index() == 0:
      write_results(workdir, results, counts, step)
    # Last, because a line in the log means that the step need not be scored again.
    log.write({"step": step, "split": config.eval.split, **_numbers(results)})
    checkpoints.scored(step, results["miou"])

  unchecked: tuple[int, Any] | None = None  # the newest step, until its loss was looked at

  def save() -> None:
    _refuse_non_finite(unchecked, checkpoints)
    if int(state.step) not in (0, checkpoints.latest_step()):
      checkpoints.save(state, skipped.add(feed.get_state()) if may_skip else feed.get_state())

  def evaluation_due(step: int) -> bool:
    every = config.train.eval_every
    return step == config.train.steps or bool(every and step and step % every == 0)

  if start_step == config.train.steps:
    say("this run is finished; nothing is left to train")

  def devices_idle() -> bool:
    return unchecked is None or unchecked[1]["loss"].is_ready()

  with _Stop() as stop, feed, checkpoints:
    try:
      # A run that was stopped while it scored has a checkpoint of that step but no score.
      if evaluation_due(start_step) and not _was_scored(workdir, config, start_step):
        score(state, stop)
      rate = _Rate(config.train.batch_size, feed)
      step = start_step
      while step < config.train.steps and not stop.requested(step):
        batch = _next_batch(feed, devices_idle, save)
        if step == start_step:
          step_fn = _compile(step_fn, state, batch)
          rate.restart()
        state, step_metrics = step_fn(state, batch)
        step += 1
        rate.count()

        # Looks at the step before, which the device has finished or nearly so: the host stays one step ahead.
        _refuse_non_finite(unchecked, checkpoints)
        unchecked = (step, step_metrics)
        if step % config.train.log_every == 0 or step == 1:
          _refuse_non_finite(unchecked, checkpoints)  # waits for this step
          step_metrics = jax.device_get(step_metrics)
          speed, data_wait = rate.images_per_second()
          log.write(_line(step, step_metrics, info.class_names, speed, data_wait))
          say(_progress(step, step_metrics, speed, data_wait, config))
          if may_skip:
            skipped.add(feed.get_state())
        if step % config.train.checkpoint_every == 0 or evaluation_due(step):
          save()
          if evaluation_due(step):
            score(state, stop)
          rate.restart()
    except _StopDuringEvaluation:
      pass
    if stop.status:
      save()
  log.close()
  if stop.status:
    say(
      f"stopped at step {int(state.step)} of {config.train.steps}, saved; the same command goes on from there"
    )
    return stop.status

  if jax.process_index() == 0:
    from rc_jax.modes import report  # draws with matplotlib, which takes a second to import

    page = report.write(config, workdir, network, state.params, state.batch_stats)
    say(closing(config, workdir, page))
  return 0


def refuse_other_run(config: Config, workdir: pathlib.Path) -> None:
  """Refuses a folder that holds the run of another config.

  Raises:
    ValueError: one line with the fields that differ.
  """
  path = workdir / "config.json"
  if not path.is_file():
    return
  found = different_run(as_dict(config), json.loads(path.read_text()))
  if found:
    raise ValueError(
      f"{path}: holds a run of another configuration ({'; '.join(found)}); choose another --workdir or the same fields"
    )


def write_config(config: Config, workdir: pathlib.Path) -> None:
  """Writes ``workdir/config.json``."""
  if jax.process_index() == 0:
    files.atomic_write_text(workdir / "config.json", json.dumps(as_dict(config), indent=2) + "\n")


def closing(config: Config, workdir: pathlib.Path, page: pathlib.Path) -> str:
  """Returns the paragraph that ends a run: where everything is, and what to try next."""
  scores = _scores(workdir, config)
  last, best = max(scores), max(scores, key=lambda step: scores[step])
  best_text = "" if best == last else f" (the best was {100 * scores[best]:.2f}, --checkpoint={best})"
  return (
    f"\nFinished: mIoU {100 * scores[last]:.2f}{best_text} on {config.dataset.name}/{config.eval.split}. "
    f"Pictures and curves: {page}. Scores: {workdir / 'eval'}. Every step: {workdir / 'metrics.jsonl'} "
    f"(tensorboard --logdir {workdir}). Checkpoints: {workdir / 'checkpoints'}.\n"
    f"Next: the same command with --mode=predict --images=FOLDER labels your own images; with "
    f"--config.loss.contrast_weight=0 --workdir={workdir}_baseline it trains the plain baseline to compare with."
  )


def _next_batch(feed: Prefetcher, devices_idle: Callable[[], bool], save: Callable[[], None]) -> Any:
  """Returns the next batch on the devices; a damaged file costs no step that was made."""
  try:
    return feed.next(devices_idle)
  except (ValueError, OSError, RuntimeError) as error:
    # Saving needs all processes, and the others have met no damaged file.
    if jax.process_count() == 1:
      save()
    if isinstance(error, RuntimeError):
      raise ValueError(
        f"data.workers: a process that reads training data failed ({error}); start again"
      ) from error
    raise


class _Rate:
  """Images per second of training alone: compilation, scoring and saving are left out."""

  def __init__(self, batch_size: int, feed: Prefetcher):
    self._batch_size = batch_size
    self._feed = feed
    self.restart()

  def restart(self) -> None:
    self._images, self._start, self._waited = 0, time.monotonic(), self._feed.waited

  def count(self) -> None:
    self._images += self._batch_size

  def images_per_second(self) -> tuple[float, float]:
    """Returns images per second since the last call, and the share of that time in which devices waited for data."""
    seconds = max(time.monotonic() - self._start, 1e-9)
    result = self._images / seconds, min(1.0, (self._feed.waited - self._waited) / seconds)
    self.restart()
    return result


def _compile(step_fn: Any, state: TrainState, batch: Any) -> Any:
  say("compiling the train step ...")
  start = time.monotonic()
  compiled = step_fn.lower(state, batch).compile()
  say(f"compiled in {duration(time.monotonic() - start)}")
  return compiled


def _refuse_non_finite(unchecked: tuple[int, dict[str, Any]] | None, checkpoints: Checkpoints) -> None:
  """Raises for a step whose loss, gradient or new parameters are not finite; None: nothing to look at."""
  if unchecked is None:
    return
  step, step_metrics = unchecked
  if all(math.isfinite(float(step_metrics[name])) for name in ("loss", "gradient_norm", "parameter_norm")):
    return
  terms = {name: float(value) for name, value in step_metrics.items() if np.ndim(value) == 0}
  checkpoints.wait()
  last = checkpoints.latest_step()
  shown = ", ".join(
    f"{name} {terms[name]:.4g}" for name in terms if name.startswith(("loss", "parameter_norm"))
  )
  kept = (
    f"the last good checkpoint is {checkpoints.folder / str(last)}"
    if last is not None
    else "no checkpoint yet"
  )
  raise NonFiniteLoss(
    f"step {step}: the loss is not finite ({shown}, gradient norm {terms['gradient_norm']:.4g}); {kept}; "
    f"try a lower --config.optimizer.learning_rate in another --workdir"
  )


def _line(
  step: int, step_metrics: dict[str, Any], class_names: tuple[str, ...], speed: float, data_wait: float
) -> dict[str, Any]:
  line: dict[str, Any] = {"step": step}
  for name, value in step_metrics.items():
    if np.ndim(value) == 0:
      line[name] = float(value)
    else:
      line[name] = {label: float(share) for label, share in zip(class_names, value, strict=True)}
  line["images_per_second"] = round(speed, 3)
  line["data_wait"] = round(data_wait, 3)
  return line


def _progress(step: int, step_metrics: dict[str, Any], speed: float, data_wait: float, config: Config) -> str:
  steps, weights = config.train.steps, config.loss
  left = duration((steps - step) * config.train.batch_size / speed)
  terms = (
    f"pixel {step_metrics['loss_pixel']:.3f} + {weights.aux_weight:g} x aux {step_metrics['loss_aux']:.3f}"
  )
  if uses_contrast(config):
    terms += f" + {weights.contrast_weight:g} x contrast {step_metrics['loss_contrast']:.3f}"
  waiting = f" ({data_wait:.0%} of the time waiting for data)" if data_wait >= 0.05 else ""
  return (
    f"step {step}/{steps}  loss {step_metrics['loss']:.3f} = {terms}  "
    f"lr {step_metrics['learning_rate']:.2e}  {speed:.2f} images/s{waiting}  {left} left"
  )


def _numbers(results: Results) -> dict[str, Any]:
  return {name: results[name] for name in ("miou", "pixel_accuracy", "mean_accuracy", "iou")}


def _scores(workdir: pathlib.Path, config: Config) -> dict[int, float]:
  """mIoU of the steps that the log has scores of, on the config's split."""
  return {line["step"]: line["miou"] for line in read(workdir) if line.get("split") == config.eval.split}


def _was_scored(workdir: pathlib.Path, config: Config, step: int) -> bool:
  scored = step in _scores(workdir, config)
  if jax.process_count() > 1:
    # The log may lie on the first host's disk alone, and all must agree to score or not.
    scored = bool(multihost_utils.broadcast_one_to_all(np.int32(scored)))
  return scored
