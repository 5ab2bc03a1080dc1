"""Packs a raw data set into ArrayRecord files for fast reading in any order, from a disk or a bucket.

``--config.dataset.root=`` takes the written folder in place of the raw one, and training gets the same batches.
"""

import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from rc_jax import data
from rc_jax.class_table import class_differences, color_differences
from rc_jax.config import Config
from rc_jax.console import Progress, duration, say
from rc_jax.data import FilePairs
from rc_jax.data.prepared import reader, writer
from rc_jax.fields import Flag
from rc_jax.modes import CONFIG

FLAGS = (
  CONFIG,
  Flag("output", None, "Folder to write. Default: dataset.root with _prepared appended."),
  Flag(
    "encoding",
    "tiles",
    "tiles: lossless tiles, of which a crop decodes only those that it touches; original: copies of the image files.",
    choices=("tiles", "original"),
  ),
  Flag("splits", (), "Splits to pack, such as train,val. Default: all that exist."),
)


def run(
  config: Config,
  output: pathlib.Path | None = None,
  encoding: str = "tiles",
  splits: Sequence[str] = (),
) -> pathlib.Path:
  """Writes, resumes, checks or repairs a prepared data set: ``--mode=prepare``.

  An interrupted folder is continued. A complete folder is checked against its checksums and against the raw files, and
  shards that are damaged, or whose raw files or classes have changed, are written again. If
  ``config.dataset.root`` is a prepared folder, it is checked.

  Args:
    config: a validated config: ``dataset.name`` and ``dataset.root`` name the data set, ``data.workers`` is the number
      of processes (0: as many as there are cores).
    output: the folder to write; None: ``dataset.root`` with ``_prepared`` appended.
    encoding: one of ``writer.ENCODINGS``.
    splits: the splits to pack; empty: all that exist.

  Returns:
    The folder.

  Raises:
    ValueError: in one line: a raw file or a shard is damaged, or the folder holds other files.
    OSError: in one line: a folder is missing, or the disk is full.
  """
  name, root = config.dataset.name, config.dataset.root
  if name in data.DATASETS and not data.DATASETS[name].has_files:
    raise ValueError(
      f"dataset.name is {name!r}, which has no files; expected a data set of files: choose another"
    )
  if reader.is_prepared(root):
    if output:
      raise ValueError(
        f"dataset.root is {root}, which is already prepared; expected the raw data set: change it"
      )
    return _check(pathlib.Path(os.path.expanduser(root)))
  folder = pathlib.Path(os.path.expanduser(output)) if output else default_output(root)
  if folder.exists() and not folder.is_dir():
    raise ValueError(f"--output={folder}: is a file; expected a folder or a new name: choose another")
  sources = _sources(
    name, root, config.dataset.classes, splits, (config.dataset.train_split, config.eval.split)
  )
  workers = config.data.workers or len(os.sched_getaffinity(0))
  shards = writer.plan(sources, encoding)
  start = time.monotonic()
  with writer.locked(folder):
    if reader.is_prepared(str(folder)):
      return _repair(shards, folder, workers)
    missing = writer.begin(shards, folder)
    count = sum(len(shard.source) for shard in shards)
    remaining = sum(len(shard.source) for shard in missing)
    raw = sum(shard.raw_bytes() for shard in shards)
    parts = ", ".join(f"{split} {len(source)}" for split, source in sources.items())
    plural = "s" if len(shards) > 1 else ""
    say(f"{name}: {count} images ({parts}), {raw / 1e6:.1f} MB, into {len(shards)} shard{plural} in {folder}")
    if remaining < count:
      say(f"{count - remaining} images are in {len(shards) - len(missing)} finished shards: continuing")
    _write(missing, folder, workers)
    writer.finish(shards, folder)
  size = sum((folder / shard.file).stat().st_size for shard in shards)
  say(
    f"{size / 1e6:.1f} MB ({size / raw:.2f} of the raw files) after {duration(time.monotonic() - start)}; "
    f"train with --config.dataset.root={folder}"
  )
  return folder


def default_output(root: str) -> pathlib.Path:
  """Returns the folder beside a raw data set that takes its prepared form.

  >>> str(default_output("data/camvid/"))
  'data/camvid_prepared'
  """
  path = pathlib.Path(os.path.expanduser(root))
  # The names of ``.`` and ``..`` are no names to append to.
  path = path.resolve() if path.name in ("", "..") else path
  if not path.name:
    raise ValueError(f"dataset.root is {root}: the prepared data set needs a folder: give one with --output=")
  return path.with_name(f"{path.name}_prepared")


def _write(shards: list[writer.Shard], folder: pathlib.Path, workers: int) -> None:
  progress = Progress("preparing", sum(len(shard.source) for shard in shards), unit="images")
  try:
    writer.write(shards, folder, workers, progress.advance)
  finally:
    progress.close()


def _sources(
  name: str, root: str, classes: str, chosen: Sequence[str], wanted: tuple[str, ...]
) -> dict[str, FilePairs]:
  """Returns the splits to pack: the chosen ones, or all whose folders exist."""
  if chosen:
    return {split: _source(name, root, split, classes) for split in dict.fromkeys(chosen)}
  sources, reasons = {}, []
  listed = data.splits(name, root)
  # A folder that the config names splits of is none itself: it would pack training and validation into one.
  named = [part for split in wanted for part in data.parts_of(name, split) if part not in listed]
  inner = [part for part in dict.fromkeys(named) if any(part.startswith(f"{split}/") for split in listed)]
  outer = [split for split in listed if any(part.startswith(f"{split}/") for part in inner)]
  # A folder without images has no splits: opening the training split raises the error that names what is missing.
  for split in [split for split in listed if split not in outer] + inner or wanted[:1]:
    try:
      sources[split] = _source(name, root, split, classes)
    except FileNotFoundError as error:
      reasons.append((split, error))
  for split, reason in reasons:
    if not sources or split in wanted:
      raise reason
    say(f"split {split}: left out, because its folders do not exist")
  return sources


def _source(name: str, root: str, split: str, classes: str) -> FilePairs:
  source = data.load(name, root, split, labels=False, classes=classes)
  if not isinstance(source, FilePairs):
    raise ValueError(f"split {split!r} of {name}: is not stored as pairs of files, so it cannot be packed")
  return source


def _check(folder: pathlib.Path) -> pathlib.Path:
  damaged = writer.damaged(folder)
  if damaged:
    more = f" (and {len(damaged) - 1} more shards)" if len(damaged) > 1 else ""
    raise ValueError(
      f"{folder / damaged[0]}{more}: differs from its checksum, expected the file as it was written: copy it again, or "
      f"run --mode=prepare with the raw data set and --output={folder}, which writes it again"
    )
  say(f"{folder}: complete, every shard matches its checksum")
  return folder


def _repair(shards: list[writer.Shard], folder: pathlib.Path, workers: int) -> pathlib.Path:
  """Writes the shards again that are damaged or outdated; refuses a folder of other splits or of another layout."""
  index = reader.read_index(reader.folder(str(folder)))
  _refuse_other_request(shards, folder, index)
  recorded = {shard["file"] for split in index["splits"].values() for shard in split["shards"]}
  planned = {shard.file for shard in shards}
  damaged, outdated = set(writer.damaged(folder)), writer.outdated(shards, folder)
  info = shards[0].source.info
  changes = class_differences(info.table(), index) or color_differences(info.table(), index)
  rewritten = [shard for shard in shards if shard.file in damaged | set(outdated or ())]
  if (rewritten or damaged or changes) and planned != recorded:
    splits = ",".join(index["splits"])
    raise ValueError(
      f"{folder}: has damaged or outdated shards, and is repaired only as it was written: give --splits={splits}, or "
      "remove the folder"
    )
  if outdated is None:
    say(
      f"{folder}: does not record its raw files, as those of earlier versions: whether they have changed since cannot "
      "be checked; remove the folder to write it again"
    )
  if changes:
    say(f"the classes have changed: {'; '.join(changes)}")
  for names, reason in (
    (damaged, "are damaged"),
    (set(outdated or ()) - damaged, "have other raw files now"),
  ):
    if names:
      say(f"{len(names)} of {len(shards)} shards {reason}: written again ({', '.join(sorted(names)[:3])})")
  if rewritten:
    _write(rewritten, folder, workers)
  if outdated is not None and (rewritten or changes):
    # The index follows the shards: after a kill in between, it finds them damaged, and they are written again.
    writer.finish(shards, folder)
  return _check(folder)


def _refuse_other_request(shards: list[writer.Shard], folder: pathlib.Path, index: dict[str, Any]) -> None:
  """Refuses to check a folder that was written with another data set, encoding, split or number of images."""
  remedy = "give another --output, or remove the folder"
  dataset, encoding = shards[0].source.info.name, shards[0].encoding
  for field, found, wanted in (
    ("dataset", index["dataset"], dataset),
    ("encoding", index.get("encoding", encoding), encoding),
  ):
    if found != wanted:
      raise ValueError(f"{folder}: was prepared with the {field} {found}, here {wanted}: {remedy}")
  planned: dict[str, dict[str, int]] = {}
  for shard in shards:
    planned.setdefault(shard.split, {})[shard.file] = len(shard.source)
  for split, files in planned.items():
    if split not in index["splits"]:
      raise ValueError(
        f"{folder}: was prepared from the splits {', '.join(index['splits'])}, without {split}: {remedy}"
      )
    recorded = {shard["file"]: shard["examples"] for shard in index["splits"][split]["shards"]}
    if recorded.keys() != files.keys():
      raise ValueError(
        f"{folder}: was prepared from {sum(recorded.values()):,} images of {split} in {len(recorded)} shards, and the "
        f"raw folder holds {sum(files.values()):,} for {len(files)} now: {remedy}"
      )
