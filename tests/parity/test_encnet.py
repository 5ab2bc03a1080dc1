"""EncNet as mmsegmentation has it."""

from tests.support.encoder_decoders import narrow
from tests.support.outputs_of_training import assert_same_outputs, built

__all__ = ["narrow"]


def test_logits_equal_mmsegmentations(tmp_path, narrow):
  backbone, fields = narrow
  # Its standard configs give it three stages, of which it reads the last.
  stages = {"in_channels": [128, 256, 512], "in_index": (1, 2, 3)}
  original = built(backbone, type="EncHead", num_codes=6, **stages)
  assert_same_outputs(tmp_path, original, **fields, name="encnet", encnet_codes=6)
