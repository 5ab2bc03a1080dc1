"""Segmentation networks. The only package that imports Flax; callers see plain functions and plain trees."""

from rc_jax.models.layers import norms_of_one_value
from rc_jax.models.network import (
  Backbone,
  ExtraOutput,
  Head,
  Network,
  Outputs,
  PublishedHead,
  Stages,
  Variables,
)
from rc_jax.models.parts import lies_in, merge, split
from rc_jax.models.segmenter import (
  BACKBONES,
  HEADS,
  backbones,
  build,
  check_parts,
  check_projection,
  fields,
  heads,
  readers,
  reads,
)

__all__ = [
  "BACKBONES",
  "HEADS",
  "Backbone",
  "ExtraOutput",
  "Head",
  "Network",
  "Outputs",
  "PublishedHead",
  "Stages",
  "Variables",
  "backbones",
  "build",
  "check_parts",
  "check_projection",
  "fields",
  "heads",
  "lies_in",
  "merge",
  "norms_of_one_value",
  "readers",
  "reads",
  "split",
]
