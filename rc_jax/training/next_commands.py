"""The commands to try after a run: each works as printed, in the folder where the run was started."""

import dataclasses
import pathlib

from rc_jax.command import Command, without
from rc_jax.config import Config, height_width, load_recipe, uses_contrast

BASELINE = "baseline"  # the variant of a recipe, and the end of its folder's name


def next_commands(command: Command, config: Config) -> str:
  """Returns commands for a shell, each below a comment that says what it does.

  Args:
    command: the one that has trained the run.
    config: of the run.
  """
  height, width = height_width(config.eval.crop_size or config.train.crop_size)
  split = config.eval.split
  lines = [
    f"# label the images of {split}; with --images=FOLDER those of a folder of yours",
    command.text("--mode=predict"),
    *_comparison(command, config),
    "# write the network as one program that jax alone runs, for images of this height and width",
    command.text("--mode=export", f"--size={height},{width}"),
  ]
  return "\n".join(lines)


def baseline(command: Command) -> Command:
  """Returns the command that trains the paper's baseline of a run: all the same, but no contrastive loss.

  Args:
    command: of a run with the contrastive loss.
  """
  workdir = pathlib.Path(f"{command.workdir}_{BASELINE}")
  file, _, variant = command.recipe.partition(":")
  if not variant and _has_baseline(file):
    # A value of the contrast would turn the variant back into a run with contrast, or is read by nothing.
    plain = without(command, ("loss.contrast_weight",), prefix="contrast.")
    return dataclasses.replace(plain, recipe=f"{file}:{BASELINE}", workdir=workdir)
  plain = without(command, ("loss.contrast_weight",))
  no_contrast = ("loss.contrast_weight", ("--config.loss.contrast_weight=0",))
  return dataclasses.replace(plain, workdir=workdir, overrides=(*plain.overrides, no_contrast))


def _has_baseline(file: str) -> bool:
  try:
    return not uses_contrast(load_recipe(f"{file}:{BASELINE}"))
  except ValueError:
    return False  # it has no such variant


def _comparison(command: Command, config: Config) -> list[str]:
  """Returns the commands that compare a run with its baseline, without those that have run."""
  split = config.eval.split
  if not uses_contrast(config):
    other = pathlib.Path(str(command.workdir).removesuffix(f"_{BASELINE}"))
    if other == command.workdir or not _scored(other, split):
      return []
    return _compare(command, command.workdir, other, split)
  plain = baseline(command)
  compare = _compare(command, plain.workdir, command.workdir, split)
  if _scored(plain.workdir, split):
    return compare
  return [
    "# train the baseline, without the contrastive loss, in about the same time",
    plain.text(),
    *compare,
  ]


def _compare(command: Command, plain: pathlib.Path, contrast: pathlib.Path, split: str) -> list[str]:
  """Returns the command that compares two runs. It prints second minus first: what the contrastive loss gains."""
  results = ",".join(str(_result(workdir, split)) for workdir in (plain, contrast))
  return ["# compare the two on the same images", command.bare("--mode=compare", f"--results={results}")]


def _result(workdir: pathlib.Path, split: str) -> pathlib.Path:
  """Returns the name of a run's result for ``--mode=compare``: its folder, unless that has several results."""
  several = len(list((workdir / "eval").rglob("*.json"))) > 1
  return workdir / "eval" / f"{split}.json" if several else workdir


def _scored(workdir: pathlib.Path, split: str) -> bool:
  return (workdir / "eval" / f"{split}.json").is_file()
