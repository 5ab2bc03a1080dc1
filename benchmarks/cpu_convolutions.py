"""Times a training step on a CPU with XLA's convolutions and max pooling, and with those of ``rc_jax/ops/conv.py``.

JAX_PLATFORMS=cpu python -m benchmarks.cpu_convolutions --config=configs/camvid.py:cpu [--rounds=5]
"""

import argparse
import unittest.mock

import flax.linen as nn

from benchmarks import steps, timing
from rc_jax.config import load_recipe
from rc_jax.models.backbones import resnet
from rc_jax.ops import conv, conv_xla


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", default="configs/camvid.py:cpu")
  parser.add_argument("--rounds", type=int, default=5)
  arguments = parser.parse_args()
  config = load_recipe(arguments.config)

  def xla(x, kernel, stride, dilation):  # type: ignore[no-untyped-def]
    return conv_xla.forward(x, kernel, stride=stride, dilation=dilation)

  def max_pool(x, ceil):  # type: ignore[no-untyped-def]
    pads = [(1, 1 + (ceil and size % 2 == 0)) for size in x.shape[1:3]]
    return nn.max_pool(x, (3, 3), (2, 2), padding=pads)

  # The step compiles inside the patches, and keeps its form outside.
  with (
    unittest.mock.patch.object(conv, "conv2d", xla),
    unittest.mock.patch.object(resnet, "max_pool", max_pool),
  ):
    theirs = steps.one_step(config)
  candidates = {"XLA's convolutions": theirs, "rc_jax": steps.one_step(config)}
  print(f"{arguments.config}: {steps.describe(config)}, {arguments.rounds} rounds")
  print(timing.table(timing.in_turn(candidates, arguments.rounds), reference="XLA's convolutions"))


if __name__ == "__main__":
  main()
