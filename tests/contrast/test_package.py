"""The package: one training step, its documentation, and its dependencies."""

import doctest
import subprocess
import sys

import jax
import numpy as np
import pytest

from rc_jax import contrast

HEAVY = "flax optax orbax grain absl ml_collections tensorflow_datasets PIL tensorboardX torch"


@pytest.mark.run
def test_imports_with_jax_and_numpy_alone():
  script = f"""
import sys

class BlockedImports:
  def find_spec(self, name, path=None, target=None):
    if name.partition(".")[0] in {HEAVY.split()!r}:
      raise ModuleNotFoundError(f"blocked: {{name}}")

sys.meta_path.insert(0, BlockedImports())
from rc_jax import contrast
assert [name for name in sys.modules if name.startswith("rc_jax.") and "contrast" not in name] == []
print(contrast.MemoryBank.create(num_classes=2, capacity=3, dim=4).keys.shape)
try:
  import optax
except ModuleNotFoundError:
  print("held")
"""
  done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
  assert done.stdout.split("\n")[:2] == ["(2, 3, 4)", "held"], done.stderr


def test_documented_step_runs():
  result = doctest.testmod(contrast)
  assert result.failed == 0
  assert result.attempted > 5


def test_gradient_of_centers_and_loss_together_follows_the_equations():
  """Centers, then loss, differentiated together: against central differences of a float64 copy in NumPy."""
  rng = np.random.default_rng(0)
  features = rng.normal(size=(2, 3, 4, 5))
  logits = 2 * rng.normal(size=(2, 3, 4, 3))
  labels = rng.integers(0, 3, size=(2, 3, 4))
  keys = rng.normal(size=(3, 4, 5))
  keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
  bank = contrast.MemoryBank(
    *map(jax.numpy.asarray, (keys.astype(np.float32), np.zeros(3, int), np.full(3, 4)))
  )

  probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  right = probabilities.argmax(-1) == labels
  weights = np.where(right, 1 - probabilities.max(-1), 1)[..., None] * (labels[..., None] == np.arange(3))

  def total(features):
    sums = np.einsum("bhwn,bhwc->bnc", weights, features)
    queries = sums / np.linalg.norm(sums, axis=-1, keepdims=True)
    exponentials = np.exp(np.einsum("bnc,kmc->bnkm", queries, keys) / 0.2)
    losses = []
    for b in range(2):
      for n in range(3):
        negatives = sum(exponentials[b, n, k].sum() for k in range(3) if k != n)
        losses.append(np.mean(-np.log(exponentials[b, n, n] / (exponentials[b, n, n] + negatives))))
    return np.mean(losses)

  def loss(features):
    centers = contrast.region_centers(features, logits.astype(np.float32), labels)
    return contrast.region_contrast_loss(centers, bank, temperature=0.2)[0]

  value, gradient = jax.jit(jax.value_and_grad(loss))(features.astype(np.float32))
  np.testing.assert_allclose(value, total(features), rtol=1e-5)
  expected = np.zeros_like(features)
  for index in np.ndindex(*features.shape):
    step = np.zeros_like(features)
    step[index] = 1e-6
    expected[index] = (total(features + step) - total(features - step)) / 2e-6
  np.testing.assert_allclose(gradient, expected, atol=1e-5)
