"""Convolution with PyTorch's padding, fast on CPUs as well.

On a CPU, XLA computes some convolutions several times slower than the matrix products of which they consist: gradients
of kernels above all, and dilated convolutions that read mostly padding. ``conv_taps.py`` computes those as one product
for each tap of the kernel, over the pixels alone. On a TPU, XLA's copies around a convolution of one large image take
as long as the convolution: ``conv_rows.py`` computes all of them. GPUs use XLA's convolutions, and one product for some
kernel gradients (``conv_xla.py``). The choice is made when a program is lowered: a program that a CPU machine compiles
for an accelerator has its form.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from rc_jax.ops import conv_rows, conv_taps, conv_xla
from rc_jax.ops.device_sums import summed_over_devices

# A CPU computes products over taps where at most this share of the multiplications reads pixels and not padding. Both
# numbers are from timings on 2 cores at batch 4 in float32.
VALID_SHARE = 0.75
# It also computes the kernel's gradient so with a stride and at least this many input channels.
STRIDED_CHANNELS = 64
# A GPU computes a dilated kernel's gradient as one product where the input has this many times the channels of the
# output, as in ASPP. By the bytes and operations of the compiled program at 97 x 97, 2048 to 256 channels, it takes 1.0
# ms of an H100 where phases take 1.3 ms (dilations 12, 36) and 1.6 ms (24).
PRODUCT_CHANNELS = 4


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv2d(x: jax.Array, kernel: jax.Array, stride: int = 1, dilation: int = 1) -> jax.Array:
  """Convolves as PyTorch's ``Conv2d`` with ``padding = dilation * (k - 1) / 2`` on every side.

  Padding is symmetric for any stride; XLA's "SAME" is not, for a stride on an even size.

  Args:
    x: ``[B,H,W,C]``.
    kernel: ``[k,k,C,O]``, ``k`` odd; rounded to the dtype of ``x``.
    stride: step of the output's grid along both axes.
    dilation: distance of the kernel's taps along both axes.

  Returns:
    ``[B,ceil(H/stride),ceil(W/stride),O]`` of the dtype of ``x``. Both gradients are those of the convolution. The
    kernel's is summed in float32. A GPU rounds the sum over its own images to the dtype of ``x``, except where it
    computes a product. CPUs and TPUs do not round it. Sums over devices are in float32 if the mesh is in context, as in
    the train step (``device_sums.py``).
  """
  kernel = kernel.astype(x.dtype)
  cpu = conv_taps.forward if _by_taps(x, kernel, stride, dilation) else conv_xla.forward
  return _lowered(cpu, conv_rows.forward, conv_xla.forward, stride, dilation)(x, kernel)


def _conv2d_forward(
  x: jax.Array, kernel: jax.Array, stride: int, dilation: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return conv2d(x, kernel, stride, dilation), (x, kernel)


def _conv2d_backward(
  stride: int, dilation: int, residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, kernel = residuals
  cpu_input, cpu_kernel = conv_xla.input_gradient, conv_xla.kernel_gradient
  if _by_taps(x, kernel, stride, dilation):
    cpu_input, cpu_kernel = conv_taps.input_gradient, conv_taps.kernel_gradient
  elif stride > 1 and kernel.shape[2] >= STRIDED_CHANNELS:
    cpu_kernel = conv_taps.kernel_gradient
  elif dy.shape[1] * dy.shape[2] > conv_xla.SPLIT_PIXELS and dy.shape[3] > conv_xla.SPLIT_CHANNELS:
    cpu_kernel = conv_xla.split_kernel_gradient
  rounded = kernel.astype(x.dtype)
  forms = (cpu_input, conv_rows.input_gradient, conv_xla.input_gradient)
  d_input = _lowered(*forms, stride, dilation)(dy, x, rounded)
  forms = (_in_float32(cpu_kernel), conv_rows.kernel_gradient, _gpu_kernel_gradient(kernel, stride, dilation))
  d_kernel = _lowered(*forms, stride, dilation)(dy, x, rounded)
  return d_input, d_kernel.astype(kernel.dtype)


conv2d.defvjp(_conv2d_forward, _conv2d_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv2d(x: jax.Array, kernel: jax.Array, dilation: int = 1) -> jax.Array:
  """Convolves each channel separately, as PyTorch's ``Conv2d`` with ``groups = C`` and ``conv2d``'s padding.

  Args:
    x: ``[B,H,W,C]``.
    kernel: ``[k,k,1,C]``, ``k`` odd; rounded to the dtype of ``x``.
    dilation: distance of the kernel's taps along both axes.

  Returns:
    ``[B,H,W,C]`` of the dtype of ``x``. Both gradients are those of the convolution. The kernel's is summed in float32.
    Accelerators round the sum over their own images to the dtype of ``x``. Sums over devices as for `conv2d`.
  """
  kernel = kernel.astype(x.dtype)
  # On a CPU, the taps one by one take a tenth of the time of XLA's grouped convolution or less.
  taps, grouped = (functools.partial(f, dilation=dilation) for f in (conv_taps.depthwise, conv_xla.depthwise))
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
  forms = (
    conv_taps.depthwise_kernel_gradient,
    summed_over_devices(conv_xla.depthwise_kernel_gradient),
  )
  rows, grouped = (functools.partial(f, dilation=dilation) for f in forms)
  d_kernel = lax.platform_dependent(dy, x, kernel.astype(x.dtype), cpu=rows, default=grouped)
  # Padding is symmetric and there is no stride: the adjoint is the convolution with the flipped kernel.
  return depthwise_conv2d(dy, kernel[::-1, ::-1], dilation), d_kernel.astype(kernel.dtype)


depthwise_conv2d.defvjp(_depthwise_forward, _depthwise_backward)


def _by_taps(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> bool:
  """Whether a CPU computes this convolution and its gradients by taps. A 1x1 is one product."""
  if kernel.shape[0] == 1:
    return True
  if dilation == 1:
    # Only grids of a few pixels are mostly padding then. Nothing is gained there, and with nine products for each
    # convolution an HRNet on small images takes eight times as long to compile.
    return False
  (height, width), size = x.shape[1:3], kernel.shape[0]
  reads = sum(
    (tap.outputs[0][1] - tap.outputs[0][0]) * (tap.outputs[1][1] - tap.outputs[1][0])
    for tap in conv_taps.valid_taps((height, width), size, stride, dilation)
  )
  return reads <= VALID_SHARE * size**2 * -(-height // stride) * -(-width // stride)


def _gpu_kernel_gradient(kernel: jax.Array, stride: int, dilation: int) -> Callable[..., jax.Array]:
  """Returns the form of the kernel's gradient on GPUs."""
  # A result in float32 takes cuDNN two to three times as long (H200, jax 0.11.2): it converts the operands.
  if dilation == 1 or stride > 1:
    return summed_over_devices(conv_xla.transposed_kernel_gradient)
  inputs, outputs = kernel.shape[2:]
  if inputs >= PRODUCT_CHANNELS * outputs:
    return conv_xla.product_kernel_gradient
  return summed_over_devices(conv_xla.phases_kernel_gradient)


def _lowered(
  cpu: Callable, tpu: Callable, default: Callable, stride: int, dilation: int
) -> Callable[..., jax.Array]:
  """Returns a function that lowers to ``cpu`` on CPUs, ``tpu`` on TPUs, and ``default`` elsewhere."""
  options = {"stride": stride, "dilation": dilation}
  forms = {"cpu": cpu, "tpu": tpu, "default": default}
  bound = {platform: functools.partial(form, **options) for platform, form in forms.items()}
  return lambda *arrays: lax.platform_dependent(*arrays, **bound)


def _in_float32(kernel_gradient: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Widens the operands: a CPU lacks products of bfloat16 with a float32 result in some layouts, and widens anyway."""

  def widened(dy: jax.Array, x: jax.Array, kernel: jax.Array, **options: int) -> jax.Array:
    return kernel_gradient(dy.astype(jnp.float32), x.astype(jnp.float32), kernel, **options)

  return widened
