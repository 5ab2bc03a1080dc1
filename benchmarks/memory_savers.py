"""Times the train step with rematerialization and with the batch in parts against the recipe as it is, in turn.

  python -m benchmarks.memory_savers --config=configs/camvid.py:cpu [--rounds=5]

``--mode=compile --alternatives`` shows the memory of the same settings, also for devices that are not attached.
"""

import argparse

from benchmarks import steps, timing
from rc_jax.config import load_recipe, set_field
from rc_jax.modes.compile import memory_savers


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", default="configs/demo.py")
  parser.add_argument("--rounds", type=int, default=5)
  arguments = parser.parse_args()
  candidates = {}
  for name, fields in memory_savers(load_recipe(arguments.config)).items():
    config = load_recipe(arguments.config)
    for path, value in fields.items():
      set_field(config, path, value)
    candidates[name] = steps.one_step(config)
  print(f"{arguments.config}: {steps.describe(load_recipe(arguments.config))}, {arguments.rounds} rounds")
  print(timing.table(timing.in_turn(candidates, arguments.rounds), reference="as configured"))


if __name__ == "__main__":
  main()
