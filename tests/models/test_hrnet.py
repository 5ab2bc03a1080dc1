"""HRNets against PyTorch's operations."""

import jax
import numpy as np
import pytest

from rc_jax import models
from rc_jax.config import defaults
from rc_jax.models.backbones.hrnet import HRNETS, HRNet, Layout
from tests.support.head_checks import compiled_once

SMALL = Layout(4, modules=(1, 2, 1), blocks=1, stem=8)


def pair(layout, upsampling, align_corners, seed):
  """A random original, our module of the same, and our variables of the original's values."""
  from tests.support import torch_hrnet, torch_reference

  resizes = {
    "bilinear": torch_hrnet.in_one_step(align_corners),
    "bilinear-twice": torch_hrnet.in_two_steps,
    "nearest": torch_hrnet.nearest,
  }
  numbers = (layout.width, layout.modules, layout.blocks, layout.stem)
  original = torch_reference.randomize(torch_hrnet.HRNet(*numbers, resizes[upsampling]), seed)
  params, batch_stats = torch_reference.as_trees(original.state_dict())
  return original, HRNet(layout, upsampling, align_corners), {"params": params, "batch_stats": batch_stats}


def concatenated(branches, align_corners):
  import torch

  size = branches[0].shape[2:]
  resized = [
    torch.nn.functional.interpolate(y, size, mode="bilinear", align_corners=align_corners) for y in branches
  ]
  return torch.cat(resized, 1)


@pytest.mark.parametrize(
  ("layout", "upsampling", "align_corners", "size"),
  [
    (HRNETS["hrnetv2_tiny"], "bilinear", True, (65, 97)),
    (SMALL, "bilinear", False, (71, 90)),
    # Sides of 18 and 25, 9 and 13, 5 and 7, 3 and 4: the two steps differ from one.
    (SMALL, "bilinear-twice", False, (70, 97)),
    (SMALL, "bilinear-twice", True, (65, 64)),
    (SMALL, "nearest", True, (64, 93)),
  ],
)
def test_branches_equal_the_originals(layout, upsampling, align_corners, size):
  torch = pytest.importorskip("torch")
  original, module, variables = pair(layout, upsampling, align_corners, seed=1)
  x = np.random.default_rng(0).standard_normal((1, *size, 3)).astype(np.float32)
  shapes = jax.eval_shape(lambda rng: module.init(rng, x, True), jax.random.key(0))
  assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, dict(shapes))
  with torch.no_grad():
    branches = original.eval()(torch.tensor(x).permute(0, 3, 1, 2))
  stages = compiled_once(lambda v, x: module.apply(v, x, False), variables, x)
  assert stages.stage3 is None
  for ours, theirs in ((stages.stage1, branches[0]), (stages.last, concatenated(branches, align_corners))):
    theirs = theirs.permute(0, 2, 3, 1).numpy()
    assert ours.shape == theirs.shape
    for part in np.split(np.arange(theirs.shape[-1]), theirs.shape[-1] // layout.width):
      close = {"rtol": 0, "atol": 2e-5 * np.abs(theirs[..., part]).max()}
      np.testing.assert_allclose(ours[..., part], theirs[..., part], **close)


def test_training_gradients_and_statistics_equal_the_originals():
  torch = pytest.importorskip("torch")
  from tests.support import torch_reference

  layout = Layout(4, modules=(1, 1, 1), blocks=1, stem=4)
  original, module, variables = pair(layout, "bilinear", True, seed=3)
  random = np.random.default_rng(2)
  x = random.standard_normal((3, 65, 97, 3)).astype(np.float32)
  weights = random.standard_normal((3, 17, 25, 60)).astype(np.float32)

  branches = original.double().train()(torch.tensor(x).permute(0, 3, 1, 2).double())
  total = (concatenated(branches, True) * torch.tensor(weights).permute(0, 3, 1, 2).double()).sum()
  total.backward()

  def loss(params):
    stages, updates = module.apply(variables | {"params": params}, x, True, mutable=["batch_stats"])
    return (stages.last * weights).sum(), updates["batch_stats"]

  gradients, batch_stats = compiled_once(jax.grad(loss, has_aux=True), variables["params"])
  expected, _ = torch_reference.as_trees({name: p.grad for name, p in original.named_parameters()})
  _, expected_statistics = torch_reference.as_trees(original.state_dict())

  def close(path, ours, theirs):
    error = np.abs(ours - theirs).max() / (np.abs(theirs).max() + 1e-3)
    assert error < 1e-3, f"{jax.tree_util.keystr(path)}: {error}"

  jax.tree_util.tree_map_with_path(close, gradients, expected)
  jax.tree_util.tree_map_with_path(close, batch_stats, expected_statistics)


@pytest.mark.parametrize("width", [18, 32, 48])
def test_parameters_are_as_many_as_counted_by_hand(width):
  def norm(channels):
    return 2 * channels

  def convolution(size, inputs, outputs):
    return size * size * inputs * outputs + norm(outputs)

  total = convolution(3, 3, 64) + convolution(3, 64, 64)
  for inputs in (64, 256, 256, 256):
    total += convolution(1, inputs, 64) + convolution(3, 64, 64) + convolution(1, 64, 256)
  total += convolution(1, 64, 256)
  total += convolution(3, 256, width) + convolution(3, 256, 2 * width)
  total += convolution(3, 2 * width, 4 * width) + convolution(3, 4 * width, 8 * width)
  for branches, exchanges in ((2, 1), (3, 4), (4, 3)):
    widths = [width * 2**i for i in range(branches)]
    one = sum(4 * 2 * convolution(3, each, each) for each in widths)
    for target in range(branches):
      for source in range(branches):
        if source > target:
          one += convolution(1, widths[source], widths[target])
        if source < target:
          one += (target - source - 1) * convolution(3, widths[source], widths[source])
          one += convolution(3, widths[source], widths[target])
    total += exchanges * one
  module = HRNet(HRNETS[f"hrnetv2_w{width}"])
  image = np.zeros((1, 64, 64, 3), np.float32)
  shapes = jax.eval_shape(lambda rng: module.init(rng, image, False), jax.random.key(0))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == total


def fields(**more):
  model = defaults().model
  model.update({"name": "fcn", "output_stride": 4, "channels": 16, "dtype": "float32"} | more)
  return model


@pytest.mark.parametrize(
  ("more", "words"),
  [
    ({"output_stride": 8}, ("model.output_stride is 8", "expected one of 4")),
    ({"hrnet_upsample": "cubic"}, ("model.hrnet_upsample is 'cubic'", "bilinear-twice", "nearest")),
  ],
)
def test_a_field_that_cannot_work_is_named(more, words):
  with pytest.raises(ValueError) as error:
    models.build(fields(backbone="hrnetv2_tiny", **more), 5)
  for word in words:
    assert word in str(error.value)


def test_nearest_refuses_sizes_that_do_not_halve():
  network = models.build(fields(backbone="hrnetv2_tiny", hrnet_upsample="nearest"), 5)
  with pytest.raises(ValueError, match=r"model\.hrnet_upsample is 'nearest'.* 32, found 65 x 96"):
    network.init(jax.random.key(0), (65, 96))
