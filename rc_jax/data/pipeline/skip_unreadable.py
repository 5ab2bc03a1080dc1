"""Replaces training examples that cannot be read by the next ones, and reports them beside the pixels of a batch."""

import dataclasses
from typing import Any

import numpy as np

from rc_jax.data.reading.source import Example, WrappedSource

# Keys of an example and of a batch, beside the pixels; they are removed before the batch goes to the device.
SKIPPED, REASON = "skipped", "reason"
_NOTHING_SKIPPED = -1  # in place of the index of a skipped example
_REASON_BYTES = 1024


class ReportedExample(Example):
  """An example, and the one that it replaces.

  Keys:
    skipped: int32, the index of the example that could not be read; -1 if this is the example of its position.
    reason: uint8 ``[1024]``, the error in UTF-8, padded with zeros.
  """

  skipped: np.int32
  reason: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class NextReadable(WrappedSource):
  """A split in which the next readable example replaces one that cannot be read.

  The replacement depends on the files alone, not on hosts, workers or the order of access. The augmentation is that of
  the position, and an epoch shows the replacement twice.

  Attributes:
    source: the split.
    limit: the largest number of unreadable examples in a row; more are an error.
  """

  limit: int

  def __getitem__(self, index: int) -> ReportedExample:
    """Returns example ``index`` or its replacement.

    Raises:
      ValueError: in one line, more than ``limit`` examples in a row cannot be read.
    """
    first_error = None
    for offset in range(self.limit + 1):
      try:
        example = self.source[(index + offset) % len(self)]
      except ValueError as error:
        first_error = first_error or error
      else:
        # The examples in between are reported at their own positions.
        skipped = _NOTHING_SKIPPED if first_error is None else index
        return {**example, "skipped": np.int32(skipped), "reason": _encode(str(first_error or ""))}
    raise too_many_unreadable(self.limit + 1, len(self), self.limit, str(first_error))


def split_report(batch: dict[str, Any]) -> tuple[dict[str, Any], dict[int, str]]:
  """Splits a batch of reported examples into its arrays, and the indices and reasons of the skipped examples."""
  skipped = {
    int(index): bytes(reason).rstrip(b"\0").decode(errors="replace")
    for index, reason in zip(batch[SKIPPED], batch[REASON], strict=True)
    if index != _NOTHING_SKIPPED
  }
  return {name: value for name, value in batch.items() if name not in (SKIPPED, REASON)}, skipped


def too_many_unreadable(unreadable: int, examples: int, limit: int, reason: str) -> ValueError:
  """Returns the error for more unreadable examples than ``dataset.max_skipped`` allows."""
  return ValueError(
    f"{unreadable} of {examples} training images cannot be read, expected at most {limit} (dataset.max_skipped): "
    f"repair the files or raise it; the last: {reason}"
  )


def _encode(reason: str) -> np.ndarray:
  # Of a fixed length, because strings cannot be stacked to an array.
  encoded = reason.encode(errors="backslashreplace")[:_REASON_BYTES]
  return np.frombuffer(encoded.ljust(_REASON_BYTES, b"\0"), np.uint8)
