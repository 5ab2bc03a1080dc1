"""Reads a prepared data set: ArrayRecord files with the metadata of TensorFlow Datasets (TFDS), on a disk or a bucket.

``--mode=prepare`` writes such a folder (see ``writer``). A data set that TFDS built with ``file_format="array_record"``
is read too, if its file states ``Dataset.tfds``. Neither needs TensorFlow.
"""

import os
import pathlib
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from etils import epath

from rc_jax import files
from rc_jax.class_table import MERGED, table_defect
from rc_jax.data.prepared import tiles
from rc_jax.data.reading.dataset import Dataset, RecordFields
from rc_jax.data.reading.dataset_info import AbsentClass, DatasetInfo
from rc_jax.data.reading.decode import check_sizes, decode_image, decode_label
from rc_jax.data.reading.source import Example

if TYPE_CHECKING:
  import tensorflow_datasets as tfds

# Written last: a folder without it is not a prepared data set.
INDEX_FILE = "prepared.json"
FORMAT = 1
_BUCKET = "gs://"
_TFDS_FILES = ("features.json", "dataset_info.json")
# One thread at a time imports TFDS and opens a split: its lazy imports deadlock when two threads start them.
_OPEN_LOCK = threading.Lock()


class PreparedSplit:
  """A split of a prepared data set: a picklable sequence of examples, opened in each process at its first use.

  Args:
    root: the folder.
    split: its name in TFDS's metadata.
    info: the classes.
    labelled: whether there are labels.
    fields: the fields of a record.
    length: the number of examples.
    on_access: whether tiles are decoded only where they are indexed: ``image`` and ``label`` are then ``TiledArray``.
  """

  def __init__(
    self,
    root: str,
    split: str,
    info: DatasetInfo,
    labelled: bool,
    fields: RecordFields,
    length: int,
    on_access: bool = False,
  ):
    self.root = root
    self.split = split
    self.info = info
    self.labelled = labelled
    self.fields = fields
    self.on_access = on_access
    self._length = length
    self._records: Any = None

  def __len__(self) -> int:
    return self._length

  def decoded_on_access(self) -> "PreparedSplit":
    """Returns the same split with images and labels that are decoded only where they are indexed."""
    return PreparedSplit(
      self.root, self.split, self.info, self.labelled, self.fields, self._length, on_access=True
    )

  def __getitem__(self, index: int) -> Example:
    """Reads example ``index``; raises ValueError, in one line, for a damaged record."""
    index = range(len(self))[index]
    where = f"{self.root}, example {index} of {self.split}"
    record = self._record(index, where)
    image = self._pixels(record[self.fields.image], where, None)
    example: Example = {"image": image, "name": os.fsdecode(record[self.fields.name])}
    if self.labelled:
      label = self._pixels(record[self.fields.label], where, self.fields.train_ids)
      check_sizes(image, label, where, where)
      example["label"] = label
    return example

  def _record(self, index: int, where: str) -> dict[str, bytes]:
    try:
      if self._records is None:
        with _OPEN_LOCK:
          if self._records is None:
            self._records = _open(self.root, self.split, self._length)
      record: dict[str, bytes] = self._records[index]
      return {name: record[name] for name in (*self._field_names(), self.fields.name)}
    # ArrayRecord raises RuntimeError for a wrong checksum, and errors of other types for a damaged file.
    except Exception as error:
      raise ValueError(
        f"{where}: cannot be read ({type(error).__name__}: {files.one_line(error)}), expected a complete record: check "
        f"the folder with --mode=prepare --config.dataset.root={self.root}"
      ) from error

  def _field_names(self) -> tuple[str, ...]:
    return (self.fields.image, self.fields.label) if self.labelled else (self.fields.image,)

  def _pixels(self, content: bytes, where: str, train_ids: Mapping[int, int] | None) -> Any:
    if content[: len(tiles.MAGIC)] == tiles.MAGIC:
      tiled = tiles.TiledArray(content, where)
      return tiled if self.on_access else np.asarray(tiled)
    if train_ids is None:
      return decode_image(content, where)
    return decode_label(content, where, train_ids, self.info, converted=self.fields.converted)

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, "_records": None}


def is_prepared(root: str) -> bool:
  """Returns whether ``root`` holds a prepared data set; raises ValueError for a bucket that cannot be read."""
  if not root:
    return False
  path = folder(root)
  return _exists(path / INDEX_FILE) or all(_exists(path / file) for file in _TFDS_FILES)


def folder(root: str) -> epath.Path:
  """Returns ``root`` as a path; raises ValueError for an address that ArrayRecord cannot read from."""
  if "://" in root and not root.startswith(_BUCKET):
    raise ValueError(
      f"dataset.root is {root}, expected a folder, or {_BUCKET}...: copy the data set to one of these"
    )
  return epath.Path(root).expanduser()


def load(name: str, dataset: Dataset, root: str, split: str) -> PreparedSplit:
  """Opens a split of a prepared data set.

  Args:
    name: the name of the expected data set, a key of ``DATASETS``.
    dataset: the expected data set.
    root: the folder, local or ``gs://``.
    split: its name, as in the raw data set.

  Returns:
    The split. Its examples have the same pixels and train ids, in the same order, as those of the raw folder.

  Raises:
    ValueError: in one line: another data set, an unknown split, or a bucket that cannot be read.
  """
  path = folder(root)
  if not _exists(path / INDEX_FILE):
    return _load_tfds_build(name, dataset, path, split)
  index = read_index(path)
  classes = _info_of(index)
  _check_name(name, classes.name, path)
  splits = index["splits"]
  if split not in splits:
    raise ValueError(
      f"split {split!r}: {path} holds {', '.join(splits)}: choose one with --config.dataset.train_split= or "
      "--config.eval.split=, or prepare it too"
    )
  ids = [*range(classes.num_classes), classes.ignore_label]
  fields = RecordFields("image", "label", "name", {i: i for i in ids}, converted=True)
  length = sum(shard["examples"] for shard in splits[split]["shards"])
  return PreparedSplit(str(path), split, classes, splits[split]["labelled"], fields, length)


def info(name: str, dataset: Dataset, root: str) -> DatasetInfo:
  """Returns the classes of a prepared data set; arguments and errors as for ``load``."""
  path = folder(root)
  if not _exists(path / INDEX_FILE):
    return dataset.info_at(root)
  classes = _info_of(read_index(path))
  _check_name(name, classes.name, path)
  return classes


def read_index(path: epath.Path) -> dict[str, Any]:
  """Returns the content of ``prepared.json``; raises ValueError, in one line, if it is damaged or of another format."""
  file = path / INDEX_FILE
  remedy = "run --mode=prepare again, into another folder"
  try:
    index = files.read_json_object(file, lambda: remedy)
  except OSError as error:
    raise ValueError(f"{file}: cannot be read ({files.one_line(error)}); {remedy}") from None
  if index.get("format") != FORMAT:
    found = files.one_line(index.get("format"), 40)
    raise ValueError(f"{file}: has the format {found}, expected {FORMAT}: {remedy}")
  defect = _index_defect(index)
  if defect:
    raise ValueError(f"{file}: is damaged, {defect}: {remedy}")
  return index


def stored_metadata(split: PreparedSplit) -> Any:
  """Returns what the folder states of a split's files, as JSON knows it."""
  path = folder(split.root)
  if _exists(path / INDEX_FILE):
    return read_index(path)["splits"][split.split]
  return [(path / file).read_text() for file in _TFDS_FILES]


def _index_defect(index: Mapping[str, Any]) -> str:
  """Returns what the content of ``prepared.json`` lacks; empty for a valid one."""
  if not isinstance(index.get("dataset"), str):
    return "dataset is no name"
  if index.get("absent_class") not in get_args(AbsentClass):
    return "absent_class is no rule"
  splits = index.get("splits")
  if not isinstance(splits, dict) or not splits:
    return "splits is empty or missing"
  for name, split in splits.items():
    if not isinstance(split, dict) or type(split.get("labelled")) is not bool:
      return f"splits.{files.one_line(name, 40)}.labelled is neither true nor false"
    shards = split.get("shards")
    if not isinstance(shards, list) or not all(map(_is_shard, shards)):
      return f"splits.{files.one_line(name, 40)}.shards is no list of files with examples and sha256"
  return table_defect(index)


def _is_shard(shard: Any) -> bool:
  if not isinstance(shard, dict):
    return False
  file, examples = shard.get("file"), shard.get("examples")
  # A name alone: no path leads out of the folder.
  is_name = (
    isinstance(file, str) and file != "" and pathlib.PurePath(file).name == file and file.isprintable()
  )
  return is_name and type(examples) is int and examples > 0 and isinstance(shard.get("sha256"), str)


def index_of(classes: DatasetInfo) -> dict[str, Any]:
  """Returns the part of ``prepared.json`` that describes the classes."""
  return {"format": FORMAT, **classes.table()}


def features() -> "tfds.features.FeaturesDict":
  """Returns the features of the records that ``--mode=prepare`` writes, for TFDS.

  They are bytes, not ``tfds.features.Image``: tiles are no image format, a split may lack labels, and TFDS decodes some
  image files differently (EXIF rotation, CMYK, 16 bits).
  """
  import tensorflow_datasets as tfds

  content = tfds.features.Scalar(dtype=np.object_)
  return tfds.features.FeaturesDict({"image": content, "label": content, "name": tfds.features.Text()})


def _info_of(index: dict[str, Any]) -> DatasetInfo:
  return DatasetInfo(
    name=index["dataset"],
    class_names=tuple(index["class_names"]),
    palette=np.array(index["palette"], np.uint8),
    label_ids=np.array(index["label_ids"]),
    ignore_label=index["ignore_label"],
    absent_class=index["absent_class"],
    merged_ids={int(own_id): label for own_id, label in index.get(MERGED, {}).items()},
  )


def _load_tfds_build(name: str, dataset: Dataset, path: epath.Path, split: str) -> PreparedSplit:
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(str(path))
  features = set(builder.info.features)
  build = dataset.tfds
  if build is None or not {build.fields.image, build.fields.label, build.fields.name} <= features:
    readable = (
      f"the features {build.fields.image}, {build.fields.label} and {build.fields.name} of TFDS's {name}, or "
      if build
      else ""
    )
    raise ValueError(
      f"{path}: is a TFDS data set with the features {', '.join(sorted(features))}, but dataset.name is {name!r}; "
      f"expected {readable}a folder of --mode=prepare: prepare the raw data set"
    )
  if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
    raise ValueError(
      f"{path}: its files are {builder.info.file_format.value}, expected array_record: build the data set again with "
      "file_format='array_record', or prepare the raw data set"
    )
  tfds_split = build.splits.get(split, split)
  if tfds_split not in builder.info.splits:
    raise ValueError(f"split {split!r}: {path} holds {', '.join(builder.info.splits)}: choose one of them")
  labelled = split not in build.unlabelled
  count = builder.info.splits[tfds_split].num_examples
  return PreparedSplit(str(path), tfds_split, dataset.info_at(str(path)), labelled, build.fields, count)


def _open(root: str, split: str, length: int) -> Any:
  import tensorflow_datasets as tfds  # takes 0.4 s, and raw data sets do not need it

  builder = tfds.builder_from_directory(root)
  # ``decode`` reads images here as it reads raw files.
  images = [name for name, of in builder.info.features.items() if isinstance(of, tfds.features.Image)]
  records = builder.as_data_source(
    split, decoders={name: tfds.decode.SkipDecoding() for name in images} or None
  )
  if len(records) != length:
    raise ValueError(f"its metadata count {len(records)} examples, its index {length}")
  return records


def _check_name(name: str, found: str, path: epath.Path) -> None:
  if name != found:
    raise ValueError(
      f"{path}: is the prepared data set {found}, but dataset.name is {name!r}: change one of them"
    )


def _exists(path: epath.Path) -> bool:
  try:
    return bool(path.exists())
  # The library for this kind of bucket is missing, or the permission to read it.
  except Exception as error:
    if not str(path).startswith(_BUCKET):
      return False
    raise ValueError(
      f"{path}: cannot be opened ({type(error).__name__}: {files.one_line(error)}), expected a "
      "bucket that this machine may read: pip install gcsfs, and gcloud auth application-default login"
    ) from None
