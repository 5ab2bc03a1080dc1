"""Training: ``--mode=train``. ``TrainingRun.train`` is the loop: batch -> step -> log -> save -> evaluate."""

import contextlib
import dataclasses
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rc_jax import data, distributed, files, folder_lock, models, sharding
from rc_jax.class_table import check_class_table, write_class_table
from rc_jax.command import Command
from rc_jax.config import Config, as_dict, different_run, flatten, height_width, reads_image_index
from rc_jax.console import duration, say, waiting
from rc_jax.data.class_counts import count_class_pixels, digest_of_counts
from rc_jax.data.pipeline.rare_classes import RareClassSampling, rare_class_sampling, sampling_text
from rc_jax.evaluation.evaluator import Evaluator, make_evaluator
from rc_jax.evaluation.metrics import over_classes
from rc_jax.evaluation.protocol import protocol_text, scoring_protocol
from rc_jax.evaluation.results import absent_classes, read_results_json, write_results
from rc_jax.fields import Flag
from rc_jax.modes import CONFIG, WORKDIR
from rc_jax.train_state import TrainState
from rc_jax.training import class_weights, initial_state, log_writers, run_log, step_trace
from rc_jax.training.finite import FiniteCheck
from rc_jax.training.next_commands import next_commands
from rc_jax.training.objective import Metrics
from rc_jax.training.plan import loss_terms, plan_text
from rc_jax.training.preemption import PreemptionWatch, StopRequested
from rc_jax.training.prefetch import Batch, Prefetcher
from rc_jax.training.progress import TrainingProgress
from rc_jax.training.saving import Saving
from rc_jax.training.skipped_examples import SkippedExamples
from rc_jax.training.step_programs import StepPrograms, no_implicit_transfers
from rc_jax.training.throughput import Throughput
from rc_jax.training.training_set import (
  TrainingSet,
  bank_of_training_set,
  position_in_training_set,
  training_set_of,
  with_training_set,
)
from rc_jax.weights import restore
from rc_jax.weights.checkpoint import Checkpoints, newest_step, newest_undamaged
from rc_jax.weights.checksums import weights_digest

PROFILE = Flag(
  "profile",
  "",
  "Steps to trace, the first and the last, such as 10:15: what devices and host do in them. Written below the run's "
  "folder.",
)
FLAGS = (CONFIG, WORKDIR, PROFILE, *distributed.FLAGS)


def run(config: Config, workdir: pathlib.Path, command: Command | None = None, profile: str = "") -> int:
  """Trains the run of a config in a folder, from its newest checkpoint where it has one.

  Args:
    config: a validated config.
    workdir: the run's folder; created where absent.
    command: the command line that started the run, for the commands to try next; None: it suggests none.
    profile: the first and the last step to trace, ``"10:15"``; empty: none.

  Returns:
    The process's exit status: 0 when the run is finished; 143 after SIGTERM and 130 after SIGINT, saved.

  Raises:
    ValueError: data, config or checkpoint do not fit each other, or another run trains in the folder; one line.
    FileNotFoundError: data or weights are missing; one line.
    NonFiniteLoss: the loss became NaN or infinite.
    OSError: a folder cannot be written, or the disk is full at two saves in a row or at the end; one line.
  """
  with contextlib.ExitStack() as stack:
    if jax.process_index() == 0:
      # Two runs would delete each other's checkpoints, and lose lines of the log.
      remedy = "wait until it ends, stop it, or choose another --workdir"
      stack.enter_context(folder_lock.folder_lock(workdir, remedy))
    return _train(config, workdir, profile, command)


def _train(config: Config, workdir: pathlib.Path, profile: str, command: Command | None) -> int:
  """Trains in a folder that no other run uses; see ``run``."""
  # Refused before the data is read.
  traced_steps = step_trace.traced_steps(profile, config.train.steps)
  log_writers.writer_names(config.train.log_to)
  files.make_folder(workdir)
  refuse_other_run(config, workdir)
  training, state = prepare(config, workdir, traced_steps)
  first = int(state.step)
  with PreemptionWatch() as watch, training.prefetcher, training.checkpoints, training.trace:
    try:
      state = training.train(state, watch)
    except BaseException:
      with contextlib.suppress(OSError):  # the first error is raised, not one of closing
        training.log.close()
      raise
  training.log.close()
  if watch.exit_status:
    step = f"step {int(state.step)} of {config.train.steps}"
    say(f"stopped at {step}, saved; the same command continues from there")
    return watch.exit_status
  if jax.process_index() == 0:
    from rc_jax.modes import report  # imports SciPy, which no earlier part of the run needs

    with waiting("drawing the report"):
      page: str | pathlib.Path
      try:
        page = report.write(
          config, workdir, training.network, *state.scored_weights(config.eval.ema), step=int(state.step)
        )
      except files.WriteError as error:
        # The run itself is finished and saved.
        page = f"none ({error.problem}); free space, then start the same command again to draw the report"
    seconds = training.progress.elapsed() if first < config.train.steps else None
    say(closing(config, workdir, page, seconds, training.protocol))
    if command is not None:
      say(f"\nNext:\n{next_commands(command, config)}")
  return 0


@dataclasses.dataclass(frozen=True)
class TrainingRun:
  """The parts of a run that stay the same from its first step to its last.

  Attributes:
    config: a validated config.
    workdir: the run's folder.
    class_names: of the ``N`` classes.
    training_set: what checkpoints record of it.
    network: functions of the network.
    programs: the compiled train step.
    evaluator: scores a state on ``eval.split``.
    protocol: how it does, ``protocol_text``: scores of another protocol are not compared with these.
    prefetcher: the training batches, at the position where the run starts.
    checkpoints: of the run.
    saving: saves them.
    log: ``metrics.jsonl`` and the writers of ``train.log_to``.
    finite: checks each step's loss.
    throughput: measures the speed.
    progress: shows it on the screen.
    trace: of the steps of ``--profile``.
    skipped: the unreadable training examples; None where one is an error.
  """

  config: Config
  workdir: pathlib.Path
  class_names: tuple[str, ...]
  training_set: TrainingSet
  network: models.Network
  programs: StepPrograms
  evaluator: Evaluator
  protocol: str
  prefetcher: Prefetcher
  checkpoints: Checkpoints
  saving: Saving
  log: run_log.RunLog
  finite: FiniteCheck
  throughput: Throughput
  progress: TrainingProgress
  trace: step_trace.StepTrace
  skipped: SkippedExamples | None

  def train(self, state: TrainState, watch: PreemptionWatch) -> TrainState:
    """Trains to the last step, or to the step at which ``watch`` requests a stop; returns the state there, saved."""
    train, first = self.config.train, int(state.step)
    try:
      # A run that was stopped during an evaluation has that step's checkpoint but no score.
      if self.evaluation_due(first) and not self.was_scored(first):
        self.evaluate(state, watch)
      for step in range(first + 1, train.steps + 1):
        if watch.stop_requested(step - 1):
          break
        batch = self.next_batch(state)
        if self.programs.compile(step, state, batch):
          self.throughput.restart()
        if step == first + 1:
          self.progress.start()
        self.trace.start(step, state)
        with no_implicit_transfers():
          state, metrics = self.programs(step, state, batch)
          self.finite.add(step, metrics)
        self.throughput.count_step()

        if step % train.log_every == 0 or step in (1, first + 1, train.steps):
          self.log_step(step, metrics)
        else:
          self.progress.count_step(step)
        if self.trace.stop(step, metrics):
          self.throughput.restart()
        if is_saved(self.config, step):
          self.save(state, required=step == train.steps)
          if self.evaluation_due(step):
            self.evaluate(state, watch)
          self.throughput.restart()
    except StopRequested:
      pass  # the evaluation starts again when the run resumes
    self.progress.flush()
    if watch.exit_status:
      self.save(state, required=True)
    return state

  def next_batch(self, state: TrainState) -> Batch:
    """Returns the next batch on the devices; where it cannot be read, saves the state before it raises.

    Raises:
      ValueError: a training example is damaged, or a worker process died; one line.
      OSError: a file cannot be read.
    """
    try:
      return self.prefetcher.next(self.finite.devices_idle)
    except (ValueError, OSError, RuntimeError) as error:
      # Saving needs all processes, and the others read other files.
      if jax.process_count() == 1:
        try:
          self.save(state, required=True)
        except files.WriteError as failed:
          say(f"WARNING: {failed}")  # beside the reason why the run ends
      if isinstance(error, RuntimeError):
        raise ValueError(
          f"data.workers: a process that reads training data failed ({error}); start again"
        ) from error
      raise

  def log_step(self, step: int, metrics: Metrics) -> None:
    """Shows the newest step, and logs it where the log has it; waits until the devices have finished it."""
    self.finite.check()
    metrics, speed = jax.device_get(metrics), self.throughput.take()
    self.progress.show(step, metrics, speed)
    if metrics["loss_pixel"] == 0:
      say(
        f"step {step}: the pixel loss is 0, as where all pixels of the batch are ignored; check the labels with "
        "--mode=inspect"
      )
    # Every run shows its first and last step; the log of a resumed run has the steps of an undisturbed one alone.
    if not is_logged(self.config, step):
      return
    self.log.write(run_log.step_line(step, metrics, self.class_names, speed))
    if self.skipped is not None:
      self.skipped.add(self.prefetcher.get_state())

  def save(self, state: TrainState, *, required: bool) -> None:
    """Saves the state and the position of the data, unless this step's checkpoint exists or no step was made.

    Args:
      state: the train state.
      required: an error ends the run; else the run goes on after one save that failed.
    """
    self.finite.check(state.params)
    if int(state.step) in (0, self.checkpoints.latest_step()):
      return
    position = self.prefetcher.get_state()
    if self.skipped is not None:
      position = self.skipped.add(position)
    self.saving.save(state, with_training_set(position, self.training_set), required=required)

  def evaluation_due(self, step: int) -> bool:
    """Returns whether the run scores ``eval.split`` after so many updates."""
    return is_scored(self.config, step)

  def was_scored(self, step: int) -> bool:
    """Returns whether the log holds a score of a step that was computed as this run scores."""
    scored = step in run_log.read_scores(self.workdir, self.config.eval.split, self.protocol)
    if jax.process_count() > 1:
      # The log may lie on the first host's disk alone, and all must agree to score or not.
      scored = bool(multihost_utils.broadcast_one_to_all(np.int32(scored)))
    return scored

  def evaluate(self, state: TrainState, watch: PreemptionWatch) -> None:
    """Scores the state on ``eval.split``; writes ``eval/<split>.json`` and a line of the log.

    Raises:
      StopRequested: a signal came.
    """
    step, split = int(state.step), self.config.eval.split
    self.progress.flush()
    start = time.monotonic()
    weights = state.scored_weights(self.config.eval.ema)
    results, counts = self.evaluator(*weights, watch.raise_if_requested)
    self.progress.scored(step, results["miou"], over_classes(results["iou"]), time.monotonic() - start)
    if jax.process_index() == 0:
      try:
        write_results(self.workdir, results, counts, step, weights_digest(weights))
      except files.WriteError as error:
        # Without a line of the log for the last step, the same command scores it again.
        if step == self.config.train.steps:
          raise
        say(
          f"WARNING: {error.problem}; training goes on, and the next scoring writes these files: free space"
        )
    # Last, because a line in the log means that this step need not be scored again.
    logged = ("miou", "cross_entropy", "pixel_accuracy", "mean_accuracy", "iou")
    scores = {name: results[name] for name in logged}
    self.log.write({"step": step, "split": split, run_log.PROTOCOL: self.protocol, **scores})
    self.checkpoints.scored(step, results["miou"])


def is_logged(config: Config, step: int) -> bool:
  """Returns whether the log of an undisturbed run has the metrics of a step."""
  return step == 1 or step % config.train.log_every == 0


def is_scored(config: Config, step: int) -> bool:
  """Returns whether a run scores ``eval.split`` after so many updates."""
  train = config.train
  return step == train.steps or bool(train.eval_every and step and step % train.eval_every == 0)


def is_saved(config: Config, step: int) -> bool:
  """Returns whether a run saves its state after so many updates."""
  return step % config.train.checkpoint_every == 0 or is_scored(config, step)


def prepare(
  config: Config, workdir: pathlib.Path, traced_steps: range = step_trace.NO_STEPS
) -> tuple[TrainingRun, TrainState]:
  """Loads data and weights and returns the parts of a run, and the state that it starts or resumes from."""
  mesh = sharding.global_mesh()
  sharding.check_batch(config.train.batch_size, mesh, config.train.microbatches)
  kind = jax.devices()[0].device_kind
  say(f"{jax.device_count()} x {kind} in {jax.process_count()} process(es), run folder {workdir}")

  source = data.load(
    config.dataset.name, config.dataset.root, config.dataset.train_split, classes=config.dataset.classes
  )
  eval_source = data.load(
    config.dataset.name, config.dataset.root, config.eval.split, classes=config.dataset.classes
  )
  info = source.info
  for note in data.notes_of(source):
    say(f"note: {note}")
  if jax.process_count() > 1:
    _check_agreement(config, workdir, source, eval_source)

  network = models.build(config.model, info.num_classes)
  protocol = protocol_text(scoring_protocol(config, network.align_corners, len(eval_source)))
  scores = run_log.read_scores(workdir, config.eval.split, protocol)
  checkpoints = Checkpoints(workdir, config.train.keep_checkpoints, scores=scores)
  # A run starts from, in this order: its own newest checkpoint, imported weights, random values.
  resumes = checkpoints.latest_step() is not None
  if resumes:
    check_class_table(workdir, info.table())
  state, update_rule = initial_state.initial_state(config, network, len(source), mesh, fresh=not resumes)
  training_set, data_position = training_set_of(source, config), None
  if resumes:
    state, data_position = checkpoints.restore(state)
    bank = bank_of_training_set(state.bank, data_position, training_set, config)
    state = dataclasses.replace(state, bank=bank)
    data_position = position_in_training_set(data_position, training_set, config, int(state.step))
    for line in run_log.notes_on_protocols(workdir, config.eval.split, protocol):
      say(line)
  weighted_config = class_weights.with_class_weights(config, workdir, source, resumes=resumes)
  # After the checks of a resumed run, because this one writes to its folder.
  rare_classes = _rare_classes(config, workdir, source)
  write_config(config, workdir)
  if jax.process_index() == 0:
    write_class_table(workdir, info.table())
  terms = loss_terms(config, network, state)
  say(plan_text(weighted_config, workdir, state, terms, info.num_classes, len(source), len(eval_source)))
  if rare_classes is not None:
    say(sampling_text(rare_classes, info.class_names, config.data.rare_class_min_pixels))

  state = initial_state.in_training_formats(state, mesh)

  def jitted(norms: bool) -> Any:
    return initial_state.jitted_step(weighted_config, network, update_rule, state, mesh, norms)

  def norms_due(step: int) -> bool:
    # Also where the state is saved, for the check that it is finite. Other platforms would compile for longer.
    return not sharding.on_gpus(mesh) or is_logged(config, step) or is_saved(config, step)

  first = int(state.step)
  earlier = [step for step in scores if step <= first]
  log_to = log_writers.writer_names(config.train.log_to)
  log = run_log.RunLog(workdir, first, log_to, flatten(as_dict(config)))
  batches = _training_batches(config, source, data_position, rare_classes)
  skipped = SkippedExamples(workdir, batches.most_skipped or 0, data_position)
  prefetcher = Prefetcher(batches, lambda batch: sharding.put_batch(batch, mesh))
  training = TrainingRun(
    config=config,
    workdir=workdir,
    class_names=info.class_names,
    training_set=training_set,
    network=network,
    programs=StepPrograms(jitted, norms_due),
    evaluator=make_evaluator(network, eval_source, config),
    protocol=protocol,
    prefetcher=prefetcher,
    checkpoints=checkpoints,
    saving=Saving(checkpoints, log),
    log=log,
    finite=FiniteCheck(checkpoints),
    throughput=Throughput(config.train.batch_size, prefetcher),
    progress=TrainingProgress(config, terms, first, scores[max(earlier)] if earlier else None),
    trace=step_trace.StepTrace(traced_steps, workdir, first),
    skipped=skipped if config.dataset.on_error == "skip" else None,
  )
  return training, state


def refuse_other_run(config: Config, workdir: pathlib.Path) -> None:
  """Checks that a folder is empty or holds the run of this config.

  Raises:
    ValueError: it holds the run of another config, or one whose ``config.json`` is damaged; one line with the fields
      that differ or the remedy.
  """
  path = workdir / "config.json"
  if not path.is_file():
    return
  differences = different_run(as_dict(config), files.read_json_object(path, lambda: _remedy(path)))
  if differences:
    raise ValueError(
      f"{path}: holds a run of another configuration ({'; '.join(differences)}); "
      "choose another --workdir or the same fields"
    )


def _remedy(path: pathlib.Path) -> str:
  """Says how to continue a run whose ``config.json`` is damaged."""
  step = newest_undamaged(path.parent / "checkpoints")
  held = (
    "the run has no undamaged checkpoint"
    if step is None
    else f"the newest undamaged checkpoint is step {step}"
  )
  return f"{held}; if this configuration trained it, delete the file: the next start writes it anew"


def write_config(config: Config, workdir: pathlib.Path) -> None:
  """Writes ``workdir/config.json``."""
  if jax.process_index() == 0:
    files.atomic_write_text(workdir / "config.json", json.dumps(as_dict(config), indent=2) + "\n")


def closing(
  config: Config, workdir: pathlib.Path, page: pathlib.Path | str, seconds: float | None, protocol: str
) -> str:
  """Returns the paragraph that ends a run: its score, its time and its files.

  Args:
    config: of the run.
    workdir: the run's folder.
    page: of the report, or why there is none.
    seconds: that the run took since it was started or resumed; None: it was finished before.
    protocol: how the run scores.
  """
  split = config.eval.split
  scores = run_log.read_scores(workdir, split, protocol)
  last = max(scores)
  # Of equal scores the later, which Checkpoints keeps.
  best = max(scores, key=lambda step: (scores[step], step))
  kept = (
    f"--checkpoint={best}" if (workdir / "checkpoints" / str(best)).is_dir() else f"step {best}, not kept"
  )
  best_text = "" if best == last else f" (the best was {100 * scores[best]:.2f}, {kept})"
  time_text = "" if seconds is None else f", in {duration(seconds)}"
  # The score of this step: --mode=eval may have scored another one since, over other classes.
  lines = run_log.read_metrics(workdir)
  scored = [line for line in lines if run_log.is_score(line, split, protocol)]
  ious = [line.get("iou") for line in scored if line["step"] == last][-1]
  over = f" {over_classes(ious)}" if ious else ""  # logs of earlier versions lack the classes
  score = f"mIoU {100 * scores[last]:.2f}{over}"
  written = workdir / "eval" / f"{split}.json"
  absent = absent_classes(read_results_json(written)) if written.is_file() else ""
  curves = f" (tensorboard --logdir {workdir})" if "tensorboard" in config.train.log_to else ""
  return "\n".join(
    (
      f"\nFinished: {score}{best_text} on {config.dataset.name}/{split}{time_text}",
      *([absent] if absent else []),
      f"pictures and curves: {page}",
      f"scores: {workdir / 'eval'}; every step: {workdir / run_log.METRICS}{curves}",
      f"checkpoints: {workdir / 'checkpoints'}",
    )
  )


def _check_agreement(
  config: Config, workdir: pathlib.Path, source: data.Source, eval_source: data.Source
) -> None:
  """Checks that all processes train on the same data, from the same step or weights.

  Raises:
    ValueError: they do not; one line, the same on all processes.
  """
  step = newest_step(workdir)
  facts = {"newest checkpoint in --workdir": step, **data.class_facts(source.info)}
  pretrained = pathlib.Path(config.model.pretrained) if config.model.pretrained and step is None else None
  if pretrained is not None and pretrained.is_file():  # an error of a missing file is that of the import
    facts["content of model.pretrained"] = restore.file_digest(pretrained)
  elif pretrained is not None and pretrained.is_dir():
    facts |= {f"model.pretrained, {name}": value for name, value in restore.facts(pretrained).items()}
  listings: dict[str, list[str]] = {}
  for each, split in ((source, config.dataset.train_split), (eval_source, config.eval.split)):
    of_split = data.split_facts(each, split)
    facts |= of_split[0]
    listings |= of_split[1]
  distributed.check_agreement(facts, listings)


def _rare_classes(config: Config, workdir: pathlib.Path, source: data.Source) -> RareClassSampling | None:
  """Returns how images are drawn by their classes; None where each epoch shows all of them.

  Raises:
    ValueError: a label cannot be read, or the labels of the processes differ; one line.
  """
  if not config.data.rare_class_temperature:
    return None
  # Every process counts: no program of the devices waits for hours for one of them.
  pixels = count_class_pixels(
    source, workdir, skip=config.dataset.on_error == "skip", keep=jax.process_index() == 0
  )
  distributed.check_agreement({"pixels of each class in the training labels": digest_of_counts(pixels)})
  fields = config.data
  return rare_class_sampling(
    pixels, fields.rare_class_temperature, fields.rare_class_min_pixels, fields.rare_class_crops
  )


def _training_batches(
  config: Config,
  source: data.Source,
  data_position: dict[str, Any] | None,
  rare_classes: RareClassSampling | None,
) -> data.TrainBatches:
  """Returns this process's training batches, at the position of the checkpoint where there is one."""
  batches = data.train_batches(
    source,
    seed=config.seed,
    batch_size=config.train.batch_size,
    crop_size=height_width(config.train.crop_size),
    augment=config.augment,
    workers=config.data.workers,
    threads=config.data.threads,
    cache_gb=config.data.cache_gb,
    max_skipped=config.dataset.max_skipped if config.dataset.on_error == "skip" else None,
    host_index=jax.process_index(),
    host_count=jax.process_count(),
    with_index=reads_image_index(config),
    rare_classes=rare_classes,
  )
  if data_position is not None:
    batches.set_state(data_position)
  return batches
