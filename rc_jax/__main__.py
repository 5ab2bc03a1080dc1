"""The command ``rc_jax``, and ``python -m rc_jax``: the same as ``python -m rc_jax.main``."""

import sys

from rc_jax import main


def cli() -> int:
  """Runs the command line of this process; returns its exit status."""
  return main.main(sys.argv)


if __name__ == "__main__":
  sys.exit(cli())
