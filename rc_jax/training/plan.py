"""What a run will do: the terms of its loss, its scorings, and the paragraph that announces them."""

import pathlib
import textwrap

import jax
import jax.numpy as jnp

from rc_jax import losses
from rc_jax.config import Config, height_width, method_title, reads_banks, uses_contrast
from rc_jax.models import Network
from rc_jax.train_state import TrainState

_COLUMNS = 100

# Names of terms, where they are no words.
_WORDS = {"aux": "auxiliary loss"}
_SCOPES = {
  "image": "the centers of its own image",
  "batch": "all centers of its batch",
}


def loss_terms(config: Config, network: Network, state: TrainState) -> dict[str, float]:
  """Returns name -> weight of each term of Eq. 5, in the order in which they are shown.

  Args:
    config: a validated config.
    network: functions of the network; it is traced, not run.
    state: of the run.
  """
  images = jax.ShapeDtypeStruct((1, *height_width(config.train.crop_size), 3), jnp.uint8)
  outputs, _ = jax.eval_shape(network.train, state.params, state.batch_stats, images, jax.random.key(0))
  terms = {"pixel": 1.0}
  for _, extra in sorted(outputs.extra.items()):
    terms[extra.term] = config.loss[f"{extra.term}_weight"]
  if uses_contrast(config):
    terms["contrast"] = config.loss.contrast_weight
  return terms


def scorings_left(config: Config, step: int) -> int:
  """Returns how many scorings follow after the one of ``step``, if that has one; the last is at the last step."""
  steps = config.train.steps
  every = config.train.eval_every or steps
  return int(steps // every - step // every + (steps % every != 0 and step < steps))


def plan_text(
  config: Config,
  workdir: pathlib.Path,
  state: TrainState,
  terms: dict[str, float],
  num_classes: int,
  training_images: int,
  scored_images: int,
) -> str:
  """Returns the paragraph before the first step: data, network, loss, steps and folder of a run.

  Args:
    config: a validated config.
    workdir: the run's folder.
    state: where the run starts or resumes.
    terms: of ``loss_terms``.
    num_classes: ``N``.
    training_images: number of images of ``dataset.train_split``.
    scored_images: number of images of ``eval.split``.
  """
  train, step = config.train, int(state.step)
  height, width = height_width(train.crop_size)
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  pretrained = pathlib.Path(config.model.pretrained or "random values")
  start = pretrained if pretrained.is_dir() else pretrained.name
  epochs = f"{train.steps * train.batch_size / training_images:.3g} epochs"
  if config.data.rare_class_temperature:
    epochs = f"as many images as {epochs} have"
  every = f"every {train.eval_every:,} steps" if train.eval_every else "at the end"
  table = f" by dataset.classes={config.dataset.classes}" if config.dataset.classes else ""
  lines = [
    f"data: {config.dataset.name}, {num_classes} classes{table}; {training_images:,} images of "
    f"{config.dataset.train_split} to train on, {scored_images:,} of {config.eval.split} to score",
    f"network: {config.model.name} on {config.model.backbone}, {parameters:,} parameters, from {start}"
    f"{_frozen_text(config)}",
    f"loss: {_loss_text(config, terms, num_classes, training_images)}",
    f"steps: {train.steps:,} of {train.batch_size} crops of {height} x {width}{_parts_text(config)} ({epochs}); "
    f"scores {_average_text(config)}{every}, saves every {train.checkpoint_every:,}",
  ]
  if step == train.steps:
    lines.append("this run is finished; nothing is left to train")
  elif step:
    lines.append(f"resuming at step {step} of {train.steps}")
  return "\n".join(
    textwrap.fill(line, _COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    for line in lines
  )


def _parts_text(config: Config) -> str:
  parts, remat = config.train.microbatches, config.model.remat
  return (f" in {parts} parts" if parts > 1 else "") + (f", rematerialising {remat}" if remat else "")


def _average_text(config: Config) -> str:
  decay = config.train.ema_decay
  return f"the moving average of the weights (decay {decay:g}) " if decay and config.eval.ema else ""


def _frozen_text(config: Config) -> str:
  frozen = {"parameters": config.model.freeze, "BatchNorm statistics": config.model.freeze_batch_stats}
  return "".join(f"; frozen {name}: {parts}" for name, parts in frozen.items() if parts)


def _loss_text(config: Config, terms: dict[str, float], num_classes: int, training_images: int) -> str:
  words = [losses.pixel_loss_title(config.loss.pixel)]
  weights = config.loss.class_weights
  if weights:
    origin = config.loss.class_weighting.replace("_", " ").replace("none", "given")
    words[0] += f" with class weights of {min(weights):.3g} to {max(weights):.3g} ({origin})"
  for name, weight in terms.items():
    if name not in ("pixel", "contrast"):
      words.append(f"{weight:g} x {_WORDS.get(name, f'{name} loss')}")
  if "contrast" not in terms:
    return f"{' + '.join(words)}, without contrast: the baseline"
  words.append(f"{terms['contrast']:g} x {method_title(config)}")
  if reads_banks(config):
    keys = f"banks of {config.contrast.bank_size or training_images:,} keys for each of {num_classes} classes"
    if config.contrast.slots == "image":
      keys += ", a slot for each training image"
  else:
    keys = _SCOPES[config.contrast.scope]
    if config.contrast.scope == "batch" and config.train.microbatches > 1:
      keys = "all centers of its part of the batch"
  start = config.contrast.start_step
  begins = f", and counts after {start:,} steps" if start else ""
  return f"{' + '.join(words)}, which compares the region centers of each image with {keys}{begins}"
