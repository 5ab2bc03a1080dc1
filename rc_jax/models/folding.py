"""BatchNorm folded into the convolution before it, for prediction.

With running statistics, ``BatchNorm(conv(x, W)) = conv(x, W f) + b``, where ``f = scale / sqrt(var + epsilon)`` and
``b = bias - mean f``, by output channel. A device then writes one array for a convolution, BatchNorm and ReLU; a GPU
runs them as one operation.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rc_jax.models.layers import BatchNorm, Conv, DepthwiseConv
from rc_jax.ops.conv import conv2d, depthwise_conv2d


class FoldedConv(NamedTuple):
  """A convolution with the BatchNorm after it.

  Attributes:
    kernel: ``W f``, of the shape of ``W``, in the dtype of the convolution.
    offset: ``b [out]`` float32.
    rounded_offset: ``b`` in the dtype of the convolution.
  """

  kernel: jax.Array
  offset: jax.Array
  rounded_offset: jax.Array


class _Call(NamedTuple):
  """A convolution's call: its result, and how to compute it with another kernel."""

  result: jax.Array
  kernel: jax.Array
  convolve: Callable[[jax.Array], jax.Array]


def folded_convs(run: Callable[[], Any], variables: Any) -> tuple[FoldedConv | None, ...]:
  """Returns the folded convolutions of a network, in the order of their calls.

  Args:
    run: calls the network in prediction; of what it computes, nothing is used.
    variables: the weights that it reads, a tree of arrays.

  Returns:
    None in place of a convolution whose weights are not those arrays: they pass through a transformation of Flax, such
    as ``nn.remat``.
  """
  known = {id(leaf) for leaf in jax.tree.leaves(variables)}
  found: list[tuple[Any, ...]] = []

  def note(norm: BatchNorm, call: _Call, residual: jax.Array | None, relu: bool) -> None:
    names = (("params", "scale"), ("params", "bias"), ("batch_stats", "mean"), ("batch_stats", "var"))
    arrays = (call.kernel, *(norm.get_variable(*name) for name in names))
    found.append(
      (arrays, norm.epsilon, call.result.dtype) if all(id(array) in known for array in arrays) else ()
    )

  def trace() -> None:
    with _pairs(note):
      run()

  jax.eval_shape(trace)
  return tuple(_folded(*arguments) if arguments else None for arguments in found)


def _folded(arrays: tuple[jax.Array, ...], epsilon: float, dtype: jnp.dtype) -> FoldedConv:
  kernel, scale, bias, mean, var = arrays
  factor = scale * jax.lax.rsqrt(var + epsilon)
  offset = bias - mean * factor
  return FoldedConv((kernel * factor).astype(dtype), offset, offset.astype(dtype))


@contextlib.contextmanager
def replaced(folded: tuple[FoldedConv | None, ...]) -> Iterator[None]:
  """Within the block, a network in prediction computes with folded convolutions, in the order of their calls."""
  remaining = iter(folded)

  def compute(norm: BatchNorm, call: _Call, residual: jax.Array | None, relu: bool) -> jax.Array | None:
    conv = next(remaining)
    if conv is None:
      return None
    arrays = (call.convolve(conv.kernel), conv.offset, conv.rounded_offset, residual)

    def shifted(y: jax.Array, offset: jax.Array, residual: jax.Array | None) -> jax.Array:
      y = y + offset
      if residual is not None:
        y = y + residual
      return jnp.maximum(y, 0) if relu else y

    def in_float32(y: jax.Array, offset: jax.Array, _: jax.Array, residual: jax.Array | None) -> jax.Array:
      wide = shifted(
        y.astype(jnp.float32), offset, None if residual is None else residual.astype(jnp.float32)
      )
      return wide.astype(y.dtype)

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


@contextlib.contextmanager
def _pairs(on_norm: Callable[[BatchNorm, _Call, jax.Array | None, bool], jax.Array | None]) -> Iterator[None]:
  """Within the block, calls ``on_norm`` for each BatchNorm that reads the result of a convolution without a bias.

  Its result takes the place of the BatchNorm's, unless it is None.
  """
  newest: list[_Call] = []

  def intercept(
    next_call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
  ) -> Any:
    module = context.module
    if context.method_name != "__call__":
      return next_call(*args, **kwargs)
    if isinstance(module, Conv) and not module.use_bias:
      result = next_call(*args, **kwargs)
      x = args[0].astype(module.dtype)
      newest[:] = [
        _Call(
          result,
          module.get_variable("params", "kernel"),
          lambda kernel: conv2d(x, kernel, module.stride, module.dilation),
        )
      ]
      return result
    if isinstance(module, DepthwiseConv):
      result = next_call(*args, **kwargs)
      x = args[0].astype(module.dtype)
      newest[:] = [
        _Call(
          result,
          module.get_variable("params", "kernel"),
          lambda kernel: depthwise_conv2d(x, kernel.astype(x.dtype), module.dilation),
        )
      ]
      return result
    # By identity: a sum or a slice of a convolution's result is another array.
    if isinstance(module, BatchNorm) and newest and args[0] is newest[0].result:
      residual = kwargs.get("residual", args[2] if len(args) > 2 else None)
      relu = kwargs.get("relu", args[3] if len(args) > 3 else False)
      computed = on_norm(module, newest[0], residual, relu)
      if computed is not None:
        return computed
    return next_call(*args, **kwargs)

  with nn.intercept_methods(intercept):
    yield
