"""Training goes on when files break: what stands in for an example that cannot be read, and how that is told."""

from typing import Any

import numpy as np

from rc_jax.data.reading.dataset_info import DatasetInfo
from rc_jax.data.reading.source import Example, Source

WHOLE = -1  # in place of the index of a broken example
_REASON_BYTES = 1024

# Fields that an example brings along beside its pixels, and a batch stacks; they are taken off before the device.
BROKEN, REASON = "broken", "reason"


class NextReadable:
  """A split in which the next example that can be read stands in for one that cannot.

  What stands in depends on the files alone: not on hosts, workers or when it is asked for. The augmentation is that
  of the position, and an epoch then shows the stand-in twice.

  Args:
    source: the split.
    limit: how many may be broken in a row; more is an error.
  """

  def __init__(self, source: Source, limit: int):
    self._source = source
    self._limit = limit

  @property
  def info(self) -> DatasetInfo:
    return self._source.info

  @property
  def labelled(self) -> bool:
    return self._source.labelled

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Example:
    """Returns an example with ``broken``, int32: ``index`` if it could not be read, else -1; and the ``reason``.

    Raises:
      ValueError: in one line, when more than ``limit`` are broken in a row.
    """
    first = None
    for tries in range(self._limit + 1):
      try:
        example = self._source[(index + tries) % len(self)]
      except ValueError as error:
        first = first or error
      else:
        # Those in between are told when it is their turn.
        broken = WHOLE if first is None else index
        return {**example, BROKEN: np.int32(broken), REASON: _as_bytes(str(first or ""))}
    raise too_many(self._limit + 1, len(self), self._limit, str(first))


def taken_off(batch: dict[str, Any]) -> tuple[dict[str, Any], dict[int, str]]:
  """Splits a batch into its arrays, and its broken examples with the reasons."""
  broken, reasons = batch[BROKEN], batch[REASON]
  found = {
    int(index): bytes(reason).rstrip(b"\0").decode(errors="replace")
    for index, reason in zip(broken, reasons, strict=True)
    if index != WHOLE
  }
  return {name: value for name, value in batch.items() if name not in (BROKEN, REASON)}, found


def too_many(found: int, examples: int, limit: int, reason: str) -> ValueError:
  """Returns the error for more broken examples than ``dataset.max_skipped`` allows."""
  return ValueError(
    f"{found} of {examples} training images cannot be read, expected at most {limit} (dataset.max_skipped): "
    f"repair the files or raise it; the last: {reason}"
  )


def _as_bytes(reason: str) -> np.ndarray:
  # Of one length, because strings do not batch into arrays.
  encoded = reason.encode()[:_REASON_BYTES]
  return np.frombuffer(encoded.ljust(_REASON_BYTES, b"\0"), np.uint8)
