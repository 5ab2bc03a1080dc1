"""RegionContrast (Hu, Cui and Wang, ICCV 2021) in JAX: region-aware contrastive learning for semantic segmentation.

``rc_jax.contrast`` is the paper's method and needs jax and numpy alone; everything else is a training system
around it. Nothing is imported here, so that ``from rc_jax import contrast`` stays that light.
"""

__version__ = "0.1.0"
