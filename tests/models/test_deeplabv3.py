"""DeepLabV3's head against PyTorch's operations."""

import jax
import numpy as np
import pytest

from rc_jax.models import Stages
from rc_jax.models.heads.deeplabv3 import DeepLabV3Head


def test_logits_and_features_equal_the_originals():
  torch = pytest.importorskip("torch")
  from tests.support import torch_reference

  original = torch_reference.randomize(torch_reference.Head(6, 4, (1, 2), 3, False), seed=2).eval()
  params, batch_stats = torch_reference.as_trees(original.state_dict())
  x = np.random.default_rng(0).standard_normal((2, 5, 8, 6)).astype(np.float32)
  with torch.no_grad():
    inputs = torch.tensor(x).permute(0, 3, 1, 2)
    features = original.fuse(original.aspp(inputs))
    theirs = [y.permute(0, 2, 3, 1).numpy() for y in (original(inputs), features)]
  module = DeepLabV3Head(3, channels=4, rates=(1, 2))
  variables = {"params": params, "batch_stats": batch_stats}
  ours = jax.jit(lambda v, x: module.apply(v, Stages(x, None, x), False))(variables, x)
  assert ours.extra == {}
  for ours_, theirs_ in zip((ours.logits, ours.features), theirs, strict=True):
    np.testing.assert_allclose(ours_, theirs_, rtol=0, atol=1e-5 * np.abs(theirs_).max())
