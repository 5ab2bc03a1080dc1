"""DANet, CCNet and EncNet in plain PyTorch, written from the papers, and what their heads are held to.

``forward`` returns logits, features and what more the head says in training. Leaves have the network's names.
"""

import jax
import numpy as np
import torch
from torch import nn

from rc_jax.models import Stages
from tests.support.torch_reference import ConvNormRelu, randomize


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

  def forward(self, x):
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

  def forward(self, x):
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

  def forward(self, x):
    x = self.reduce(x)
    encoding = self.encoding(self.project(x))
    features = (x + x * self.gate(encoding).sigmoid()[:, :, None, None]).relu()
    return self.classifier(features), features, self.presence(encoding)


def randomize_all(module, seed):
  """Gives what ``randomize`` leaves alone values of its own, too."""
  randomize(module, seed)
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for part in module.modules():
      if isinstance(part, nn.Linear):
        part.weight.normal_(0, part.in_features**-0.5, generator=generator)
        part.bias.normal_(0, 0.5, generator=generator)
      if isinstance(part, nn.BatchNorm1d):
        part.weight.uniform_(0.5, 1.5, generator=generator)
        part.bias.normal_(0, 0.3, generator=generator)
        part.running_mean.normal_(0, 0.3, generator=generator)
        part.running_var.uniform_(2, 8, generator=generator)
    for name, parameter in module.named_parameters():
      if name.endswith("gamma"):
        parameter.uniform_(0.5, 1.5, generator=generator)
      if name.endswith("codewords"):
        parameter.normal_(0.5, 0.5, generator=generator)
      if name.endswith("smoothing"):
        parameter.uniform_(-1, 0, generator=generator)
  return module


def as_trees(state):
  """A state dict as (params, batch_stats) of nested dicts, part by part of its names, leaves of any name."""
  params, batch_stats = {}, {}
  for name, tensor in state.items():
    *path, leaf = name.split(".")
    if leaf == "num_batches_tracked":
      continue
    array = tensor.float().numpy()
    if leaf == "weight":
      leaf = "scale" if array.ndim == 1 else "kernel"
      array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    tree = batch_stats if leaf.startswith("running_") else params
    for part in path:
      tree = tree.setdefault(part, {})
    tree[leaf.removeprefix("running_")] = array
  return params, batch_stats


def channels_last(y):
  return y.permute(0, 2, 3, 1) if y.ndim == 4 else y


def said(outputs):
  """All that a head says, in the order of the originals here."""
  more = (extra.logits for name, extra in sorted(outputs.extra.items()))
  return outputs.logits, outputs.features, *more


def assert_same_in_prediction(module, original, x):
  """Holds logits and features to the original's at random values and running statistics; nothing more is said."""
  randomize_all(original, seed=1).eval()
  params, batch_stats = as_trees(original.state_dict())
  with torch.no_grad():
    expected = [channels_last(y).numpy() for y in original(torch.tensor(x).permute(0, 3, 1, 2))]
  variables = {"params": params, "batch_stats": batch_stats}
  ours = said(jax.jit(lambda v, x: module.apply(v, Stages(x, None, x), False))(variables, x))
  assert len(ours) == 2
  for ours_, theirs in zip(ours, expected[:2], strict=True):
    assert ours_.shape == theirs.shape
    np.testing.assert_allclose(ours_, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def assert_same_in_training(module, original, x):
  """Holds all outputs, all gradients, none of them zero, and the new statistics to the original's in float64."""
  randomize_all(original, seed=2)
  params, batch_stats = as_trees(original.state_dict())
  original.double().train()
  tensor = torch.tensor(x).permute(0, 3, 1, 2).double().requires_grad_()
  expected = original(tensor)
  random = np.random.default_rng(3)
  weights = [random.standard_normal(channels_last(y).shape).astype(np.float32) for y in expected]
  sum((channels_last(y) * torch.tensor(w)).sum() for y, w in zip(expected, weights, strict=True)).backward()

  def loss(params, x):
    variables = {"params": params, "batch_stats": batch_stats}
    rngs = {"dropout": jax.random.key(0)}
    outputs, updates = module.apply(variables, Stages(x, None, x), True, rngs=rngs, mutable=["batch_stats"])
    total = sum((y * w).sum() for y, w in zip(said(outputs), weights, strict=True))
    return total, (said(outputs), updates["batch_stats"])

  gradients, (ours, statistics) = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)
  for ours_, theirs in zip(ours, expected, strict=True):
    theirs = channels_last(theirs).detach().numpy()
    np.testing.assert_allclose(ours_, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())

  read = as_trees({name: parameter.grad for name, parameter in original.named_parameters()})[0]
  largest_of_all = max(np.abs(leaf).max() for leaf in jax.tree.leaves(read))

  def close(path, ours, theirs):
    where, largest = jax.tree_util.keystr(path), np.abs(theirs).max()
    # What adds the same to all terms of a softmax learns from rounding alone: the bias of its keys.
    constant = "'key'" in where and where.endswith("['bias']")
    assert constant or largest > 1e-6 * largest_of_all, f"{where}: nothing learns from a gradient of zero"
    assert np.abs(ours - theirs).max() < 1e-3 * largest + 1e-5 * largest_of_all, where

  jax.tree_util.tree_map_with_path(close, gradients[0], read)
  jax.tree_util.tree_map_with_path(close, statistics, as_trees(original.state_dict())[1])
  close((), gradients[1], tensor.grad.permute(0, 2, 3, 1).numpy())
