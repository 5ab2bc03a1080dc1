"""The heads of PSPNet, DeepLabV3+ and OCRNet in plain PyTorch, written from the papers, and what all are held to.

``forward`` takes the stages early, middle, last and returns logits, features and, of OCRNet, the coarse logits.
"""

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from rc_jax.models import Stages
from tests.support.head_checks import compiled_once
from tests.support.torch_reference import FCN, ConvNormRelu, as_trees, randomize


class PSP(nn.Module):
  def __init__(self, inputs, outputs, classes, bins, align_corners):
    super().__init__()
    self.bins, self.align_corners = bins, align_corners
    for i in range(len(bins)):
      setattr(self, f"bin{i}", ConvNormRelu(inputs, outputs, 1))
    self.fuse = ConvNormRelu(inputs + len(bins) * outputs, outputs, 3)
    self.classifier = nn.Conv2d(outputs, classes, 1)

  def forward(self, early, middle, x):
    levels = [x]
    for i, side in enumerate(self.bins):
      level = getattr(self, f"bin{i}")(functional.adaptive_avg_pool2d(x, side))
      levels.append(resize(level, x, self.align_corners))
    features = self.fuse(torch.cat(levels, 1))
    return self.classifier(features), features


class Separable(nn.Module):
  def __init__(self, inputs, outputs, size, dilation=1):
    super().__init__()
    reach = dilation * (size // 2)
    self.depthwise = nn.Conv2d(inputs, inputs, size, 1, reach, dilation, inputs, bias=False)
    self.depthwise_bn = nn.BatchNorm2d(inputs)
    self.pointwise = ConvNormRelu(inputs, outputs, 1)

  def forward(self, x):
    return self.pointwise(self.depthwise_bn(self.depthwise(x)).relu())


class PlusASPP(nn.Module):
  def __init__(self, inputs, outputs, rates, project, separable):
    super().__init__()
    self.conv1x1 = ConvNormRelu(inputs, outputs, 1)
    for i, rate in enumerate(rates):
      setattr(self, f"rate{i}", (Separable if separable else ConvNormRelu)(inputs, outputs, 3, rate))
    self.pool = ConvNormRelu(inputs, outputs, 1)
    if project:
      self.project = ConvNormRelu((len(rates) + 2) * outputs, outputs, 1)
    self.rates = len(rates)

  def forward(self, x):
    pooled = self.pool(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
    x = torch.cat([self.conv1x1(x), *(getattr(self, f"rate{i}")(x) for i in range(self.rates)), pooled], 1)
    return self.project(x) if hasattr(self, "project") else x


class DeepLabV3Plus(nn.Module):
  def __init__(self, inputs, outputs, classes, rates, project, separable, align_corners):
    """``inputs``: channels of the early stage, of the last, and what the early ones are brought to."""
    super().__init__()
    early, last, reduced = inputs
    self.aspp = PlusASPP(last, outputs, rates, project, separable)
    if not project:
      self.fuse = ConvNormRelu((len(rates) + 2) * outputs, outputs, 3)
    self.early = ConvNormRelu(early, reduced, 1)
    refine = Separable if separable else ConvNormRelu
    self.refine0, self.refine1 = refine(outputs + reduced, outputs, 3), refine(outputs, outputs, 3)
    self.classifier = nn.Conv2d(outputs, classes, 1)
    self.align_corners = align_corners

  def forward(self, early, middle, x):
    x = self.aspp(x)
    x = self.fuse(x) if hasattr(self, "fuse") else x
    x = torch.cat([resize(x, early, self.align_corners), self.early(early)], 1)
    features = self.refine1(self.refine0(x))
    return self.classifier(features), features


class OCR(nn.Module):
  def __init__(self, inputs, outputs, keys, coarse, classes, align_corners):
    """``inputs``: channels of the middle stage, or None, and of the last; ``coarse``: of its 3x3 convolution."""
    super().__init__()
    middle, last = inputs
    self.coarse = FCN(middle, coarse, classes) if middle else FCN(last, last, classes, size=1)
    self.pixels = ConvNormRelu(last, outputs, 3)
    self.query0, self.query1 = ConvNormRelu(outputs, keys, 1), ConvNormRelu(keys, keys, 1)
    self.key0, self.key1 = ConvNormRelu(outputs, keys, 1), ConvNormRelu(keys, keys, 1)
    self.value, self.out = ConvNormRelu(outputs, keys, 1), ConvNormRelu(keys, outputs, 1)
    self.fuse = ConvNormRelu(2 * outputs, outputs, 1)
    self.classifier = nn.Conv2d(outputs, classes, 1)
    self.align_corners = align_corners

  def forward(self, early, middle, x):
    coarse = self.coarse(x if middle is None else middle)
    pixels = self.pixels(x)
    weights = resize(coarse, x, self.align_corners).flatten(2).softmax(2)  # [B,N,hw]
    regions = (weights @ pixels.flatten(2).mT).mT[..., None]  # [B,C,N,1]
    queries = self.query1(self.query0(pixels)).flatten(2)  # [B,K,hw]
    keys = self.key1(self.key0(regions)).flatten(2)  # [B,K,N]
    attention = (queries.mT @ keys / keys.shape[1] ** 0.5).softmax(2)  # [B,hw,N]
    context = (self.value(regions).flatten(2) @ attention.mT).unflatten(2, pixels.shape[2:])
    features = self.fuse(torch.cat([self.out(context), pixels], 1))
    return self.classifier(features), features, coarse


def resize(x, like, align_corners):
  return functional.interpolate(x, like.shape[2:], mode="bilinear", align_corners=align_corners)


def assert_same_in_prediction(module, original, stages):
  """Holds logits, features and coarse logits to the original's, at random values and running statistics."""
  randomize(original, seed=1).eval()
  params, batch_stats = as_trees(original.state_dict())
  with torch.no_grad():
    expected = [y.permute(0, 2, 3, 1).numpy() for y in original(*as_tensors(stages, torch.float32))]
  variables = {"params": params, "batch_stats": batch_stats}
  outputs = compiled_once(lambda *given: module.apply(*given, False), variables, stages)
  for ours, theirs in zip(outputs[: len(expected)], expected, strict=True):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
  assert outputs[len(expected) :] == (None, (), None)[len(expected) - 2 :]


def assert_same_in_training(module, original, stages):
  """Holds gradients of parameters and stages, none of them zero, and new statistics to the original's in float64."""
  randomize(original, seed=2)
  params, batch_stats = as_trees(original.state_dict())
  original.double().train()
  tensors = as_tensors(stages, torch.float64)
  expected = original(*tensors)
  random = np.random.default_rng(3)
  weights = [random.standard_normal(y.permute(0, 2, 3, 1).shape).astype(np.float32) for y in expected]
  pairs = zip(expected, weights, strict=True)
  sum((y * torch.tensor(w).permute(0, 3, 1, 2)).sum() for y, w in pairs).backward()

  def loss(params, stages):
    variables = {"params": params, "batch_stats": batch_stats}
    rngs = {"dropout": jax.random.key(0)}
    outputs, updates = module.apply(variables, stages, True, rngs=rngs, mutable=["batch_stats"])
    pairs = zip(outputs[: len(weights)], weights, strict=True)
    return sum((y * w).sum() for y, w in pairs), updates["batch_stats"]

  gradients, statistics = compiled_once(jax.grad(loss, (0, 1), has_aux=True), params, stages)

  def close(path, ours, theirs):
    where, largest = jax.tree_util.keystr(path), np.abs(theirs).max()
    assert largest > 0, f"{where}: nothing learns from a gradient of zero"
    assert np.abs(ours - theirs).max() < 1e-3 * largest, where

  read = {name: parameter.grad for name, parameter in original.named_parameters()}
  jax.tree_util.tree_map_with_path(close, gradients[0], as_trees(read)[0])
  jax.tree_util.tree_map_with_path(close, statistics, as_trees(original.state_dict())[1])
  for name, ours, tensor in zip(Stages._fields, gradients[1], tensors, strict=True):
    if tensor is not None and tensor.grad is not None:
      close((jax.tree_util.GetAttrKey(name),), ours, tensor.grad.permute(0, 2, 3, 1).numpy())


def as_tensors(stages, dtype):
  """Stages channels first, leaves of the gradient; None stays None."""
  return [
    x if x is None else torch.tensor(x).permute(0, 3, 1, 2).to(dtype).detach().requires_grad_()
    for x in stages
  ]
