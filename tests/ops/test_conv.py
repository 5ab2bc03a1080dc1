"""Convolutions and pooling against XLA's, PyTorch's and loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rc_jax.models.layers import Conv
from rc_jax.ops import conv_rows, conv_taps, conv_xla
from rc_jax.ops.conv import conv2d, depthwise_conv2d
from rc_jax.ops.conv_taps import valid_taps


def xla_convolution(x, kernel, stride, dilation):
  pad = dilation * (kernel.shape[0] // 2)
  numbers = ("NHWC", "HWIO", "NHWC")
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    [(pad, pad)] * 2,
    rhs_dilation=(dilation, dilation),
    dimension_numbers=numbers,
  )


@pytest.mark.parametrize(
  ("size", "channels", "kernel_size", "stride", "dilation"),
  [
    ((9, 12), (5, 7), 1, 1, 1),  # one product
    ((10, 7), (4, 6), 1, 2, 1),  # rows and columns that no output reads
    ((9, 8), (5, 3), 3, 1, 3),  # taps partly in the padding
    ((9, 8), (3, 5), 3, 1, 12),  # only the center tap reads pixels
    ((8, 11), (5, 7), 3, 2, 2),
    ((16, 15), (2, 3), 3, 2, 6),
    ((9, 8), (64, 4), 3, 2, 1),  # kernel gradient by taps, the rest XLA's
    ((66, 67), (2, 70), 3, 1, 1),  # kernel gradient in parts, the last one smaller
    ((20, 21), (3, 8), 7, 2, 1),
    ((12, 12), (3, 4), 3, 1, 1),
  ],
)
def test_value_and_gradients_equal_xlas_convolution(size, channels, kernel_size, stride, dilation):
  random = np.random.default_rng(0)
  x = random.standard_normal((2, *size, channels[0])).astype(np.float32)
  kernel = random.standard_normal((kernel_size, kernel_size, *channels)).astype(np.float32)

  dy_size = tuple(-(-n // stride) for n in size)
  dy = random.standard_normal((2, *dy_size, channels[1])).astype(np.float32)

  def value_and_gradients(convolution):
    y, gradients = jax.vjp(lambda x, kernel: convolution(x, kernel, stride, dilation), x, kernel)
    return y, *gradients(dy)

  for ours, theirs in zip(
    *(jax.jit(value_and_gradients, static_argnums=0)(f) for f in (conv2d, xla_convolution)), strict=True
  ):
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * float(jnp.abs(theirs).max()) + 1e-6)


@pytest.mark.parametrize("form", ["cpu", "elsewhere"])
@pytest.mark.parametrize(
  ("kernel_size", "stride", "dilation"), [(1, 1, 1), (1, 2, 1), (3, 1, 1), (3, 2, 1), (3, 1, 4), (7, 2, 1)]
)
def test_kernel_gradients_of_bfloat16_are_not_rounded_to_it(form, kernel_size, stride, dilation):
  random = np.random.default_rng(0)
  size, channels = (9, 12), (5, 7)
  x = jnp.asarray(random.standard_normal((2, *size, channels[0])), jnp.bfloat16)
  kernel = jnp.asarray(random.standard_normal((kernel_size, kernel_size, *channels)), jnp.float32)
  outputs = tuple(-(-n // stride) for n in size)
  dy = jnp.asarray(random.standard_normal((2, *outputs, channels[1])), jnp.bfloat16)

  y, gradients = jax.vjp(lambda x, kernel: conv2d(x, kernel, stride, dilation), x, kernel)
  d_x, d_kernel = gradients(dy)
  assert (y.dtype, d_x.dtype, d_kernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
  if form == "elsewhere":
    d_kernel = conv_xla.kernel_gradient(dy, x, kernel.astype(jnp.bfloat16), stride=stride, dilation=dilation)
  pad = dilation * (kernel_size // 2)
  padded = np.pad(np.asarray(x, np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  expected = np.zeros(kernel.shape)
  for row in range(kernel_size):
    for column in range(kernel_size):
      for i in range(outputs[0]):
        for j in range(outputs[1]):
          pixel = padded[:, i * stride + row * dilation, j * stride + column * dilation]
          expected[row, column] += pixel.T @ np.asarray(dy[:, i, j], np.float64)
  np.testing.assert_allclose(d_kernel, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", [conv_rows, conv_taps, conv_xla])
@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_all_forms_give_the_documented_shapes_and_dtypes(form, kernel_size, stride):
  x, dy = (
    jnp.ones((2, 9, 12, 5), jnp.bfloat16),
    jnp.ones((2, -(-9 // stride), -(-12 // stride), 7), jnp.bfloat16),
  )
  kernel = jnp.ones((kernel_size, kernel_size, 5, 7), jnp.bfloat16)
  options = {"stride": stride, "dilation": 1}

  def described(function, *arrays):
    result = jax.eval_shape(functools.partial(function, **options), *arrays)
    return result.shape, result.dtype

  assert described(form.forward, x, kernel) == (dy.shape, jnp.bfloat16)
  assert described(form.input_gradient, dy, x, kernel) == (x.shape, jnp.bfloat16)
  rounded = form is conv_taps
  assert described(form.kernel_gradient, dy, x, kernel) == (
    kernel.shape,
    jnp.bfloat16 if rounded else jnp.float32,
  )


def test_a_transposed_kernel_gradient_is_rounded_before_it_is_widened():
  random = np.random.default_rng(0)
  x, dy = (jnp.asarray(random.standard_normal((2, 9, 12, size)), jnp.bfloat16) for size in (5, 7))
  kernel = jnp.zeros((3, 3, 5, 7), jnp.bfloat16)
  options = {"stride": 1, "dilation": 1}
  for form in (conv_xla.transposed_kernel_gradient, conv_xla.phases_kernel_gradient):
    gradient = form(dy, x, kernel, **options)
    assert gradient.dtype == jnp.float32
    np.testing.assert_array_equal(gradient, gradient.astype(jnp.bfloat16).astype(jnp.float32))
  exact = conv_xla.kernel_gradient(dy, x, kernel, **options)
  assert (exact != exact.astype(jnp.bfloat16)).mean() > 0.9


@pytest.mark.long
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
  ("size", "kernel_size", "dilation"),
  [((9, 12), 3, 2), ((8, 8), 3, 4), ((7, 10), 3, 3), ((9, 8), 3, 12), ((13, 11), 5, 2), ((1, 6), 3, 2)],
)
@pytest.mark.parametrize("form", ["phases", "product"])
def test_a_gpus_kernel_gradients_equal_the_plain_one(form, size, kernel_size, dilation, dtype):
  random = np.random.default_rng(0)
  x = jnp.asarray(random.standard_normal((2, *size, 5)), dtype)
  dy = jnp.asarray(random.standard_normal((2, *size, 7)), dtype)
  kernel = jnp.zeros((kernel_size, kernel_size, 5, 7), dtype)
  options = {"stride": 1, "dilation": dilation}
  ours = getattr(conv_xla, f"{form}_kernel_gradient")(dy, x, kernel, **options)
  wide = (array.astype(jnp.float32) for array in (dy, x, kernel))
  expected = conv_xla.transposed_kernel_gradient(*wide, **options)
  assert ours.dtype == jnp.float32
  tolerance = 2**-8 if dtype == jnp.bfloat16 else 2e-6
  np.testing.assert_allclose(ours, expected, rtol=tolerance, atol=tolerance * float(jnp.abs(expected).max()))


def test_a_gpus_kernel_gradient_has_no_filter_of_the_images_size():
  # XLA turns the transpose of a dilated convolution into a convolution whose filter has the size of an image.
  def program(outputs: int) -> str:
    x, kernel = jnp.ones((2, 40, 40, 8)), jnp.ones((3, 3, 8, outputs))
    gradients = jax.jit(
      lambda x, kernel: jax.vjp(lambda x, k: conv2d(x, k, 1, 4), x, kernel)[1](x[..., :outputs])
    )
    return gradients.trace(x, kernel).lower(lowering_platforms=("cuda",)).as_text()

  phases, product = program(8), program(2)
  assert phases.count("stablehlo.convolution") == 2 and "tensor<32x10x10x8xf32>" in phases
  # With a quarter of the channels, a product beside the convolution of the input's gradient.
  assert product.count("stablehlo.convolution") == 1 and product.count("stablehlo.dot_general") == 1


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2, 5])
def test_valid_taps_equal_a_loop(stride, dilation):
  height, width = 7, 10
  taps = {(tap.row, tap.column): tap for tap in valid_taps((height, width), 3, stride, dilation)}
  for row in range(3):
    for column in range(3):
      reads = [
        (i, j)
        for i in range(-(-height // stride))
        for j in range(-(-width // stride))
        if 0 <= i * stride + (row - 1) * dilation < height
        and 0 <= j * stride + (column - 1) * dilation < width
      ]
      if not reads:
        assert (row, column) not in taps
        continue
      (top, bottom), (left, right) = taps[row, column].outputs
      assert reads == [(i, j) for i in range(top, bottom) for j in range(left, right)]
      assert taps[row, column].inputs[0][0] == top * stride + (row - 1) * dilation


def test_gpus_run_xlas_convolution():
  x, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((1, 1, 4, 4))
  gradients = jax.jit(lambda x, kernel: jax.vjp(conv2d, x, kernel)[1](x))
  traced = gradients.trace(x, kernel)
  assert "convolution" not in traced.lower(lowering_platforms=("cpu",)).as_text()
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert text.count("stablehlo.convolution") == 2  # the forward pass is not needed for the gradients
  assert "dot_general" not in text


@pytest.mark.parametrize(
  ("platform", "dtype"), [("cpu", "float32"), ("cpu", "bfloat16"), ("default", "float32")]
)
@pytest.mark.parametrize(
  ("size", "kernel_size", "dilation"),
  [((9, 12), 3, 1), ((8, 7), 5, 1), ((9, 8), 3, 3), ((9, 6), 3, 7), ((5, 8), 3, 12), ((1, 6), 3, 2)],
)
def test_depthwise_value_and_gradients_equal_pytorchs(
  size, kernel_size, dilation, platform, dtype, monkeypatch
):
  torch = pytest.importorskip("torch")
  monkeypatch.setattr(lax, "platform_dependent", lambda *arrays, **forms: forms[platform](*arrays))
  random = np.random.default_rng(0)
  shapes = ((2, *size, 5), (kernel_size, kernel_size, 1, 5), (2, *size, 5))
  x, kernel, dy = (jnp.asarray(random.standard_normal(shape), dtype) for shape in shapes)

  def value_and_gradients(x, kernel, dy):
    y, gradients = jax.vjp(lambda x, kernel: depthwise_conv2d(x, kernel, dilation), x, kernel)
    return y, *gradients(dy)

  axes = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
  pixels, weight, gradient = (
    torch.tensor(np.asarray(value, np.float64)).permute(order).requires_grad_()
    for value, order in zip((x, kernel, dy), axes, strict=True)
  )
  reach = dilation * (kernel_size // 2)
  y = torch.nn.functional.conv2d(pixels, weight, None, 1, reach, dilation, groups=5)
  expected = [y, *torch.autograd.grad(y, (pixels, weight), gradient)]
  back = ((0, 2, 3, 1), (0, 2, 3, 1), (2, 3, 1, 0))
  tolerance = 1e-6 if dtype == "float32" else 2**-8  # one rounding, of the result
  for ours, theirs, order in zip(jax.jit(value_and_gradients)(x, kernel, dy), expected, back, strict=True):
    theirs = theirs.detach().permute(order).numpy()
    assert ours.shape == theirs.shape and ours.dtype == dtype
    largest = np.abs(theirs).max()
    np.testing.assert_allclose(np.asarray(ours, np.float64), theirs, rtol=tolerance, atol=1e-6 * largest)


def test_accelerators_run_xlas_depthwise_convolution():
  x, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 1, 4))
  gradients = jax.jit(lambda x, kernel: jax.vjp(depthwise_conv2d, x, kernel)[1](x))
  traced = gradients.trace(x, kernel)
  assert "stablehlo.convolution" not in traced.lower(lowering_platforms=("cpu",)).as_text()
  for platform in ("cuda", "tpu"):
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == 2 and "stablehlo.while" not in text


def test_conv_computes_in_its_dtype_and_keeps_float32_parameters():
  layer = Conv(5, 3, use_bias=True, dtype=jnp.bfloat16)
  x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 6, 6, 4)), jnp.float32)
  variables = layer.init(jax.random.key(0), x)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  assert layer.apply(variables, x).dtype == jnp.bfloat16
  biased = jax.tree.map(lambda leaf: leaf + 1.5, variables)
  unbiased = {"params": {**biased["params"], "bias": jnp.zeros(5)}}
  np.testing.assert_allclose(
    layer.apply(biased, 0 * x).astype(jnp.float32) - layer.apply(unbiased, 0 * x).astype(jnp.float32), 1.5
  )
