"""The networks in plain PyTorch, written from the papers and torchvision's documented key names: the tests' oracle."""

import torch
from torch import nn


def conv(inputs, outputs, size, stride=1, dilation=1):
  return nn.Conv2d(inputs, outputs, size, stride, dilation * (size - 1) // 2, dilation, bias=False)


class Block(nn.Module):
  def __init__(self, inputs, width, bottleneck, stride, dilations, stride_on):
    super().__init__()
    outputs = width * 4 if bottleneck else width
    if bottleneck:
      first, second = (stride, 1) if stride_on == "1x1" else (1, stride)
      self.conv1, self.bn1 = conv(inputs, width, 1, first), nn.BatchNorm2d(width)
      self.conv2, self.bn2 = conv(width, width, 3, second, dilations[0]), nn.BatchNorm2d(width)
      self.conv3, self.bn3 = conv(width, outputs, 1), nn.BatchNorm2d(outputs)
    else:
      self.conv1, self.bn1 = conv(inputs, width, 3, stride, dilations[0]), nn.BatchNorm2d(width)
      self.conv2, self.bn2 = conv(width, width, 3, 1, dilations[1]), nn.BatchNorm2d(width)
      self.conv3 = None
    self.downsample = None
    if stride > 1 or inputs != outputs:
      self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

  def forward(self, x):
    y = self.bn1(self.conv1(x)).relu()
    y = self.bn2(self.conv2(y))
    if self.conv3 is not None:
      y = self.bn3(self.conv3(y.relu()))
    return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Module):
  """``dilations[i]`` lists stage i's blocks as (stride, dilation of the first 3x3, dilation of the second)."""

  def __init__(self, plan, bottleneck, width, stem, stride_on, ceil_pool=True):
    super().__init__()
    first = {"7x7": width // 2, "32-32-64": width // 2, "64-64-128": width}[stem]
    channels = 2 * first
    if stem != "7x7":
      parts = [conv(3, first, 3, 2), nn.BatchNorm2d(first), nn.ReLU()]
      parts += [conv(first, first, 3), nn.BatchNorm2d(first), nn.ReLU(), conv(first, channels, 3)]
      self.conv1 = nn.Sequential(*parts)
    else:
      self.conv1 = conv(3, width, 7, 2)
    self.bn1 = nn.BatchNorm2d(channels)
    self.pool = nn.MaxPool2d(3, 2, 1, ceil_mode=ceil_pool)
    for i, blocks in enumerate(plan):
      stage = []
      for stride, *dilations in blocks:
        stage.append(Block(channels, width * 2**i, bottleneck, stride, dilations, stride_on))
        channels = width * 2**i * (4 if bottleneck else 1)
      setattr(self, f"layer{i + 1}", nn.Sequential(*stage))

  def forward(self, x):
    stage1 = self.layer1(self.pool(self.bn1(self.conv1(x)).relu()))
    stage3 = self.layer3(self.layer2(stage1))
    return stage1, stage3, self.layer4(stage3)


class ConvNormRelu(nn.Module):
  def __init__(self, inputs, outputs, size, dilation=1):
    super().__init__()
    self.conv, self.bn = conv(inputs, outputs, size, 1, dilation), nn.BatchNorm2d(outputs)

  def forward(self, x):
    return self.bn(self.conv(x)).relu()


class ASPP(nn.Module):
  def __init__(self, inputs, outputs, rates, project):
    super().__init__()
    self.conv1x1 = ConvNormRelu(inputs, outputs, 1)
    for i, rate in enumerate(rates):
      setattr(self, f"rate{i}", ConvNormRelu(inputs, outputs, 3, rate))
    self.pool = ConvNormRelu(inputs, outputs, 1)
    self.project = ConvNormRelu((len(rates) + 2) * outputs, outputs, 1) if project else nn.Identity()
    self.rates = len(rates)

  def forward(self, x):
    pooled = self.pool(nn.functional.adaptive_avg_pool2d(x, 1))
    pooled = nn.functional.interpolate(pooled, x.shape[2:], mode="bilinear", align_corners=True)
    branches = [self.conv1x1(x), *(getattr(self, f"rate{i}")(x) for i in range(self.rates)), pooled]
    return self.project(torch.cat(branches, 1))


class Head(nn.Module):
  def __init__(self, inputs, outputs, rates, classes, project):
    super().__init__()
    self.aspp = ASPP(inputs, outputs, rates, project)
    self.fuse = ConvNormRelu(outputs if project else (len(rates) + 2) * outputs, outputs, 3)
    self.classifier = nn.Conv2d(outputs, classes, 1)

  def forward(self, x):
    return self.classifier(self.fuse(self.aspp(x)))


class FCN(nn.Module):
  def __init__(self, inputs, outputs, classes, convs=1, size=3, concat=False):
    super().__init__()
    self.convs, self.concat = convs, concat
    for i in range(convs):
      setattr(self, f"conv{i}", ConvNormRelu(outputs if i else inputs, outputs, size))
    if concat:
      self.fuse = ConvNormRelu((outputs if convs else inputs) + inputs, outputs, size)
    self.classifier = nn.Conv2d(outputs if convs or concat else inputs, classes, 1)

  def features(self, x):
    y = x
    for i in range(self.convs):
      y = getattr(self, f"conv{i}")(y)
    return self.fuse(torch.cat([x, y], 1)) if self.concat else y

  def forward(self, x):
    return self.classifier(self.features(x))


class DeepLabV3(nn.Module):
  def __init__(self, backbone, inputs, outputs, rates, classes, project=False):
    super().__init__()
    self.backbone = backbone
    self.head = Head(inputs, outputs, rates, classes, project)
    self.aux_head = FCN(inputs // 2, outputs, classes)

  def forward(self, images):
    """Takes ``[B,3,H,W]`` of 0 to 255; returns logits and auxiliary logits on their own grids."""
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=images.dtype, device=images.device).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=images.dtype, device=images.device).view(3, 1, 1)
    _, stage3, last = self.backbone((images / 255 - mean) / std)
    return self.head(last), self.aux_head(stage3)


def randomize(module, seed):
  """Gives all parameters and statistics values other than the defaults, of a size that keeps activations near 1."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for part in module.modules():
      if isinstance(part, nn.Conv2d):
        fan_in = part.weight[0].numel()
        part.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
        if part.bias is not None:
          part.bias.normal_(0, 0.5, generator=generator)
      if isinstance(part, nn.BatchNorm2d):
        part.weight.uniform_(0.5, 1.5, generator=generator)
        part.bias.normal_(0, 0.3, generator=generator)
        part.running_mean.normal_(0, 0.3, generator=generator)
        part.running_var.uniform_(0.5, 2, generator=generator)
    _randomize_encodings_and_attention(module, generator)
  return module


def _randomize_encodings_and_attention(module, generator):
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


def as_trees(state):
  """Returns a state dict as (params, batch_stats), nested dicts along its names, with Flax's leaf names and axes."""
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
