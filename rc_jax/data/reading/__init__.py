"""Finds, pairs, decodes and checks the files of raw data sets. These names serve the file of a data set."""

from rc_jax.data.reading.dataset import Dataset, RecordFields, SubmissionFormat, TFDSBuild
from rc_jax.data.reading.dataset_info import IGNORE_LABEL, AbsentClass, DatasetInfo, IdMistakes
from rc_jax.data.reading.listing import files_in, is_hidden, left_out
from rc_jax.data.reading.pairing import (
  IMAGE_SUFFIXES,
  LABEL_SUFFIXES,
  check_root,
  check_split,
  files_by_key,
  files_by_stem,
  pair_files,
  pair_folders,
)
from rc_jax.data.reading.palette import colormap
from rc_jax.data.reading.source import Example, FilePairs, Source

__all__ = [
  "IGNORE_LABEL",
  "IMAGE_SUFFIXES",
  "LABEL_SUFFIXES",
  "AbsentClass",
  "Dataset",
  "DatasetInfo",
  "Example",
  "FilePairs",
  "IdMistakes",
  "RecordFields",
  "Source",
  "SubmissionFormat",
  "TFDSBuild",
  "check_root",
  "check_split",
  "colormap",
  "files_by_key",
  "files_by_stem",
  "files_in",
  "is_hidden",
  "left_out",
  "pair_files",
  "pair_folders",
]
