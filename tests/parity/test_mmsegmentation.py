"""DeepLabV3 and FCN as mmsegmentation has them; its other heads have a file each."""

import pytest

from tests.support.encoder_decoders import (
  CHANNELS,
  COMMON,
  RESNET_FIELDS,
  assert_same_logits,
  auxiliary,
  narrow,
  resnet_v1c,
)

__all__ = ["narrow"]

# Of a head: its fields there, and those of ``config.model``.
HEADS = {
  "deeplabv3": ({"type": "ASPPHead", "dilations": (1, 12, 24, 36)}, {}),
  "fcn": (
    {"type": "FCNHead", "num_convs": 2, "concat_input": True},
    {"fcn_convs": 2, "fcn_concat_input": True},
  ),
}


def config(backbone, channels, head):
  return {
    "type": "EncoderDecoder",
    "backbone": backbone,
    "decode_head": COMMON | {"in_channels": channels, "in_index": 3, "channels": CHANNELS} | HEADS[head][0],
    "auxiliary_head": auxiliary(channels // 2),
  }


@pytest.mark.parametrize("head", HEADS)
def test_logits_equal_mmsegmentations(tmp_path, narrow, head):
  backbone, fields = narrow
  report = assert_same_logits(tmp_path, config(backbone, 512, head), fields | HEADS[head][1] | {"name": head})
  # Its ASPP puts the pooled branch first.
  assert report.reordered == (("decode_head.bottleneck.conv.weight",) if head == "deeplabv3" else ())


@pytest.mark.slow
@pytest.mark.parametrize("depth", [50, 101])
@pytest.mark.parametrize("head", HEADS)
def test_logits_on_resnets_equal_mmsegmentations(tmp_path, head, depth):
  fields = RESNET_FIELDS | {"name": head, "backbone": f"resnet{depth}", "multi_grid": (1, 1, 1)}
  theirs = config(resnet_v1c(depth), 2048, head)
  assert_same_logits(tmp_path, theirs, fields | HEADS[head][1], training_batch=0)
