"""The age of the keys in memory banks, from the fill and the cursors that a run has logged."""

import collections

import numpy as np


def key_ages(
  steps: np.ndarray, fill: np.ndarray, cursor: np.ndarray, capacity: int
) -> tuple[np.ndarray, np.ndarray]:
  """Computes how many steps ago the keys of each bank entered it.

  Between two logged lines ``(cursor - earlier cursor) mod M`` keys of a class enter its bank, and the oldest keys leave
  it first. The log does not say at which steps between the lines they enter; they are spread evenly. So an age is wrong
  by less than the number of steps between two lines, and exact where every step is logged.

  Args:
    steps: ``[L]``, increasing; updates made at each line.
    fill: ``[L,N]`` in 0..1, the share of a bank's slots that hold a key.
    cursor: ``[L,N]``, the slot that the class's next key overwrites.
    capacity: ``M``, slots of each bank. Fewer than ``M`` keys of a class may enter between two lines; of more, the
      cursor does not show multiples of ``M``.

  Returns:
    The mean and the greatest age in each bank, float64 ``[L,N]`` each; NaN where a bank is empty.

  >>> mean, oldest = key_ages(np.array([1, 2]), np.array([[0.5], [1.0]]), np.array([[2], [0]]), capacity=4)
  >>> mean.ravel().tolist(), oldest.ravel().tolist()
  ([0.0, 0.5], [0.0, 1.0])
  """
  count = np.rint(np.asarray(fill, np.float64) * capacity).astype(int)
  position = np.rint(np.asarray(cursor, np.float64)).astype(int)
  mean, oldest = np.full(count.shape, np.nan), np.full(count.shape, np.nan)
  for label in range(count.shape[1]):
    entered: collections.deque[int] = collections.deque(maxlen=capacity)
    earlier_step, earlier_position = 0, 0
    for line, step in enumerate(np.asarray(steps).tolist()):
      new = int(position[line, label] - earlier_position) % capacity
      # From the empty bank to a full one, and where a full turn has brought the cursor back.
      new = max(new, int(count[line, label]) - len(entered))
      # At steps 1, 2, ... after the earlier line: the ceiling of an even spread.
      spread = -(-(step - earlier_step) * np.arange(1, new + 1) // max(new, 1))
      entered.extend((earlier_step + spread).tolist())
      earlier_step, earlier_position = step, int(position[line, label])
      if entered:
        mean[line, label], oldest[line, label] = step - np.mean(entered), step - entered[0]
  return mean, oldest


def bank_capacity(fill: np.ndarray, cursor: np.ndarray) -> int | None:
  """Returns ``M``, the slots of each bank; None where the log does not show it, or shows several sizes.

  In a bank that is not full, the cursor is the number of keys, so ``M = cursor / fill``. The size changes where a run
  resumes with another number of training images.

  Args:
    fill: ``[L,N]`` in 0..1.
    cursor: ``[L,N]``.
  """
  partly = (np.asarray(fill) > 0) & (np.asarray(fill) < 1)
  if not partly.any():
    return None
  sizes = np.rint(np.asarray(cursor, np.float64)[partly] / np.asarray(fill, np.float64)[partly])
  return int(sizes[0]) if (sizes == sizes[0]).all() else None
