"""Saves and restores runs. The only module that imports Orbax.

A checkpoint holds the items ``model`` (parameters and statistics), ``trainer`` (step, optimizer, banks) and ``data``
(the position in the training data), ``ema`` (the averages of ``model``) where the run keeps them, and checksums. A
checkpoint becomes visible once it is complete: a kill at any moment leaves the previous one.
"""

import contextlib
import dataclasses
import errno
import logging
import os
import pathlib
import shlex
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from rc_jax import files, sharding
from rc_jax.models import Variables
from rc_jax.train_state import ShardedBank, TrainState
from rc_jax.weights import checksums

FOLDER = "checkpoints"
ITEMS = ("model", "trainer", "data")
EMA = "ema"

# In the names of Orbax's folders before they are complete.
_INCOMPLETE = ".orbax-checkpoint-tmp"

# Of these Orbax names the file in several lines, and the reason last.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG)

# Orbax logs every file it opens, and an error once in each of its threads before it raises it here.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


class Checkpoints:
  """The checkpoints of one run: the newest few, and the best by mIoU. Saves in the background.

  A checkpoint is saved before it is scored, so that a failure of scoring costs no step. Scores therefore arrive later,
  by ``scored`` and from the run's log at the start, and the next save decides which checkpoint is the best.
  """

  def __init__(self, workdir: pathlib.Path, keep: int = 2, scores: dict[int, float] | None = None):
    """Opens (and makes, where absent) ``workdir/checkpoints``.

    Args:
      workdir: the run's folder.
      keep: number of the newest checkpoints to keep, besides the best by mIoU.
      scores: mIoU of steps that were scored before the run was resumed.

    Raises:
      OSError: the folder cannot be written; one line.
    """
    self.folder = workdir.resolve() / FOLDER
    self._keep = keep
    files.check_writable(self.folder)
    self._scores = dict(scores or {})
    policies = [preservation_policy.LatestN(keep), _KeepBest(self._scores)]
    self._manager = ocp.CheckpointManager(
      self.folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
        cleanup_tmp_directories=True,  # a kill leaves half-written ones
        enable_async_checkpointing=True,
        async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
      ),
    )

  def latest_step(self) -> int | None:
    """Returns the step of the newest complete checkpoint, or None."""
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """Returns the step of the checkpoint with the highest mIoU, or None where none was scored."""
    return _best(self._manager.all_steps(), self._scores)

  def scored(self, step: int, miou: float) -> None:
    """Notes the mIoU of a step's checkpoint."""
    self._scores[step] = miou

  def save(self, state: TrainState, data_position: dict[str, Any]) -> None:
    """Starts to save the state after ``state.step`` updates; returns once the arrays are copied.

    Args:
      state: the train state; every process calls this with its part.
      data_position: position of the training data, of types that JSON has.

    Raises:
      WriteError: the disk is full or the folder cannot be written, in this save or in the one before.
    """
    step = int(state.step)
    items = {
      "model": ocp.args.StandardSave(_variables_item(state.params, state.batch_stats)),
      "trainer": ocp.args.StandardSave(_trainer_item(state)),
      "data": ocp.args.JsonSave(data_position),
    }
    if state.ema is not None:
      items[EMA] = ocp.args.StandardSave(_variables_item(*state.ema))
    self._refuse_full_disk(state)
    try:
      self._manager.save(step, args=ocp.args.Composite(**items), force=True)
    except Exception as error:
      self._remove_incomplete()
      reason = _disk_error(error)
      if reason is None:
        raise
      raise self.cannot_save(reason) from error

  def restore(self, template: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Reads the newest checkpoint.

    Args:
      template: a state of the same shapes, with the shardings for the result.

    Returns:
      The state, and the data position that was saved with it.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the newest checkpoint is damaged or lacks a part, or its arrays do not fit the template.
    """
    step = self.latest_step()
    if step is None:
      raise FileNotFoundError(f"{self.folder}: holds no checkpoint")
    if template.ema is not None and not (self.folder / str(step) / EMA).is_dir():
      raise ValueError(
        f"{self.folder / str(step)}: holds no moving average of the weights, which train.ema_decay asks for; set "
        "train.ema_decay=0, or train in another --workdir"
      )
    averages = {} if template.ema is None else {EMA: _variables_item(*template.ema)}
    _refuse_damaged(self.folder / str(step), (*ITEMS, *averages))
    bank = template.bank
    is_sharded = isinstance(bank, ShardedBank)
    trainer = _abstract(_trainer_item(template))
    saved_shapes = self._bank_shapes(step)
    if is_sharded:
      trainer["bank"] = _named_leaves(bank.as_saved(saved_shapes))
    self._refuse_other_bank(step, saved_shapes, trainer["bank"])
    args = ocp.args.Composite(
      model=ocp.args.StandardRestore(_abstract(_variables_item(template.params, template.batch_stats))),
      trainer=ocp.args.StandardRestore(trainer),
      data=ocp.args.JsonRestore(),
      **{name: ocp.args.StandardRestore(_abstract(item)) for name, item in averages.items()},
    )
    try:
      items = self._manager.restore(step, args=args)
    except (ValueError, KeyError) as error:
      raise ValueError(
        f"{self.folder / str(step)}: does not fit this configuration: {_first_line(error)}; "
        "use the config of its config.json"
      ) from error
    model, trainer = items["model"], items["trainer"]
    saved = jax.tree.map(lambda name: trainer["bank"][name], _leaf_names(bank))
    state = TrainState(
      step=trainer["step"],
      params=model["params"],
      batch_stats=model["batch_stats"],
      opt_state=trainer["opt_state"],
      bank=bank.refit(saved) if is_sharded else saved,
      ema=Variables(**items[EMA]) if averages else None,
    )
    return state, items["data"]

  def _bank_shapes(self, step: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the bank's arrays in a checkpoint, by name; empty where it holds no bank."""
    metadata = ocp.StandardCheckpointer().metadata(self.folder / str(step) / "trainer").item_metadata
    return {name: tuple(leaf.shape) for name, leaf in metadata.get("bank", {}).items()}

  def _refuse_other_bank(
    self, step: int, saved: Mapping[str, tuple[int, ...]], described: Mapping[str, Any]
  ) -> None:
    """Compares names and shapes before reading: Orbax fails in several threads, and each prints a traceback."""
    differences = _shape_differences(saved, {name: tuple(leaf.shape) for name, leaf in described.items()})
    if differences:
      raise ValueError(
        f"{self.folder / str(step)}: does not fit this configuration: the bank's {differences[0]}; "
        "use the config of its config.json"
      )

  def wait(self) -> None:
    """Blocks until all started saves are on the disk.

    Raises:
      WriteError: the disk is full or the folder cannot be written. The checkpoints before are untouched.
    """
    try:
      self._manager.wait_until_finished()
      self._manager.check_for_errors()
    except Exception as error:
      self._remove_incomplete()
      reason = _disk_error(error)
      if reason is None:
        raise
      raise self.cannot_save(reason) from error
    # Threads of an earlier save that failed may have written once more after it was removed.
    self._delete_incomplete()

  def close(self) -> None:
    """Waits for all started saves, deletes what the newest one replaced, and releases the folder."""
    self.wait()
    self._delete_replaced()
    self._manager.close()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
    if error is None:
      self.close()
    else:
      # Started saves are finished, and the first error is raised, not one of closing.
      with contextlib.suppress(OSError):
        self.close()

  def _delete_replaced(self) -> None:
    """Deletes the checkpoints that Orbax deletes after a save, where a kill came between the two.

    The next save would delete them too, but the last checkpoint of a run has none after it.
    """
    steps = [int(folder.name) for folder in _step_folders(self.folder)]
    if jax.process_index() != 0 or not steps:
      return
    # When the newest checkpoint was saved, its score was not known yet.
    best = _best(steps, {step: score for step, score in self._scores.items() if step < steps[0]})
    for step in steps[self._keep :]:
      if step != best:
        shutil.rmtree(self.folder / str(step), ignore_errors=True)

  def _write_checksums(self) -> None:
    """Adds the checksums to the checkpoint that is about to become visible: Orbax calls this before it renames it."""
    for folder in self.folder.glob(f"*{_INCOMPLETE}*"):
      # A folder that a kill left incomplete may be deleted at the same time.
      with contextlib.suppress(FileNotFoundError):
        if all((folder / item).is_dir() for item in ITEMS):
          checksums.write(folder, (*ITEMS, *([EMA] if (folder / EMA).is_dir() else [])))

  def _refuse_full_disk(self, state: TrainState) -> None:
    """Raises before a save that cannot fit: one that runs out of space fails in a dozen threads, with tracebacks."""
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(self.folder).free
    if free < needed:
      raise self.cannot_save(f"{needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")

  def _remove_incomplete(self) -> None:
    """Frees the space of a save that failed, and forgets its step."""
    if jax.process_count() == 1:
      self._delete_incomplete()
      # Orbax has already left out the steps that it meant to delete after this save.
      self._manager.reload()

  def _delete_incomplete(self) -> None:
    """Deletes what saves that failed have left; no save may be going on."""
    # With several processes, the others may still write there; the next start removes it.
    if jax.process_count() == 1:
      for folder in self.folder.glob(f"*{_INCOMPLETE}*"):
        shutil.rmtree(folder, ignore_errors=True)

  def cannot_save(self, reason: str) -> files.WriteError:
    """Returns the error, in one line, of a checkpoint that is not saved; ``reason``: why."""
    last = self.latest_step()
    kept = f"the last good checkpoint is step {last}" if last is not None else "no checkpoint was saved yet"
    problem = f"{self.folder}: cannot save a checkpoint ({reason}); {kept}"
    return files.WriteError(problem, "free space and start again")


@dataclasses.dataclass(frozen=True)
class Model:
  """The part of a checkpoint that scoring reads.

  Attributes:
    step: updates made.
    params: nested dict of float32 arrays.
    batch_stats: nested dict of float32 arrays.
    ema: whether these are moving averages.
  """

  step: int
  params: Any
  batch_stats: Any
  ema: bool = False


def find(path: pathlib.Path) -> pathlib.Path:
  """Finds a checkpoint by the path of its run or its step.

  Args:
    path: a run's folder, its ``checkpoints`` folder (both: the newest step), or the folder of one step.

  Returns:
    The folder of one step.

  Raises:
    FileNotFoundError: there is none; the message names the folders that were searched.
    ValueError: the checkpoint lacks its model.
  """
  path = path.resolve()
  if path.name.isdigit() and path.parent.name == FOLDER and path.is_dir():
    _refuse_without_model(path)
    return path
  if path.name.isdigit() and (path / "model").is_dir():
    return path
  for folder in (path / FOLDER, path):
    if folder.is_dir():
      steps = _step_folders(folder)
      if steps:
        _refuse_without_model(steps[0])
        return steps[0]
  raise FileNotFoundError(
    f"{path}: holds no checkpoint; expected a run's folder or one step of its {FOLDER}/"
  )


def restore_model(path: pathlib.Path, params: Any, batch_stats: Any, ema: bool = True) -> Model:
  """Reads the model, without optimizer and banks.

  Args:
    path: as for ``find``.
    params: arrays, or shapes with shardings, as the network has them.
    batch_stats: likewise.
    ema: whether to read the moving averages where the checkpoint holds them.

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: the checkpoint is damaged or holds another network.
  """
  folder = find(path)
  name = _model_item(folder, ema)
  _refuse_damaged_model(folder, name)
  template = _variables_item(params, batch_stats)
  with ocp.StandardCheckpointer() as checkpointer:
    _refuse_other_network(folder, checkpointer.metadata(folder / name).item_metadata, template)
    item = checkpointer.restore(folder / name, _abstract(template))
  return Model(int(folder.name), item["params"], item["batch_stats"], ema=name == EMA)


def read_model(path: pathlib.Path) -> Model:
  """Reads the model of a run of any network: the moving averages where the checkpoint holds them.

  Args:
    path: as for ``find``.

  Returns:
    The model, with NumPy arrays.

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: the checkpoint is damaged.
  """
  folder = find(path)
  item_name = _model_item(folder, ema=True)
  _refuse_damaged_model(folder, item_name)
  everywhere = sharding.replicated_sharding(sharding.global_mesh())
  with ocp.StandardCheckpointer() as checkpointer:
    saved = checkpointer.metadata(folder / item_name).item_metadata
    # ``metadata`` has attributes beside the tree.
    template = {
      name: jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), saved[name]
      )
      for name in ("params", "batch_stats")
    }
    item = jax.device_get(checkpointer.restore(folder / item_name, template))
  return Model(step=int(folder.name), params=item["params"], batch_stats=item["batch_stats"])


def newest_undamaged(folder: pathlib.Path, items: Sequence[str] = ITEMS) -> int | None:
  """Returns the newest step that has all parts, undamaged; reads its files.

  Args:
    folder: the ``checkpoints`` folder of a run, which may be absent.
    items: the parts to check.
  """
  return next((int(step.name) for step in _step_folders(folder) if not checksums.damage(step, items)), None)


def newest_step(workdir: pathlib.Path) -> int | None:
  """Returns the newest step of a run in a folder, which may be absent, or None; opens no file."""
  return next((int(step.name) for step in _step_folders(workdir / FOLDER)), None)


def _step_folders(folder: pathlib.Path) -> list[pathlib.Path]:
  """Lists the folders of all steps, the newest first."""
  steps = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
  return sorted(steps, key=lambda path: -int(path.name))


def _refuse_damaged(folder: pathlib.Path, items: Sequence[str]) -> None:
  problem = checksums.damage(folder, items)
  if not problem:
    return
  step = newest_undamaged(folder.parent, items)
  message = f"{folder}: this checkpoint is damaged ({problem}); "
  if step is None:
    raise ValueError(message + "no other checkpoint is undamaged; train anew in another --workdir")
  target = folder.parents[1] / f"damaged_{folder.name}"
  raise ValueError(
    message
    + f"the newest undamaged one is step {step}; to continue from it, move this one away and start again: "
    f"mv {shlex.quote(str(folder))} {shlex.quote(str(target))}"
  )


def _refuse_without_model(folder: pathlib.Path) -> None:
  if not (folder / "model").is_dir():
    raise ValueError(f"{folder}: is damaged (model is missing); {_other_model(folder)}")


def _model_item(folder: pathlib.Path, ema: bool) -> str:
  """Returns the item of a checkpoint to read as its model."""
  return EMA if ema and (folder / EMA).is_dir() else "model"


def _refuse_damaged_model(folder: pathlib.Path, item: str) -> None:
  problem = checksums.damage(folder, (item,))
  if problem:
    raise ValueError(f"{folder}: is damaged ({problem}); {_other_model(folder)}")


def _other_model(folder: pathlib.Path) -> str:
  """Says which other checkpoint has an undamaged model."""
  step = newest_undamaged(folder.parent, ("model",))
  if step is None:
    return "no other checkpoint of this run is undamaged"
  return (
    f"the newest undamaged one is step {step}: --checkpoint={shlex.quote(str(folder.with_name(str(step))))}"
  )


def _refuse_other_network(folder: pathlib.Path, saved: Any, template: Any) -> None:
  """Compares names and shapes before reading: Orbax's error for it has pages, and comes from another thread."""
  there, here = (
    {
      "/".join(str(key.key) for key in path): tuple(leaf.shape)
      for path, leaf in jax.tree.leaves_with_path(tree)
    }
    for tree in (saved, template)
  )
  differences = _shape_differences(there, here)
  if differences:
    raise ValueError(
      f"{folder}: holds another network than the config's: {differences[0]} "
      f"({len(differences)} arrays differ); use the config of its config.json"
    )


def _shape_differences(
  there: Mapping[str, tuple[int, ...]], here: Mapping[str, tuple[int, ...]]
) -> list[str]:
  """Lists the arrays whose shapes differ, as ``keys is (2, 4, 3) there and absent here``."""
  return [
    f"{name} is {there.get(name, 'absent')} there and {here.get(name, 'absent')} here"
    for name in sorted(there.keys() | here.keys())
    if there.get(name) != here.get(name)
  ]


@dataclasses.dataclass
class _KeepBest(preservation_policy.PreservationPolicy):
  """Keeps the checkpoint with the highest score; ``scores`` grows as steps are scored."""

  scores: dict[int, float]

  def should_preserve(
    self,
    checkpoints: Sequence[preservation_policy.PolicyCheckpointInfo],
    *,
    context: preservation_policy.PreservationContext,
  ) -> Sequence[bool]:
    best = _best([checkpoint.step for checkpoint in checkpoints], self.scores)
    return [checkpoint.step == best for checkpoint in checkpoints]


def _best(steps: Sequence[int], scores: dict[int, float]) -> int | None:
  # Of equal scores the later step: it was trained longer.
  return max((step for step in steps if step in scores), key=lambda step: (scores[step], step), default=None)


def _variables_item(params: Any, batch_stats: Any) -> dict[str, Any]:
  return {"params": params, "batch_stats": batch_stats}


def _trainer_item(state: TrainState) -> dict[str, Any]:
  return {"step": state.step, "opt_state": state.opt_state, "bank": _named_leaves(state.bank)}


def _leaf_names(tree: Any) -> Any:
  """Returns the name of each leaf, its path such as ``keys`` or ``queues/0``, in the same tree."""
  return jax.tree.map_with_path(
    lambda path, leaf: jax.tree_util.keystr(path, simple=True, separator="/"), tree
  )


def _named_leaves(tree: Any) -> dict[str, Any]:
  """Returns the leaves by their names: a plain dict, so that a checkpoint is read without this package's classes."""
  return dict(zip(jax.tree.leaves(_leaf_names(tree)), jax.tree.leaves(tree), strict=True))


def _abstract(tree: Any) -> Any:
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype, sharding=leaf.sharding), tree
  )


def _disk_error(error: BaseException) -> str | None:
  """Returns the system's reason for an error of writing; None where it is an error of another kind."""
  text = str(error)
  reasons = (os.strerror(number) for number in _DISK_ERRORS)
  reason = next((reason for reason in reasons if reason in text), None)
  cause: BaseException | None = error
  while reason is None and cause is not None:
    if isinstance(cause, OSError):
      return cause.strerror or _first_line(cause)
    cause = cause.__cause__ or cause.__context__
  return reason


def _first_line(error: BaseException) -> str:
  text = str(error).strip()
  return text.splitlines()[0][:200] if text else type(error).__name__
