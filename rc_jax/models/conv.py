"""Convolution and pooling with PyTorch's padding, fast on CPUs too.

On a CPU, XLA computes some convolutions several times slower than the matrix products they consist of:
gradients of kernels above all, and dilated ones that read mostly padding. Those are written here as one
product for each tap of the kernel, over the pixels alone. Other platforms get XLA's convolutions as they are:
the choice is made when a program is lowered, so that one compiled for an accelerator on a CPU machine gets
the accelerator's form.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# Where a CPU takes the products over taps, from timings on 2 cores at batch 4 in float32: where at most this
# share of the multiplications reads pixels and not padding,
VALID_SHARE = 0.75
# and, for the kernel's gradient, with a stride and at least this many input channels.
STRIDED_CHANNELS = 64
# On grids of more than SPLIT_PIXELS, XLA's kernel gradient of a 3x3 slows down fourfold beyond 64 outputs.
SPLIT_CHANNELS = 64
SPLIT_PIXELS = 64 * 64

Spans = tuple[tuple[int, int], tuple[int, int]]


class Tap(NamedTuple):
  """A position in the kernel, and where it reads pixels rather than padding.

  Attributes:
    row: in the kernel.
    column: in the kernel.
    outputs: for each axis, ``(start, stop)`` on the output's grid.
    inputs: for each axis, ``(start, stop)`` of the pixels it reads for them, in steps of the stride.
  """

  row: int
  column: int
  outputs: Spans
  inputs: Spans


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv2d(x: jax.Array, kernel: jax.Array, stride: int = 1, dilation: int = 1) -> jax.Array:
  """Convolves as PyTorch's ``Conv2d`` with ``padding = dilation * (k - 1) / 2`` on every side.

  Padding is symmetric whatever the stride; "SAME" is not, where a stride meets an even size.

  Args:
    x: ``[B,H,W,C]``.
    kernel: ``[k,k,C,O]``, ``k`` odd; rounded to the dtype of ``x``.
    stride: step of the output's grid along both axes.
    dilation: distance of the kernel's taps along both axes.

  Returns:
    ``[B,ceil(H/stride),ceil(W/stride),O]`` of the dtype of ``x``. Both gradients are those of the convolution. On
    CPUs and TPUs the kernel's is summed in float32 and not rounded to the dtype of ``x``: it is what devices add up,
    and a pod's sum in bfloat16 would lose digits with every chip.
  """
  kernel = kernel.astype(x.dtype)
  cpu = _taps if _by_taps(x, kernel, stride, dilation) else _xla
  return _lowered(cpu, _xla, stride, dilation)(x, kernel)


def _conv2d_forward(
  x: jax.Array, kernel: jax.Array, stride: int, dilation: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return conv2d(x, kernel, stride, dilation), (x, kernel)


def _conv2d_backward(
  stride: int, dilation: int, residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, kernel = residuals
  cpu_input, cpu_kernel = _xla_input_gradient, _xla_kernel_gradient
  if _by_taps(x, kernel, stride, dilation):
    cpu_input, cpu_kernel = _taps_input_gradient, _taps_kernel_gradient
  elif stride > 1 and kernel.shape[2] >= STRIDED_CHANNELS:
    cpu_kernel = _taps_kernel_gradient
  elif dy.shape[1] * dy.shape[2] > SPLIT_PIXELS and dy.shape[3] > SPLIT_CHANNELS:
    cpu_kernel = _split_kernel_gradient
  rounded = kernel.astype(x.dtype)
  d_input = _lowered(cpu_input, _xla_input_gradient, stride, dilation)(dy, x, rounded)
  # On GPUs, whether cuDNN takes operands and result of two dtypes, and how fast, has not been seen yet.
  forms = (_in_float32(cpu_kernel), _transposed_kernel_gradient, stride, dilation)
  d_kernel = _lowered(*forms, tpu=_xla_kernel_gradient)(dy, x, rounded)
  return d_input, d_kernel.astype(kernel.dtype)


conv2d.defvjp(_conv2d_forward, _conv2d_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv2d(x: jax.Array, kernel: jax.Array, dilation: int = 1) -> jax.Array:
  """Convolves each channel by itself, as PyTorch's ``Conv2d`` with ``groups = C`` and ``conv2d``'s padding.

  Args:
    x: ``[B,H,W,C]``.
    kernel: ``[k,k,1,C]`` of the same dtype, ``k`` odd.
    dilation: distance of the kernel's taps along both axes.

  Returns:
    ``[B,H,W,C]``. Both gradients are those of the convolution.
  """
  # On a CPU, the taps one by one take a tenth of the time of XLA's grouped convolution or less.
  taps, grouped = (functools.partial(f, dilation=dilation) for f in (_depthwise_taps, _depthwise_xla))
  y: jax.Array = lax.platform_dependent(x, kernel, cpu=taps, default=grouped)
  return y


def _depthwise_forward(
  x: jax.Array, kernel: jax.Array, dilation: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return depthwise_conv2d(x, kernel, dilation), (x, kernel)


def _depthwise_backward(
  dilation: int, residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, kernel = residuals
  forms = (_depthwise_kernel_gradient_rows, _depthwise_kernel_gradient_xla)
  rows, grouped = (functools.partial(f, dilation=dilation) for f in forms)
  d_kernel = lax.platform_dependent(dy, x, kernel, cpu=rows, default=grouped)
  # Padding is symmetric and there is no stride: the adjoint is the convolution with the kernel turned round.
  return depthwise_conv2d(dy, kernel[::-1, ::-1], dilation), d_kernel


depthwise_conv2d.defvjp(_depthwise_forward, _depthwise_backward)


def max_pool(x: jax.Array, ceil: bool = False) -> jax.Array:
  """3x3 maximum with stride 2 and padding 1, as PyTorch's ``MaxPool2d(3, 2, 1, ceil_mode=ceil)``.

  Args:
    x: ``[B,H,W,C]``.
    ceil: keeps a last window that lies half outside.

  Returns:
    ``[B,ceil(H/2),ceil(W/2),C]``; with ``ceil``, ``[B,H//2+1,W//2+1,C]``.
  """
  height, width = (n // 2 + 1 if ceil else -(-n // 2) for n in x.shape[1:3])
  pads = [(1, 2 * n - size) for n, size in ((height, x.shape[1]), (width, x.shape[2]))]

  def shifted(x: jax.Array) -> jax.Array:
    # Nine strided slices: on a CPU, forward and backward take a ninth of XLA's window and its scatter.
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    spans = [((i, i + 2 * height - 1), (j, j + 2 * width - 1)) for i in range(3) for j in range(3)]
    return functools.reduce(jnp.maximum, [_slice(padded, span, 2) for span in spans])

  def window(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (2, 2), padding=pads)

  pooled: jax.Array = lax.platform_dependent(x, cpu=shifted, default=window)
  return pooled


class Conv(nn.Module):
  """``Conv2d``: parameters ``kernel [k,k,in,out]`` and, if asked for, ``bias [out]``, both float32.

  Attributes:
    features: output channels.
    kernel_size: ``k``, odd.
    stride: step of the output's grid.
    dilation: distance of the kernel's taps.
    use_bias: adds a bias; a convolution before a BatchNorm needs none.
    dtype: of the computation and of the output.
  """

  features: int
  kernel_size: int
  stride: int = 1
  dilation: int = 1
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
    # Shapes alone: values come from ``initial.py``.
    kernel = self.param("kernel", nn.initializers.zeros, shape, jnp.float32)
    y = conv2d(x.astype(self.dtype), kernel, self.stride, self.dilation)
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
      y += bias.astype(self.dtype)
    return y


class DepthwiseConv(nn.Module):
  """``Conv2d`` with a group for each channel, without bias: parameter ``kernel [k,k,1,C]`` float32.

  Attributes:
    kernel_size: ``k``, odd.
    dilation: distance of the kernel's taps.
    dtype: of the computation and of the output.
  """

  kernel_size: int
  dilation: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (self.kernel_size, self.kernel_size, 1, x.shape[-1])
    kernel = self.param("kernel", nn.initializers.zeros, shape, jnp.float32)
    return depthwise_conv2d(x.astype(self.dtype), kernel.astype(self.dtype), self.dilation)


def valid_taps(size: tuple[int, ...], kernel_size: int, stride: int, dilation: int) -> list[Tap]:
  """Lists the taps that read at least one pixel of an input of ``size`` (height, width)."""

  def axis(pixels: int, position: int) -> tuple[tuple[int, int], tuple[int, int]]:
    offset = (position - kernel_size // 2) * dilation
    start = max(0, -(offset // stride))
    stop = min(-(-pixels // stride), (pixels - 1 - offset) // stride + 1)
    return (start, stop), (start * stride + offset, (stop - 1) * stride + offset + 1)

  found = []
  for row in range(kernel_size):
    for column in range(kernel_size):
      (rows, rows_in), (columns, columns_in) = axis(size[0], row), axis(size[1], column)
      if rows[0] < rows[1] and columns[0] < columns[1]:
        found.append(Tap(row, column, (rows, columns), (rows_in, columns_in)))
  return found


def _by_taps(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> bool:
  """Whether a CPU computes all of this convolution by taps. A 1x1 is one product."""
  if kernel.shape[0] == 1:
    return True
  if dilation == 1:
    # Only grids of a few pixels are mostly padding then: nothing to gain, and nine products a convolution take an
    # HRNet on small images eight times as long to compile.
    return False
  (height, width), size = x.shape[1:3], kernel.shape[0]
  reads = sum(
    (tap.outputs[0][1] - tap.outputs[0][0]) * (tap.outputs[1][1] - tap.outputs[1][0])
    for tap in valid_taps((height, width), size, stride, dilation)
  )
  return reads <= VALID_SHARE * size**2 * -(-height // stride) * -(-width // stride)


def _lowered(
  cpu: Callable, default: Callable, stride: int, dilation: int, tpu: Callable | None = None
) -> Callable[..., jax.Array]:
  """One function that lowers to ``cpu`` for CPUs, to ``tpu`` (if not None) for TPUs, and to ``default`` elsewhere."""
  options = {"stride": stride, "dilation": dilation}
  forms = {"cpu": cpu, "tpu": tpu or default, "default": default}
  bound = {platform: functools.partial(form, **options) for platform, form in forms.items()}
  return lambda *arrays: lax.platform_dependent(*arrays, **bound)


def _in_float32(kernel_gradient: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """A CPU has no product of bfloat16 with a float32 result in every layout, and rounds up its operands anyway."""

  def widened(dy: jax.Array, x: jax.Array, kernel: jax.Array, **options: int) -> jax.Array:
    return kernel_gradient(dy.astype(jnp.float32), x.astype(jnp.float32), kernel, **options)

  return widened


def _slice(x: jax.Array, spans: Spans, stride: int) -> jax.Array:
  (top, bottom), (left, right) = spans
  return lax.slice(x, (0, top, left, 0), (x.shape[0], bottom, right, x.shape[3]), (1, stride, stride, 1))


def _sum_placed(parts: list[tuple[jax.Array, Spans]], stride: int, size: tuple[int, ...]) -> jax.Array:
  """Adds each part, spread by ``stride``, to zeros of ``size`` at its spans: the adjoint of ``_slice``."""
  total = None
  for part, spans in parts:
    pads = [(start, end - stop, stride - 1) for (start, stop), end in zip(spans, size, strict=True)]
    placed = lax.pad(part, jnp.zeros((), part.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
    total = placed if total is None else total + placed
  # Otherwise XLA adds the parts up again inside every operation that reads the sum.
  summed: jax.Array = lax.optimization_barrier(total)
  return summed


def _taps(x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int) -> jax.Array:
  over_channels = (((3,), (0,)), ((), ()))
  parts = [
    (lax.dot_general(_slice(x, tap.inputs, stride), kernel[tap.row, tap.column], over_channels), tap.outputs)
    for tap in valid_taps(x.shape[1:3], kernel.shape[0], stride, dilation)
  ]
  return _sum_placed(parts, 1, tuple(-(-n // stride) for n in x.shape[1:3]))


def _taps_input_gradient(
  dy: jax.Array, x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
  over_outputs = (((3,), (1,)), ((), ()))
  parts = [
    (lax.dot_general(_slice(dy, tap.outputs, 1), kernel[tap.row, tap.column], over_outputs), tap.inputs)
    for tap in valid_taps(x.shape[1:3], kernel.shape[0], stride, dilation)
  ]
  return _sum_placed(parts, stride, x.shape[1:3])


def _taps_kernel_gradient(
  dy: jax.Array, x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
  # The product transposes its first operand in memory. Behind the barrier that is XLA's fast transposition;
  # fused with what computes the operand, a ReLU say, it takes longer than the product.
  x, dy = lax.optimization_barrier((x, dy))
  over_pixels = (((0, 1, 2), (0, 1, 2)), ((), ()))

  def product(tap: Tap) -> jax.Array:
    pixels, outputs = _slice(x, tap.inputs, stride), _slice(dy, tap.outputs, 1)
    if pixels.shape[3] <= outputs.shape[3]:
      return lax.dot_general(pixels, outputs, over_pixels)
    return lax.dot_general(outputs, pixels, over_pixels).T  # the smaller one is transposed

  size = kernel.shape[0]
  products = {(t.row, t.column): product(t) for t in valid_taps(x.shape[1:3], size, stride, dilation)}
  unread = jnp.zeros(kernel.shape[2:], x.dtype)
  return jnp.stack(
    [jnp.stack([products.get((row, column), unread) for column in range(size)]) for row in range(size)]
  )


def _xla(x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int) -> jax.Array:
  pad = dilation * (kernel.shape[0] // 2)
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride, stride),
    padding=((pad, pad), (pad, pad)),
    rhs_dilation=(dilation, dilation),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def _xla_input_gradient(
  dy: jax.Array, x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
  return jax.linear_transpose(lambda x: _xla(x, kernel, stride=stride, dilation=dilation), x)(dy)[0]


def _xla_kernel_gradient(
  dy: jax.Array, x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
  # A convolution whose kernel are the outputs' gradients, images taking the place of channels: what transposing the
  # forward one gives, which cannot be asked for a float32 result.
  size = kernel.shape[0]
  pad = dilation * (size // 2)
  pads = [
    (pad, (size - 1) * dilation + (outputs - 1) * stride + 1 - pixels - pad)
    for pixels, outputs in zip(x.shape[1:3], dy.shape[1:3], strict=True)
  ]
  return lax.conv_general_dilated(
    x,
    dy,
    window_strides=(dilation, dilation),
    padding=pads,
    rhs_dilation=(stride, stride),
    dimension_numbers=("CHWN", "IHWO", "HWNC"),
    preferred_element_type=jnp.float32,
  )


def _transposed_kernel_gradient(
  dy: jax.Array, x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
  transposed = jax.linear_transpose(lambda k: _xla(x, k, stride=stride, dilation=dilation), kernel)
  gradient: jax.Array = transposed(dy)[0]
  return gradient.astype(jnp.float32)


def _split_kernel_gradient(
  dy: jax.Array, x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
  parts = []
  for start in range(0, dy.shape[3], SPLIT_CHANNELS):
    part = slice(start, start + SPLIT_CHANNELS)
    parts.append(_xla_kernel_gradient(dy[..., part], x, kernel[..., part], stride=stride, dilation=dilation))
  return jnp.concatenate(parts, axis=-1)


def _depthwise_taps(x: jax.Array, kernel: jax.Array, *, dilation: int) -> jax.Array:
  parts = []
  for tap in valid_taps(x.shape[1:3], kernel.shape[0], 1, dilation):
    pixels, weights = _slice(x, tap.inputs, 1), kernel[tap.row, tap.column, 0]
    parts.append((pixels.astype(jnp.float32) * weights.astype(jnp.float32), tap.outputs))
  return _sum_placed(parts, 1, x.shape[1:3]).astype(x.dtype)


def _depthwise_kernel_gradient_rows(
  dy: jax.Array, x: jax.Array, kernel: jax.Array, *, dilation: int
) -> jax.Array:
  """Walks over the rows once, all taps together; a reduction for each tap takes several times as long."""
  size = kernel.shape[0]
  taps = valid_taps(x.shape[1:3], size, 1, dilation)
  offsets = [(tap.row - size // 2) * dilation for tap in taps]
  reach = max(offsets)  # of the taps that read pixels: less than the height
  padded = jnp.pad(x, ((0, 0), (reach, reach), (0, 0), (0, 0)))

  def add_row(i: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
    gradient = lax.dynamic_index_in_dim(dy, i, 1, keepdims=False).astype(jnp.float32)
    added = []
    for total, tap, offset in zip(sums, taps, offsets, strict=True):
      pixels = lax.dynamic_index_in_dim(padded, i + reach + offset, 1, keepdims=False).astype(jnp.float32)
      added.append(total + pixels[:, slice(*tap.inputs[1])] * gradient[:, slice(*tap.outputs[1])])
    return added

  widths = [tap.outputs[1][1] - tap.outputs[1][0] for tap in taps]
  zeros = [jnp.zeros((x.shape[0], width, x.shape[3]), jnp.float32) for width in widths]
  sums = lax.fori_loop(0, dy.shape[1], add_row, zeros)
  gradient = jnp.zeros(kernel.shape, jnp.float32)
  for total, tap in zip(sums, taps, strict=True):
    gradient = gradient.at[tap.row, tap.column, 0].set(total.sum((0, 1)))
  return gradient.astype(kernel.dtype)


def _depthwise_xla(x: jax.Array, kernel: jax.Array, *, dilation: int) -> jax.Array:
  pad = dilation * (kernel.shape[0] // 2)
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(1, 1),
    padding=((pad, pad), (pad, pad)),
    rhs_dilation=(dilation, dilation),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=x.shape[3],
  )


def _depthwise_kernel_gradient_xla(
  dy: jax.Array, x: jax.Array, kernel: jax.Array, *, dilation: int
) -> jax.Array:
  return jax.linear_transpose(lambda k: _depthwise_xla(x, k, dilation=dilation), kernel)(dy)[0]
