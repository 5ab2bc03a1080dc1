"""mmsegmentation's heads on ResNets, imported from its checkpoints."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from rc_jax import models
from tests.support.mmsegmentation import (
  EVEN,
  ODD,
  RESNET_FIELDS,
  assert_same_outputs,
  auxiliary,
  cascade,
  encoder_decoder,
  narrow,
  resnet_v1c,
)

__all__ = ["narrow"]


@dataclasses.dataclass(frozen=True)
class Case:
  """A head of mmsegmentation.

  Attributes:
    head: from the channels of stage 4 to its config.
    fields: of ``config.model``.
    options: of ``assert_same_outputs``.
    reordered: weights whose channels have another order.
    depths: of the ResNets to compare, besides the narrow one; slow.
  """

  head: Callable[[int], dict[str, Any]]
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)
  options: dict[str, Any] = dataclasses.field(default_factory=dict)
  reordered: tuple[str, ...] = ()
  depths: tuple[int, ...] = (50,)


ATTENTION = {"sizes": (ODD, EVEN), "training_size": ODD, "optimisation": 3}
POOLED_FIRST = ("decode_head.bottleneck.conv.weight",)  # the pooled branch of ASPP

CASES = {
  "ccnet": Case(lambda channels: {"type": "CCHead", "recurrence": 2}, options=ATTENTION, depths=()),
  "danet": Case(
    lambda channels: {"type": "DAHead", "pam_channels": 6}, {"danet_key_channels": 6}, ATTENTION, depths=()
  ),
  "deeplabv3": Case(
    lambda channels: {"type": "ASPPHead", "dilations": (1, 12, 24, 36)},
    reordered=POOLED_FIRST,
    depths=(50, 101),
  ),
  "deeplabv3plus": Case(
    lambda channels: {
      "type": "DepthwiseSeparableASPPHead",
      "dilations": (1, 12, 24, 36),
      "c1_in_channels": channels // 8,
      "c1_channels": 48,
    },
    reordered=POOLED_FIRST,
  ),
  "encnet": Case(
    # Its standard configs give it three stages, of which it reads the last.
    lambda channels: {
      "type": "EncHead",
      "num_codes": 6,
      "in_channels": [channels // 4, channels // 2, channels],
      "in_index": (1, 2, 3),
    },
    {"encnet_codes": 6},
    ATTENTION,
    depths=(),
  ),
  "fcn": Case(
    lambda channels: {"type": "FCNHead", "num_convs": 2, "concat_input": True},
    {"fcn_convs": 2, "fcn_concat_input": True},
    depths=(50, 101),
  ),
  "ocrnet": Case(
    lambda channels: {"in_channels": channels, "in_index": 3, "ocr_channels": 10}, {"ocr_key_channels": 10}
  ),
  "pspnet": Case(lambda channels: {"type": "PSPHead", "pool_scales": (1, 2, 3, 6)}),
}


def config(name, backbone, channels):
  head = CASES[name].head(channels)
  if name == "ocrnet":
    return cascade(backbone, auxiliary(channels // 2), head)
  return encoder_decoder(backbone, channels, head)


def test_every_head_with_published_weights_is_compared():
  assert set(CASES) == {name for name, head in models.heads().items() if "mmsegmentation" in head.published}


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_outputs_equal_mmsegmentations(tmp_path, narrow, name):
  case = CASES[name]
  backbone, fields = narrow
  fields = fields | case.fields | {"name": name}
  report = assert_same_outputs(tmp_path, config(name, backbone, 512), fields, **case.options)
  assert report.reordered == case.reordered


@pytest.mark.slow
@pytest.mark.parametrize(("name", "depth"), [(name, depth) for name in CASES for depth in CASES[name].depths])
def test_logits_on_resnets_equal_mmsegmentations(tmp_path, name, depth):
  fields = RESNET_FIELDS | {"name": name, "backbone": f"resnet{depth}", "multi_grid": (1, 1, 1)}
  theirs = config(name, resnet_v1c(depth), 2048)
  assert_same_outputs(tmp_path, theirs, fields | CASES[name].fields, sizes=(ODD, EVEN), training_size=None)
