"""What identifies a split, so that the processes and the sessions of one run can compare what they read."""

import hashlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rc_jax.class_table import MERGED
from rc_jax.data.prepared import reader
from rc_jax.data.reading.class_mapping import Relabelled
from rc_jax.data.reading.dataset_info import DatasetInfo
from rc_jax.data.reading.listing import common_folder
from rc_jax.data.reading.source import FilePairs, Joined, Source, Subset

_SAMPLED = 4  # examples whose content is compared: reading all would take as long as an epoch


def class_facts(info: DatasetInfo) -> dict[str, Any]:
  """Returns names, ids, order and colours of the classes, as facts of ``rc_jax.agreement``."""
  table = info.table()
  pairs = zip(table["class_names"], table["label_ids"], strict=True)
  facts: dict[str, Any] = {
    f"class {index}": f"{name} (id {own_id})" for index, (name, own_id) in enumerate(pairs)
  }
  facts |= {f"class of the id {own_id}": label for own_id, label in table.get(MERGED, {}).items()}
  return facts | {"ignored label": table["ignore_label"], "digest of the colours": _digest(table["palette"])}


def split_facts(source: Source, split: str) -> tuple[dict[str, Any], dict[str, list[str]]]:
  """Returns what identifies the examples of a split.

  Args:
    source: the split.
    split: its name.

  Returns:
    Facts and listings for ``rc_jax.agreement.check_agreement``: the number of examples, the names of the files below
    their common folder, the index of prepared data, and the content of a few examples, evenly spaced.
  """
  parts = list(_stored_parts(source))
  facts: dict[str, Any] = {f"number of examples of {split}": len(source)}
  for part in parts:
    if isinstance(part, reader.PreparedSplit):
      facts[f"index of the prepared {part.split}"] = _digest(reader.stored_metadata(part))
  names = [name for part in parts if isinstance(part, FilePairs) for name in _names(part)]
  indices = np.unique(np.linspace(0, len(source) - 1, _SAMPLED).round().astype(int)) if len(source) else ()
  for index in map(int, indices):
    facts[f"content of example {index + 1} of {split}"] = _content(source, index)
  return facts, {f"example of {split}": names} if names else {}


def _stored_parts(source: Source) -> Iterator[Source]:
  """Yields the parts of a split that are stored, without other classes around them."""
  if isinstance(source, Joined):
    for part in source.parts:
      yield from _stored_parts(part)
  elif isinstance(source, Relabelled):
    yield from _stored_parts(source.source)
  else:
    yield source


def examples_digest(source: Source) -> str:
  """Returns 16 hexadecimal digits that stand for the names of a split's examples in their order.

  The index of prepared data, which has the checksums of their shards, stands in place of names. Examples that are
  generated differ in their number alone.
  """
  return _digest(_identity(source))


def _identity(source: Source) -> Any:
  if isinstance(source, Joined):
    return [_identity(part) for part in source.parts]
  if isinstance(source, Subset):
    return [_identity(source.source), list(source.indices)]
  if isinstance(source, Relabelled):
    return _identity(source.source)
  if isinstance(source, FilePairs):
    return list(source.names)
  return reader.stored_metadata(source) if isinstance(source, reader.PreparedSplit) else len(source)


def _names(part: FilePairs) -> list[str]:
  images = _below_common_folder(part.images)
  if part.labels is None:
    return images
  labels = _below_common_folder(part.labels)
  return [f"{image} with {label}" for image, label in zip(images, labels, strict=True)]


def _below_common_folder(paths: Sequence[pathlib.Path]) -> list[str]:
  top = common_folder(paths)
  return [path.relative_to(top).as_posix() for path in paths]


def _content(source: Source, index: int) -> str:
  """Returns a digest of an example: of its files where it has such, otherwise of its pixels."""
  if isinstance(source, Joined):
    for part in source.parts:
      if index < len(part):
        return _content(part, index)
      index -= len(part)
  digest = hashlib.sha256()
  try:
    if isinstance(source, FilePairs):
      # Not the pixels: decoders of other versions may round differently.
      for paths in filter(None, (source.images, source.labels)):
        digest.update(paths[index].read_bytes())
    else:
      example = source[index]
      for pixels in (example["image"], example.get("label")):
        if pixels is not None:
          digest.update(np.ascontiguousarray(pixels).tobytes())
  except (ValueError, OSError):
    return "unreadable"  # whoever needs the example says why
  return digest.hexdigest()[:16]


def _digest(value: Any) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
