"""The speed of training: images per second, and the share of time in which the devices wait for data."""

import time
from typing import NamedTuple

from rc_jax.training.prefetch import Prefetcher


class Speed(NamedTuple):
  """The speed over some steps.

  Attributes:
    images_per_second: over all devices.
    data_wait: the share of the time in which the devices waited for a batch, in 0..1.
  """

  images_per_second: float
  data_wait: float


class Throughput:
  """Measures the speed of training alone: the caller restarts it after compiling, scoring and saving."""

  def __init__(self, batch_size: int, prefetcher: Prefetcher):
    """Starts the clock.

    Args:
      batch_size: images of a step, over all devices.
      prefetcher: it counts the seconds of waiting.
    """
    self._batch_size = batch_size
    self._prefetcher = prefetcher
    self.restart()

  def restart(self) -> None:
    """Forgets all steps and starts the clock."""
    self._images, self._start = 0, time.monotonic()
    self._waited_before = self._prefetcher.wait_seconds

  def count_step(self) -> None:
    """Counts the images of one step."""
    self._images += self._batch_size

  def take(self) -> Speed:
    """Returns the speed since the last start, and restarts."""
    seconds = max(time.monotonic() - self._start, 1e-9)
    waited = self._prefetcher.wait_seconds - self._waited_before
    speed = Speed(self._images / seconds, min(1.0, waited / seconds))
    self.restart()
    return speed
