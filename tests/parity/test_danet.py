"""DANet as mmsegmentation has it."""

from tests.support.encoder_decoders import narrow
from tests.support.outputs_of_training import assert_same_outputs, built

__all__ = ["narrow"]


def test_logits_equal_mmsegmentations(tmp_path, narrow):
  backbone, fields = narrow
  original = built(backbone, type="DAHead", pam_channels=6)
  assert_same_outputs(tmp_path, original, **fields, name="danet", danet_key_channels=6)
