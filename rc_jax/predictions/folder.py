"""A folder of predictions that stays valid when its run is killed: which images are done, and by which network."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import threading
from collections.abc import Mapping
from typing import Any, BinaryIO

import jax
import numpy as np
from PIL import Image

from rc_jax import files
from rc_jax.config import flatten, is_training_only
from rc_jax.data import DatasetInfo

SETTINGS = "predictions.json"
# Recorded, but no reason to refuse: a run may be moved, and a step may be trained again.
INFORMATIVE = ("checkpoint", "step")


@dataclasses.dataclass(frozen=True)
class Fingerprint:
  """Distinguishes an image file from another of the same name. A line of the log holds these attributes by name.

  Attributes:
    source: path of the file, or the split and index of an image without a file.
    bytes: size of the file; 0 without a file.
    modified: time of its last change in nanoseconds.
  """

  source: str
  bytes: int = 0
  modified: int = 0

  def matches(self, other: "Fingerprint") -> bool:
    """Whether both belong to one image: an unchanged file, even if its folder was moved."""
    return (self.bytes, self.modified) == (other.bytes, other.modified) and (
      self.bytes > 0 or self.source == other.source
    )


class PredictionFolder:
  """Outputs of images by kind, and a log of the images that are done. One object a process; safe between threads."""

  def __init__(
    self, path: pathlib.Path, settings: Mapping[str, Any], *, overwrite: bool, process: int, remedy: str
  ):
    """Opens or makes the folder.

    Args:
      path: the folder.
      settings: all settings on which predictions depend, as JSON knows them.
      overwrite: label all images again.
      process: the number of this process; each process writes its own log, and process 0 the settings.
      remedy: for the error: how a user keeps both predictions.

    Raises:
      ValueError: images in the folder were labelled under other settings; names those that differ.
      OSError: the folder cannot be written.
    """
    self.path = path
    self._lock = threading.Lock()
    if path.exists() and not path.is_dir():
      raise ValueError(f"{path}: is a file; expected a folder or a new name")
    path.mkdir(parents=True, exist_ok=True)
    logs = sorted(path.glob("done_*.jsonl"))
    self._done = {} if overwrite else _read_logs(logs)
    if self._done:
      theirs = _read_settings(path / SETTINGS)
      differing = _differences(settings, theirs) if theirs else [f"its {SETTINGS} is missing or damaged"]
      if differing:
        raise ValueError(
          f"{path}: holds predictions of other settings ({'; '.join(differing)}): add --overwrite to label all again "
          f"or {remedy}"
        )
    if process == 0:
      # Before the settings change, so that nothing counts as done after a kill in between.
      for log in logs if not self._done else ():
        log.unlink()
      files.atomic_write_text(path / SETTINGS, json.dumps(dict(settings), indent=2) + "\n")
    self._log_path = path / f"done_{process}.jsonl"
    if self._log_path.is_file() and not self._log_path.read_bytes().endswith(b"\n"):
      # A kill cut the last line; the next line must not continue it.
      with self._log_path.open("a") as file:
        file.write("\n")

  def is_done(self, name: str, fingerprint: Fingerprint, wanted: Mapping[str, str]) -> bool:
    """Whether an image was labelled and all its wanted files exist; ``wanted``: kind -> suffix."""
    done = self._done.get(name)
    return (
      done is not None
      and done.matches(fingerprint)
      and all(self.file(kind, name, suffix).is_file() for kind, suffix in wanted.items())
    )

  def file(self, kind: str, name: str, suffix: str) -> pathlib.Path:
    """Returns the path of an output, ``labels/<name>.png``; a name may hold folders."""
    return self.path / kind / f"{name}{suffix}"

  def writing(self, kind: str, name: str, suffix: str) -> contextlib.AbstractContextManager[BinaryIO]:
    """Opens an output for writing; the complete file appears at the end of the ``with`` block."""
    target = self.file(kind, name, suffix)
    target.parent.mkdir(parents=True, exist_ok=True)
    return files.atomic_write(target)

  def mark_done(self, name: str, fingerprint: Fingerprint) -> None:
    """Logs that all outputs of an image exist."""
    line = json.dumps({"name": name, **dataclasses.asdict(fingerprint)}) + "\n"
    with self._lock, self._log_path.open("a") as log:
      log.write(line)


def settings_of(
  config: Mapping[str, Any], variables: Any, checkpoint: pathlib.Path, step: int
) -> dict[str, Any]:
  """Returns all settings on which predictions depend, as JSON knows them.

  Args:
    config: the config as nested plain dicts.
    variables: all arrays of the network.
    checkpoint: path from which they were restored.
    step: of the checkpoint.
  """
  digest = hashlib.sha256()
  for path, leaf in jax.tree.leaves_with_path(variables):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  scoring = {field: config["eval"][field] for field in ("scales", "flip", "crop_size", "stride")}
  return {
    "checkpoint": str(checkpoint),
    "step": step,
    "weights": digest.hexdigest()[:16],
    "dataset": config["dataset"]["name"],
    "model": {
      field: value for field, value in config["model"].items() if not is_training_only(f"model.{field}")
    },
    "eval": scoring,
  }


def label_image(labels: np.ndarray, info: DatasetInfo) -> Image.Image:
  """Turns train ids into a label image in the data set's own ids.

  Args:
    labels: ``[H,W]`` train ids ``0..N-1``.
    info: ids and colours.

  Returns:
    A palette image: its indices are the ids, and its palette has the colours of the classes. 16-bit greyscale if an id
    is above 255.
  """
  ids = np.asarray(info.label_ids)[labels]
  if info.label_ids.max() > 255:
    return Image.fromarray(ids.astype(np.uint16))
  image = Image.fromarray(ids.astype(np.uint8))
  palette = np.zeros((256, 3), np.uint8)
  palette[info.label_ids] = info.palette
  image.putpalette(palette.tobytes())
  return image


def _read_logs(logs: list[pathlib.Path]) -> dict[str, Fingerprint]:
  done = {}
  for log in logs:
    for text in log.read_text().splitlines():
      try:
        line = json.loads(text)
        done[line["name"]] = Fingerprint(line["source"], line["bytes"], line["modified"])
      except (json.JSONDecodeError, KeyError, TypeError):
        continue  # a line cut by a kill: that image is labelled again
  return done


def _read_settings(path: pathlib.Path) -> dict[str, Any]:
  try:
    return dict(json.loads(path.read_text()))
  except (OSError, ValueError):
    return {}


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
  """Lists fields that differ as ``field: ours, there theirs``; empty if only ``INFORMATIVE`` fields differ."""
  flat_ours, flat_theirs = flatten(ours), flatten(theirs)
  fields = [
    field
    for field in {**flat_ours, **flat_theirs}
    if flat_ours.get(field, "absent") != flat_theirs.get(field, "absent")
  ]
  if all(field in INFORMATIVE for field in fields):
    return []
  return [
    f"{field}: {flat_ours.get(field, 'absent')}, there {flat_theirs.get(field, 'absent')}"
    for field in fields
    if field != "checkpoint"
  ]
