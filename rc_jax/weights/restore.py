"""Restores the weights to score, predict or export with: from a run, from one step of it, or from a file."""

import hashlib
import pathlib
from typing import Any

import jax

from rc_jax import files, models, sharding
from rc_jax.class_table import ClassTable, check_class_table
from rc_jax.config import (
  FIELDS,
  Config,
  as_dict,
  defaults,
  different_network,
  flatten,
  height_width,
  set_field,
  validate,
)
from rc_jax.console import say
from rc_jax.weights import checkpoint, checksums, pretrained


def restore(
  network: models.Network, config: Config, path: pathlib.Path, classes: ClassTable
) -> checkpoint.Model:
  """Restores the model of a checkpoint, or of a file of weights, for the config's network.

  Args:
    network: of the config.
    config: of the run.
    path: as for ``checkpoint.find``, or a file that ``pretrained.load`` reads, with the head.
    classes: of the data set, ``DatasetInfo.table()``.

  Returns:
    The model, on all devices; ``step`` is 0 for a file of weights.

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: a file is damaged; or the run that saved it has another network, another data set or other classes, also
      where no shape differs, as with other dilations or another order of the classes.
  """
  if path.is_file():
    return _imported(network, config, path, classes)
  folder = checkpoint.find(path)
  run_config = folder.parents[1] / "config.json"
  if run_config.is_file():
    remedy = f"if --config trained step {folder.name}, delete the file: the next training writes it anew"
    found = different_network(as_dict(config), files.read_json_object(run_config, lambda: remedy))
    if found:
      raise ValueError(
        f"{folder}: was trained as another network ({'; '.join(found)}); use that run's --config"
      )
  check_class_table(run_config.parent, classes)
  template = network.init(jax.random.key(0), image_size=height_width(config.train.crop_size))
  template = sharding.put_replicated(template, sharding.global_mesh())
  if config.eval.ema and (folder / checkpoint.EMA).is_dir():
    say(
      f"step {folder.name}: the moving average of the weights; the weights themselves: --config.eval.ema=False"
    )
  return checkpoint.restore_model(folder, template.params, template.batch_stats, config.eval.ema)


def config_of_run(folder: pathlib.Path) -> Config:
  """Returns the config that a run's folder records; fields that an earlier version did not know have their defaults.

  Args:
    folder: of the run.

  Raises:
    FileNotFoundError: it holds no ``config.json``.
    ValueError: the file is damaged, or holds a value that no config may have; one line.
  """
  path = folder / "config.json"
  if not path.is_file():
    raise FileNotFoundError(f"{path}: missing; expected the folder of a run that --mode=train wrote")
  recorded = flatten(files.read_json_object(path, lambda: "train again, or name another run"))
  config = defaults()
  for field in FIELDS:
    if field.path in recorded:
      value = recorded[field.path]
      try:
        set_field(config, field.path, tuple(value) if isinstance(value, list) else value)
      except TypeError as error:
        found = files.one_line(repr(value), 80)
        raise ValueError(
          f"{path}: {field.path} is {found}; expected a value like {field.default!r}"
        ) from error
  try:
    validate(config)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error
  return config


def facts(path: pathlib.Path) -> dict[str, Any]:
  """Returns what identifies the weights that ``restore`` reads, as facts of ``rc_jax.agreement``.

  Raises:
    FileNotFoundError: there is no checkpoint.
  """
  if path.is_file():
    return {"content of --checkpoint": file_digest(path)}
  folder = checkpoint.find(path)
  listed = folder / checksums.FILE
  return {
    "step of the checkpoint": int(folder.name),
    "checksums of the checkpoint": file_digest(listed) if listed.is_file() else None,
  }


def file_digest(path: pathlib.Path) -> str:
  """Returns 16 hexadecimal digits that stand for the content of a file."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def origin(path: pathlib.Path) -> pathlib.Path:
  """Returns the path that ``restore`` reads: the folder of one step, or the file of weights.

  Raises:
    FileNotFoundError: there is neither.
  """
  return path.resolve() if path.is_file() else checkpoint.find(path)


def _imported(
  network: models.Network, config: Config, path: pathlib.Path, classes: ClassTable
) -> checkpoint.Model:
  variables = network.init(jax.random.key(0), image_size=height_width(config.train.crop_size))
  model = config.model.copy_and_resolve_references()
  model.pretrained_part = "all"
  try:
    variables, report = pretrained.load(str(path), variables, model, classes["class_names"])
  except ValueError as error:
    raise ValueError(str(error).replace("model.pretrained:", "--checkpoint:", 1)) from error
  say(report.summary())
  trees = sharding.put_replicated((variables.params, variables.batch_stats), sharding.global_mesh())
  return checkpoint.Model(step=0, params=trees[0], batch_stats=trees[1])


def locate(workdir: pathlib.Path, checkpoint: pathlib.Path | None) -> pathlib.Path:
  """Returns the path that ``--checkpoint`` means.

  Args:
    workdir: the run's folder.
    checkpoint: a run's folder, one of its checkpoints, a file of weights, or the number of one of ``workdir``'s steps,
      ``Path("12000")``; None: ``workdir``, of which ``restore`` reads the newest checkpoint.
  """
  if checkpoint is None:
    return workdir
  if str(checkpoint).isdigit() and not checkpoint.exists():
    return workdir / "checkpoints" / str(checkpoint)
  return checkpoint
