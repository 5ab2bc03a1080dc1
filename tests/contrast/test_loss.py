"""The contrastive loss against Equation 4 written as loops over keys in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rc_jax import contrast
from tests.support.contrast_oracle import contrast_oracle, unit_vectors
from tests.support.tile_sizes import FORMS, tile_sizes

B, N, M, C = 3, 4, 5, 6


def bank_oracle(centers, bank, temperature=0.2):
  keys = np.asarray(bank.keys.astype(jnp.float32))
  return contrast_oracle(
    centers.vectors, np.asarray(centers.present), lambda _, n: keys[n, : int(bank.count[n])], temperature
  )


def batch_oracle(centers, scope, temperature=0.2):
  vectors, present = np.asarray(centers.vectors), np.asarray(centers.present)

  def keys_of(b, n):
    images = [b] if scope == "image" else range(B)
    return [vectors[image, n] for image in images if present[image, n]]

  return contrast_oracle(vectors, present, keys_of, temperature)


def random_centers(seed=0, present=None):
  rng = np.random.default_rng(seed)
  present = rng.random((B, N)) < 0.7 if present is None else np.asarray(present)
  return contrast.RegionCenters(vectors=jnp.asarray(unit_vectors(rng, B, N, C)), present=jnp.asarray(present))


def random_bank(seed=1, count=(2, 5, 1, 4), dtype=jnp.float32):
  count = np.asarray(count, np.int32)
  keys = unit_vectors(np.random.default_rng(seed), N, M, C)
  keys[np.arange(M) >= count[:, None]] = 0
  return contrast.MemoryBank(
    keys=jnp.asarray(keys, dtype), cursor=jnp.asarray(count % M), count=jnp.asarray(count)
  )


def bank_loss(vectors, present, bank, temperature=0.2):
  return contrast.region_contrast_loss(contrast.RegionCenters(vectors, present), bank, temperature)


def in_form(form):
  """Returns ``bank_loss`` with the tiles of one of ``FORMS``."""

  def loss(vectors, present, bank, temperature):
    with tile_sizes(**FORMS[form]):
      return bank_loss(vectors, present, bank, temperature)

  return loss


# A traced tau is unknown at compile time; a constant tau may bound the logits.
COMPILED = {form: jax.jit(jax.value_and_grad(in_form(form), argnums=(0, 3), has_aux=True)) for form in FORMS}
BOUNDED = {form: jax.jit(jax.value_and_grad(in_form(form), has_aux=True), static_argnums=3) for form in FORMS}


def bank_loss_and_gradient(vectors, present, bank, temperature, form="one tile"):
  found, (gradient, _) = COMPILED[form](vectors, present, bank, temperature)
  return found, gradient


def assert_matches(found, expected):
  (loss, stats), gradient = found
  assert loss.shape == () and loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, expected[0], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(gradient, expected[1], rtol=1e-5, atol=1e-5)
  for name, value in expected[2].items():
    assert stats[name].shape == np.shape(value) and stats[name].dtype == jnp.float32
    np.testing.assert_allclose(stats[name], value, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.2, 1.0])
def test_bank_loss_is_equation_4(temperature, form):
  centers, bank = random_centers(), random_bank()
  (value, stats), (gradient, by_temperature) = COMPILED[form](
    centers.vectors, centers.present, bank, temperature
  )
  expected = bank_oracle(centers, bank, temperature)
  scale = max(1, np.abs(expected[1]).max())
  scaled = (expected[0], expected[1] / scale, expected[2])
  assert_matches(((value, stats), gradient / scale), scaled)
  found, gradient = BOUNDED[form](centers.vectors, centers.present, bank, temperature)
  assert_matches((found, gradient / scale), scaled)
  step = 1e-4 * temperature
  higher, lower = (bank_oracle(centers, bank, temperature + d)[0] for d in (step, -step))
  np.testing.assert_allclose(by_temperature, (higher - lower) / (2 * step), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_a_bfloat16_bank_rounds_its_products_operands_and_nothing_else(form):
  centers, bank = random_centers(), random_bank(dtype=jnp.bfloat16)
  temperature = 0.25  # a power of two, so that rounding q / tau is rounding q
  (value, stats), gradient = bank_loss_and_gradient(centers.vectors, centers.present, bank, temperature, form)
  rounded = contrast.RegionCenters(centers.vectors.astype(jnp.bfloat16).astype(jnp.float32), centers.present)
  expected = bank_oracle(rounded, bank, temperature)
  np.testing.assert_allclose(value, expected[0], rtol=1e-5)
  # Here the weights of the keys are rounded as well.
  np.testing.assert_allclose(gradient, expected[1], atol=2**-8 * np.abs(expected[1]).max())
  for name, mean in expected[2].items():
    np.testing.assert_allclose(stats[name], mean, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("temperature", [0.01, 0.2])
@pytest.mark.parametrize("scope", ["image", "batch"])
def test_batch_loss_is_equation_4(scope, temperature):
  centers = random_centers(2)

  def loss(vectors):
    return contrast.batch_contrast_loss(
      contrast.RegionCenters(vectors, centers.present), scope=scope, temperature=temperature
    )

  found = jax.jit(jax.value_and_grad(loss, has_aux=True))(centers.vectors)
  # The keys are detached, as in the oracle's gradient.
  assert_matches(found, batch_oracle(centers, scope, temperature))


# Counts include empty banks and full ones, presents include images and batches without any query.
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
  present=hnp.arrays(bool, (B, N)),
  count=st.lists(st.integers(0, M), min_size=N, max_size=N),
  seed=st.integers(0, 1000),
)
@example(present=np.ones((B, N), bool), count=[0, 0, 0, 0], seed=0)  # no keys
@example(present=np.ones((B, N), bool), count=[0, 3, 0, 0], seed=0)  # no negatives, or no positives
@example(present=np.zeros((B, N), bool), count=[5, 5, 5, 5], seed=0)  # no queries
def test_any_masks(present, count, seed):
  centers, bank = random_centers(seed, present), random_bank(seed + 1, count)
  for form in FORMS:
    expected = bank_oracle(centers, bank)
    assert_matches(bank_loss_and_gradient(centers.vectors, centers.present, bank, 0.2, form), expected)
    assert_matches(BOUNDED[form](centers.vectors, centers.present, bank, 0.2), expected)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(scope=st.sampled_from(["image", "batch"]), present=hnp.arrays(bool, (B, N)), seed=st.integers(0, 1000))
def test_any_presence_in_the_batch(scope, present, seed):
  centers = random_centers(seed, present)
  loss, stats = contrast.batch_contrast_loss(centers, scope=scope)
  expected, _, expected_stats = batch_oracle(centers, scope)
  np.testing.assert_allclose(loss, expected, atol=1e-5)
  for name, value in expected_stats.items():
    np.testing.assert_allclose(stats[name], value, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [(0, 0, 0, 0), (0, 3, 0, 0)])
def test_nothing_to_contrast_is_zero_with_exactly_zero_gradient(count, form):
  centers = random_centers(3, np.ones((B, N), bool))
  (loss, stats), gradient = bank_loss_and_gradient(
    centers.vectors, centers.present, random_bank(4, count), 0.2, form
  )
  assert loss == 0 and stats["queries"] == 0
  np.testing.assert_array_equal(gradient, 0)
  by_class = {name for name, value in stats.items() if value.ndim}
  assert by_class == {"positive_similarity_by_class", "negative_similarity_by_class"}
  assert all(np.isnan(value).all() if name in by_class else value == 0 for name, value in stats.items())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [(M, 2, M, M), (0, M, 1, 3)])
def test_slots_and_queries_that_are_not_valid_do_not_count(form, count):
  centers, bank = random_centers(5), random_bank(6, count)
  expected = COMPILED[form](centers.vectors, centers.present, bank, 0.2)
  soiled = contrast.MemoryBank(
    keys=jnp.where(bank.valid[..., None], bank.keys, 7.0), cursor=bank.cursor, count=bank.count
  )
  vectors = jnp.where(centers.present[..., None], centers.vectors, jnp.nan)
  found = COMPILED[form](vectors, centers.present, soiled, 0.2)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  found = BOUNDED[form](vectors, centers.present, soiled, 0.2)
  jax.tree.map(
    np.testing.assert_array_equal, found, BOUNDED[form](centers.vectors, centers.present, bank, 0.2)
  )
  for scope in ("image", "batch"):
    clean = contrast.batch_contrast_loss(centers, scope)
    found = contrast.batch_contrast_loss(contrast.RegionCenters(vectors, centers.present), scope)
    jax.tree.map(np.testing.assert_array_equal, found, clean)


def test_banks_are_constants():
  centers, bank = random_centers(7), random_bank(8)

  def loss(keys):
    return bank_loss(centers.vectors, centers.present, contrast.MemoryBank(keys, bank.cursor, bank.count))[0]

  assert loss(bank.keys) != loss(bank.keys * 0.5)
  np.testing.assert_array_equal(jax.grad(loss)(bank.keys), 0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("temperature", [1e-3, 1e3])
def test_extreme_temperatures_stay_finite(temperature, form):
  centers, bank = random_centers(9), random_bank(10)
  (loss, _), gradient = bank_loss_and_gradient(centers.vectors, centers.present, bank, temperature, form)
  assert np.isfinite(loss) and np.isfinite(gradient).all()
  if temperature > 1:  # all similarities count alike: log(1 + negatives), averaged over the queries
    negatives = int(bank.count.sum()) - np.asarray(bank.count)
    expected = (np.log1p(negatives) * np.asarray(centers.present)).sum() / np.asarray(centers.present).sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-3)


def test_a_traced_temperature_and_jit_change_nothing():
  centers, bank = random_centers(11), random_bank(12)
  eager = contrast.region_contrast_loss(centers, bank, temperature=0.1)
  traced = jax.jit(contrast.region_contrast_loss)(centers, bank, jnp.float32(0.1))
  fixed = jax.jit(lambda c, b: contrast.region_contrast_loss(c, b, temperature=0.1))(centers, bank)
  for other in (traced, fixed):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), other, eager)


def test_bfloat16_centers_are_accumulated_in_float32():
  centers, bank = random_centers(13), random_bank(14)
  rounded = contrast.RegionCenters(centers.vectors.astype(jnp.bfloat16), centers.present)
  loss, _ = contrast.region_contrast_loss(rounded, bank)
  widened = contrast.RegionCenters(rounded.vectors.astype(jnp.float32), centers.present)
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, bank_oracle(widened, bank)[0], rtol=1e-5)


def test_each_positive_stands_against_all_negatives_alone():
  """Two positives and one negative by hand: other positives are not in the denominator."""
  e = np.eye(4, dtype=np.float32)
  centers = contrast.RegionCenters(jnp.asarray(e[None, :2]), jnp.asarray([[True, False]]))
  keys = jnp.asarray(np.stack([[e[0], e[1]], [e[2], e[3]]]))
  bank = contrast.MemoryBank(keys, jnp.asarray([0, 1], jnp.int32), jnp.asarray([2, 1], jnp.int32))
  loss, stats = contrast.region_contrast_loss(centers, bank, temperature=0.5)
  expected = 0.5 * (np.log((np.exp(2) + 1) / np.exp(2)) + np.log(2))
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  assert (stats["queries"], stats["positive_similarity"], stats["negative_similarity"]) == (1, 0.5, 0)


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_loss_works_where_jax_has_64_bits(form, dtype):
  """As with JAX_ENABLE_X64=1 in code of another project."""
  rng = np.random.default_rng(4)
  features, logits = rng.normal(size=(2, 3, 5, 6)).astype(dtype), rng.normal(size=(2, 3, 5, 4)).astype(dtype)
  labels = rng.integers(0, 4, (2, 3, 5))

  def loss(features):
    centers = contrast.region_centers(features, logits, labels, method="dynamic", ignore_label=255)
    bank = contrast.MemoryBank.create(num_classes=4, capacity=M, dim=6, dtype=jnp.float32)
    bank = contrast.enqueue(contrast.enqueue(bank, centers), centers)
    losses = [
      contrast.batch_contrast_loss(centers, scope=scope, temperature=0.2)[0] for scope in ("image", "batch")
    ]
    return contrast.region_contrast_loss(centers, bank, temperature=0.2)[0] + sum(losses)

  with tile_sizes(**FORMS[form]):
    expected = jax.value_and_grad(loss)(jnp.asarray(features))
    with jax.enable_x64(True):
      found = jax.jit(jax.value_and_grad(loss))(jnp.asarray(features))
      assert found[1].dtype == dtype and found[0].dtype == jnp.float32
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
  np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-6)


def test_mistakes_are_named():
  centers, bank = random_centers(), random_bank()
  with pytest.raises(ValueError, match=r"'bank'.*image, batch.*region_contrast_loss"):
    contrast.batch_contrast_loss(centers, scope="bank")
  with pytest.raises(ValueError, match="temperature must be positive, got 0"):
    contrast.region_contrast_loss(centers, bank, temperature=0)
  with pytest.raises(ValueError, match="temperature must be positive, got -1"):
    contrast.batch_contrast_loss(centers, temperature=-1)
  with pytest.raises(ValueError, match=r"\(3, 4, 6\) and \(4, 5, 8\)"):
    contrast.region_contrast_loss(centers, contrast.MemoryBank.create(N, M, 8))
