"""DeepLabV3+ as mmsegmentation has it."""

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


def config(backbone, channels):
  head = COMMON | {"in_channels": channels, "in_index": 3, "channels": CHANNELS}
  head |= {"type": "DepthwiseSeparableASPPHead", "dilations": (1, 12, 24, 36)}
  head |= {"c1_in_channels": channels // 8, "c1_channels": 48}
  return {
    "type": "EncoderDecoder",
    "backbone": backbone,
    "decode_head": head,
    "auxiliary_head": auxiliary(channels // 2),
  }


def test_logits_equal_mmsegmentations(tmp_path, narrow):
  backbone, fields = narrow
  report = assert_same_logits(tmp_path, config(backbone, 512), fields | {"name": "deeplabv3plus"})
  assert report.reordered == ("decode_head.bottleneck.conv.weight",)


@pytest.mark.slow
def test_logits_on_resnet50_equal_mmsegmentations(tmp_path):
  fields = RESNET_FIELDS | {"name": "deeplabv3plus", "backbone": "resnet50", "multi_grid": (1, 1, 1)}
  assert_same_logits(tmp_path, config(resnet_v1c(50), 2048), fields, training_batch=0)
