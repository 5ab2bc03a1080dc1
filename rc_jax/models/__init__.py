"""Segmentation networks. The only folder that knows Flax; callers see plain functions and plain trees."""

from rc_jax.models.segmenter import Network, Outputs, Variables, build

__all__ = ["Network", "Outputs", "Variables", "build"]
