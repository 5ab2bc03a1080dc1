"""Convolutions row by row, the form for TPUs, against the plain form: values, gradients, and a training step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rc_jax.models.backbones.resnet import ResNet, ResNetSpec
from rc_jax.ops.conv import conv2d
from rc_jax.ops.conv_rows import row_taps
from tests.support.rounding import off_by_ulps, relative_deviation


@pytest.fixture
def lower_for(monkeypatch):
  """Makes this machine run the forms of another platform."""

  def lower(platform):
    monkeypatch.setattr(
      lax, "platform_dependent", lambda *arrays, **forms: forms.get(platform, forms["default"])(*arrays)
    )

  return lower


@pytest.mark.long
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
  ("size", "kernel_size", "stride", "dilation"),
  [
    ((9, 12), 1, 1, 1),
    ((9, 10), 1, 2, 1),
    ((8, 8), 3, 1, 2),
    ((7, 10), 3, 1, 4),
    ((9, 16), 3, 1, 12),  # only the kernel's middle row reads pixels
    ((12, 9), 3, 2, 1),
    ((13, 12), 3, 2, 2),
    ((15, 16), 7, 2, 1),
    ((9, 8), 5, 3, 2),
    ((1, 6), 3, 1, 2),
  ],
)
def test_value_and_gradients_equal_the_plain_form(size, kernel_size, stride, dilation, dtype, lower_for):
  lower_for("tpu")
  random = np.random.default_rng(0)
  x = jnp.asarray(random.standard_normal((2, *size, 5)), dtype)
  outputs = tuple(-(-n // stride) for n in size)
  dy = jnp.asarray(random.standard_normal((2, *outputs, 7)), dtype)
  kernel = jnp.asarray(
    jnp.asarray(random.standard_normal((kernel_size, kernel_size, 5, 7)), dtype), jnp.float32
  )

  def plain(x, kernel):
    pad = dilation * (kernel_size // 2)
    numbers = ("NHWC", "HWIO", "NHWC")
    padding = [(pad, pad)] * 2
    return lax.conv_general_dilated(
      x, kernel, (stride, stride), padding, rhs_dilation=(dilation, dilation), dimension_numbers=numbers
    )

  def value_and_gradients(conv, x, dy):
    def both(x, kernel, dy):
      y, pull = jax.vjp(conv, x, kernel)
      return y, *pull(dy)

    return jax.jit(both)(x, kernel, dy)

  wide = jnp.float32
  rounded = 2**-8 if dtype == jnp.bfloat16 else 2e-6
  for ours, expected, ours_dtype, rtol in zip(
    value_and_gradients(lambda x, kernel: conv2d(x, kernel, stride, dilation), x, dy),
    value_and_gradients(plain, x.astype(wide), dy.astype(wide)),
    (dtype, dtype, jnp.float32),
    (rounded, rounded, 2e-6),
    strict=True,
  ):
    assert ours.shape == expected.shape and ours.dtype == ours_dtype
    np.testing.assert_allclose(
      np.float32(ours), expected, rtol=rtol, atol=2e-6 * float(jnp.abs(expected).max())
    )


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2, 6, 9])
def test_row_taps_equal_a_loop(size, stride, dilation):
  height = 9
  taps = {tap.row: tap for tap in row_taps(height, size, stride, dilation)}
  for row in range(size):
    reads = [(i, i * stride + (row - size // 2) * dilation) for i in range(-(-height // stride))]
    reads = [(output, pixel) for output, pixel in reads if 0 <= pixel < height]
    assert (row in taps) == bool(reads)
    if reads:
      rows = range(height)
      assert reads == list(zip(rows[taps[row].outputs], rows[taps[row].inputs], strict=True))


@pytest.mark.parametrize("stride", [1, 2])
def test_programs_for_tpus_have_this_form_and_those_for_gpus_do_not(stride):
  def operations(kernel_size, platform):
    x, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((kernel_size, kernel_size, 4, 4))
    traced = jax.jit(lambda x, kernel: conv2d(x, kernel, stride, 2)).trace(x, kernel)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    return text.count("stablehlo.convolution"), text.count("stablehlo.dot_general")

  assert operations(3, "tpu") == (3, 0)
  assert operations(1, "tpu") == ((0, 1) if stride == 1 else (1, 0))
  assert operations(3, "cuda") == operations(1, "cuda") == (1, 0)


@pytest.mark.long
def test_a_training_step_differs_from_the_plain_form_by_rounding_alone(lower_for):
  spec = ResNetSpec((1, 1, 1, 3), bottleneck=True, width=8)
  network = ResNet(spec, stem="64-64-128", multi_grid=(2, 2, 4))
  random = np.random.default_rng(0)
  images = random.standard_normal((4, 65, 72, 3)).astype(np.float32)
  target = random.standard_normal((4, 9, 10, 256)).astype(np.float32)
  variables = jax.eval_shape(lambda: network.init(jax.random.key(0), images, True))

  def drawn(leaf):
    if leaf.ndim == 1:  # a scale or a bias
      return random.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    return (random.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:3]))).astype(np.float32)

  params, batch_stats = (jax.tree.map(drawn, variables[name]) for name in ("params", "batch_stats"))

  def loss(params):
    outputs, updates = network.apply(
      {"params": params, "batch_stats": batch_stats}, images, True, mutable=["batch_stats"]
    )
    return jnp.mean(jnp.square(outputs.last - target)), updates

  def update(params):
    (value, updates), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return value, updates, gradients, jax.tree.map(lambda leaf, slope: leaf - 0.1 * slope, params, gradients)

  def results(step, params):
    """Value, statistics, gradients and updated parameters, each as one vector."""
    return [
      np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in jax.jit(step)(params)
    ]

  lower_for("default")
  expected = results(update, params)
  others = [results(update, off_by_ulps(params, 1, seed)) for seed in range(4)]
  lower_for("tpu")
  ours = results(lambda params: update(params), params)
  for result, reference, *moved in zip(ours, expected, *others, strict=True):
    rounding = max(relative_deviation(other, reference) for other in moved)
    assert rounding < 1e-3
    assert relative_deviation(result, reference) < 1e-6 + 4 * rounding
