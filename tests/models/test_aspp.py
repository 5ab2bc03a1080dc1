"""ASPP against PyTorch's operations."""

import jax
import numpy as np
import pytest

from rc_jax.models.heads.aspp import ASPP


@pytest.mark.parametrize("project", [False, True])
# 12 is wider than the grid: only its center reads pixels
@pytest.mark.parametrize("rates", [(1, 3, 12), (2, 4)])
def test_branches_equal_the_originals(project, rates):
  torch = pytest.importorskip("torch")
  from tests.support import torch_reference

  original = torch_reference.randomize(torch_reference.ASPP(6, 4, rates, project), seed=1).eval()
  params, batch_stats = torch_reference.as_trees(original.state_dict())
  x = np.random.default_rng(0).standard_normal((2, 7, 10, 6)).astype(np.float32)
  with torch.no_grad():
    theirs = original(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
  module = ASPP(4, rates, project)
  ours = jax.jit(lambda v, x: module.apply(v, x, False))({"params": params, "batch_stats": batch_stats}, x)
  assert ours.shape == (2, 7, 10, 4 if project else 4 * (len(rates) + 2))
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
