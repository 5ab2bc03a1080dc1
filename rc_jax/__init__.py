"""RegionContrast (Hu, Cui and Wang, ICCV 2021) in JAX: region-aware contrastive learning for semantic segmentation.

``rc_jax.contrast`` holds the paper's method and needs jax and numpy alone; the other packages train, score and export
segmentation networks. This module imports nothing, so ``from rc_jax import contrast`` loads the method alone.
"""

__version__ = "0.1.0"
