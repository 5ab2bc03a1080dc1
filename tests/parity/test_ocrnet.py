"""OCRNet as mmsegmentation has it, on ResNets and on HRNets."""

import pytest

from rc_jax.models.backbones.hrnet import HRNETS
from tests.parity import test_hrnet
from tests.parity.test_hrnet import TINY, tiny
from tests.support.encoder_decoders import (
  CHANNELS,
  COMMON,
  RESNET_FIELDS,
  assert_same_logits,
  auxiliary,
  narrow,
  resnet_v1c,
)

__all__ = ["narrow", "tiny"]

KEYS = 10


def cascade(backbone, coarse, fine):
  head = COMMON | {"type": "OCRHead", "channels": CHANNELS, "ocr_channels": KEYS} | fine
  return {
    "type": "CascadeEncoderDecoder",
    "num_stages": 2,
    "backbone": backbone,
    "decode_head": [coarse, head],
  }


def on_resnet(backbone, channels):
  return cascade(backbone, auxiliary(channels // 2), {"in_channels": channels, "in_index": 3})


def test_logits_and_regions_equal_mmsegmentations(tmp_path, narrow):
  backbone, fields = narrow
  fields |= {"name": "ocrnet", "ocr_key_channels": KEYS}
  assert_same_logits(tmp_path, on_resnet(backbone, 512), fields)


@pytest.mark.parametrize(
  ("name", "layout", "training_batch"),
  [
    ("tiny", TINY, 0),
    pytest.param("tiny", TINY, 3, marks=pytest.mark.slow),
    pytest.param("hrnetv2_w18", HRNETS["hrnetv2_w18"], 0, marks=pytest.mark.slow),
  ],
)
def test_logits_and_regions_on_hrnets_equal_mmsegmentations(tmp_path, tiny, name, layout, training_batch):
  backbone, read = test_hrnet.mmsegmentations(layout)
  config = cascade(backbone, test_hrnet.fcn(read, 15 * layout.width), read)
  fields = test_hrnet.fields(name, name="ocrnet", ocr_key_channels=KEYS)
  assert_same_logits(tmp_path, config, fields, training_batch)


@pytest.mark.slow
def test_logits_on_resnet50_equal_mmsegmentations(tmp_path):
  fields = RESNET_FIELDS | {"name": "ocrnet", "backbone": "resnet50", "multi_grid": (1, 1, 1)}
  config = on_resnet(resnet_v1c(50), 2048)
  assert_same_logits(tmp_path, config, fields | {"ocr_key_channels": KEYS}, training_batch=0)
