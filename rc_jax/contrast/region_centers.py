"""Region centers: one unit vector for each class in each image. RegionContrast, Equations 2 and 3.

``center_i = normalize(sum over pixels x of w_i(x) F(x))`` with pixel weights ``w_i``.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

WEIGHTINGS = ("average", "ep_hp", "dynamic")

# Smaller numbers are subnormal and count as zero: TPUs flush them, CPUs may not, and a class must not be present on one
# and absent on the other.
_SMALLEST_NORMAL = float(jnp.finfo(jnp.float32).tiny)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RegionCenters:
  """The region centers of a batch.

  Attributes:
    vectors: ``[B,N,C]``, float; of unit length where present. Absent rows are never read.
    present: ``[B,N]`` bool; whether image ``b`` has a center of class ``n``.
  """

  vectors: Array
  present: Array


def region_centers(
  features: ArrayLike,
  logits: ArrayLike,
  labels: ArrayLike,
  method: str = "dynamic",
  ignore_label: int = 255,
) -> RegionCenters:
  """Computes ``center_i = normalize(sum over pixels x of w_i(x) F(x))`` of each class ``i`` in each image.

  With ``G`` the labels, ``L`` and ``c`` the
  argmax and the max of ``softmax(logits)``, the weight ``w_i`` of a pixel is

  - ``average``: ``1[L == i]`` where the pixel has a valid label (Eq. 2, "Direct Average");
  - ``ep_hp``: ``1[G == i]`` (Table 2, "EP + HP");
  - ``dynamic``: ``1 - c`` on easy positives ``(L == i) & (G == i)`` and ``1`` on hard positives
    ``(G == i) & (L != i)`` (Eq. 3, "Weighted EP + HP").

  Args:
    features: ``[B,h,w,C]``, float32 or bfloat16; sums are float32.
    logits: ``[B,h,w,N]``, float, on the same grid. No gradient flows through them.
    labels: ``[B,h,w]``, integer. Pixels labelled ``ignore_label``, or anything outside ``0..N-1``, count
      nowhere.
    method: ``"average"``, ``"ep_hp"`` or ``"dynamic"``.
    ignore_label: the label of pixels that count nowhere.

  Returns:
    Centers: vectors ``[B,N,C]`` float32 of length 1, or 0 where absent; present ``[B,N]``. A center is
    present when its weights and its vector before normalising are not zero (below 1.2e-38 is zero).

  Raises:
    ValueError: the method is unknown, the shapes do not belong together, or the labels are not integers.

  Source: RegionContrast, Eq. 2 and 3, sections 3.2.1 and 3.2.2.
  """
  features, logits, labels = jnp.asarray(features), jnp.asarray(logits), jnp.asarray(labels)
  if method not in WEIGHTINGS:
    raise ValueError(f"method: unknown {method!r}; choose one of {', '.join(WEIGHTINGS)}")
  _check_grids(features, logits, labels)

  weights = _pixel_weights(jax.lax.stop_gradient(logits), labels, method, ignore_label)  # [B,h,w,N]

  # Normalising cancels any factor on a class's weights. They are divided by the class's largest weight, because those
  # of a well-learned class are near 1e-38 and their products with features would vanish; then by their sum, because
  # no number of pixels can overflow a weighted mean.
  largest = weights.max(axis=(1, 2), keepdims=True)  # [B,1,1,N]
  weights = weights / jnp.where(largest > 0, largest, 1)
  weights = weights / jnp.maximum(weights.sum(axis=(1, 2), keepdims=True), 1)

  # A segment sum as a matrix product: scattered float additions are slow on accelerators. In float32, because bfloat16
  # features convert to it exactly, and weights do not convert to bfloat16 exactly.
  means = jnp.einsum(
    "bhwn,bhwc->bnc", weights, features.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
  )
  vectors, nonzero = _normalize(means)
  return RegionCenters(vectors=vectors, present=nonzero & (largest[:, 0, 0] > 0))


def _pixel_weights(logits: Array, labels: Array, method: str, ignore_label: int) -> Array:
  """Returns the weights ``w_i(x)``, ``[B,h,w,N]`` float32."""
  classes = jnp.arange(logits.shape[-1])
  labels = labels.astype(jnp.int32)[..., None]  # [B,h,w,1]; int32, as uint8 cannot be compared with -1
  counted = labels != ignore_label
  truth = (labels == classes) & counted  # [B,h,w,N], all False for labels outside 0..N-1
  if method == "ep_hp":
    return truth.astype(jnp.float32)

  predicted = jnp.argmax(logits, axis=-1, keepdims=True) == classes  # [B,h,w,N]: L == i
  if method == "average":
    return (predicted & truth.any(axis=-1, keepdims=True)).astype(jnp.float32)

  easy = truth & predicted  # EP_i
  hard = truth & ~predicted  # HP_i
  return jnp.where(easy, _one_minus_confidence(logits, predicted), hard.astype(jnp.float32))


def _one_minus_confidence(logits: Array, predicted: Array) -> Array:
  """Returns ``1 - c = r / (1 + r)`` with ``r = sum over j != L of exp(z_j - z_L)``, ``[B,h,w,1]`` float32.

  It is exact to rounding up to a margin of 87 between the logits, where ``1 - max softmax`` is 0 from 17 on.
  """
  logits = logits.astype(jnp.float32)
  margins = logits - logits.max(axis=-1, keepdims=True)  # z_j - z_L
  others = jnp.where(predicted, 0, jnp.exp(margins)).sum(axis=-1, keepdims=True)  # r
  difference = others / (1 + others)
  return jnp.where(difference < _SMALLEST_NORMAL, 0, difference)


def _normalize(vectors: Array) -> tuple[Array, Array]:
  """Returns ``v / |v|`` of vectors ``[...,C]``, and ``[...]`` bool, whether each is not zero.

  Zero vectors stay zero and get zero gradient. For finite vectors, value and gradient are finite: squares are taken
  relative to the largest entry (up to 1e30, whose reciprocal is a normal number), and the gradient, which grows as
  one over the length, is limited to its value at a length of 1e-30.
  """
  largest = jax.lax.stop_gradient(jnp.abs(vectors).max(axis=-1, keepdims=True))
  nonzero = largest >= _SMALLEST_NORMAL
  scale = jnp.where(nonzero, jnp.minimum(largest, 1e30), 1)
  bounded = vectors / jnp.maximum(scale, 1e-30)
  scaled = bounded + jax.lax.stop_gradient(vectors / scale - bounded)  # vectors / scale
  length = jnp.sqrt(jnp.where(nonzero, jnp.square(scaled).sum(axis=-1, keepdims=True), 1))
  return jnp.where(nonzero, scaled / length, 0), nonzero[..., 0]


def _check_grids(features: Array, logits: Array, labels: Array) -> None:
  if features.ndim != 4 or logits.ndim != 4 or features.shape[:3] != logits.shape[:3]:
    raise ValueError(
      f"features and logits must be [B,h,w,C] and [B,h,w,N] on one grid, got {features.shape} and "
      f"{logits.shape}; pass the logits from before upsampling"
    )
  if labels.shape != logits.shape[:3]:
    raise ValueError(
      f"labels must be [B,h,w] on the grid of the logits, got {labels.shape} and {logits.shape}; "
      "downsample the labels to the feature grid (nearest neighbour)"
    )
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(f"labels must be integers, got {labels.dtype}; pass class ids, not scores or masks")
