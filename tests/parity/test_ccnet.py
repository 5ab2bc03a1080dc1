"""CCNet as mmsegmentation has it, with a criss-cross attention of ours in place of mmcv's compiled one."""

import sys

from tests.support import originals
from tests.support.encoder_decoders import narrow
from tests.support.outputs_of_training import assert_same_outputs, built

__all__ = ["narrow"]

torch = originals.torch
nn = torch.nn


class Scale(nn.Module):
  def __init__(self):
    super().__init__()
    self.scale = nn.Parameter(torch.zeros(()))


class CrissCrossAttention(nn.Module):
  """Written from the paper under mmcv's names; walks over the pixels, one by one."""

  def __init__(self, channels):
    super().__init__()
    self.query_conv, self.key_conv = (nn.Conv2d(channels, channels // 8, 1) for _ in range(2))
    self.value_conv, self.gamma = nn.Conv2d(channels, channels, 1), Scale()

  def forward(self, x):
    query, key, value = self.query_conv(x), self.key_conv(x), self.value_conv(x)
    attended = torch.zeros_like(value)
    height, width = x.shape[2:]
    for i in range(height):
      rows = [row for row in range(height) if row != i]
      for j in range(width):
        keys, values = (torch.cat([y[:, :, rows, j], y[:, :, i, :]], 2) for y in (key, value))
        weights = torch.einsum("bd,bdn->bn", query[:, :, i, j], keys).softmax(1)
        attended[:, :, i, j] = torch.einsum("bn,bcn->bc", weights, values)
    return x + self.gamma.scale * attended


def test_logits_equal_mmsegmentations(tmp_path, narrow, monkeypatch):
  originals.mmsegmentation()
  monkeypatch.setattr(
    sys.modules["mmseg.models.decode_heads.cc_head"], "CrissCrossAttention", CrissCrossAttention
  )
  backbone, fields = narrow
  assert_same_outputs(tmp_path, built(backbone, type="CCHead", recurrence=2), **fields, name="ccnet")
