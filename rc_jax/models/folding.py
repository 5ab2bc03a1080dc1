"""BatchNorm folded into the convolution before it, for prediction.

With running statistics, ``BatchNorm(conv(x, W)) = conv(x, W f) + b``, where ``f = scale / sqrt(var + epsilon)`` and
``b = bias - mean f``, by output channel. A device then writes one array for a convolution, BatchNorm and ReLU; a GPU
runs them as one operation.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rc_jax.models.layers import BatchNorm, Conv, DepthwiseConv
from rc_jax.ops.conv import conv2d, depthwise_conv2d

# The paths of a convolution and of the BatchNorm after it.
Pair = tuple[tuple[str, ...], tuple[str, ...]]


class FoldedConv(NamedTuple):
  """The weights of a convolution with the BatchNorm after it.

  Attributes:
    kernel: ``W f``, of the shape of ``W``, in the dtype of the convolution.
    offset: ``b [out]`` float32.
    rounded_offset: ``b`` in the dtype of the convolution.
  """

  kernel: jax.Array
  offset: jax.Array
  rounded_offset: jax.Array


class _Call(NamedTuple):
  """A convolution's call: its path, kernel and result, and the convolution of its input with any kernel."""

  path: tuple[str, ...]
  kernel: jax.Array
  result: jax.Array
  convolve: Callable[[jax.Array], jax.Array]


def folded_convs(run: Callable[[], Any], variables: Any) -> dict[Pair, FoldedConv]:
  """Returns the folded weights of a network, for `folding` in a loop.

  Args:
    run: calls the network in prediction; of what it computes, nothing is used.
    variables: the weights that it reads, a tree of arrays.

  Returns:
    The weights of all pairs but those that pass through a transformation of Flax, such as ``nn.remat``: these are
    other arrays there.
  """
  known = {id(leaf) for leaf in jax.tree.leaves(variables)}
  found: dict[Pair, tuple[tuple[jax.Array, ...], float, jnp.dtype]] = {}

  def note(norm: BatchNorm, call: _Call, residual: jax.Array | None, relu: bool) -> None:
    weights = _weights(norm, call)
    if all(id(array) in known for array in weights[0]):
      found[call.path, norm.path] = weights

  def trace() -> None:
    with _pairs(note):
      run()

  jax.eval_shape(trace)
  return {pair: _folded(*weights) for pair, weights in found.items()}


@contextlib.contextmanager
def folding(folded: Mapping[Pair, FoldedConv]) -> Iterator[None]:
  """Within the block, a network in prediction folds each BatchNorm into the convolution whose result it reads.

  Args:
    folded: weights of `folded_convs`; those of other pairs are computed in place.
  """

  def compute(norm: BatchNorm, call: _Call, residual: jax.Array | None, relu: bool) -> jax.Array:
    conv = folded.get((call.path, norm.path))
    if conv is None:
      conv = _folded(*_weights(norm, call))
    arrays = (call.convolve(conv.kernel), conv.offset, conv.rounded_offset, residual)

    def shifted(y: jax.Array, offset: jax.Array, residual: jax.Array | None) -> jax.Array:
      y = y + offset
      if residual is not None:
        y = y + residual
      return jnp.maximum(y, 0) if relu else y

    def in_float32(y: jax.Array, offset: jax.Array, _: jax.Array, residual: jax.Array | None) -> jax.Array:
      wide = None if residual is None else residual.astype(jnp.float32)
      return shifted(y.astype(jnp.float32), offset, wide).astype(y.dtype)

    def in_one_operation(
      y: jax.Array, _: jax.Array, rounded_offset: jax.Array, residual: jax.Array | None
    ) -> jax.Array:
      # cuDNN adds a bias of the array's dtype, in float32 and before it rounds.
      return shifted(y, rounded_offset, residual)

    y: jax.Array = jax.lax.platform_dependent(
      *arrays, cuda=in_one_operation, rocm=in_one_operation, default=in_float32
    )
    return y

  with _pairs(compute):
    yield


def _weights(norm: BatchNorm, call: _Call) -> tuple[tuple[jax.Array, ...], float, jnp.dtype]:
  """Returns the arguments of `_folded` for a BatchNorm that reads the result of a call."""
  names = (("params", "scale"), ("params", "bias"), ("batch_stats", "mean"), ("batch_stats", "var"))
  return (call.kernel, *(norm.get_variable(*name) for name in names)), norm.epsilon, call.result.dtype


def _folded(arrays: tuple[jax.Array, ...], epsilon: float, dtype: jnp.dtype) -> FoldedConv:
  kernel, scale, bias, mean, var = arrays
  factor = scale * jax.lax.rsqrt(var + epsilon)
  offset = bias - mean * factor
  return FoldedConv((kernel * factor).astype(dtype), offset, offset.astype(dtype))


@contextlib.contextmanager
def _pairs(on_norm: Callable[[BatchNorm, _Call, jax.Array | None, bool], jax.Array | None]) -> Iterator[None]:
  """Within the block, calls ``on_norm`` for each BatchNorm that reads the result of a convolution without a bias.

  Its result takes the place of the BatchNorm's, unless it is None.
  """
  newest: _Call | None = None

  def intercept(
    next_call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
  ) -> Any:
    nonlocal newest
    module = context.module
    if context.method_name != "__call__":
      return next_call(*args, **kwargs)
    convolve = _convolution(module, args[0]) if args else None
    if convolve is not None:
      result = next_call(*args, **kwargs)
      newest = _Call(module.path, module.get_variable("params", "kernel"), result, convolve)
      return result
    # By identity: a sum or a slice of a convolution's result is another array.
    if isinstance(module, BatchNorm) and newest is not None and args[0] is newest.result:
      residual = kwargs.get("residual", args[2] if len(args) > 2 else None)
      relu = kwargs.get("relu", args[3] if len(args) > 3 else False)
      computed = on_norm(module, newest, residual, relu)
      if computed is not None:
        return computed
    return next_call(*args, **kwargs)

  with nn.intercept_methods(intercept):
    yield


def _convolution(module: nn.Module, x: Any) -> Callable[[jax.Array], jax.Array] | None:
  """Returns a module's convolution of ``x`` as a function of the kernel; None for other modules and with a bias."""
  if isinstance(module, Conv) and not module.use_bias:
    return lambda kernel: conv2d(x.astype(module.dtype), kernel, module.stride, module.dilation)
  if isinstance(module, DepthwiseConv):
    return lambda kernel: depthwise_conv2d(x.astype(module.dtype), kernel, module.dilation)
  return None
