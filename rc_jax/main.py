"""The command line: ``python -m rc_jax.main --config=configs/demo.py [--workdir=DIR] [--mode=train]``.

Flags are read, a mode is picked, and a user's mistake becomes one line on the screen; nothing else happens here.
"""

import os
import pathlib
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Recipe, such as configs/demo.py; its fields are set with --config.path.to.field=value."
)
_WORKDIR = flags.DEFINE_string("workdir", "", "The run's folder. Default: runs/<name of the recipe>.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval", "predict", "report"], "What to do.")
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", "", "A run or one step of it. Default: the newest of --workdir."
)
_IMAGES = flags.DEFINE_string(
  "images", "", "For predict: an image or a folder. Default: the images of eval.split."
)

USAGE_ERROR = 2


def main(argv: Sequence[str]) -> int:
  """Runs a mode; returns the process's exit status."""
  try:
    return _run(argv)
  except (ValueError, OSError) as error:
    # What the project raises on purpose is one line that says what to do. RC_JAX_TRACEBACK=1 shows where it was raised.
    if os.environ.get("RC_JAX_TRACEBACK"):
      raise
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return USAGE_ERROR


def _run(argv: Sequence[str]) -> int:
  config_file = _parse(argv)
  config = _CONFIG.value

  # Imported once the flags are known to be right: a typo is answered in a second, not after JAX has started.
  from rc_jax import sharding
  from rc_jax.config import validate

  validate(config)
  config = config.copy_and_resolve_references()
  workdir = pathlib.Path(_WORKDIR.value or f"runs/{config_file.stem}")
  if workdir.exists() and not workdir.is_dir():
    raise ValueError(f"--workdir={workdir}: is a file; expected a folder, or a name that is free")
  workdir.mkdir(parents=True, exist_ok=True)
  checkpoint = pathlib.Path(_CHECKPOINT.value) if _CHECKPOINT.value else None
  images = pathlib.Path(_IMAGES.value) if _IMAGES.value else None
  sharding.connect()

  if _MODE.value == "train":
    from rc_jax import train

    return train.train(config, workdir)
  if _MODE.value == "eval":
    from rc_jax import evaluate

    evaluate.run(config, workdir, checkpoint)
  elif _MODE.value == "predict":
    from rc_jax import predict

    predict.run(config, workdir, checkpoint, images)
  else:
    from rc_jax import report

    report.run(config, workdir, checkpoint)
  return 0


def _parse(argv: Sequence[str]) -> pathlib.Path:
  """Parses the flags; returns the recipe's file."""
  given = [argument for argument in argv[1:] if argument.startswith(("--config=", "-config="))]
  file = pathlib.Path(given[-1].split("=", 1)[1].split(":")[0]) if given else None
  if file is not None and not file.is_file():
    raise ValueError(f"--config={file}: no such file; recipes are in configs/, such as configs/demo.py")
  try:
    rest = flags.FLAGS(argv)
  except flags.Error as error:
    raise ValueError(str(error)) from error
  except (AttributeError, KeyError, TypeError) as error:
    # ml_collections names the typo and the closest field, in quotes inside quotes.
    text = str(error).replace("\\n", " ").replace("\\'", "'").replace('"', "").strip("\"' ")
    raise ValueError(f"--config: {text}") from error
  if len(rest) > 1:
    raise ValueError(f"unexpected argument {rest[1]!r}; every option starts with --")
  if file is None:
    raise ValueError("--config is missing; try: python -m rc_jax.main --config=configs/demo.py")
  return file


if __name__ == "__main__":
  sys.exit(main(sys.argv))
