"""The layers that backbones and heads are built of."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rc_jax.fields import Config, Field, one_of
from rc_jax.ops.batch_norm import normalize, scaled
from rc_jax.ops.conv import conv2d, depthwise_conv2d

DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}

# Of heads whose classifier reads the result of a BatchNorm and a ReLU.
CONTRAST_FEATURES = Field(
  "model.contrast_features",
  "relu",
  "The map that the contrastive loss reads: the one that the classifier reads, ``relu``, or the same before its ReLU, "
  "``linear``.",
  one_of("relu", "linear"),
  training_only=True,
  read_when=("contrast.scope", ("bank", "image", "batch")),
)


def numerics(model: Config) -> dict[str, Any]:
  """Returns the arguments that most modules share: ``dtype``, and BatchNorm's ``momentum`` and ``epsilon``.

  Args:
    model: ``config.model``.
  """
  return {"dtype": DTYPES[model.dtype], "momentum": model.bn_momentum, "epsilon": model.bn_epsilon}


class ConvNormRelu(nn.Module):
  """Convolution ``conv``, BatchNorm ``bn``, ReLU: ``[B,h,w,C] -> [B,h,w,features]`` in ``dtype``.

  Attributes:
    features: output channels.
    kernel_size: of the convolution.
    dilation: of the convolution.
    relu: False leaves out the ReLU.
  """

  features: int
  kernel_size: int
  dilation: int = 1
  dtype: jnp.dtype = jnp.float32
  momentum: float = 0.9
  epsilon: float = 1e-5
  relu: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = Conv(self.features, self.kernel_size, dilation=self.dilation, dtype=self.dtype, name="conv")(x)
    return BatchNorm(self.momentum, self.epsilon, name="bn")(x, train, relu=self.relu)


class SeparableConvNormRelu(nn.Module):
  """Depthwise separable convolution: ``depthwise`` and 1x1 ``pointwise``, each with BatchNorm and ReLU.

  ``[B,h,w,C] -> [B,h,w,features]`` in ``dtype``.

  Attributes:
    features: output channels.
    kernel_size: of the depthwise convolution.
    dilation: of the depthwise convolution.
    relu: False leaves out the last ReLU.
  """

  features: int
  kernel_size: int
  dilation: int = 1
  dtype: jnp.dtype = jnp.float32
  momentum: float = 0.9
  epsilon: float = 1e-5
  relu: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = DepthwiseConv(self.kernel_size, self.dilation, self.dtype, name="depthwise")(x)
    x = BatchNorm(self.momentum, self.epsilon, name="depthwise_bn")(x, train, relu=True)
    options = (self.features, 1, 1, self.dtype, self.momentum, self.epsilon)
    return ConvNormRelu(*options, relu=self.relu, name="pointwise")(x, train)


def classify(
  features: jax.Array, num_classes: int, dropout: float, train: bool, *, features_before_relu: bool = False
) -> jax.Array:
  """Drops channels in training, then applies the calling module's 1x1 convolution ``classifier``.

  Args:
    features: ``F [B,h,w,C]``.
    num_classes: ``N``.
    dropout: share of channels that are dropped.
    train: whether to drop channels.
    features_before_relu: whether the features are those before the ReLU, which is then applied first.

  Returns:
    Logits ``P [B,h,w,N]``, computed in float32.
  """
  features = nn.relu(features) if features_before_relu else features
  # In float32: kept channels are divided by 1 - dropout. Bfloat16 rounds 0.9 to 0.898: features were 0.2 % too large.
  x = nn.Dropout(dropout, broadcast_dims=(1, 2))(features.astype(jnp.float32), deterministic=not train)
  logits: jax.Array = Conv(num_classes, 1, use_bias=True, name="classifier")(x)
  return logits


class BatchNorm(nn.Module):
  """PyTorch's ``BatchNorm2d``: parameters ``scale``, ``bias``, statistics ``mean``, ``var``, all ``[C]`` f32.

  In training, the batch's statistics normalise, and the running statistics move by ``1 - momentum`` towards them. The
  running variance moves towards the unbiased estimate ``n / (n - 1) var``, as in PyTorch; Flax's keeps the biased one.
  They differ visibly for small ``n`` alone, as in ASPP's image pooling, where ``n`` is the batch size.
  One value has no variance: where ``n`` is 1, the running statistics stay as they are. PyTorch raises an error there,
  and so does training (``norms_of_one_value``).
  Under ``jax.jit`` over the global batch, the batch is the global batch, on any number of devices.

  Attributes:
    momentum: fraction of the running statistics kept at each step: 0.9 is PyTorch's 0.1.
    epsilon: added to the variance.
  """

  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(
    self, x: jax.Array, train: bool, residual: jax.Array | None = None, relu: bool = False
  ) -> jax.Array:
    """Normalises ``x [...,C]``, adds ``residual`` of the same shape where given, and rectifies where ``relu``."""
    channels = (x.shape[-1],)
    scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
    mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
    var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
    if not train:
      factor = scale * jax.lax.rsqrt(var.value + self.epsilon)
      return scaled(x, mean.value, factor, bias, residual, relu)
    shift = jax.lax.stop_gradient(mean.value)
    y, batch_mean, batch_var = normalize(x, scale, bias, shift, residual, relu, self.epsilon)
    count = x.size // x.shape[-1]
    if not self.is_initializing() and count > 1:
      unbiased = batch_var * (count / (count - 1))
      mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
      var.value = self.momentum * var.value + (1 - self.momentum) * unbiased
    return y


def norms_of_one_value(call: Callable[[], Any]) -> tuple[str, ...]:
  """Names the BatchNorm layers that would compute statistics of a single value for each channel.

  Their output is their bias, whatever the value is, and the statistics say nothing about other images.

  Args:
    call: runs or traces a network in training; Flax's own BatchNorm is recognised too.

  Returns:
    Paths such as ``"head/aspp/pool/bn"``.
  """
  names: list[str] = []

  def note(
    next_call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
  ) -> Any:
    module = context.module
    if context.method_name == "__call__" and isinstance(module, BatchNorm | nn.BatchNorm):
      if isinstance(module, BatchNorm):
        train = args[1] if len(args) > 1 else kwargs["train"]
      else:
        running = kwargs.get("use_running_average", args[1] if len(args) > 1 else None)
        train = not (module.use_running_average if running is None else running)
      if train and args[0].size == args[0].shape[-1]:
        names.append("/".join(module.path))
    return next_call(*args, **kwargs)

  with nn.intercept_methods(note):
    call()
  return tuple(names)


class Conv(nn.Module):
  """``Conv2d``: parameters ``kernel [k,k,in,out]`` and, if asked for, ``bias [out]``, both float32.

  Attributes:
    features: output channels.
    kernel_size: ``k``, odd.
    stride: step of the output's grid.
    dilation: distance of the kernel's taps.
    use_bias: whether to add a bias; a convolution before a BatchNorm needs none.
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
    # Zeros: ``initial_values.py`` draws the values.
    kernel = self.param("kernel", nn.initializers.zeros, shape, jnp.float32)
    y = conv2d(x.astype(self.dtype), kernel, self.stride, self.dilation)
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
      # In float32, so that the bias's gradient is: a bfloat16 sum over thousands of pixels loses its digits.
      y = (y.astype(jnp.float32) + bias).astype(self.dtype)
    return y


class Linear(nn.Dense):
  """Flax's ``Dense`` with PyTorch's initial values: parameters ``kernel [in,out]``, ``bias [out]``, both float32."""


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
    return depthwise_conv2d(x.astype(self.dtype), kernel, self.dilation)
