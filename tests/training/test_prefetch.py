"""Prefetching keeps the order of batches and errors, and a position that reading ahead does not move."""

import threading
import time

import numpy as np
import pytest

from rc_jax.training.prefetch import PREFETCHED, THREAD, Prefetcher


class Counting:
  """Stands for TrainBatches: batch ``n`` holds ``n``; batch ``bad`` cannot be read; each takes ``seconds``."""

  def __init__(self, bad=None, seconds=0.0):
    self.bad, self.seconds = bad, seconds
    self.position = 0

  def __next__(self):
    time.sleep(self.seconds)
    if self.position == self.bad:
      raise ValueError("image_7.png: cannot be decoded")
    self.position += 1
    return {"image": np.full(3, self.position - 1)}

  def get_state(self):
    return {"next_batch": self.position}

  def set_state(self, state):
    self.position = state["next_batch"]


def _put(batch):
  return int(batch["image"][0])


def _busy():
  return False


def _idle():
  return True


def test_the_position_is_that_of_the_batches_returned():
  batches = Counting()
  with Prefetcher(batches, _put) as prefetcher:
    assert prefetcher.get_state() == {"next_batch": 0}
    for number in range(6):
      assert prefetcher.next(_busy) == number
      # Time to read ahead, which it does, but not without end.
      deadline = time.monotonic() + 5
      while batches.position < number + 1 + PREFETCHED and time.monotonic() < deadline:
        time.sleep(0.005)
      assert number + 1 + PREFETCHED <= batches.position <= number + 2 + PREFETCHED
      assert prefetcher.get_state() == {"next_batch": number + 1}
  # Closed, the batches are at the prefetcher's position.
  assert batches.get_state() == {"next_batch": 6}
  assert THREAD not in [thread.name for thread in threading.enumerate()]
  # And it continues from there.
  assert prefetcher.next(_busy) == 6
  prefetcher.close()


def test_it_starts_at_the_position_of_the_batches():
  batches = Counting()
  batches.set_state({"next_batch": 40})
  with Prefetcher(batches, _put) as prefetcher:
    assert prefetcher.get_state() == {"next_batch": 40} and prefetcher.next(_busy) == 40


def test_an_error_is_raised_after_all_batches_before_it_and_again():
  with Prefetcher(Counting(bad=5), _put) as prefetcher:
    assert [prefetcher.next(_busy) for _ in range(5)] == [0, 1, 2, 3, 4]
    for _ in range(2):
      with pytest.raises(ValueError, match="image_7"):
        prefetcher.next(_busy)
      assert prefetcher.get_state() == {"next_batch": 5}


def test_only_time_in_which_the_devices_are_idle_counts_as_waiting():
  with Prefetcher(Counting(seconds=0.05), _put) as prefetcher:
    for _ in range(4):
      prefetcher.next(_busy)
    assert prefetcher.wait_seconds == 0
    for _ in range(4):
      prefetcher.next(_idle)
    assert 0.1 < prefetcher.wait_seconds < 1.0
    # The devices finish in the middle of the wait: half of it counts.
    waited, start = prefetcher.wait_seconds, time.monotonic()
    for _ in range(4):
      begin = time.monotonic()
      prefetcher.next(lambda begin=begin: time.monotonic() > begin + 0.025)
    assert 0.02 < prefetcher.wait_seconds - waited < 0.8 * (time.monotonic() - start)


def test_a_prefetched_batch_needs_no_waiting():
  with Prefetcher(Counting(), _put) as prefetcher:
    prefetcher.next(_idle)
    waited = prefetcher.wait_seconds
    for _ in range(3):
      time.sleep(0.03)
      prefetcher.next(_idle)
    assert prefetcher.wait_seconds - waited < 0.03


def test_closing_ends_a_thread_that_waits_at_a_full_queue():
  prefetcher = Prefetcher(Counting(), _put)
  prefetcher.next(_busy)
  time.sleep(0.05)  # the thread stands at a full queue
  start = time.monotonic()
  prefetcher.close()
  prefetcher.close()
  assert time.monotonic() - start < 2
