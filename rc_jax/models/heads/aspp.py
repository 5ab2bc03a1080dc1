"""Atrous spatial pyramid pooling (Chen et al., *Rethinking Atrous Convolution*, 2017)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rc_jax.fields import Field, positive_numbers
from rc_jax.models.layers import ConvNormRelu, SeparableConvNormRelu
from rc_jax.models.network import Shapes
from rc_jax.ops.fan_out import fan_out

FIELDS = (
  Field(
    "model.aspp_rates",
    (12, 24, 36),
    "Dilation rates of ASPP's 3x3 convolutions. The default is that of the authors' code at output stride 8.",
    positive_numbers("positive dilation rates"),
  ),
  Field(
    "model.aspp_project",
    False,
    "Adds torchvision's 1x1 convolution between ASPP and the fusing 3x3 convolution; the authors' code has none.",
  ),
)


class ASPP(nn.Module):
  """Concatenates convolutions at several scales: a 1x1, a dilated 3x3 for each rate, and a 1x1 of the image's mean.

  Attributes:
    features: channels of each branch.
    rates: dilations of the 3x3 branches.
    project: adds torchvision's 1x1 convolution to ``features`` channels after the concatenation. The authors of
      RegionContrast have none: their 3x3 fusing convolution reads the concatenation.
    separable: whether the dilated branches are depthwise separable, as in DeepLabV3+.
  """

  features: int = 256
  rates: tuple[int, ...] = (12, 24, 36)
  project: bool = False
  dtype: jnp.dtype = jnp.float32
  momentum: float = 0.9
  epsilon: float = 1e-5
  separable: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Computes ``[B,h,w,C] -> [B,h,w,(2+len(rates)) features]``, or ``[B,h,w,features]`` if ``project``."""
    norm = (self.dtype, self.momentum, self.epsilon)
    dilated = SeparableConvNormRelu if self.separable else ConvNormRelu

    def pointwise(name: str) -> ConvNormRelu:
      return ConvNormRelu(self.features, 1, 1, *norm, name=name)

    first, *middle, last = fan_out(x, 2 + len(self.rates))
    branches = [pointwise("conv1x1")(first, train)]
    branches += [
      dilated(self.features, 3, rate, *norm, name=f"rate{i}")(middle[i], train)
      for i, rate in enumerate(self.rates)
    ]
    # Mean and broadcast are in float32, and so are their sums over pixels in both passes. A bfloat16 sum over thousands
    # of positions is wrong by 1 to 2 %.
    pooled = jnp.mean(last, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(self.dtype)
    pooled = pointwise("pool")(pooled, train).astype(jnp.float32)
    branches.append(jnp.broadcast_to(pooled, branches[0].shape).astype(self.dtype))
    x = jnp.concatenate(branches, axis=-1)
    return pointwise("project")(x, train) if self.project else x


def fields_from_shapes(shapes: Shapes) -> dict[str, Any]:
  """Infers the fields of ASPP, see ``Head.fields_from_shapes``."""
  return {"aspp_project": "head.aspp.project.conv.weight" in shapes}


def pooled_branch_first(shapes: Shapes) -> dict[str, int]:
  """Returns ``PublishedHead.input_shift`` of networks that concatenate the pooled branch first; here it comes last."""
  fuse, pool = "head.fuse.conv.weight", "head.aspp.pool.conv.weight"
  return {fuse: shapes[pool][0]} if fuse in shapes and pool in shapes else {}
