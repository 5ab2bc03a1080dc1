"""Banks spread over eight devices: the same values, gradients and keys as on one, and no message as large as a bank."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import processes

B, N, M, C = 4, 6, 30, 8


def run_checks() -> None:
  """Runs in another process, which has eight devices."""
  from rc_jax import contrast
  from tests.support.tile_sizes import tile_sizes

  mesh = jax.make_mesh((8,), ("slots",), axis_types=(jax.sharding.AxisType.Auto,))
  random = np.random.default_rng(0)

  def centers_of_a_batch():
    vectors = random.standard_normal((B, N, C)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    present = random.random((B, N)) < 0.6
    return contrast.RegionCenters(jnp.asarray(np.where(present[..., None], vectors, 0)), jnp.asarray(present))

  def update(centers, bank, temperature):
    def loss(vectors):
      return contrast.region_contrast_loss(
        contrast.RegionCenters(vectors, centers.present), bank, temperature
      )

    (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(centers.vectors)
    return value, stats, gradient, contrast.enqueue(bank, centers)

  forms = (
    {"one_tile": 1 << 24},
    {"one_tile": 0, "query_block": 5, "key_tile": 7},
    {"one_tile": 0, "key_tile": 130},
  )
  for form in forms:
    with tile_sizes(**form):
      step = jax.jit(update, static_argnums=2)
      one = contrast.MemoryBank.create(N, M, C)
      many = contrast.MemoryBank.create(N, M, C, mesh=mesh, axis="slots")
      assert many.keys.shape == (N, 256, C) and many.capacity == M
      assert {shard.data.shape for shard in many.keys.addressable_shards} == {(N, 32, C)}
      for i in range(20):  # until the queues have wrapped
        centers = centers_of_a_batch()
        temperature = (0.01, 0.2, 1.0)[i % 3]
        value, stats, gradient, one = step(centers, one, temperature)
        value8, stats8, gradient8, many = step(centers, many, temperature)
        np.testing.assert_allclose(value8, value, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
          gradient8, gradient, rtol=1e-5, atol=1e-5 * max(1, jnp.abs(gradient).max())
        )
        for name, stat in stats.items():
          np.testing.assert_allclose(stats8[name], stat, rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(many.keys[:, :M], one.keys)
        np.testing.assert_array_equal(many.keys[:, M:], 0)
        np.testing.assert_array_equal(many.cursor, one.cursor)
        np.testing.assert_array_equal(many.count, one.count)
      assert many.count.max() == M and int(stats["queries"]) > 10
      assert many.keys.sharding.spec == jax.sharding.PartitionSpec(None, "slots")

      text = step.lower(centers, many, 0.2).compile().as_text()
      kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
      sizes = []
      for shapes in re.findall(rf"= (.*?) (?:{kinds})(?:-start)?\(", text):
        dimensions = re.findall(r"\w+\[([\d,]*)\]", shapes)
        sizes.append(sum(int(np.prod([int(n) for n in one.split(",") if n])) for one in dimensions))
      assert sizes and max(sizes) <= B * N * (C + 3), sizes  # a device's part of the bank: 6 x 32 x 8
  print("equal on 1 and 8 devices")


@pytest.mark.run
def test_one_device_and_eight_agree():
  code = "from tests.contrast.test_sharded import run_checks; run_checks()"
  (printed,) = processes.run("-c", code, devices=8)
  assert "equal on 1 and 8 devices" in printed


def test_an_axis_that_the_mesh_lacks_is_named():
  from rc_jax import contrast

  mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  with pytest.raises(ValueError, match="no 'slots'; its axes are 'data'"):
    contrast.MemoryBank.create(N, M, C, mesh=mesh, axis="slots")
