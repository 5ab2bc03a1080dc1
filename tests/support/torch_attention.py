"""DANet, CCNet and EncNet in plain PyTorch, written from the papers: the oracle of ``tests/models/test_heads.py``.

``forward`` takes stages 1, 3 and 4, channels first, and returns logits, features and the logits of the extra outputs.
"""

import torch
from torch import nn

from tests.support.torch_reference import ConvNormRelu


class PositionAttention(nn.Module):
  def __init__(self, channels, keys):
    super().__init__()
    self.query, self.key = nn.Conv2d(channels, keys, 1), nn.Conv2d(channels, keys, 1)
    self.value, self.gamma = nn.Conv2d(channels, channels, 1), nn.Parameter(torch.zeros(()))

  def forward(self, x):
    query, key, value = (part(x).flatten(2) for part in (self.query, self.key, self.value))  # [B,D,hw]
    weights = (query.mT @ key).softmax(2)
    return x + self.gamma * (value @ weights.mT).view(x.shape)


class ChannelAttention(nn.Module):
  def __init__(self):
    super().__init__()
    self.gamma = nn.Parameter(torch.zeros(()))

  def forward(self, x):
    rows = x.flatten(2)  # [B,C,hw]
    return x + self.gamma * ((-rows @ rows.mT).softmax(2) @ rows).view(x.shape)


class Branch(nn.Module):
  def __init__(self, inputs, channels, classes, attention):
    super().__init__()
    self.before, self.after = ConvNormRelu(inputs, channels, 3), ConvNormRelu(channels, channels, 3)
    self.attention, self.classifier = attention, nn.Conv2d(channels, classes, 1)

  def forward(self, x):
    return self.after(self.attention(self.before(x)))


class DANet(nn.Module):
  def __init__(self, inputs, channels, keys, classes):
    super().__init__()
    self.position = Branch(inputs, channels, classes, PositionAttention(channels, keys))
    self.channel = Branch(inputs, channels, classes, ChannelAttention())
    self.classifier = nn.Conv2d(channels, classes, 1)

  def forward(self, stage1, stage3, x):
    position, channel = self.position(x), self.channel(x)
    alone = self.position.classifier(position), self.channel.classifier(channel)
    return self.classifier(position + channel), position + channel, *alone


class CrissCrossAttention(nn.Module):
  """Walks over the pixels, one by one."""

  def __init__(self, channels):
    super().__init__()
    self.query, self.key = (nn.Conv2d(channels, channels // 8, 1) for _ in range(2))
    self.value, self.gamma = nn.Conv2d(channels, channels, 1), nn.Parameter(torch.zeros(()))

  def forward(self, x):
    query, key, value = self.query(x), self.key(x), self.value(x)
    height, width = x.shape[2:]
    pixels = []
    for i in range(height):
      for j in range(width):
        cross = [(row, j) for row in range(height) if row != i] + [(i, column) for column in range(width)]
        keys, values = (torch.stack([y[:, :, a, b] for a, b in cross], 2) for y in (key, value))  # [B,D,n]
        weights = (query[:, :, i, j, None] * keys).sum(1, keepdim=True).softmax(2)
        pixels.append((weights * values).sum(2))
    return x + self.gamma * torch.stack(pixels, 2).view(x.shape)


class CCNet(nn.Module):
  def __init__(self, inputs, channels, recurrence, classes):
    super().__init__()
    self.before, self.after = ConvNormRelu(inputs, channels, 3), ConvNormRelu(channels, channels, 3)
    self.attention, self.recurrence = CrissCrossAttention(channels), recurrence
    self.fuse = ConvNormRelu(inputs + channels, channels, 3)
    self.classifier = nn.Conv2d(channels, classes, 1)

  def forward(self, stage1, stage3, x):
    y = self.before(x)
    for _ in range(self.recurrence):
      y = self.attention(y)
    features = self.fuse(torch.cat([x, self.after(y)], 1))
    return self.classifier(features), features


class Encoding(nn.Module):
  def __init__(self, channels, codes):
    super().__init__()
    self.codewords = nn.Parameter(torch.zeros(codes, channels))
    self.smoothing, self.bn = nn.Parameter(torch.zeros(codes)), nn.BatchNorm1d(codes)

  def forward(self, x):
    residuals = x.flatten(2).mT[:, :, None] - self.codewords  # [B,hw,K,C]
    weights = (self.smoothing * residuals.square().sum(3)).softmax(2)[..., None]
    return self.bn((weights * residuals).sum(1)).relu().mean(1)


class EncNet(nn.Module):
  def __init__(self, inputs, channels, codes, classes):
    super().__init__()
    self.reduce, self.project = ConvNormRelu(inputs, channels, 3), ConvNormRelu(channels, channels, 1)
    self.encoding, self.gate = Encoding(channels, codes), nn.Linear(channels, channels)
    self.classifier, self.presence = nn.Conv2d(channels, classes, 1), nn.Linear(channels, classes)

  def forward(self, stage1, stage3, x):
    x = self.reduce(x)
    encoding = self.encoding(self.project(x))
    features = (x + x * self.gate(encoding).sigmoid()[:, :, None, None]).relu()
    return self.classifier(features), features, self.presence(encoding)
