"""The age of keys from logged cursors, against queues that are simulated key by key."""

import collections

import numpy as np
import pytest

from rc_jax.training.bank_age import bank_capacity, key_ages

STEPS, BATCH, CAPACITY = 60, 4, 37


def simulate(seed: int = 0):
  """Returns fill, cursor, mean age and greatest age after each step, ``[STEPS,N]``, of four classes.

  A class enters with every image, one with some, one rarely, one never.
  """
  rng = np.random.default_rng(seed)
  probability = np.array([1.0, 0.5, 0.05, 0.0])
  banks = [collections.deque(maxlen=CAPACITY) for _ in probability]
  entered = np.zeros(len(banks), int)
  fill, cursor, mean, oldest = (np.full((STEPS, len(banks)), np.nan) for _ in range(4))
  for step in range(1, STEPS + 1):
    new = rng.binomial(BATCH, probability)
    entered += new
    for label, bank in enumerate(banks):
      bank.extend([step] * new[label])
      fill[step - 1, label] = np.float32(len(bank)) / np.float32(CAPACITY)
      cursor[step - 1, label] = entered[label] % CAPACITY
      if bank:
        mean[step - 1, label] = np.mean([step - key for key in bank])
        oldest[step - 1, label] = step - bank[0]
  return fill, cursor, mean, oldest


def test_ages_are_exact_where_every_step_is_logged() -> None:
  fill, cursor, mean, oldest = simulate()
  assert np.nanmax(fill[:, 1]) == 1 and np.isnan(mean[:, 3]).all() and entered_again(cursor)
  found_mean, found_oldest = key_ages(np.arange(1, STEPS + 1), fill, cursor, CAPACITY)
  np.testing.assert_allclose(found_mean, mean, rtol=1e-12)
  np.testing.assert_array_equal(found_oldest, oldest)


def entered_again(cursor: np.ndarray) -> bool:
  return bool((np.diff(cursor, axis=0) < 0).any(axis=0)[:2].all())


@pytest.mark.parametrize("every", [2, 5, 9])
def test_ages_are_wrong_by_less_than_the_steps_between_two_lines(every: int) -> None:
  fill, cursor, mean, oldest = simulate(every)
  logged = np.array([1, *range(every, STEPS + 1, every)]) - 1  # the first step is always logged
  found = key_ages(logged + 1, fill[logged], cursor[logged], CAPACITY)
  assert every * BATCH < CAPACITY
  for ages, exact in zip(found, (mean[logged], oldest[logged]), strict=True):
    np.testing.assert_array_equal(np.isnan(ages), np.isnan(exact))
    assert np.nanmax(np.abs(ages - exact)) < every


def test_the_capacity_follows_from_a_bank_that_is_not_full() -> None:
  fill, cursor, *_ = simulate()
  assert bank_capacity(fill.astype(np.float32), cursor.astype(np.float32)) == CAPACITY
  assert bank_capacity(np.array([[1.0, 0.0]]), np.array([[3.0, 0.0]])) is None
  # Resumed with more training images: the first half of the log is of smaller banks.
  smaller = fill * np.where(np.arange(STEPS) < 5, 2, 1)[:, None]
  assert bank_capacity(np.minimum(smaller, 1), cursor) is None
