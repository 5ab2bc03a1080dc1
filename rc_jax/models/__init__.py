"""Segmentation networks. The only folder that knows Flax; callers see plain functions and plain trees."""

from rc_jax.models.network import Network, Outputs, Stages, Variables
from rc_jax.models.segmenter import BACKBONES, HEADS, build, fields, readers, reads

__all__ = [
  "BACKBONES",
  "HEADS",
  "Network",
  "Outputs",
  "Stages",
  "Variables",
  "build",
  "fields",
  "readers",
  "reads",
]
