"""The feed: batches in order, a position that reading ahead does not move, waiting measured, errors in their turn."""

import threading
import time

import numpy as np
import pytest

from rc_jax.training.prefetch import AHEAD, Prefetcher


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


def test_the_position_is_that_of_what_was_handed_out():
  batches = Counting()
  with Prefetcher(batches, _put) as feed:
    assert feed.get_state() == {"next_batch": 0}
    for number in range(6):
      assert feed.next(_busy) == number
      # Time to read ahead, which it does, but not without end.
      deadline = time.monotonic() + 5
      while batches.position < number + 1 + AHEAD and time.monotonic() < deadline:
        time.sleep(0.005)
      assert number + 1 + AHEAD <= batches.position <= number + 2 + AHEAD
      assert feed.get_state() == {"next_batch": number + 1}
  # Closed, the batches are where the feed was.
  assert batches.get_state() == {"next_batch": 6}
  assert "feed" not in [thread.name for thread in threading.enumerate()]
  # And it goes on from there.
  assert feed.next(_busy) == 6
  feed.close()


def test_a_feed_begins_where_the_batches_are():
  batches = Counting()
  batches.set_state({"next_batch": 40})
  with Prefetcher(batches, _put) as feed:
    assert feed.get_state() == {"next_batch": 40} and feed.next(_busy) == 40


def test_an_error_comes_after_all_batches_before_it_and_again():
  with Prefetcher(Counting(bad=5), _put) as feed:
    assert [feed.next(_busy) for _ in range(5)] == [0, 1, 2, 3, 4]
    for _ in range(2):
      with pytest.raises(ValueError, match="image_7"):
        feed.next(_busy)
      assert feed.get_state() == {"next_batch": 5}


def test_waiting_counts_where_the_devices_are_idle_alone():
  with Prefetcher(Counting(seconds=0.05), _put) as feed:
    for _ in range(4):
      feed.next(_busy)
    assert feed.waited == 0
    for _ in range(4):
      feed.next(_idle)
    assert 0.1 < feed.waited < 1.0
    # The devices finish in the middle of the wait: half of it counts.
    waited, start = feed.waited, time.monotonic()
    for _ in range(4):
      begin = time.monotonic()
      feed.next(lambda begin=begin: time.monotonic() > begin + 0.025)
    assert 0.02 < feed.waited - waited < 0.8 * (time.monotonic() - start)


def test_batches_that_are_there_cost_no_waiting():
  with Prefetcher(Counting(), _put) as feed:
    feed.next(_idle)
    waited = feed.waited
    for _ in range(3):
      time.sleep(0.03)
      feed.next(_idle)
    assert feed.waited - waited < 0.03


def test_closing_does_not_wait_for_ever():
  feed = Prefetcher(Counting(), _put)
  feed.next(_busy)
  time.sleep(0.05)  # the thread stands at a full queue
  start = time.monotonic()
  feed.close()
  feed.close()
  assert time.monotonic() - start < 2
