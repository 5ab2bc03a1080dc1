"""RegionContrast's loss (Hu, Cui and Wang, ICCV 2021), for any JAX segmentation code.

One training step, given features, logits and labels on one grid:

>>> import jax
>>> import jax.numpy as jnp
>>> from rc_jax import contrast
>>> features, logits = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 8))
>>> labels = jnp.argmax(logits, axis=-1)
>>> bank = contrast.MemoryBank.create(num_classes=8, capacity=16, dim=8)
>>> centers = contrast.region_centers(features, logits, labels)
>>> loss, stats = contrast.region_contrast_loss(centers, bank)  # reads the bank of the steps before
>>> bank = contrast.enqueue(bank, centers)  # then this step's centers enter it
>>> float(loss), float(stats["queries"]), int(bank.count.sum()) == int(centers.present.sum())
(0.0, 0.0, True)

This package needs jax and numpy alone.
"""

from rc_jax.contrast.image_bank import ImageMemoryBank, write_images
from rc_jax.contrast.loss import batch_contrast_loss, region_contrast_loss
from rc_jax.contrast.memory_bank import MemoryBank, enqueue
from rc_jax.contrast.region_centers import RegionCenters, region_centers

__all__ = [
  "ImageMemoryBank",
  "MemoryBank",
  "RegionCenters",
  "batch_contrast_loss",
  "enqueue",
  "region_centers",
  "region_contrast_loss",
  "write_images",
]
