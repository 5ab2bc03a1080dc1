"""ResNets against the PyTorch originals, and dilation against striding."""

import jax
import numpy as np
import pytest

from rc_jax.models.backbones.resnet import Layout, ResNet, stage_steps

BOTTLENECK = Layout((1, 2, 2, 3), bottleneck=True, width=8)
BASIC = Layout((1, 2, 1, 2), bottleneck=False, width=8)

# (stride, dilation of the first 3x3, of the second) of each block, as torchvision plans them: the first block of
# a dilated stage keeps the previous dilation, and multi-grid multiplies stage 4's.
PLANS = {
  (8, "3x3"): [
    [(1, 1, 1)],
    [(2, 1, 1), (1, 1, 1)],
    [(1, 1, 2), (1, 2, 2)],
    [(1, 4, 8), (1, 8, 8), (1, 16, 16)],
  ],
  (16, "3x3"): [
    [(1, 1, 1)],
    [(2, 1, 1), (1, 1, 1)],
    [(2, 1, 1), (1, 1, 1)],
    [(1, 2, 4), (1, 4, 4), (1, 8, 8)],
  ],
  (32, "3x3"): [
    [(1, 1, 1)],
    [(2, 1, 1), (1, 1, 1)],
    [(2, 1, 1), (1, 1, 1)],
    [(2, 2, 2), (1, 2, 2), (1, 4, 4)],
  ],
  # A stride on the first 1x1 comes before the 3x3, which then has the new dilation.
  (8, "1x1"): [
    [(1, 1, 1)],
    [(2, 1, 1), (1, 1, 1)],
    [(1, 2, 2), (1, 2, 2)],
    [(1, 8, 8), (1, 8, 8), (1, 16, 16)],
  ],
  (32, "1x1"): [
    [(1, 1, 1)],
    [(2, 1, 1), (1, 1, 1)],
    [(2, 1, 1), (1, 1, 1)],
    [(2, 2, 2), (1, 2, 2), (1, 4, 4)],
  ],
}


@pytest.mark.parametrize(
  ("output_stride", "stride_on", "stem", "ceil_pool", "size"),
  [
    (8, "3x3", "64-64-128", True, (65, 97)),
    (16, "3x3", "7x7", False, (64, 90)),
    (32, "3x3", "64-64-128", False, (71, 64)),
    (8, "1x1", "7x7", True, (64, 67)),
    (32, "1x1", "32-32-64", True, (97, 70)),
  ],
)
def test_bottleneck_features_equal_the_originals(output_stride, stride_on, stem, ceil_pool, size):
  torch = pytest.importorskip("torch")
  from tests.support import torch_reference

  plan = PLANS[output_stride, stride_on]
  original = torch_reference.ResNet(plan, True, 8, stem, stride_on, ceil_pool)
  original = torch_reference.randomize(original, seed=1).eval()
  params, batch_stats = torch_reference.as_trees(original.state_dict())
  module = ResNet(BOTTLENECK, output_stride, (2, 2, 4), stem, stride_on, ceil_pool)
  x = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
  ours = jax.jit(lambda v, x: module.apply(v, x, False))({"params": params, "batch_stats": batch_stats}, x)
  with torch.no_grad():
    theirs = original(torch.tensor(x).permute(0, 3, 1, 2))
  for ours_, theirs_ in zip(ours, theirs, strict=True):
    theirs_ = theirs_.permute(0, 2, 3, 1).numpy()
    assert ours_.shape == theirs_.shape
    np.testing.assert_allclose(ours_, theirs_, rtol=0, atol=1e-5 * np.abs(theirs_).max())


def test_basic_features_equal_the_originals():
  torch = pytest.importorskip("torch")
  from tests.support import torch_reference

  plan = [[(1, 1, 1)], [(2, 1, 1), (1, 1, 1)], [(1, 1, 2)], [(1, 2, 4), (1, 8, 8)]]
  original = torch_reference.randomize(torch_reference.ResNet(plan, False, 8, "7x7", "3x3"), seed=2).eval()
  params, batch_stats = torch_reference.as_trees(original.state_dict())
  module = ResNet(BASIC, 8, (1, 2), stem="7x7")
  x = np.random.default_rng(0).standard_normal((1, 65, 50, 3)).astype(np.float32)
  ours = jax.jit(lambda v, x: module.apply(v, x, False))({"params": params, "batch_stats": batch_stats}, x)
  with torch.no_grad():
    theirs = original(torch.tensor(x).permute(0, 3, 1, 2))[2].permute(0, 2, 3, 1).numpy()
  np.testing.assert_allclose(ours.last, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
  ("layout", "stride_on"), [(BOTTLENECK, "3x3"), (BOTTLENECK, "1x1"), (BASIC, "3x3")], ids=str
)
def test_a_dilated_network_computes_the_strided_one_at_more_places(layout, stride_on):
  grid = (1,) * layout.blocks[3]
  strided = ResNet(layout, 32, grid, stride_on=stride_on)
  dilated = ResNet(layout, 8, grid, stride_on=stride_on)
  x = np.random.default_rng(0).standard_normal((1, 97, 120, 3)).astype(np.float32)
  shapes = jax.eval_shape(lambda rng: strided.init(rng, x, True), jax.random.key(0))
  random = np.random.default_rng(1)
  variables = jax.tree.map(lambda leaf: random.uniform(0, 0.2, leaf.shape).astype(np.float32), shapes)
  few, many = (jax.jit(lambda v, x, m=m: m.apply(v, x, False).last)(variables, x) for m in (strided, dilated))
  np.testing.assert_allclose(many[:, ::4, ::4], few, rtol=1e-4)


def test_steps_of_the_stages():
  assert stage_steps(8) == ((1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4))
  assert stage_steps(16) == ((1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 2))
  assert stage_steps(32) == ((1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1))
