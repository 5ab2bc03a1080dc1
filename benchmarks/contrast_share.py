"""Times the training step of a recipe with the contrastive loss and without it, in turn.

  python -m benchmarks.contrast_share --config=configs/camvid.py:cpu [--rounds=10] [--batch_size=1] [--crop_size=769]

The banks are full, as after an epoch. The ratio minus 1 is the cost of the loss.
"""

import argparse

from benchmarks import steps, timing
from rc_jax.config import load_recipe


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", default="configs/demo.py")
  parser.add_argument("--rounds", type=int, default=10)
  parser.add_argument("--batch_size", type=int, default=0, help="default: the recipe's")
  parser.add_argument("--crop_size", type=int, default=0, help="default: the recipe's")
  arguments = parser.parse_args()
  config = load_recipe(arguments.config)
  config.train.batch_size = arguments.batch_size or config.train.batch_size
  if arguments.crop_size:
    config.train.crop_size = (arguments.crop_size,)
  baseline = config.copy_and_resolve_references()
  baseline.contrast.scope = "none"
  candidates = {"cross entropy alone": steps.one_step(baseline), "RegionContrast": steps.one_step(config)}
  print(f"{arguments.config}: {steps.describe(config)}, {arguments.rounds} rounds")
  print(timing.table(timing.in_turn(candidates, arguments.rounds), reference="cross entropy alone"))


if __name__ == "__main__":
  main()
