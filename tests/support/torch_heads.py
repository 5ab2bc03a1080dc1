"""Heads without attention in plain PyTorch, written from the papers: the oracle of ``tests/models/test_heads.py``.

``forward`` takes stages 1, 3 and 4, channels first, and returns logits, features and the logits of the extra outputs.
"""

import torch
from torch import nn
from torch.nn import functional

from tests.support import torch_reference
from tests.support.torch_reference import ConvNormRelu


class FCN(torch_reference.FCN):
  def forward(self, stage1, stage3, x):
    features = self.features(x)
    return self.classifier(features), features


class DeepLabV3(torch_reference.Head):
  def forward(self, stage1, stage3, x):
    features = self.fuse(self.aspp(x))
    return self.classifier(features), features


class PSP(nn.Module):
  def __init__(self, inputs, outputs, classes, bins, align_corners):
    super().__init__()
    self.bins, self.align_corners = bins, align_corners
    for i in range(len(bins)):
      setattr(self, f"bin{i}", ConvNormRelu(inputs, outputs, 1))
    self.fuse = ConvNormRelu(inputs + len(bins) * outputs, outputs, 3)
    self.classifier = nn.Conv2d(outputs, classes, 1)

  def forward(self, stage1, stage3, x):
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
    """``inputs``: channels of stage 1, of stage 4, and of the reduced stage 1."""
    super().__init__()
    stage1, last, reduced = inputs
    self.aspp = PlusASPP(last, outputs, rates, project, separable)
    if not project:
      self.fuse = ConvNormRelu((len(rates) + 2) * outputs, outputs, 3)
    self.early = ConvNormRelu(stage1, reduced, 1)
    refine = Separable if separable else ConvNormRelu
    self.refine0, self.refine1 = refine(outputs + reduced, outputs, 3), refine(outputs, outputs, 3)
    self.classifier = nn.Conv2d(outputs, classes, 1)
    self.align_corners = align_corners

  def forward(self, stage1, stage3, x):
    x = self.aspp(x)
    x = self.fuse(x) if hasattr(self, "fuse") else x
    x = torch.cat([resize(x, stage1, self.align_corners), self.early(stage1)], 1)
    features = self.refine1(self.refine0(x))
    return self.classifier(features), features


class OCR(nn.Module):
  def __init__(self, inputs, outputs, keys, coarse, classes, align_corners):
    """``inputs``: channels of stage 3, or None, and of stage 4; ``coarse``: of its 3x3 convolution."""
    super().__init__()
    stage3, last = inputs
    fcn = torch_reference.FCN
    self.coarse = fcn(stage3, coarse, classes) if stage3 else fcn(last, last, classes, size=1)
    self.pixels = ConvNormRelu(last, outputs, 3)
    self.query0, self.query1 = ConvNormRelu(outputs, keys, 1), ConvNormRelu(keys, keys, 1)
    self.key0, self.key1 = ConvNormRelu(outputs, keys, 1), ConvNormRelu(keys, keys, 1)
    self.value, self.out = ConvNormRelu(outputs, keys, 1), ConvNormRelu(keys, outputs, 1)
    self.fuse = ConvNormRelu(2 * outputs, outputs, 1)
    self.classifier = nn.Conv2d(outputs, classes, 1)
    self.align_corners = align_corners

  def forward(self, stage1, stage3, x):
    coarse = self.coarse(x if stage3 is None else stage3)
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
