"""A folder of predictions that stays valid when its run is killed: which images are done, and by which network."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import threading
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from rc_jax import files
from rc_jax.class_table import class_differences, color_differences, table_defect
from rc_jax.config import flatten, is_training_only
from rc_jax.console import say
from rc_jax.data import DatasetInfo
from rc_jax.files import one_line

SETTINGS = "predictions.json"
KINDS = ("labels", "overlays", "probabilities")  # folders of outputs
# Recorded, but no reason to refuse: a run may be moved, and a step may be trained again.
INFORMATIVE = ("checkpoint", "step")
# The classes, with ids and colours: a group of the settings.
CLASSES = "classes"
# Settings that folders of earlier versions do not record.
ADDED = (CLASSES, "eval.pad_to_grid")
_DIFFERENCES_SHOWN = 8  # in one message


@dataclasses.dataclass(frozen=True)
class Fingerprint:
  """Distinguishes an image from another of the same name. A line of the log holds these attributes by name.

  Attributes:
    source: path of the file, or the split and index of an image without a file.
    bytes: size of the file; 0 without a file.
    modified: time of its last change in nanoseconds, which a tool may have set.
    changed: time of the last change of its content or its attributes in nanoseconds, which no tool can set.
    digest: of its content; empty: not computed.
  """

  source: str
  bytes: int = 0
  modified: int = 0
  changed: int = 0
  digest: str = ""

  def matches(self, logged: "Fingerprint") -> bool:
    """Whether both belong to one image: an untouched file, or one of equal content, even if its folder was moved.

    Equal sizes and times are no proof: unpacked archives and synchronised folders have them for different images.

    Args:
      logged: of a line of the log. Lines of earlier versions lack the last two attributes; of these, a file of the same
        path, size and time counts as the same.
    """
    if self.bytes != logged.bytes:
      return False
    same_place = self.bytes > 0 and (self.source, self.modified) == (logged.source, logged.modified)
    if same_place and logged.changed in (0, self.changed):
      return True
    return bool(logged.digest) and self.with_digest().digest == logged.digest

  def with_digest(self) -> "Fingerprint":
    """Returns the fingerprint with the digest of the file's content; reads the file where it is not computed yet."""
    if self.digest or not self.bytes:
      return self
    try:
      with open(self.source, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError:
      return self  # deleted since: nothing to compare with
    return dataclasses.replace(self, digest=digest)


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
      ValueError: images in the folder were labelled under other settings; names those that differ. Or the folder holds
        labels that no prediction wrote.
      OSError: the folder cannot be written.
    """
    self.path = path
    self._lock = threading.Lock()
    if path.exists() and not path.is_dir():
      raise ValueError(f"{path}: is a file; expected a folder or a new name")
    files.make_folder(path)
    logs = sorted(path.glob("done_*.jsonl"))
    if not logs and not (path / SETTINGS).exists():
      _refuse_other_files(path)
    self._done = {} if overwrite else _read_logs(logs)
    if self._done:
      theirs = _read_settings(path / SETTINGS)
      differing = _differences(settings, theirs) if theirs else [f"its {SETTINGS} is missing or damaged"]
      unrecorded = [field for field in ADDED if _lacks(theirs, field) and not _lacks(settings, field)]
      if differing:
        raise ValueError(
          f"{path}: holds predictions of other settings ({'; '.join(differing)}): add --overwrite to label all again "
          f"or {remedy}"
        )
      if unrecorded:
        say(
          f"{path / SETTINGS}: does not record {' and '.join(unrecorded)}, as earlier versions; the labels there are "
          "taken to be of the same, unchecked (--overwrite labels all again)"
        )
    if process == 0:
      # Before the settings change, so that nothing counts as done after a kill in between.
      for log in logs if not self._done else ():
        log.unlink()
      files.atomic_write_text(path / SETTINGS, json.dumps(dict(settings), indent=2) + "\n")
    log_path = path / f"done_{process}.jsonl"
    self._log = files.AppendedFile(log_path)
    if log_path.is_file() and not log_path.read_bytes().endswith(b"\n"):
      # A kill cut the last line; the next line must not continue it.
      self._log.append(b"\n")

  def is_done(self, name: str, fingerprint: Fingerprint, wanted: Mapping[str, str]) -> bool:
    """Whether an image was labelled and all its wanted files hold data; ``wanted``: kind -> suffix."""
    done = self._done.get(name)
    return (
      done is not None
      and fingerprint.matches(done)
      and all(_holds_data(self.file(kind, name, suffix)) for kind, suffix in wanted.items())
    )

  def file(self, kind: str, name: str, suffix: str) -> pathlib.Path:
    """Returns the path of an output, ``labels/<name>.png``; a name may hold folders."""
    return self.path / kind / f"{name}{suffix}"

  def writing(self, kind: str, name: str, suffix: str) -> contextlib.AbstractContextManager[BinaryIO]:
    """Opens an output for writing; the complete file appears at the end of the ``with`` block."""
    target = self.file(kind, name, suffix)
    files.make_folder(target.parent)
    return files.atomic_write(target)

  def mark_done(self, name: str, fingerprint: Fingerprint) -> None:
    """Logs that all outputs of an image exist.

    Raises:
      OSError: the log cannot be written; one line. The image will be labelled again.
    """
    line = json.dumps({"name": name, **dataclasses.asdict(fingerprint.with_digest())}) + "\n"
    with self._lock:
      self._log.append(line.encode())


def _refuse_other_files(path: pathlib.Path) -> None:
  # A data set has a folder "labels" too, whose ground truth predictions of the same names would replace.
  for kind in KINDS:
    found = next((file for file in (path / kind).rglob("*") if file.is_file()), None)
    if found is not None:
      raise ValueError(
        f"{path}: holds {found.relative_to(path)}, which --mode=predict did not write; name another folder with "
        "--output=DIR"
      )


def _holds_data(path: pathlib.Path) -> bool:
  # A machine that loses its power may leave files of 0 bytes.
  return path.is_file() and path.stat().st_size > 0


def settings_of(
  config: Mapping[str, Any], weights: str, checkpoint: pathlib.Path, step: int, info: DatasetInfo
) -> dict[str, Any]:
  """Returns all settings on which predictions depend, as JSON knows them.

  Args:
    config: the config as nested plain dicts.
    weights: digest of all arrays of the network.
    checkpoint: path from which they were restored.
    step: of the checkpoint.
    info: the classes, in whose ids and colours labels are written.
  """
  scoring = {
    field: config["eval"][field] for field in ("scales", "flip", "pad_to_grid", "crop_size", "stride")
  }
  return {
    "checkpoint": str(checkpoint),
    "step": step,
    "weights": weights,
    "dataset": config["dataset"]["name"],
    "model": {
      field: value for field, value in config["model"].items() if not is_training_only(f"model.{field}")
    },
    "eval": scoring,
    CLASSES: info.table(),
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
    for text in log.read_bytes().split(b"\n"):
      try:
        line = json.loads(text)
        recorded = {field: line[field] for field in ("changed", "digest") if field in line}
        done[line["name"]] = Fingerprint(line["source"], line["bytes"], line["modified"], **recorded)
      except (ValueError, RecursionError, KeyError, TypeError):
        continue  # a line cut by a kill: that image is labelled again
  return done


def _read_settings(path: pathlib.Path) -> dict[str, Any]:
  """Returns the recorded settings; nothing where they are missing or damaged."""
  try:
    settings = files.read_json_object(path, str)
  except (OSError, ValueError):
    return {}
  return {} if CLASSES in settings and table_defect(settings[CLASSES]) else settings


def _lacks(settings: Mapping[str, Any], field: str) -> bool:
  """Returns whether no value of a field, or of a group of fields, is recorded."""
  return not any(name == field or name.startswith(f"{field}.") for name in flatten(settings))


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
  """Lists fields that differ as ``field: ours, there theirs``; empty if only ``INFORMATIVE`` fields differ."""
  flat_ours, flat_theirs = (
    flatten({k: v for k, v in each.items() if k != CLASSES}) for each in (ours, theirs)
  )
  fields = [
    field
    for field in {**flat_ours, **flat_theirs}
    if flat_ours.get(field, "absent") != flat_theirs.get(field, "absent")
    and not (field in ADDED and _lacks(theirs, field))
  ]
  classes = []
  if CLASSES in ours and CLASSES in theirs:
    # Colours too: they are in the label images, and pictures of one folder should have one legend.
    classes = class_differences(ours[CLASSES], theirs[CLASSES]) or color_differences(
      ours[CLASSES], theirs[CLASSES]
    )
  if all(field in INFORMATIVE for field in fields) and not classes:
    return []
  found = classes + [
    f"{one_line(field, 60)}: {one_line(ours, 60)}, there {one_line(theirs, 60)}"
    for field in fields
    if field != "checkpoint"
    for ours, theirs in [(flat_ours.get(field, "absent"), flat_theirs.get(field, "absent"))]
  ]
  more = len(found) - _DIFFERENCES_SHOWN
  return [*found[:_DIFFERENCES_SHOWN], f"{more} more"] if more > 1 else found
