"""Times train steps on a CPU against PyTorch: the same network, shapes, losses and update, in float32.

  JAX_PLATFORMS=cpu python -m benchmarks.cpu_steps [--case=resnet50_stride8] [--rounds=5] [--no_compile]

Each case times, in turn in one process with as many threads: rc_jax with RegionContrast (banks full), rc_jax with cross
entropy alone, and PyTorch with cross entropy alone, eager in both memory layouts and under ``torch.compile``. A step
is a forward pass in training mode, both cross entropies at the images' size, all gradients, and an SGD update with
momentum and weight decay. The ratio is the time of the row over that of rc_jax with cross entropy alone. The process
has huge pages for all candidates, as the command ``rc_jax`` has. Needs the extra ``parity``.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import torch

from benchmarks import steps, timing
from rc_jax import data, huge_pages
from rc_jax.config import Config, load_recipe
from rc_jax.models.backbones.hrnet import HRNETS
from rc_jax.models.backbones.resnet import RESNETS, stage_steps
from tests.support import torch_hrnet, torch_reference


def resnet50(output_stride: int) -> Config:
  """Returns the recipe of Cityscapes on two crops of 257 pixels in float32."""
  config = load_recipe("configs/cityscapes.py")
  config.model.output_stride = output_stride
  return small(config)


def hrnetv2_w18() -> Config:
  """Returns the recipe of Cityscapes with HRNetV2-W18, on two crops of 257 pixels in float32."""
  config = load_recipe("configs/cityscapes.py:hrnetv2_w48")
  config.model.backbone = "hrnetv2_w18"
  return small(config)


def small(config: Config) -> Config:
  """Gives a recipe two crops of 257 pixels in float32."""
  config.train.crop_size, config.train.batch_size = (257,), 2
  config.model.dtype = "float32"
  return config


CASES: dict[str, Callable[[], Config]] = {
  "resnet50_stride8": lambda: resnet50(8),
  "resnet50_stride16": lambda: resnet50(16),
  "hrnetv2_w18": hrnetv2_w18,
  "demo": lambda: load_recipe("configs/demo.py"),
}


def torch_network(config: Config, num_classes: int) -> torch.nn.Module:
  """Builds the network of a recipe in PyTorch; it takes ``[B,3,H,W]`` and returns logits and auxiliary logits."""
  model = config.model
  if model.backbone in RESNETS:
    spec = RESNETS[model.backbone]
    plan = []
    for number, (stride, before, after) in enumerate(stage_steps(model.output_stride)):
      factors = model.multi_grid if number == 3 else (1,) * spec.blocks[number]
      plan.append(
        [
          (stride if i == 0 else 1, (before if i == 0 else after) * factor, after * factor)
          for i, factor in enumerate(factors)
        ]
      )
    backbone = torch_reference.ResNet(
      plan, spec.bottleneck, spec.width, model.stem, model.stride_on, model.ceil_pool
    )
    outputs = spec.width * 8 * (4 if spec.bottleneck else 1)
    return torch_reference.DeepLabV3(backbone, outputs, model.channels, model.aspp_rates, num_classes)
  return HRNetV2(config, num_classes)


class HRNetV2(torch.nn.Module):
  """HRNetV2 with its own head: the branches are concatenated at the finest grid and classified."""

  def __init__(self, config: Config, num_classes: int):
    super().__init__()
    spec = HRNETS[config.model.backbone]
    resize = torch_hrnet.in_one_step(config.model.align_corners)
    self.resize = resize
    self.backbone = torch_hrnet.HRNet(spec.width, spec.modules, spec.blocks, spec.stem, resize)
    channels = 15 * spec.width
    self.head = torch_reference.FCN(channels, channels, num_classes, convs=1, size=1)

  def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
    maps = self.backbone(images)
    size = maps[0].shape[2:]
    return self.head(torch.cat([self.resize(each, size, 0) for each in maps], 1)), None


def torch_step(config: Config, channels_last: bool, compiled: bool) -> Callable[[], Any]:
  """Returns a function that makes one update in PyTorch."""
  classes = data.info(config.dataset.name, config.dataset.root).num_classes
  layout = torch.channels_last if channels_last else torch.contiguous_format
  network = torch_network(config, classes).train().to(memory_format=layout)
  forward = torch.compile(network) if compiled else network
  optimizer, weights = config.optimizer, config.loss
  rule = torch.optim.SGD(
    network.parameters(), optimizer.learning_rate, optimizer.momentum, weight_decay=optimizer.weight_decay
  )
  batch = steps.made_up_batch(config, classes)
  images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).float().contiguous(memory_format=layout)
  labels = torch.from_numpy(batch["label"]).long()

  def loss_of(logits: torch.Tensor) -> torch.Tensor:
    upsampled = torch.nn.functional.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=True)
    return torch.nn.functional.cross_entropy(upsampled, labels, ignore_index=255)

  def update() -> None:
    rule.zero_grad(set_to_none=True)
    logits, auxiliary = forward(images)
    loss = loss_of(logits)
    if auxiliary is not None:
      loss = loss + weights.aux_weight * loss_of(auxiliary)
    loss.backward()
    rule.step()

  return update


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--case", choices=tuple(CASES), action="append", help="default: all")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument(
    "--no_compile", action="store_true", help="leave out torch.compile, which needs minutes"
  )
  arguments = parser.parse_args()
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  print(f"torch {torch.__version__} with {torch.get_num_threads()} threads")
  for name in arguments.case or CASES:
    config = CASES[name]()
    config.model.dropout = 0.0  # the networks in PyTorch have none
    baseline = config.copy_and_resolve_references()
    baseline.contrast.scope = "none"
    candidates = {
      "rc_jax, cross entropy alone": steps.one_step(baseline),
      "rc_jax, RegionContrast": steps.one_step(config),
      "PyTorch, eager": torch_step(config, channels_last=False, compiled=False),
      "PyTorch, eager, channels last": torch_step(config, channels_last=True, compiled=False),
    }
    if not arguments.no_compile:
      candidates["PyTorch, torch.compile"] = torch_step(config, channels_last=False, compiled=True)
    print(f"\n{name}: {steps.describe(config)}, {arguments.rounds} rounds", flush=True)
    print(
      timing.table(timing.in_turn(candidates, arguments.rounds, warm=True), "rc_jax, cross entropy alone"),
      flush=True,
    )


if __name__ == "__main__":
  huge_pages.restart_with_huge_pages()
  main()
