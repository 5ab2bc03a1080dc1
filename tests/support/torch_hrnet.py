"""HRNetV2 in plain PyTorch, written from the paper and its authors' documented key names: the tests' oracle."""

import torch
from torch import nn
from torch.nn.functional import interpolate

from tests.support.torch_reference import Block, conv


def conv_norm(inputs, outputs, size, stride, relu=False):
  return nn.Sequential(
    conv(inputs, outputs, size, stride), nn.BatchNorm2d(outputs), nn.ReLU() if relu else nn.Identity()
  )


def blocks(inputs, width, bottleneck, number):
  outputs = width * 4 if bottleneck else width
  ins = [inputs] + [outputs] * (number - 1)
  return nn.Sequential(*(Block(each, width, bottleneck, 1, (1, 1), "3x3") for each in ins))


class Exchange(nn.Module):
  """Branch ``i`` has ``width 2^i`` channels; ``resize(y, size, factor)`` brings a coarser map to a finer grid."""

  def __init__(self, width, branches, number, resize):
    super().__init__()
    widths = [width * 2**i for i in range(branches)]
    self.branches = nn.ModuleList(blocks(each, each, False, number) for each in widths)
    self.fuse_layers = nn.ModuleList(
      nn.ModuleList(self.path(widths, source, target) for source in range(branches))
      for target in range(branches)
    )
    self.resize = resize

  @staticmethod
  def path(widths, source, target):
    if source == target:
      return nn.Identity()
    if source > target:
      return conv_norm(widths[source], widths[target], 1, 1)
    halvings = target - source
    outs = [widths[source]] * (halvings - 1) + [widths[target]]
    return nn.Sequential(
      *(conv_norm(widths[source], out, 3, 2, relu=k < halvings - 1) for k, out in enumerate(outs))
    )

  def forward(self, maps):
    maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
    fused = []
    for target, paths in enumerate(self.fuse_layers):
      terms = []
      for source, path in enumerate(paths):
        y = path(maps[source])
        if source > target:
          y = self.resize(y, maps[target].shape[2:], 2 ** (source - target))
        terms.append(y)
      fused.append(torch.stack(terms).sum(0).relu())
    return fused


class HRNet(nn.Module):
  """Returns the four branches, each as it is."""

  def __init__(self, width, modules, number, stem, resize):
    super().__init__()
    self.conv1, self.bn1 = conv(3, stem, 3, 2), nn.BatchNorm2d(stem)
    self.conv2, self.bn2 = conv(stem, stem, 3, 2), nn.BatchNorm2d(stem)
    self.layer1 = blocks(stem, stem, True, number)
    first = conv_norm(4 * stem, width, 3, 1, relu=True)
    self.transition1 = nn.ModuleList([first, nn.Sequential(conv_norm(4 * stem, 2 * width, 3, 2, relu=True))])
    for stage in (2, 3):
      new = conv_norm(width * 2 ** (stage - 1), width * 2**stage, 3, 2, relu=True)
      passed = [nn.Identity()] * stage
      setattr(self, f"transition{stage}", nn.ModuleList([*passed, nn.Sequential(new)]))
    for stage, exchanges in zip((2, 3, 4), modules, strict=True):
      parts = (Exchange(width, stage, number, resize) for _ in range(exchanges))
      setattr(self, f"stage{stage}", nn.Sequential(*parts))

  def forward(self, x):
    x = self.bn1(self.conv1(x)).relu()
    x = self.layer1(self.bn2(self.conv2(x)).relu())
    maps = self.stage2([transition(x) for transition in self.transition1])
    maps = self.stage3([*maps, self.transition2[2](maps[-1])])
    return self.stage4([*maps, self.transition3[3](maps[-1])])


def in_one_step(align_corners):
  def resize(y, size, factor):
    return interpolate(y, tuple(size), mode="bilinear", align_corners=align_corners)

  return resize


def in_two_steps(y, size, factor):
  y = interpolate(y, scale_factor=factor, mode="bilinear", align_corners=False)
  return interpolate(y, tuple(size), mode="bilinear", align_corners=False)


def nearest(y, size, factor):
  return interpolate(y, scale_factor=factor, mode="nearest")
