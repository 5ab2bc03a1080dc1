"""Packs a raw data set into ArrayRecord files that read fast, in any order, from a disk or a bucket.

The folder that is written takes the raw one's place in ``--config.dataset.root=`` and gives the same batches.
"""

import os
import pathlib
import time
from collections.abc import Sequence

from rc_jax import data
from rc_jax.config import Config
from rc_jax.console import Progress, duration, say
from rc_jax.data.prepared import reader, writer
from rc_jax.data.reading.source import FilePairs
from rc_jax.fields import Flag
from rc_jax.modes import CONFIG

FLAGS = (
  CONFIG,
  Flag("output", None, "Folder to write. Default: dataset.root with _prepared appended."),
  Flag(
    "encoding",
    "tiles",
    "tiles: lossless tiles, of which a crop decodes only those that it needs; original: the image files as they are.",
    choices=("tiles", "original"),
  ),
  Flag("splits", (), "Splits to pack, such as train,val. Default: all that are there."),
)


def run(
  config: Config,
  output: pathlib.Path | None = None,
  encoding: str = "tiles",
  splits: Sequence[str] = (),
) -> pathlib.Path:
  """Writes, resumes, checks or mends a prepared data set: ``--mode=prepare``.

  A folder that was interrupted goes on where it was; one that is whole is checked against its checksums, and shards
  that are damaged are written again. Where ``config.dataset.root`` is itself a prepared folder, it is checked.

  Args:
    config: a validated config: ``dataset.name`` and ``dataset.root`` say what to pack, ``data.workers`` how many
      processes do it (0: as many as there are cores).
    output: the folder to write; None: ``dataset.root`` with ``_prepared`` behind it.
    encoding: one of ``writer.ENCODINGS``.
    splits: those to pack; empty: all that are there.

  Returns:
    The folder.

  Raises:
    ValueError: in one line: a raw file is damaged, a shard is, or the folder holds something else.
    OSError: in one line: something is missing, or the disk is full.
  """
  name, root = config.dataset.name, config.dataset.root
  if name == "synthetic":
    raise ValueError("dataset.name is 'synthetic', which is drawn, not read; expected a data set of files")
  if reader.is_prepared(root):
    if output:
      raise ValueError(f"dataset.root is {root}, which is prepared already; expected the raw data set")
    return _check(pathlib.Path(root).expanduser())
  folder = pathlib.Path(output or f"{root.rstrip('/')}_prepared").expanduser()
  if folder.exists() and not folder.is_dir():
    raise ValueError(f"--output={folder}: is a file; expected a folder, or a name that is free")
  sources = _sources(name, root, splits, (config.dataset.train_split, config.eval.split))
  workers = config.data.workers or len(os.sched_getaffinity(0))
  shards = writer.plan(sources, encoding)
  start = time.monotonic()
  with writer.alone(folder):
    if reader.is_prepared(str(folder)):
      return _mend(shards, folder, workers)
    missing = writer.begin(shards, folder)
    count = sum(len(shard.source) for shard in shards)
    left = sum(len(shard.source) for shard in missing)
    raw = sum(shard.raw_bytes() for shard in shards)
    parts = ", ".join(f"{split} {len(source)}" for split, source in sources.items())
    say(f"{name}: {count} images ({parts}), {raw / 1e6:.1f} MB, into {len(shards)} shards in {folder}")
    if left < count:
      say(f"{count - left} images are in {len(shards) - len(missing)} finished shards: going on")
    _write(missing, folder, workers)
    writer.finish(shards, folder)
  size = sum((folder / shard.file).stat().st_size for shard in shards)
  say(
    f"{size / 1e6:.1f} MB ({size / raw:.2f} of the raw files) after {duration(time.monotonic() - start)}; "
    f"train with --config.dataset.root={folder}"
  )
  return folder


def _write(shards: list[writer.Shard], folder: pathlib.Path, workers: int) -> None:
  progress = Progress("preparing", sum(len(shard.source) for shard in shards), unit="images")
  try:
    writer.write(shards, folder, workers, progress.advance)
  finally:
    progress.close()


def _sources(name: str, root: str, chosen: Sequence[str], wanted: tuple[str, ...]) -> dict[str, FilePairs]:
  """The splits to pack: the chosen, or all whose folders are there."""
  if chosen:
    return {split: _source(name, root, split) for split in dict.fromkeys(chosen)}
  sources, reasons = {}, []
  # A folder without any images has no splits: reading the one that is trained on says what is missing.
  for split in data.splits(name, root) or wanted[:1]:
    try:
      sources[split] = _source(name, root, split)
    except FileNotFoundError as error:
      reasons.append((split, error))
  for split, reason in reasons:
    if not sources or split in wanted:
      raise reason
    say(f"split {split}: left out, its folders are not there")
  return sources


def _source(name: str, root: str, split: str) -> FilePairs:
  source = data.load(name, root, split, labels=False)
  assert isinstance(source, FilePairs), f"{name} lies in files"
  return source


def _check(folder: pathlib.Path) -> pathlib.Path:
  bad = writer.damaged(folder)
  if bad:
    more = f" (and {len(bad) - 1} more shards)" if len(bad) > 1 else ""
    raise ValueError(
      f"{folder / bad[0]}{more}: does not have its checksum, expected the file as it was written: copy it again, or "
      f"run --mode=prepare with the raw data set and --output={folder}, which writes it again"
    )
  say(f"{folder}: whole, every shard has its checksum")
  return folder


def _mend(shards: list[writer.Shard], folder: pathlib.Path, workers: int) -> pathlib.Path:
  bad = set(writer.damaged(folder))
  again = [shard for shard in shards if shard.file in bad]
  if bad - {shard.file for shard in again}:
    raise ValueError(
      f"{folder}: was prepared from other raw files or splits than these: give another --output, or remove it"
    )
  if again:
    say(f"{len(again)} shards do not have their checksum: written again")
    _write(again, folder, workers)
  return _check(folder)
