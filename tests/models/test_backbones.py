"""Every kind of backbone against PyTorch's operations, and dilation against striding."""

from typing import NamedTuple

import jax
import numpy as np
import pytest

from rc_jax import models
from rc_jax.config import defaults
from rc_jax.models.backbones.hrnet import HRNet, HRNetSpec
from rc_jax.models.backbones.resnet import ResNet, ResNetSpec, stage_steps
from tests.support.head_checks import compiled_once

BOTTLENECK = ResNetSpec((1, 2, 2, 3), bottleneck=True, width=8)
BASIC = ResNetSpec((1, 2, 1, 2), bottleneck=False, width=8)
HRNET_TINY = HRNetSpec(8, modules=(1, 1, 1), blocks=2, stem=16)
HRNET = HRNetSpec(4, modules=(1, 2, 1), blocks=1, stem=8)

# (stride, dilation of the first 3x3, of the second) of each block, as torchvision plans them: the first block of
# a dilated stage keeps the previous dilation, and multi-grid multiplies stage 4's.
STRIDED = [[(1, 1, 1)], [(2, 1, 1), (1, 1, 1)], [(2, 1, 1), (1, 1, 1)]]
PLANS = {
  (8, "3x3"): [*STRIDED[:2], [(1, 1, 2), (1, 2, 2)], [(1, 4, 8), (1, 8, 8), (1, 16, 16)]],
  (16, "3x3"): [*STRIDED, [(1, 2, 4), (1, 4, 4), (1, 8, 8)]],
  (32, "3x3"): [*STRIDED, [(2, 2, 2), (1, 2, 2), (1, 4, 4)]],
  # A stride on the first 1x1 comes before the 3x3, which then has the new dilation.
  (8, "1x1"): [*STRIDED[:2], [(1, 2, 2), (1, 2, 2)], [(1, 8, 8), (1, 8, 8), (1, 16, 16)]],
  (32, "1x1"): [*STRIDED, [(2, 2, 2), (1, 2, 2), (1, 4, 4)]],
}
BASIC_PLAN = [[(1, 1, 1)], [(2, 1, 1), (1, 1, 1)], [(1, 1, 2)], [(1, 2, 4), (1, 8, 8)]]


class Case(NamedTuple):
  """A backbone and its original.

  Attributes:
    module: the backbone.
    plan: of a ResNet, strides and dilations of the blocks.
    size: of the images.
    batch: number of images.
  """

  module: ResNet | HRNet
  plan: list[list[tuple[int, int, int]]] | None
  size: tuple[int, int]
  batch: int

  def original(self, seed):
    """Returns PyTorch's module ``images [B,3,H,W] -> Stages``, channels first."""
    torch = pytest.importorskip("torch")
    from tests.support import torch_hrnet, torch_reference

    module = self.module
    if isinstance(module, ResNet):
      options = (module.stem, module.stride_on, module.ceil_pool)
      original = torch_reference.ResNet(self.plan, module.spec.bottleneck, module.spec.width, *options)
    else:
      original = torch_hrnet.HRNet(*_numbers(module.spec), _resize(module))
    torch_reference.randomize(original, seed)

    def stages(x):
      if isinstance(module, ResNet):
        return models.Stages(*original(x))
      branches = original(x)
      options = {"mode": "bilinear", "align_corners": module.align_corners}
      resized = [torch.nn.functional.interpolate(y, branches[0].shape[2:], **options) for y in branches]
      return models.Stages(branches[0], None, torch.cat(resized, 1))

    return original, stages


def _numbers(spec):
  return spec.width, spec.modules, spec.blocks, spec.stem


def _resize(module):
  from tests.support import torch_hrnet

  return {
    "bilinear": torch_hrnet.in_one_step(module.align_corners),
    "bilinear-twice": torch_hrnet.in_two_steps,
    "nearest": torch_hrnet.nearest,
  }[module.upsampling]


def bottleneck(output_stride, stride_on, stem, ceil_pool, size):
  module = ResNet(BOTTLENECK, output_stride, (2, 2, 4), stem, stride_on, ceil_pool)
  return Case(module, PLANS[output_stride, stride_on], size, 2)


CASES = {
  "resnet-8": bottleneck(8, "3x3", "64-64-128", True, (65, 97)),
  "resnet-16": bottleneck(16, "3x3", "7x7", False, (64, 90)),
  "resnet-32": bottleneck(32, "3x3", "64-64-128", False, (71, 64)),
  "resnet-8-stride-on-1x1": bottleneck(8, "1x1", "7x7", True, (64, 67)),
  "resnet-32-stride-on-1x1": bottleneck(32, "1x1", "32-32-64", True, (97, 70)),
  "resnet-basic": Case(ResNet(BASIC, 8, (1, 2), stem="7x7"), BASIC_PLAN, (65, 50), 1),
  "hrnet-tiny": Case(HRNet(HRNET_TINY, "bilinear", True), None, (65, 97), 1),
  "hrnet-unaligned": Case(HRNet(HRNET, "bilinear", False), None, (71, 90), 1),
  # Sides of 18 and 25, 9 and 13, 5 and 7, 3 and 4: the two steps differ from one.
  "hrnet-twice": Case(HRNet(HRNET, "bilinear-twice", False), None, (70, 97), 1),
  "hrnet-twice-aligned": Case(HRNet(HRNET, "bilinear-twice", True), None, (65, 64), 1),
  "hrnet-nearest": Case(HRNet(HRNET, "nearest", True), None, (64, 93), 1),
}


def same_variables(original, module, image):
  """Returns variables of the original's values, after a check of their names and shapes."""
  from tests.support import torch_reference

  params, batch_stats = torch_reference.as_trees(original.state_dict())
  variables = {"params": params, "batch_stats": batch_stats}
  shapes = jax.eval_shape(lambda rng: module.init(rng, image, True), jax.random.key(0))
  assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, dict(shapes))
  return variables


@pytest.mark.parametrize("name", CASES)
def test_stages_equal_the_originals(name):
  torch = pytest.importorskip("torch")
  case = CASES[name]
  original, stages = case.original(seed=1)
  x = np.random.default_rng(0).standard_normal((case.batch, *case.size, 3)).astype(np.float32)
  variables = same_variables(original, case.module, x)
  original.eval()
  with torch.no_grad():
    expected = stages(torch.tensor(x).permute(0, 3, 1, 2))
  ours = compiled_once(lambda v, x: case.module.apply(v, x, False), variables, x)
  assert (ours.stage3 is None) == (expected.stage3 is None)
  # Branches of an HRNet differ in size: each is compared by its own largest value.
  is_hrnet = isinstance(case.module, HRNet)
  for ours_, theirs in zip(ours, expected, strict=True):
    if theirs is None:
      continue
    theirs = theirs.permute(0, 2, 3, 1).numpy()
    assert ours_.shape == theirs.shape
    groups = theirs.shape[-1] // case.module.spec.width if is_hrnet else 1
    for part in np.split(np.arange(theirs.shape[-1]), groups):
      close = {"rtol": 0, "atol": (2e-5 if is_hrnet else 1e-5) * np.abs(theirs[..., part]).max()}
      np.testing.assert_allclose(ours_[..., part], theirs[..., part], **close)


# ``test_segmenter.py`` compares a ResNet's gradients, with a head's.
def test_an_hrnets_training_gradients_and_statistics_equal_the_originals():
  torch = pytest.importorskip("torch")
  from tests.support import torch_reference

  case = Case(HRNet(HRNetSpec(4, modules=(1, 1, 1), blocks=1, stem=4)), None, (65, 97), 3)
  original, stages = case.original(seed=3)
  random = np.random.default_rng(2)
  x = random.standard_normal((case.batch, *case.size, 3)).astype(np.float32)
  variables = same_variables(original, case.module, x)

  original.double().train()
  last = stages(torch.tensor(x).permute(0, 3, 1, 2).double()).last
  weights = random.standard_normal(last.permute(0, 2, 3, 1).shape).astype(np.float32)
  (last * torch.tensor(weights).permute(0, 3, 1, 2).double()).sum().backward()

  def loss(params):
    ours, updates = case.module.apply(variables | {"params": params}, x, True, mutable=["batch_stats"])
    return (ours.last * weights).sum(), updates["batch_stats"]

  gradients, batch_stats = compiled_once(jax.grad(loss, has_aux=True), variables["params"])
  expected, _ = torch_reference.as_trees({name: p.grad for name, p in original.named_parameters()})
  _, expected_statistics = torch_reference.as_trees(original.state_dict())

  def close(path, ours, theirs):
    error = np.abs(ours - theirs).max() / (np.abs(theirs).max() + 1e-3)
    assert error < 1e-3, f"{jax.tree_util.keystr(path)}: {error}"

  jax.tree_util.tree_map_with_path(close, gradients, expected)
  jax.tree_util.tree_map_with_path(close, batch_stats, expected_statistics)


@pytest.mark.parametrize(
  ("spec", "stride_on"), [(BOTTLENECK, "3x3"), (BOTTLENECK, "1x1"), (BASIC, "3x3")], ids=str
)
def test_a_dilated_network_computes_the_strided_one_at_more_places(spec, stride_on):
  grid = (1,) * spec.blocks[3]
  strided = ResNet(spec, 32, grid, stride_on=stride_on)
  dilated = ResNet(spec, 8, grid, stride_on=stride_on)
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


def convolution(size, inputs, outputs):
  """Parameters of a convolution and its BatchNorm."""
  return size * size * inputs * outputs + 2 * outputs


def hrnet_parameters(width):
  total = convolution(3, 3, 64) + convolution(3, 64, 64)
  for inputs in (64, 256, 256, 256):
    total += convolution(1, inputs, 64) + convolution(3, 64, 64) + convolution(1, 64, 256)
  total += convolution(1, 64, 256)
  total += convolution(3, 256, width) + convolution(3, 256, 2 * width)
  total += convolution(3, 2 * width, 4 * width) + convolution(3, 4 * width, 8 * width)
  for branches, exchanges in ((2, 1), (3, 4), (4, 3)):
    widths = [width * 2**i for i in range(branches)]
    exchange = sum(4 * 2 * convolution(3, each, each) for each in widths)
    for target, source in np.ndindex(branches, branches):
      if source > target:
        exchange += convolution(1, widths[source], widths[target])
      if source < target:
        exchange += (target - source - 1) * convolution(3, widths[source], widths[source])
        exchange += convolution(3, widths[source], widths[target])
    total += exchanges * exchange
  return total


# torchvision's published counts without the classifier ``fc``.
RESNETS = {
  "resnet18": 11_689_512 - 513_000,
  "resnet34": 21_797_672 - 513_000,
  "resnet50": 25_557_032 - 2_049_000,
  "resnet101": 44_549_160 - 2_049_000,
  "resnet152": 60_192_808 - 2_049_000,
}
HRNETS = {f"hrnetv2_w{width}": hrnet_parameters(width) for width in (18, 32, 48)}


@pytest.mark.long
@pytest.mark.parametrize(("backbone", "number"), [*RESNETS.items(), *HRNETS.items()])
def test_numbers_of_parameters(backbone, number):
  model = fields(backbone=backbone, stem="7x7", output_stride=32 if backbone in RESNETS else 4)
  model.multi_grid = (1, 1) if backbone == "resnet18" else (1, 1, 1)
  module = models.backbones()[backbone].build(model)
  image = np.zeros((1, 64, 64, 3), np.float32)
  shapes = jax.eval_shape(lambda rng: module.init(rng, image, False), jax.random.key(0))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == number


def test_every_published_backbone_is_counted():
  assert {*RESNETS, *HRNETS} == {
    name for name in models.BACKBONES if "tiny" not in name and "least" not in name
  }


def fields(**more):
  model = defaults().model
  model.update({"name": "fcn", "channels": 16, "dtype": "float32"} | more)
  return model


@pytest.mark.parametrize(
  ("more", "words"),
  [
    ({"backbone": "hrnetv2_tiny", "output_stride": 8}, ("config.model.output_stride: is 8", "expected 4")),
    (
      {"backbone": "hrnetv2_tiny", "output_stride": 4, "hrnet_upsample": "cubic"},
      ("config.model.hrnet_upsample: is 'cubic'", "bilinear-twice", "nearest"),
    ),
    ({"backbone": "resnet_50"}, ("config.model.backbone", "'resnet_50'", "resnet18", "closest is resnet50")),
    ({"backbone": "resnet_tiny", "output_stride": 4}, ("config.model.output_stride: is 4", "8, 16 or 32")),
    ({"backbone": "resnet_tiny", "stride_on": "2x2"}, ("config.model.stride_on", "'3x3', '1x1'")),
    (
      {"backbone": "resnet_tiny", "multi_grid": (1, 2, 4)},
      ("config.model.multi_grid: is (1, 2, 4)", "2 factors", "resnet_tiny", "such as (2, 4)"),
    ),
  ],
)
def test_a_wrong_field_is_named_with_its_choices(more, words):
  with pytest.raises(ValueError) as error:
    models.build(fields(**more), 5)
  assert "\n" not in str(error.value)
  for word in words:
    assert word in str(error.value)


def test_nearest_refuses_sizes_that_do_not_halve():
  model = fields(backbone="hrnetv2_tiny", output_stride=4, hrnet_upsample="nearest")
  with pytest.raises(ValueError, match=r"model\.hrnet_upsample is 'nearest'.* 32, found 65 x 96"):
    models.build(model, 5).init(jax.random.key(0), (65, 96))
