"""The command ``rc_jax``, and ``python -m rc_jax``: the same as ``python -m rc_jax.main``."""

import importlib.metadata
import re
import sys

MISSING_PACKAGES = 2  # the exit status of every mistake that the user can mend


def cli() -> int:
  """Runs the command line of this process.

  Returns:
    The exit status; 2 when packages of the extra ``train`` are not installed.
  """
  missing = missing_packages()
  if missing:
    print(
      f"error: the command rc_jax needs packages that are not installed ({', '.join(missing)}); "
      "run: pip install 'rc_jax[train]'",
      file=sys.stderr,
    )
    return MISSING_PACKAGES
  from rc_jax import main

  return main.main(sys.argv)


def missing_packages() -> tuple[str, ...]:
  """Returns the packages of the extra ``train`` that are not installed; none in a checkout that is not installed."""
  try:
    requirements = importlib.metadata.requires("rc_jax") or []
  except importlib.metadata.PackageNotFoundError:
    return ()
  missing = []
  for requirement in requirements:
    name = re.match(r"[\w.-]+", requirement)
    if name and re.search(r"""extra == ['"]train['"]""", requirement):
      try:
        importlib.metadata.version(name[0])
      except importlib.metadata.PackageNotFoundError:
        missing.append(name[0])
  return tuple(missing)


if __name__ == "__main__":
  sys.exit(cli())
