"""The loss of image-level labels: which classes an image shows."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


def presence_loss(logits: ArrayLike, labels: ArrayLike, ignore_label: int = 255) -> Array:
  """Mean over images and classes of the binary cross entropy ``log(1 + e^z) - y z``.

  ``z`` is the logit of a class in an image; ``y`` is 1 where a pixel of the image has that class, else 0.

  Args:
    logits: ``z [B,N]``, float; computed in float32.
    labels: ``[B,H,W]``, integer; pixels count as in `cross_entropy`.
    ignore_label: the label of pixels that do not count.

  Returns:
    A float32 scalar.

  Raises:
    ValueError: the shapes do not belong together.

  Source: Zhang et al., Context Encoding for Semantic Segmentation (CVPR 2018), section 3.1: the semantic encoding loss.
  """
  logits, labels = jnp.asarray(logits, jnp.float32), jnp.asarray(labels).astype(jnp.int32)
  if logits.ndim != 2 or labels.ndim != 3 or logits.shape[0] != labels.shape[0]:
    raise ValueError(f"labels must be [B,H,W] for logits [B,N], got {labels.shape} and {logits.shape}")
  classes = jnp.arange(logits.shape[1])
  shown = (labels[..., None] == classes) & (labels != ignore_label)[..., None]  # [B,H,W,N]
  present = shown.any(axis=(1, 2))  # [B,N]
  # softplus(z) = log(1 + e^z), which no z overflows.
  return (jax.nn.softplus(logits) - jnp.where(present, logits, 0)).mean()
