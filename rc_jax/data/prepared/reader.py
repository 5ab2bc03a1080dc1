"""Reads a prepared data set: ArrayRecord files with TFDS's metadata, from a disk or from a bucket.

``--mode=prepare`` writes such a folder (see ``writer``). TFDS's own Cityscapes is read too, where it was built with
``file_format="array_record"``. Neither needs TensorFlow.
"""

import dataclasses
import json
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from rc_jax.data.datasets import cityscapes
from rc_jax.data.prepared import tiles
from rc_jax.data.reading.decode import check_sizes, decode_image, decode_label
from rc_jax.data.reading.source import DatasetInfo, Example

if TYPE_CHECKING:
  import tensorflow_datasets as tfds

# Written last: a folder without it is no prepared data set.
INDEX_FILE = "prepared.json"
FORMAT = 1
_BUCKET = "gs://"
_TFDS_FILES = ("features.json", "dataset_info.json")
_TFDS_CITYSCAPES = ("image_left", "segmentation_label", "image_id")
_TFDS_SPLITS = {"val": "validation"}


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a record's fields are named.

  Attributes:
    image: field of the image's bytes.
    label: field of the label's bytes; empty bytes where a split has none.
    name: field of the example's name.
    train_ids: id -> train id of the labels.
    converted: whether the labels hold train ids already.
  """

  image: str
  label: str
  name: str
  train_ids: dict[int, int]
  converted: bool


class PreparedSplit:
  """A split of a prepared data set: a picklable sequence of examples, opened in each process at its first use.

  Args:
    root: the folder.
    split: its name in TFDS's metadata.
    info: the classes.
    labelled: whether there are labels.
    layout: the record's fields.
    length: the number of examples.
    lazy: leaves tiles undecoded: ``image`` and ``label`` are then ``TiledArray`` where they were written so.
  """

  def __init__(
    self,
    root: str,
    split: str,
    info: DatasetInfo,
    labelled: bool,
    layout: Layout,
    length: int,
    lazy: bool = False,
  ):
    self.root = root
    self.split = split
    self.info = info
    self.labelled = labelled
    self.layout = layout
    self.lazy = lazy
    self._length = length
    self._records: Any = None
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return self._length

  def lazily(self) -> "PreparedSplit":
    """The same split, with images and labels that are decoded where they are indexed."""
    return PreparedSplit(
      self.root, self.split, self.info, self.labelled, self.layout, self._length, lazy=True
    )

  def __getitem__(self, index: int) -> Example:
    """Reads example ``index``; raises ValueError, in one line, for a damaged record."""
    index = range(len(self))[index]
    where = f"{self.root}, example {index} of {self.split}"
    record = self._record(index, where)
    image = self._pixels(record[self.layout.image], where, None)
    example: Example = {"image": image, "name": record[self.layout.name].decode()}
    if self.labelled:
      label = self._pixels(record[self.layout.label], where, self.layout.train_ids)
      check_sizes(image, label, where, where)
      example["label"] = label
    return example

  def _record(self, index: int, where: str) -> dict[str, bytes]:
    try:
      if self._records is None:
        with self._lock:
          if self._records is None:
            self._records = _open(self.root, self.split)
      record: dict[str, bytes] = self._records[index]
      return record
    # ArrayRecord checks a sum over each record and raises RuntimeError; what is left of a damaged file brings out
    # any other.
    except Exception as error:
      raise ValueError(
        f"{where}: cannot be read ({' '.join(str(error).split())[:200]}), expected a whole record: check the folder "
        f"with --mode=prepare --config.dataset.root={self.root}"
      ) from error

  def _pixels(self, content: bytes, where: str, train_ids: dict[int, int] | None) -> Any:
    if content[: len(tiles.MAGIC)] == tiles.MAGIC:
      tiled = tiles.TiledArray(content, where)
      return tiled if self.lazy else np.asarray(tiled)
    if train_ids is None:
      return decode_image(content, where)
    return decode_label(content, where, train_ids, self.info, converted=self.layout.converted)

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, "_records": None, "_lock": None}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._lock = threading.Lock()


def is_prepared(root: str) -> bool:
  """Whether ``root`` holds a prepared data set; raises as ``load`` when a bucket cannot be looked into."""
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


def load(name: str, root: str, split: str) -> PreparedSplit:
  """Opens a split of a prepared data set.

  Args:
    name: the data set that is expected there, a key of ``DATASETS``.
    root: the folder, local or ``gs://``.
    split: its name, as in the raw data set.

  Returns:
    The split. Its examples have the same pixels and train ids, in the same order, as those of the raw folder.

  Raises:
    ValueError: in one line: another data set, an unknown split, or a bucket that cannot be read.
  """
  path = folder(root)
  if not _exists(path / INDEX_FILE):
    return _load_tfds_cityscapes(name, path, split)
  index = read_index(path)
  classes = _info_of(index)
  _check_name(name, classes.name, path)
  splits = index["splits"]
  if split not in splits:
    raise ValueError(f"split {split!r}: {path} holds {', '.join(splits)}: choose one, or prepare it too")
  ids = [*range(classes.num_classes), classes.ignore_label]
  layout = Layout("image", "label", "name", {i: i for i in ids}, converted=True)
  length = sum(shard["examples"] for shard in splits[split]["shards"])
  return PreparedSplit(str(path), split, classes, splits[split]["labelled"], layout, length)


def info(name: str, root: str) -> DatasetInfo:
  """Returns the classes of a prepared data set; raises as ``load``."""
  path = folder(root)
  classes = _info_of(read_index(path)) if _exists(path / INDEX_FILE) else cityscapes.INFO
  _check_name(name, classes.name, path)
  return classes


def read_index(path: epath.Path) -> dict[str, Any]:
  """Returns what ``prepared.json`` says of the folder ``path``; raises ValueError when it is damaged or of another
  format."""
  file = path / INDEX_FILE
  remedy = "run --mode=prepare again, into another folder"
  try:
    index: dict[str, Any] = json.loads(file.read_text())
  except (ValueError, OSError) as error:
    raise ValueError(f"{file}: cannot be read ({' '.join(str(error).split())}): {remedy}") from None
  if index.get("format") != FORMAT:
    raise ValueError(f"{file}: is of format {index.get('format')}, expected {FORMAT}: {remedy}")
  return index


def index_of(classes: DatasetInfo) -> dict[str, Any]:
  """Returns the part of ``prepared.json`` that tells the classes."""
  return {
    "format": FORMAT,
    "dataset": classes.name,
    "class_names": list(classes.class_names),
    "palette": classes.palette.tolist(),
    "label_ids": classes.label_ids.tolist(),
    "ignore_label": classes.ignore_label,
    "absent_class": classes.absent_class,
  }


def features() -> "tfds.features.FeaturesDict":
  """Returns the features of the records that ``--mode=prepare`` writes, for TFDS.

  Bytes, not ``tfds.features.Image``: tiles are no image format, a split may lack labels, and an image file is kept as
  it is, also where TFDS would not decode it as we do (EXIF rotation, CMYK, 16 bits).
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
  )


def _load_tfds_cityscapes(name: str, path: epath.Path, split: str) -> PreparedSplit:
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(str(path))
  found = set(builder.info.features)
  image, label, identity = _TFDS_CITYSCAPES
  if not set(_TFDS_CITYSCAPES) <= found:
    raise ValueError(
      f"{path}: is a TFDS data set with the features {', '.join(sorted(found))}, expected {image}, {label} and "
      f"{identity} (TFDS's cityscapes), or a folder of --mode=prepare: prepare the raw data set"
    )
  _check_name(name, cityscapes.INFO.name, path)
  if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
    raise ValueError(
      f"{path}: its files are {builder.info.file_format.value}, expected array_record: build it again with "
      "file_format='array_record', or prepare the raw data set"
    )
  theirs = _TFDS_SPLITS.get(split, split)
  if theirs not in builder.info.splits:
    raise ValueError(f"split {split!r}: {path} holds {', '.join(builder.info.splits)}: choose one of them")
  layout = Layout(image, label, identity, cityscapes.TRAIN_IDS, converted=False)
  # The labels that come with the test split are empty.
  labelled = cityscapes.SPLITS.get(split, ("", None))[1] is not None
  count = builder.info.splits[theirs].num_examples
  return PreparedSplit(str(path), theirs, cityscapes.INFO, labelled, layout, count)


def _open(root: str, split: str) -> Any:
  import tensorflow_datasets as tfds  # takes 0.4 s, and raw data need it not

  builder = tfds.builder_from_directory(root)
  # Ours decode images as they decode the raw files.
  images = [name for name, of in builder.info.features.items() if isinstance(of, tfds.features.Image)]
  return builder.as_data_source(split, decoders={name: tfds.decode.SkipDecoding() for name in images} or None)


def _check_name(name: str, found: str, path: epath.Path) -> None:
  if name != found:
    raise ValueError(
      f"{path}: is the prepared data set {found}, but dataset.name is {name!r}: change either of them"
    )


def _exists(path: epath.Path) -> bool:
  try:
    return bool(path.exists())
  # Without the library of a bucket's kind, or without a right to look into it.
  except Exception as error:
    if not str(path).startswith(_BUCKET):
      return False
    raise ValueError(
      f"{path}: cannot be looked up ({type(error).__name__}: {' '.join(str(error).split())[:200]}), expected a "
      "bucket that this machine may read: pip install gcsfs, and gcloud auth application-default login"
    ) from None
