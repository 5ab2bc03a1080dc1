"""Sums of kernels' gradients over devices, in float32."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec


def summed_over_devices(kernel_gradient: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Returns ``kernel_gradient`` such that devices add up its float32 results.

  XLA spreads a convolution over devices and sums its results. Where these are bfloat16, the sum over devices is too,
  and each device adds a rounding error. Here each device converts the gradient of its own images to float32 before the
  sum.

  The devices are those of the mesh in context (``jax.sharding.use_abstract_mesh``), with the images spread over all its
  axes. ``kernel_gradient`` is called unchanged for float32 images, without a mesh or with one device, for axes that are
  not ``Auto`` (as within ``shard_map``), and where the devices do not divide the images. In the last case XLA sums over
  devices in the dtype of the images.

  Args:
    kernel_gradient: ``(dy, x [B,...], kernel, **options) -> gradient``, float32.

  Returns:
    A function with the same arguments and result.
  """

  def computed(dy: jax.Array, x: jax.Array, kernel: jax.Array, **options: Any) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(mesh.axis_names)
    spread = mesh.size > 1 and all(each == AxisType.Auto for each in mesh.axis_types)
    if x.dtype == jnp.float32 or not spread or x.shape[0] % mesh.size:
      return kernel_gradient(dy, x, kernel, **options)

    def of_device_images(dy: jax.Array, x: jax.Array, kernel: jax.Array) -> jax.Array:
      return jax.lax.psum(kernel_gradient(dy, x, kernel, **options), axes)

    images, replicated = PartitionSpec(axes), PartitionSpec()
    # Unchecked: otherwise the gradient of a replicated kernel would be summed over devices already, in its own dtype.
    sharded = jax.shard_map(
      of_device_images, in_specs=(images, images, replicated), out_specs=replicated, check_vma=False
    )
    gradient: jax.Array = sharded(dy, x, kernel)
    return gradient

  return computed
