"""The statement of a data set: one object holds all that the project knows of it."""

import dataclasses
from collections.abc import Callable, Mapping

from rc_jax.data.reading.dataset_info import DatasetInfo
from rc_jax.data.reading.source import Source


def _same_stem(stem: str) -> str:
  return stem


@dataclasses.dataclass(frozen=True)
class SubmissionFormat:
  """The form in which a benchmark takes predictions: a zip of single-channel PNGs in the data set's ids.

  Attributes:
    name: the value of ``--format``.
    key: from the stem of an image or of a submitted file to the part that pairs both; None for a stem without it.
    file_name: the name of a submitted PNG, with ``{}`` for the key.
    names: the file names that the benchmark expects, for error messages.
    size: ``(H,W)`` of every image; None where images differ in size.
  """

  name: str
  key: Callable[[str], str | None] = _same_stem
  file_name: str = "{}.png"
  names: str = "the image's name with .png"
  size: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class RecordFields:
  """The fields of a record in an ArrayRecord file, and the ids that its labels hold.

  Attributes:
    image: name of the field with the image's bytes.
    label: name of the field with the label's bytes, which are empty in a split without labels.
    name: name of the field with the example's name.
    train_ids: id in the label -> train id.
    converted: whether the labels hold train ids.
  """

  image: str
  label: str
  name: str
  train_ids: Mapping[int, int]
  converted: bool


@dataclasses.dataclass(frozen=True)
class TFDSBuild:
  """The build of a data set that TensorFlow Datasets makes, which is read where its files are ArrayRecord.

  Attributes:
    fields: the fields of a record.
    splits: our name of a split -> TFDS's, where they differ.
    unlabelled: splits whose labels are empty.
  """

  fields: RecordFields
  splits: Mapping[str, str]
  unlabelled: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
  """All that is known of a data set. ``rc_jax.data.DATASETS`` lists them by name.

  Attributes:
    info: the classes; a function of the root where the folder itself states them.
    splits: the names of the splits; a function of the root where the folder itself states them.
    load: ``(root, split) -> Source``, lists the examples of a split and decodes none; raises ValueError or
      FileNotFoundError, in one line, for a folder that is not as expected.
    layout: the files and folders that a root holds, for error messages; empty for a data set without files.
    signs: the signs of a root: all paths of one of these tuples exist below it. Empty: no folder is recognised.
    aliases: another name of a split -> the split, or several joined by ``+``.
    image_counts: split -> number of images in the official release.
    submission: the form in which its test server takes predictions; None where there is no such form.
    tfds: TensorFlow Datasets' build; None where it cannot be read.
  """

  info: DatasetInfo | Callable[[str], DatasetInfo]
  splits: tuple[str, ...] | Callable[[str], tuple[str, ...]]
  load: Callable[[str, str], Source]
  layout: str = ""
  signs: tuple[tuple[str, ...], ...] = ()
  aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
  image_counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
  submission: SubmissionFormat | None = None
  tfds: TFDSBuild | None = None

  def info_at(self, root: str) -> DatasetInfo:
    """Returns the classes of the data set in a folder."""
    return self.info if isinstance(self.info, DatasetInfo) else self.info(root)

  def splits_at(self, root: str) -> tuple[str, ...]:
    """Returns the names of the splits that the data set in a folder may have."""
    return self.splits if isinstance(self.splits, tuple) else self.splits(root)

  @property
  def has_files(self) -> bool:
    """Whether the data set is read from files."""
    return bool(self.layout)
