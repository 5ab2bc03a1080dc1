"""Gradients of kernels over devices: each device rounds the sum over its own images, and no sum over devices rounds."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rc_jax import models, sharding
from rc_jax.ops import conv, conv_xla
from rc_jax.ops.device_sums import summed_over_devices
from rc_jax.training import initial_state
from tests.support import processes
from tests.training.test_train_step import CLASSES, batch, tiny

DEVICES = 8
PLAIN = {"stride": 1, "dilation": 1}


def arrays(dtype, batch=DEVICES, inputs=4, outputs=6):
  """Returns the gradient of an output, and the input."""
  random = np.random.default_rng(0)
  return tuple(jnp.asarray(random.normal(0.3, 1, (batch, 9, 11, c)), dtype) for c in (outputs, inputs))


def in_mesh(function, mesh):
  """The function with the mesh in context, as the train step has it."""

  def computed(*given):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return function(*given)

  return computed


def check_sums(gradient, kernel, **options):
  """Compares the sum over devices with that of each image's gradient, rounded to bfloat16 and added up in float64."""
  kernel = jnp.zeros(kernel, jnp.bfloat16)
  dy, x = arrays(jnp.bfloat16, inputs=kernel.shape[2] if kernel.shape[2] > 1 else 6)

  def summed(dy, x):
    return summed_over_devices(gradient)(dy, x, kernel, **options)

  mesh = sharding.global_mesh()
  assert mesh.size == DEVICES
  # Otherwise a CPU leaves out the rounding of each device's sum.
  compiled = jax.jit(in_mesh(summed, mesh), compiler_options=sharding.GPU_OPTIONS)
  summed_up = compiled(*jax.device_put((dy, x), sharding.batch_sharding(mesh)))
  assert summed_up.dtype == jnp.float32
  parts = [gradient(dy[i : i + 1], x[i : i + 1], kernel, **options) for i in range(DEVICES)]
  expected = sum(np.asarray(jnp.asarray(part, jnp.bfloat16), np.float64) for part in parts)
  np.testing.assert_allclose(summed_up, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def all_reduces(text):
  """Lists the types of the explicit sums over devices. XLA inserts others when it compiles."""
  return re.findall(r'"stablehlo.all_reduce".*?\}\) : \((.*?)\)', text, re.DOTALL)


def tensor(shape):
  """The type of a float32 array in a lowered program."""
  return f"tensor<{'x'.join(map(str, shape))}xf32>"


def check_program(kernel, stride, dilation):
  """Checks that a convolution's gradient, lowered for GPUs, has one sum over devices, in float32."""
  mesh = sharding.global_mesh()
  x = jax.ShapeDtypeStruct((DEVICES, 9, 11, 4), jnp.bfloat16, sharding=sharding.batch_sharding(mesh))
  weights = jax.ShapeDtypeStruct(kernel, jnp.float32, sharding=sharding.replicated_sharding(mesh))

  def convolve(x, kernel):
    if kernel.shape[2] == 1:
      return conv.depthwise_conv2d(x, kernel, dilation)
    return conv.conv2d(x, kernel, stride, dilation)

  def loss(kernel, x):
    return jnp.sum(jnp.sin(convolve(x, kernel).astype(jnp.float32)))

  lowered = (
    jax.jit(in_mesh(jax.grad(loss), mesh)).trace(weights, x).lower(lowering_platforms=("cuda",)).as_text()
  )
  assert all_reduces(lowered) == [tensor(kernel)]


def check_train_step():
  """Checks that the step, lowered for GPUs, sums over devices the kernel gradients that a GPU rounds.

  These are all but those of dilated ASPP and of classifiers.
  """
  mesh = sharding.global_mesh()
  config = tiny(model__dtype="bfloat16")
  network = models.build(config.model, CLASSES)
  state, update_rule = initial_state.initial_state(config, network, 12, mesh, fresh=True)
  step = initial_state.jitted_step(config, network, update_rule, state, mesh)
  lowered = (
    step.trace(state, sharding.put_batch(batch(0), mesh)).lower(lowering_platforms=("cuda",)).as_text()
  )
  counts = collections.Counter(all_reduces(lowered))
  kernels = collections.Counter(
    tensor(leaf.shape)
    for path, leaf in jax.tree.leaves_with_path(state.params)
    if leaf.ndim == 4 and not any(part.key in ("classifier", "rate0", "rate1", "rate2") for part in path)
  )
  assert kernels and not kernels - counts, kernels - counts
  assert not any("bf16" in summed for summed in counts)


def check_within_a_shard_map():
  """Compares with the plain function where the caller has already spread the images, 8 for each device."""
  dy, x = arrays(jnp.bfloat16, DEVICES * DEVICES)
  kernel, images = jnp.zeros((3, 3, 4, 6), jnp.bfloat16), PartitionSpec(sharding.DATA_AXIS)

  def of_each_device(gradient):
    shard = jax.shard_map(
      lambda dy, x: gradient(dy, x, kernel, **PLAIN)[None],
      mesh=sharding.global_mesh(),
      in_specs=images,
      out_specs=images,
      check_vma=False,
    )
    return jax.jit(shard)(dy, x)

  plain = conv_xla.transposed_kernel_gradient
  np.testing.assert_array_equal(of_each_device(summed_over_devices(plain)), of_each_device(plain))


def run_checks() -> None:
  """Runs in another process, which has eight devices."""
  check_sums(conv_xla.transposed_kernel_gradient, (3, 3, 4, 6), **PLAIN)
  check_sums(conv_xla.phases_kernel_gradient, (3, 3, 4, 6), stride=1, dilation=2)
  check_sums(conv_xla.depthwise_kernel_gradient, (3, 3, 1, 6), dilation=2)
  check_program((3, 3, 4, 6), 1, 1)
  check_program((3, 3, 4, 6), 1, 2)
  check_program((1, 1, 4, 6), 2, 1)
  check_program((3, 3, 1, 4), 1, 2)
  check_train_step()
  check_within_a_shard_map()
  print("float32 on eight devices")


@pytest.mark.run
def test_devices_add_up_in_float32():
  (printed,) = processes.run(
    "-c", "from tests.ops.test_device_sums import run_checks; run_checks()", devices=8
  )
  assert "float32 on eight devices" in printed


@pytest.mark.parametrize(
  ("dtype", "batch", "devices", "spread"),
  [
    (jnp.bfloat16, 8, 8, True),
    (jnp.bfloat16, 8, 1, False),
    # 8 devices cannot share 6 images.
    (jnp.bfloat16, 6, 8, False),
    # Here XLA's own sum is in float32.
    (jnp.float32, 8, 8, False),
  ],
)
def test_which_sums_are_computed_on_each_device(dtype, batch, devices, spread):
  mesh = jax.sharding.AbstractMesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  kernel = jnp.zeros((3, 3, 4, 6), dtype)

  def gradient(dy, x):
    with jax.sharding.use_abstract_mesh(mesh):
      return summed_over_devices(conv_xla.transposed_kernel_gradient)(dy, x, kernel, **PLAIN)

  assert ("shard_map" in str(jax.make_jaxpr(gradient)(*arrays(dtype, batch)))) == spread
