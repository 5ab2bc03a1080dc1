"""Packs a raw data set into shards of ArrayRecord with TFDS's names and metadata: what ``--mode=prepare`` does.

TFDS's own writer is one process, shuffles by default, and begins anew when it was killed. So the shards are written
here, with TFDS's serialisation and ArrayRecord's writer, and TFDS writes its metadata over them: the folder is what
``tfds.builder_from_directory`` expects.

Which examples go into which shard depends on the number and size of the raw files alone, and a shard's bytes on its raw
files alone: not on processes, kills or time. A shard is written under another name and renamed once it is whole, so a
file with a shard's name is a finished one. While the work goes on, ``plan.json`` says of which raw files (names, sizes,
times of change) each shard is made: a shard of files that have changed meanwhile is written again. ``prepared.json``,
which makes the folder a prepared data set, comes last, and holds the SHA-256 of every shard.
"""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module
from etils import epath
from PIL import Image

from rc_jax import files
from rc_jax.data.pipeline.worker_process import tie_to_parent
from rc_jax.data.prepared import reader, tiles
from rc_jax.data.reading.decode import check_sizes, decode_image, decode_label, read_file
from rc_jax.data.reading.source import FilePairs

ENCODINGS = ("tiles", "original")
PLAN_FILE = "plan.json"
# Some 64 shards a split keep many processes busy and lose little when killed; but files of less than 8 MiB only cost a
# bucket round trips, and those of more than 128 are long to write again.
_SHARDS = 64
_SHARD_BYTES = (8 * 2**20, 128 * 2**20)
# Images are compressed already; one record a group is what makes them readable in any order.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_PART = ".part"
_FILES_KEPT = (b"\xff\xd8\xff", b"\x89PNG")
# Tiles are up to 10 % larger than the PNGs that they are made of.
_GROWTH = 1.2


@dataclasses.dataclass(frozen=True)
class Shard:
  """A file to write.

  Attributes:
    split: whose.
    file: its name, TFDS's.
    source: its own raw files, no others.
    encoding: one of ``ENCODINGS``.
    made_of: tells its raw files apart from others.
  """

  split: str
  file: str
  source: FilePairs
  encoding: str
  made_of: str

  def raw_bytes(self) -> int:
    """The size of its raw files."""
    return sum(_signature(self.source, index)[1] for index in range(len(self.source)))


def plan(sources: Mapping[str, FilePairs], encoding: str) -> list[Shard]:
  """Spreads the examples of splits over shards, in order.

  Args:
    sources: split -> its raw files.
    encoding: ``tiles``: images that were stored without loss become tiles, of which a crop decodes what it needs; or
      ``original``: image files stay as they are. JPEG files stay as they are in both.

  Returns:
    The shards; of a split, all with the same number of examples, give or take one.

  Raises:
    ValueError: a split's name is none that TFDS takes.
  """
  shards = []
  for split, source in sources.items():
    if not re.fullmatch(r"[A-Za-z]\w*", split, re.ASCII):
      raise ValueError(
        f"split {split!r}: expected a name of letters, digits and _, as TFDS does: rename its folders"
      )
    signatures = [_signature(source, index) for index in range(len(source))]
    total = sum(size for _, size in signatures)
    least, most = _SHARD_BYTES
    count = min(len(source), max(1, round(total / min(max(total / _SHARDS, least), most))))
    for number in range(count):
      part = slice(*(len(source) * n // count for n in (number, number + 1)))
      labels = source.labels[part] if source.labels is not None else None
      made_of = json.dumps([encoding, reader.FORMAT, [text for text, _ in signatures[part]]])
      shards.append(
        Shard(
          split,
          f"{source.info.name}-{split}.array_record-{number:05d}-of-{count:05d}",
          dataclasses.replace(source, images=source.images[part], labels=labels),
          encoding,
          hashlib.sha256(made_of.encode()).hexdigest(),
        )
      )
  return shards


@contextlib.contextmanager
def alone(output: pathlib.Path) -> Iterator[None]:
  """Makes the folder and holds its lock: two runs of the command must not clear away each other's parts."""
  output.mkdir(parents=True, exist_ok=True)
  folder = os.open(output, os.O_RDONLY)
  try:
    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield
  except BlockingIOError:
    raise ValueError(f"{output}: another process prepares into it: wait, or give another --output") from None
  finally:
    os.close(folder)


def begin(shards: Sequence[Shard], output: pathlib.Path) -> list[Shard]:
  """Clears away what an interrupted run left half-done or made of other raw files, and writes the plan down.

  Args:
    shards: of ``plan``.
    output: the folder: empty, or of an interrupted run.

  Returns:
    The shards that are missing.

  Raises:
    ValueError: the folder holds something else, or a plan for another data set, other splits or another encoding.
    OSError: they do not fit on the disk.
  """
  present = {path.name for path in output.iterdir()}
  for name in [name for name in present if name.startswith(".") and _PART in name]:
    (output / name).unlink()
    present.remove(name)
  settings: dict[str, Any] = {
    "dataset": shards[0].source.info.name,
    "encoding": shards[0].encoding,
    "splits": list(dict.fromkeys(shard.split for shard in shards)),
  }
  ours = {shard.file: shard.made_of for shard in shards}
  file = output / PLAN_FILE
  if PLAN_FILE in present:
    try:
      theirs = json.loads(file.read_text())
    except ValueError:
      raise ValueError(f"{file}: cannot be read: remove {output} and run the same command again") from None
    different = [
      f"{key} {theirs[key]}, here {settings[key]}" for key in settings if theirs[key] != settings[key]
    ]
    if different:
      raise ValueError(
        f"{output}: an interrupted run prepared something else ({'; '.join(different)}): give another --output, or "
        "remove this folder"
      )
    for name, made_of in theirs["shards"].items():
      if name in present and ours.get(name) != made_of:
        (output / name).unlink()
  elif present:
    raise ValueError(
      f"{output}: holds {min(present)}, expected an empty folder, or one in which this command was interrupted: give "
      "another --output"
    )
  files.atomic_write_text(file, json.dumps({**settings, "shards": ours}, indent=1))
  missing = [shard for shard in shards if not (output / shard.file).exists()]
  free = shutil.disk_usage(output).free
  needed = int(_GROWTH * sum(shard.raw_bytes() for shard in missing))
  if needed > free:
    raise OSError(
      f"{output}: {needed / 1e9:.2f} GB are needed, but {free / 1e9:.2f} GB are free on this disk: make room, or give "
      "another --output"
    )
  return missing


def write(
  shards: Sequence[Shard], output: pathlib.Path, workers: int, advance: Callable[[int], None]
) -> None:
  """Writes shards, several at a time.

  Args:
    shards: the missing ones.
    output: the folder.
    workers: processes; below 2: this one.
    advance: is told the number of examples written since the last call.

  Raises:
    ValueError: in one line, a raw file is damaged. Shards that were finished stay.
    OSError: in one line, the disk is full or a process died.
  """
  if workers < 2 or len(shards) < 2:
    for shard in shards:
      write_shard(shard, output, lambda: advance(1), lambda: False)
    return
  spawn = multiprocessing.get_context("spawn")
  counter, stop = spawn.Value("q", 0), spawn.Event()
  told = 0
  with concurrent.futures.ProcessPoolExecutor(
    min(workers, len(shards)), mp_context=spawn, initializer=_start_worker, initargs=(counter, stop)
  ) as pool:
    waiting = {pool.submit(_work, shard, output) for shard in shards}
    try:
      while waiting:
        finished, waiting = concurrent.futures.wait(waiting, 0.5, concurrent.futures.FIRST_EXCEPTION)
        done = counter.value
        if done > told:
          advance(done - told)
        told = done
        for future in finished:
          future.result()
    except concurrent.futures.process.BrokenProcessPool:
      raise OSError(
        f"{output}: a process that wrote a shard has died, for want of memory perhaps: run the same command again, "
        "with a smaller --config.data.workers"
      ) from None
    finally:
      stop.set()
      pool.shutdown(wait=True, cancel_futures=True)


def finish(shards: Sequence[Shard], output: pathlib.Path) -> None:
  """Writes TFDS's metadata over finished shards and then the index, which makes the folder a prepared data set."""
  import tensorflow_datasets as tfds  # takes 0.4 s: imported where it is used

  splits: dict[str, Any] = {}
  for shard in shards:
    file = output / shard.file
    split = splits.setdefault(shard.split, {"labelled": shard.source.labelled, "shards": []})
    split["shards"].append(
      {
        "file": shard.file,
        "examples": len(shard.source),
        "bytes": file.stat().st_size,
        "sha256": _sha256(file),
      }
    )
  index = {**reader.index_of(shards[0].source.info), "encoding": shards[0].encoding, "splits": splits}
  template = tfds.core.ShardedFileTemplate(
    data_dir=epath.Path(output), dataset_name=index["dataset"], filetype_suffix="array_record"
  )
  tfds.folder_dataset.write_metadata(
    data_dir=output,
    features=reader.features(),
    split_infos=[
      tfds.core.SplitInfo(
        name=name,
        shard_lengths=[shard["examples"] for shard in split["shards"]],
        num_bytes=sum(shard["bytes"] for shard in split["shards"]),
        filename_template=template.replace(split=name),
      )
      for name, split in splits.items()
    ],
    version="1.0.0",
    filename_template=template,
    check_data=False,  # it would read with TensorFlow
    description=f"{index['dataset']}, prepared by rc_jax: images as files or in tiles, labels in train ids.",
  )
  files.atomic_write_text(output / reader.INDEX_FILE, json.dumps(index, indent=1))
  (output / PLAN_FILE).unlink(missing_ok=True)


def damaged(output: pathlib.Path) -> list[str]:
  """Checks a prepared folder against the checksums in its index; returns the names of the shards that are not whole."""
  index = reader.read_index(epath.Path(output))
  shards = [shard for split in index["splits"].values() for shard in split["shards"]]
  return [
    shard["file"]
    for shard in shards
    if not (output / shard["file"]).is_file() or _sha256(output / shard["file"]) != shard["sha256"]
  ]


def encode_example(source: FilePairs, index: int, encoding: str) -> dict[str, bytes]:
  """Makes the record of an example: ``image``, ``label`` (empty where there is none) and ``name``.

  Raises:
    ValueError: in one line, when a raw file is not what it should be.
  """
  path = source.images[index]
  content = read_file(path)
  image = decode_image(content, str(path))
  label = b""
  if source.labels is not None:
    label_path = source.labels[index]
    ids = decode_label(read_file(label_path), str(label_path), source.train_ids, source.info)
    check_sizes(image, ids, str(path), str(label_path))
    label = tiles.encode(ids) if encoding == "tiles" else _encode_png(ids)
  # Decoding the copy gives what decoding the file gives.
  kept = _FILES_KEPT[:1] if encoding == "tiles" else _FILES_KEPT
  if not content.startswith(kept):
    content = tiles.encode(image) if encoding == "tiles" else _encode_png(image)
  return {"image": content, "label": label, "name": path.stem.encode()}


def write_shard(
  shard: Shard, output: pathlib.Path, done: Callable[[], None], stopped: Callable[[], bool]
) -> None:
  """Writes one shard whole, or nothing.

  Args:
    shard: what to write.
    output: where.
    done: is called after each example.
    stopped: whether to give up, asked before each example.
  """
  part = output / f".{shard.file}{_PART}{os.getpid()}"
  from tensorflow_datasets.core import example_serializer

  features = reader.features()
  serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
  try:
    writer = array_record_module.ArrayRecordWriter(str(part), _WRITER_OPTIONS)
    for index in range(len(shard.source)):
      if stopped():
        return
      example = features.encode_example(encode_example(shard.source, index, shard.encoding))
      # The order of a map's entries is otherwise any.
      writer.write(serializer.get_tf_example(example).SerializeToString(deterministic=True))
      done()
    writer.close()
    with part.open("rb") as file:
      os.fsync(file.fileno())
    os.replace(part, output / shard.file)
  except RuntimeError as error:  # ArrayRecord's
    raise OSError(
      f"{output / shard.file}: cannot be written ({' '.join(str(error).split())[:200]}): make room on the disk and run "
      "the same command again"
    ) from None
  finally:
    part.unlink(missing_ok=True)


def _encode_png(pixels: np.ndarray) -> bytes:
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


def _signature(source: FilePairs, index: int) -> tuple[str, int]:
  """Of an example's raw files: what tells them from others, and their size."""
  paths = [source.images[index], *([source.labels[index]] if source.labels is not None else [])]
  stats = [path.stat() for path in paths]
  text = json.dumps(
    [[path.name, stat.st_size, stat.st_mtime_ns] for path, stat in zip(paths, stats, strict=True)]
  )
  return text, sum(stat.st_size for stat in stats)


# Of a worker process: the number of examples that all have done, and whether to stop.
_shared: list[Any] = []


def _start_worker(counter: Any, stop: Any) -> None:
  _shared[:] = counter, stop
  # The main process hears of signals, and tells the workers by the event.
  tie_to_parent()


def _work(shard: Shard, output: pathlib.Path) -> None:
  counter, stop = _shared

  def done() -> None:
    with counter.get_lock():
      counter.value += 1

  write_shard(shard, output, done, stop.is_set)


def _sha256(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
