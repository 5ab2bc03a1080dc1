"""The command line: ``python -m rc_jax.main --config=configs/demo.py [--workdir=DIR] [--mode=train]``.

Flags are read, a mode is picked, and a user's mistake becomes one line on the screen; nothing else happens here.
"""

import os
import pathlib
import sys
import traceback
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

MODES = (
  *("train", "eval", "predict", "export", "report", "summary", "compile"),
  *("inspect", "prepare", "compare"),
)

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Recipe, such as configs/demo.py; its fields are set with --config.path.to.field=value."
)
_WORKDIR = flags.DEFINE_string("workdir", "", "The run's folder. Default: runs/<name of the recipe>.")
_MODE = flags.DEFINE_enum("mode", MODES[0], MODES, "What to do.")
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", "", "A run, one step of it, or a file of weights. Default: the newest of --workdir."
)
_IMAGES = flags.DEFINE_string(
  "images", "", "For predict: an image or a folder. Default: the images of eval.split."
)
_RESULTS = flags.DEFINE_string(
  "results", "", "For compare: two runs, or two of their eval/<split>.json, separated by a comma."
)
_OUTPUT = flags.DEFINE_string(
  "output",
  "",
  "For predict, export and prepare: the folder to write. Default: predictions or export in --workdir, or "
  "config.dataset.root with _prepared behind it.",
)
_OVERWRITE = flags.DEFINE_bool(
  "overwrite", False, "For predict: label all images again. For export: replace the program that is there."
)
_RECURSIVE = flags.DEFINE_bool("recursive", False, "For predict: also the images in the folders of --images.")
_OVERLAYS = flags.DEFINE_bool("overlays", True, "For predict: also pictures with colours and a legend.")
_PROBABILITIES = flags.DEFINE_bool(
  "probabilities",
  False,
  "For predict: also each class's probabilities, as NPZ of uint8 [N,H,W] in 255ths. For export: as float32.",
)
_FORMAT = flags.DEFINE_string(
  "format", "", "For predict: also a checked zip for a test server: cityscapes, ade20k or coco_stuff."
)
_SIZE = flags.DEFINE_string("size", "", "For export: height,width of the images that the program shall read.")
_BATCH = flags.DEFINE_integer("batch", 0, "For export: images of one call. 0: any number.")
_PLATFORMS = flags.DEFINE_list(
  "platforms", ["cpu", "cuda", "tpu"], "For export: where the program shall run: some of cpu,cuda,rocm,tpu."
)
_WEIGHTS = flags.DEFINE_string(
  "weights", "inside", "For export: inside the program, or beside it in weights.safetensors."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", "", "For several processes: host:port of the first. SLURM and Cloud TPU need no such flags."
)
_PROCESSES = flags.DEFINE_string("processes", "", "For several processes: how many.")
_PROCESS_ID = flags.DEFINE_string("process_id", "", "For several processes: which this is, from 0.")
_TOPOLOGY = flags.DEFINE_string(
  "topology",
  "",
  "For compile: a TPU slice, such as v5e:4x8, that need not be attached. Default: what is attached.",
)
_FAST = flags.DEFINE_bool("fast", False, "For compile: sizes and messages alone, in a fraction of the time.")
_SAMPLE = flags.DEFINE_integer(
  "sample", 0, "For inspect: how many images of each split to check. Default: all."
)
_ENCODING = flags.DEFINE_enum(
  "encoding",
  "tiles",
  ("tiles", "original"),
  "For prepare: images without loss in tiles, of which a crop decodes what it needs, or image files as they are.",
)
_SPLITS = flags.DEFINE_string(
  "splits", "", "For prepare: train,val for instance. Default: all that are there."
)

FLAGS = (
  *(_CONFIG, _WORKDIR, _MODE, _CHECKPOINT, _IMAGES, _RESULTS),
  *(_OUTPUT, _OVERWRITE, _RECURSIVE, _OVERLAYS, _PROBABILITIES, _FORMAT),
  *(_SIZE, _BATCH, _PLATFORMS, _WEIGHTS),
  *(_COORDINATOR, _PROCESSES, _PROCESS_ID, _TOPOLOGY, _FAST, _SAMPLE),
  *(_ENCODING, _SPLITS),
)

USAGE_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT
OUT_OF_MEMORY = "lower train.batch_size or train.crop_size, or for scoring eval.batch_size or eval.crop_size"


def main(argv: Sequence[str]) -> int:
  """Runs a mode; returns the process's exit status."""
  try:
    return _run(argv)
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr, flush=True)
    return INTERRUPTED
  except (ValueError, OSError, RuntimeError) as error:
    message = _one_line(error)
    if message is None:
      raise
    if os.environ.get("RC_JAX_TRACEBACK"):
      traceback.print_exc()
  print(f"error: {message}", file=sys.stderr, flush=True)
  if "jax" in sys.modules:
    from rc_jax import distributed

    distributed.abort_process(USAGE_ERROR)
  return USAGE_ERROR


def _one_line(error: Exception) -> str | None:
  """What a person at the keyboard can act on; None for what only a traceback explains."""
  text = " ".join(str(error).split())
  if isinstance(error, RuntimeError):
    return f"out of memory ({text[:200]}); {OUT_OF_MEMORY}" if "RESOURCE_EXHAUSTED" in text else None
  # What the project raises on purpose is one line that says what to do.
  return text


def _run(argv: Sequence[str]) -> int:
  if {"--help", "-h", "-help"} & set(argv[1:]):
    print(__doc__)
    for flag in FLAGS:
      print(f"  --{flag.name}: {flags.FLAGS[flag.name].help}")
    print("\nFields of a recipe, their meanings and defaults: rc_jax/config.py")
    return 0
  recipe = _parse(argv)
  if _MODE.value == "compare":
    from rc_jax.modes import compare

    # Of two results, not of a config.
    compare.run(_RESULTS.value)
    return 0
  config = _CONFIG.value

  # Imported once the flags are known to be right: a typo is answered in a second, not after JAX has started.
  from rc_jax import distributed
  from rc_jax.config import validate

  validate(config)
  config = config.copy_and_resolve_references()
  if _MODE.value == "summary":
    from rc_jax.modes import summary

    # Of a config, not of a run: no folder is looked at, and one process is enough.
    summary.run(config)
    return 0
  if _MODE.value == "compile":
    from rc_jax.modes import compile

    compile.run(config, _TOPOLOGY.value, _FAST.value)
    return 0
  if _MODE.value == "prepare":
    from rc_jax.modes import prepare

    prepare.run(config, _OUTPUT.value, _ENCODING.value, _SPLITS.value)
    return 0
  workdir = pathlib.Path(_WORKDIR.value or f"runs/{recipe}")
  if workdir.exists() and not workdir.is_dir():
    raise ValueError(f"--workdir={workdir}: is a file; expected a folder, or a name that is free")
  if _MODE.value == "inspect":
    from rc_jax.modes import inspect

    return inspect.run(config, workdir, _SAMPLE.value)
  checkpoint = pathlib.Path(_CHECKPOINT.value) if _CHECKPOINT.value else None
  if checkpoint is not None and _CHECKPOINT.value.isdigit() and not checkpoint.exists():
    checkpoint = workdir / "checkpoints" / _CHECKPOINT.value
  if _MODE.value == "train" or checkpoint is not None:
    workdir.mkdir(parents=True, exist_ok=True)
  images = pathlib.Path(_IMAGES.value) if _IMAGES.value else None
  distributed.connect(_COORDINATOR.value, _PROCESSES.value, _PROCESS_ID.value)

  if _MODE.value == "train":
    from rc_jax.modes import train

    return train.train(config, workdir)
  if _MODE.value == "eval":
    from rc_jax.modes import eval

    eval.run(config, workdir, checkpoint)
  elif _MODE.value == "predict":
    from rc_jax.modes import predict

    return predict.run(
      config,
      workdir,
      checkpoint,
      images,
      output=pathlib.Path(_OUTPUT.value) if _OUTPUT.value else None,
      recursive=_RECURSIVE.value,
      overwrite=_OVERWRITE.value,
      overlays=_OVERLAYS.value,
      probabilities=_PROBABILITIES.value,
      layout=_FORMAT.value,
    )
  elif _MODE.value == "export":
    from rc_jax.modes import export

    export.run(
      config,
      workdir,
      checkpoint,
      size=_SIZE.value,
      batch=_BATCH.value,
      platforms=_PLATFORMS.value,
      weights=_WEIGHTS.value,
      probabilities=_PROBABILITIES.value,
      output=pathlib.Path(_OUTPUT.value) if _OUTPUT.value else None,
      overwrite=_OVERWRITE.value,
    )
  else:
    from rc_jax.modes import report

    report.run(config, workdir, checkpoint)
  return 0


def _parse(argv: Sequence[str]) -> str:
  """Parses the flags; returns the recipe's name with its variant, ``demo`` or ``demo_baseline``."""
  given = ""
  for argument, following in zip(argv, [*argv[1:], ""], strict=True):
    name, equals, value = argument.lstrip("-").partition("=")
    if name == "config" and argument.startswith("-"):
      given = value if equals else following
  file, _, variant = given.partition(":")
  if given and not pathlib.Path(file).is_file():
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
  if not given and _MODE.value != "compare":
    raise ValueError("--config is missing; try: python -m rc_jax.main --config=configs/demo.py")
  return "_".join(filter(None, (pathlib.Path(file).stem, variant)))


if __name__ == "__main__":
  sys.exit(main(sys.argv))
