"""Segmentation networks. The only folder that knows Flax; callers see plain functions and plain trees."""

from rc_jax.models.network import ExtraOutput, Network, Outputs, Stages, Variables
from rc_jax.models.segmenter import BACKBONES, HEADS, build, fields, readers, reads

__all__ = [
  "BACKBONES",
  "HEADS",
  "ExtraOutput",
  "Network",
  "Outputs",
  "Stages",
  "Variables",
  "build",
  "fields",
  "readers",
  "reads",
]
