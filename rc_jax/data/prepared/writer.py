"""Packs a raw data set into ArrayRecord shards with the names and metadata of TensorFlow Datasets (TFDS).

TFDS's writer runs in one process, shuffles by default, and starts again from the first example after a kill. Therefore
this module writes the shards, with TFDS's serialisation and ArrayRecord's writer, and TFDS adds its metadata:
``tfds.builder_from_directory`` opens the folder.

The examples of a shard depend only on the number and sizes of the raw files, and its bytes only on its raw files, not
on processes, kills or time. A shard is renamed to its final name when it is complete. Until the folder is complete,
``plan.json`` lists the raw files of each shard (names, sizes, modification times), and a shard is written again if its
raw files have changed. ``prepared.json``, written last, marks the folder as a prepared data set. It holds the SHA-256
of every shard and of the raw files of each, so that the same command finds the shards whose raw files have changed.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module
from etils import epath
from PIL import Image

from rc_jax import files, folder_lock
from rc_jax.data.pipeline.worker_process import exit_with_parent
from rc_jax.data.prepared import reader, tiles
from rc_jax.data.reading.decode import check_sizes, decode_image, decode_label, read_file
from rc_jax.data.reading.source import FilePairs

ENCODINGS = ("tiles", "original")
PLAN_FILE = "plan.json"
RAW_SHA256 = "raw_sha256"  # of a shard in the index
# About 64 shards for a split keep many processes busy, and a kill loses little. Files below 8 MiB cost a bucket many
# round trips, and files above 128 MiB take long to write again.
_SHARDS = 64
SHARD_BYTES = (8 * 2**20, 128 * 2**20)
# Images are compressed already, and groups of one record can be read in any order.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_PART = ".part"
_FILES_KEPT = (b"\xff\xd8\xff", b"\x89PNG")
# Tiles are up to 10 % larger than the PNGs that they are made of.
_GROWTH = 1.2


@dataclasses.dataclass(frozen=True)
class Shard:
  """A file to write.

  Attributes:
    split: name of the split.
    file: its name in TFDS's scheme.
    source: the examples of this shard.
    encoding: one of ``ENCODINGS``.
    made_of: digest of the names, sizes and modification times of its raw files, and of the ids of its classes.
  """

  split: str
  file: str
  source: FilePairs
  encoding: str
  made_of: str

  def raw_bytes(self) -> int:
    """Returns the size of its raw files."""
    return sum(_signature(self.source, index)[1] for index in range(len(self.source)))

  def raw_sha256(self) -> str:
    """Returns a digest of its raw files, names and contents, and of the ids that its labels are read with.

    Unlike ``made_of`` it survives copying the raw data set, and no tool that keeps the time of a file can deceive it.
    """
    files_in_order = [path for index in range(len(self.source)) for path in _raw_files(self.source, index)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
      contents = list(pool.map(_sha256, files_in_order))
    ids = _class_ids(self.source)
    entries = [[path.name, content] for path, content in zip(files_in_order, contents, strict=True)]
    return hashlib.sha256(json.dumps([self.encoding, ids, entries]).encode()).hexdigest()


def plan(sources: Mapping[str, FilePairs], encoding: str) -> list[Shard]:
  """Spreads the examples of splits over shards, in order.

  Args:
    sources: split -> its examples.
    encoding: ``tiles``: losslessly compressed images become tiles, of which a crop decodes only those that it touches;
      ``original``: image files are copied. JPEG files are copied in both.

  Returns:
    The shards. The shards of a split differ in size by at most one example.

  Raises:
    ValueError: TFDS does not accept the name of a split.
  """
  shards = []
  for split, source in sources.items():
    if not re.fullmatch(r"[A-Za-z]\w*", split, re.ASCII):
      name = re.sub(r"[^A-Za-z0-9]+", "_", split).strip("_")
      example = name if name[:1].isalpha() else f"split_{name}"
      raise ValueError(
        f"split {split!r}: expected a name of letters, digits and _, which TFDS requires: rename its folders, for "
        f"example to {example}"
      )
    signatures = [_signature(source, index) for index in range(len(source))]
    ids = _class_ids(source)
    total = sum(size for _, size in signatures)
    least, most = SHARD_BYTES
    count = min(len(source), max(1, round(total / min(max(total / _SHARDS, least), most))))
    for number in range(count):
      part = slice(*(len(source) * n // count for n in (number, number + 1)))
      labels = source.labels[part] if source.labels is not None else None
      made_of = _made_of(encoding, ids, [text for text, _ in signatures[part]])
      shards.append(
        Shard(
          split,
          f"{source.info.name}-{split}.array_record-{number:05d}-of-{count:05d}",
          dataclasses.replace(source, images=source.images[part], labels=labels, names=source.names[part]),
          encoding,
          made_of,
        )
      )
  return shards


def locked(output: pathlib.Path) -> contextlib.AbstractContextManager[None]:
  """Creates the folder and holds its lock: two runs of the command must not remove each other's partial files."""
  return folder_lock.folder_lock(output, "wait until it ends, or give another --output")


def begin(shards: Sequence[Shard], output: pathlib.Path) -> list[Shard]:
  """Removes partial and outdated files of an interrupted run, and writes the plan.

  Args:
    shards: from ``plan``.
    output: the folder: empty, or of an interrupted run.

  Returns:
    The shards that are missing.

  Raises:
    ValueError: the folder holds other files, or a plan for another data set, other splits or another encoding.
    OSError: the shards do not fit on the disk.
  """
  present = {path.name for path in output.iterdir()} - {folder_lock.FILE}
  for name in [name for name in present if name.startswith(".") and _PART in name]:
    (output / name).unlink()
    present.remove(name)
  settings: dict[str, Any] = {
    "dataset": shards[0].source.info.name,
    "encoding": shards[0].encoding,
    "splits": list(dict.fromkeys(shard.split for shard in shards)),
  }
  planned = {shard.file: shard.made_of for shard in shards}
  file = output / PLAN_FILE
  if PLAN_FILE in present:
    remedy = f"remove {output} and run the same command again"
    found = files.read_json_object(file, lambda: remedy)
    if not isinstance(found.get("shards"), dict):
      raise ValueError(f"{file}: names no shards, expected the plan of an interrupted run; {remedy}")
    different = [
      f"{key} {files.one_line(found.get(key), 80)}, here {settings[key]}"
      for key in settings
      if found.get(key) != settings[key]
    ]
    if different:
      raise ValueError(
        f"{output}: holds an interrupted run with other settings ({'; '.join(different)}): give another --output, or "
        "remove this folder"
      )
    for name, made_of in found["shards"].items():
      if name in present and planned.get(name) != made_of:
        (output / name).unlink()
  elif present:
    raise ValueError(
      f"{output}: holds {min(present)}, expected an empty folder, or the folder of an interrupted run: give another "
      "--output"
    )
  files.atomic_write_text(file, json.dumps({**settings, "shards": planned}, indent=1))
  missing = [shard for shard in shards if not (output / shard.file).exists()]
  free = shutil.disk_usage(output).free
  needed = int(_GROWTH * sum(shard.raw_bytes() for shard in missing))
  if needed > free:
    raise OSError(
      f"{output}: {needed / 1e9:.2f} GB are needed, but {free / 1e9:.2f} GB are free on this disk: free some space, or "
      "give another --output"
    )
  return missing


def write(
  shards: Sequence[Shard], output: pathlib.Path, workers: int, advance: Callable[[int], None]
) -> None:
  """Writes shards, several at a time.

  Args:
    shards: the missing ones.
    output: the folder.
    workers: the number of processes; below 2: this one.
    advance: called with the number of examples written since the last call.

  Raises:
    ValueError: in one line, a raw file is damaged. Finished shards stay.
    OSError: in one line, the disk is full or a process died.
  """
  if workers < 2 or len(shards) < 2:
    for shard in shards:
      write_shard(shard, output, lambda: advance(1), lambda: False)
    return
  spawn = multiprocessing.get_context("spawn")
  counter, stop = spawn.Value("q", 0), spawn.Event()
  reported = 0
  with concurrent.futures.ProcessPoolExecutor(
    min(workers, len(shards)), mp_context=spawn, initializer=_start_worker, initargs=(counter, stop)
  ) as pool:
    waiting = {pool.submit(_work, shard, output) for shard in shards}
    try:
      while waiting:
        finished, waiting = concurrent.futures.wait(waiting, 0.5, concurrent.futures.FIRST_EXCEPTION)
        done = counter.value
        if done > reported:
          advance(done - reported)
        reported = done
        for future in finished:
          future.result()
    except concurrent.futures.process.BrokenProcessPool:
      raise OSError(
        f"{output}: a process that wrote a shard died, perhaps because memory ran out: run the same command again, "
        "with a smaller --config.data.workers"
      ) from None
    finally:
      stop.set()
      pool.shutdown(wait=True, cancel_futures=True)


def finish(shards: Sequence[Shard], output: pathlib.Path) -> None:
  """Writes TFDS's metadata of finished shards, and then the index, which marks the folder as a prepared data set.

  Raises:
    ValueError: raw files have changed since the plan: some shards may hold the old ones; one line.
    OSError: the metadata cannot be written; one line.
  """
  import tensorflow_datasets as tfds  # takes 0.4 s, and raw data sets do not need it

  splits: dict[str, Any] = {}
  for shard in shards:
    file = output / shard.file
    raw_sha256 = shard.raw_sha256()
    _refuse_changed(shard, output)
    split = splits.setdefault(shard.split, {"labelled": shard.source.labelled, "shards": []})
    split["shards"].append(
      {
        "file": shard.file,
        "examples": len(shard.source),
        "bytes": file.stat().st_size,
        "sha256": _sha256(file),
        RAW_SHA256: raw_sha256,
      }
    )
  index = {**reader.index_of(shards[0].source.info), "encoding": shards[0].encoding, "splits": splits}
  template = tfds.core.ShardedFileTemplate(
    data_dir=epath.Path(output), dataset_name=index["dataset"], filetype_suffix="array_record"
  )
  try:
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
  except OSError as error:
    raise files.write_error(output, error) from error
  files.atomic_write_text(output / reader.INDEX_FILE, json.dumps(index, indent=1))
  (output / PLAN_FILE).unlink(missing_ok=True)


def outdated(shards: Sequence[Shard], output: pathlib.Path) -> list[str] | None:
  """Returns the names of the shards of a prepared folder whose raw files, or whose ids, are others than they were.

  Args:
    shards: from ``plan``, of the raw files as they are now.
    output: a complete folder.

  Returns:
    None where an earlier version wrote the folder, which did not record its raw files.
  """
  index = reader.read_index(epath.Path(output))
  recorded = {shard["file"]: shard for split in index["splits"].values() for shard in split["shards"]}
  if any(RAW_SHA256 not in shard for shard in recorded.values()):
    return None
  return [
    shard.file
    for shard in shards
    if shard.file in recorded and shard.raw_sha256() != recorded[shard.file][RAW_SHA256]
  ]


def damaged(output: pathlib.Path) -> list[str]:
  """Returns the names of the shards of a prepared folder that are missing or differ from their checksums."""
  index = reader.read_index(epath.Path(output))
  shards = [shard for split in index["splits"].values() for shard in split["shards"]]
  return [
    shard["file"]
    for shard in shards
    if not (output / shard["file"]).is_file() or _sha256(output / shard["file"]) != shard["sha256"]
  ]


def encode_example(source: FilePairs, index: int, encoding: str) -> dict[str, bytes]:
  """Returns the record of an example: ``image``, ``label`` (empty in a split without labels) and ``name``.

  Raises:
    ValueError: in one line, a raw file is damaged or wrong.
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
  # A copy of the file decodes to the same pixels.
  kept = _FILES_KEPT[:1] if encoding == "tiles" else _FILES_KEPT
  if not content.startswith(kept):
    content = tiles.encode(image) if encoding == "tiles" else _encode_png(image)
  return {"image": content, "label": label, "name": os.fsencode(source.names[index])}


def write_shard(
  shard: Shard, output: pathlib.Path, done: Callable[[], None], stopped: Callable[[], bool]
) -> None:
  """Writes one complete shard, or no file.

  Args:
    shard: the shard.
    output: the folder.
    done: called after each example.
    stopped: called before each example; True gives up.
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
      # Without this option the order of a map's entries is arbitrary.
      writer.write(serializer.get_tf_example(example).SerializeToString(deterministic=True))
      done()
    writer.close()
    with part.open("rb") as file:
      os.fsync(file.fileno())
    files.move(part, output / shard.file)
  except RuntimeError as error:  # ArrayRecord's
    raise OSError(
      f"{output / shard.file}: cannot be written ({files.one_line(error)}): free some space on the disk "
      "and run the same command again"
    ) from None
  finally:
    part.unlink(missing_ok=True)


def _encode_png(pixels: np.ndarray) -> bytes:
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


def _raw_files(source: FilePairs, index: int) -> list[pathlib.Path]:
  return [source.images[index], *([source.labels[index]] if source.labels is not None else [])]


def _class_ids(source: FilePairs) -> list[tuple[int, int]]:
  """Returns pairs of an id of the labels and its train id, in one order."""
  return sorted((int(own), int(train)) for own, train in source.train_ids.items())


def _made_of(encoding: str, ids: list[tuple[int, int]], signatures: list[str]) -> str:
  return hashlib.sha256(json.dumps([encoding, reader.FORMAT, ids, signatures]).encode()).hexdigest()


def _refuse_changed(shard: Shard, output: pathlib.Path) -> None:
  """Raises where a raw file has changed since the plan: the shard may have been written before or after that."""
  source = shard.source
  signatures = [_signature(source, index)[0] for index in range(len(source))]
  if _made_of(shard.encoding, _class_ids(source), signatures) != shard.made_of:
    first, last = (_raw_files(source, index)[0].name for index in (0, len(source) - 1))
    raise ValueError(
      f"{output / shard.file}: its raw files ({first} to {last} of {shard.split}) changed while they were packed: run "
      "the same command again"
    )


def _signature(source: FilePairs, index: int) -> tuple[str, int]:
  """Returns the names, sizes and modification times of an example's raw files as a string, and their total size."""
  paths = _raw_files(source, index)
  stats = [path.stat() for path in paths]
  text = json.dumps(
    [[path.name, stat.st_size, stat.st_mtime_ns] for path, stat in zip(paths, stats, strict=True)]
  )
  return text, sum(stat.st_size for stat in stats)


# In a worker process: the number of examples that all processes have written, and the event that stops them.
_shared: list[Any] = []


def _start_worker(counter: Any, stop: Any) -> None:
  _shared[:] = counter, stop
  # The main process receives signals, and stops the workers by the event.
  exit_with_parent()


def _work(shard: Shard, output: pathlib.Path) -> None:
  counter, stop = _shared

  def done() -> None:
    with counter.get_lock():
      counter.value += 1

  write_shard(shard, output, done, stop.is_set)


def _sha256(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
