"""The command ``rc_jax``, and ``python -m rc_jax``: the same as ``python -m rc_jax.main``."""

import sys

from rc_jax.main import cli

if __name__ == "__main__":
  sys.exit(cli())
