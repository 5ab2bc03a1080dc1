"""Estimates parts of a DeepLabV3-R50 on a TPU that is not attached: forward and gradients, by the compiler's cycles.

  python -m benchmarks.tpu_cycles [--topology=v5e:2x2] [--size=97] [--form=rows] [PART ...]

Needs the extra ``tpu``, and no TPU. One chip gets one image. ``--size`` is the side of the last feature grid: 97 for a
crop of 769, 96 for 768. ``--form=xla`` computes XLA's own convolutions, the form of GPUs, in place of those for TPUs.
The times leave out the operations for which the compiler estimates nothing.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rc_jax.costs import hlo_cost
from rc_jax.costs.chips import CHIPS
from rc_jax.costs.topology import topology_mesh
from rc_jax.models.backbones.resnet import Block, DeepStem, Stage
from rc_jax.models.heads.aspp import ASPP
from rc_jax.models.layers import BatchNorm, ConvNormRelu
from rc_jax.ops import conv_rows, conv_xla
from rc_jax.ops.max_pool import max_pool


class Stem(nn.Module):
  """The deep stem with its BatchNorm and pooling."""

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = DeepStem(64, **NUMERICS, name="conv1")(x, train)
    return max_pool(BatchNorm(name="bn1")(x, train, relu=True), ceil=True)


NUMERICS: dict[str, Any] = {"dtype": jnp.bfloat16, "momentum": 0.9, "epsilon": 1e-5}
BOTTLENECK: dict[str, Any] = {"bottleneck": True, "stride_on": "3x3", **NUMERICS}


def _block(features: int, dilation: int) -> Block:
  return Block(features=features, stride=1, dilation=dilation, dilation_after=dilation, **BOTTLENECK)


# Name -> the module, channels of its input, and the side of its input in cells of the last feature grid.
PARTS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
  "stem": (Stem, 3, 8),
  "layer1 block": (lambda: _block(64, 1), 256, 2),
  "layer2": (lambda: Stage(features=128, grid=(1,) * 4, steps=(2, 1, 1), **BOTTLENECK), 256, 2),
  "layer3 block, dilation 2": (lambda: _block(256, 2), 1024, 1),
  "layer4 block, dilation 4": (lambda: _block(512, 4), 2048, 1),
  "layer4 block, dilation 16": (lambda: _block(512, 16), 2048, 1),
  "layer4": (lambda: Stage(features=512, grid=(2, 2, 4), steps=(1, 2, 4), **BOTTLENECK), 1024, 1),
  "ASPP branch, rate 12": (lambda: ConvNormRelu(256, 3, 12, **NUMERICS), 2048, 1),
  "ASPP": (lambda: ASPP(**NUMERICS), 2048, 1),
  "fusing 3x3": (lambda: ConvNormRelu(256, 3, 1, **NUMERICS), 1280, 1),
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
  parser.add_argument("--topology", default="v5e:2x2")
  parser.add_argument("--size", type=int, default=97)
  parser.add_argument("--form", choices=("rows", "xla"), default="rows")
  arguments = parser.parse_args()
  if unknown := sorted(set(arguments.parts) - PARTS.keys()):
    parser.error(f"PART is {unknown[0]}; expected one of {', '.join(PARTS)}")
  jax.config.update("jax_platforms", "cpu")
  if arguments.form == "xla":
    for name in ("forward", "input_gradient", "kernel_gradient"):
      setattr(conv_rows, name, getattr(conv_xla, name))
  device = topology_mesh(arguments.topology).devices.flat[0]
  print(f"{arguments.topology}, jax {jax.__version__}, form {arguments.form}, grid {arguments.size}")
  print("| part | ms | memory traffic | temporaries | CPU seconds of the compiler |")
  print("|---|---|---|---|---|")
  for name in arguments.parts or PARTS:
    start = time.process_time()
    compiled = compile_part(name, arguments.size, device)
    milliseconds = (
      1e3 * hlo_cost.read(hlo_cost.parse(compiled.as_text())).cycles / CHIPS[device.device_kind].clock
    )
    memory, summary = compiled.memory_analysis(), compiled.cost_analysis()
    print(
      f"| {name} | {milliseconds:.2f} | {summary['bytes accessed'] / 1e9:.2f} GB | "
      f"{memory.temp_size_in_bytes / 1e9:.2f} GB | {time.process_time() - start:.0f} |",
      flush=True,
    )


def compile_part(name: str, size: int, device: Any) -> Any:
  """Compiles the gradients of a part of the network at full effort, in training, for one image."""
  build, channels, factor = PARTS[name]
  module = build()
  side = (size - 1) * factor + 1 if size % 2 else size * factor
  placed = jax.sharding.SingleDeviceSharding(device)

  def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed), tree)

  def apply(params: Any, batch_stats: Any, x: jax.Array) -> Any:
    variables = {"params": params, "batch_stats": batch_stats}
    return module.apply(variables, x, True, mutable=["batch_stats"])

  def gradients(params: Any, batch_stats: Any, x: jax.Array, dy: jax.Array) -> Any:
    _, pull, updates = jax.vjp(lambda params, x: apply(params, batch_stats, x), params, x, has_aux=True)
    d_params, d_x = pull(dy)
    return d_params, None if name == "stem" else d_x, updates  # images have no gradient

  x = shapes(jax.ShapeDtypeStruct((1, side, side, channels), jnp.bfloat16))
  variables = shapes(jax.eval_shape(lambda x: module.init(jax.random.key(0), x, True), x))
  arguments = variables["params"], variables["batch_stats"]
  dy = shapes(jax.eval_shape(apply, *arguments, x)[0])
  return jax.jit(gradients).lower(*arguments, x, dy).compile()


if __name__ == "__main__":
  main()
