"""The training objective, Eq. 5 of RegionContrast: a sum of weighted terms."""

import jax

from rc_jax import contrast
from rc_jax.config import Config
from rc_jax.training import losses


def _pixel_loss(logits: jax.Array, labels: jax.Array, config_loss: Config) -> jax.Array:
  if config_loss.pixel == "ohem":
    return losses.ohem_cross_entropy(
      logits, labels, threshold=config_loss.ohem_threshold, min_kept=config_loss.ohem_min_kept
    )
  return losses.cross_entropy(logits, labels)


def _contrast_loss(
  centers: contrast.RegionCenters, bank: contrast.MemoryBank | None, config_contrast: Config
) -> tuple[jax.Array, dict[str, jax.Array]]:
  if config_contrast.scope == "bank":
    assert bank is not None, "scope bank without a bank"
    return contrast.region_contrast_loss(centers, bank, temperature=config_contrast.temperature)
  return contrast.batch_contrast_loss(
    centers, scope=config_contrast.scope, temperature=config_contrast.temperature
  )
