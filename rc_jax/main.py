"""The command line: ``python -m rc_jax.main --config=configs/demo.py [--workdir=DIR] [--mode=train]``.

It reads the flags, runs a mode, and prints a user's mistake in one line. A mode's own module states its flags.
"""

import difflib
import importlib
import importlib.metadata
import inspect
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rc_jax import streams
from rc_jax.files import one_line

# All else is imported where it is used: the installation may lack it, and a typo is answered at once.
if TYPE_CHECKING:
  from absl import flags

  from rc_jax.fields import Flag

# Name -> purpose; the module is ``rc_jax.modes.<name>``. The first is the default.
MODES = {
  "train": "trains into --workdir; the same command resumes",
  "eval": "scores a checkpoint on eval.split by the data set's own rules",
  "compare": "compares two results on the same images: differences with intervals, and the images that changed most",
  "centers": "draws the region centers of runs by t-SNE, and measures how they separate the classes",
  "predict": "labels images, as label PNGs and overlays",
  "export": "writes the network as one program that jax alone runs, or its weights for another project",
  "report": "draws panels, curves, per-class IoU and confusion into one page",
  "inspect": "checks every file of a data set and names each defect",
  "prepare": "packs a data set into files that read fast",
  "summary": "prints the network stage by stage: shapes, parameters, FLOPs, memory",
  "compile": "compiles the train step, also for absent TPUs and GPUs, and says whether it fits",
  "study": "trains a recipe under several settings and seeds, and writes the table with intervals",
}

FAILED = 1
USAGE_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT
NO_PLATFORM = (
  "install its driver and its plugin (pip install 'rc_jax[cuda]' or 'rc_jax[tpu]'), "
  "or choose another platform with JAX_PLATFORMS=cpu"
)
# Variable -> what it contradicts: programs are compiled once, in 32 bits and less.
UNFIT_SETTINGS = {
  "JAX_DISABLE_JIT": "rc_jax compiles the programs that it runs",
  "JAX_ENABLE_X64": "rc_jax computes in 32 bits; its loss in code of your own also works in 64",
}
OUT_OF_MEMORY = "lower train.batch_size or train.crop_size, or for scoring eval.batch_size or eval.crop_size"
# Modes whose programs the next command may run again; ``compile`` and ``summary`` examine what the compiler does.
RUNS_NETWORKS = ("train", "eval", "centers", "predict", "report")
WRITTEN = ("workdir", "output")  # folders that all processes of a run write to
# A flag that sets a field, with its path and "=", if its value is not an argument of its own.
_OVERRIDE = r"--?(?:no)?config\.([^=]*)(=?)"
HELP = ("help", "h", "helpfull", "helpshort")


def main(argv: Sequence[str], *, keep_programs: bool = False) -> int:
  """Runs a mode; returns the process's exit status.

  Args:
    argv: the command line.
    keep_programs: whether the process keeps compiled programs for the next one, as ``train.compilation_cache`` says.
  """
  try:
    return _run(argv, keep_programs)
  except KeyboardInterrupt:
    streams.write_error("interrupted\n")
    _abort_process(INTERRUPTED, "interrupted")
    return INTERRUPTED
  except Exception as error:
    if not isinstance(error, ValueError):
      _exit_if_lost()
    message = _one_line(error)
    if message is None:
      # The others wait for this process: it must not wait for them at the interpreter's end.
      trace = traceback.format_exc()
      _abort_process(FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", trace)
      raise
    if os.environ.get("RC_JAX_TRACEBACK"):
      streams.write_error(traceback.format_exc())
  streams.write_error(f"error: {message}\n")
  _abort_process(USAGE_ERROR, message)
  return USAGE_ERROR


def _abort_process(status: int, message: str, shown: str = "") -> None:
  """Ends this process at once if it is one of several, after it has shown a text."""
  if "jax" not in sys.modules:
    return
  from rc_jax import distributed

  distributed.abort_process(status, message, shown)


def _exit_if_lost() -> None:
  """Ends this process with the reason if another one of the run is lost."""
  if "jax" in sys.modules:
    from rc_jax import distributed

    distributed.exit_if_lost()


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


def _one_line(error: Exception) -> str | None:
  """Returns a message that a user can act on; None where only the traceback explains the error."""
  text = " ".join(str(error).split())
  if not isinstance(error, (ValueError, OSError, RuntimeError, AssertionError)):
    return None
  if isinstance(error, AssertionError):
    return _no_platform()
  if isinstance(error, RuntimeError):
    if "Unable to initialize backend" in text:
      return f"jax cannot start on this machine ({one_line(text, 300)}); {NO_PLATFORM}"
    return f"out of memory ({one_line(text)}); {OUT_OF_MEMORY}" if "RESOURCE_EXHAUSTED" in text else None
  # What the project raises on purpose is one line that says what to do.
  return text


def _no_platform() -> str | None:
  """Returns the message where jax has none of the platforms of ``JAX_PLATFORMS``; None where it has one."""
  import jax

  try:
    jax.devices()
  except AssertionError:  # so jax answers a platform whose plugin is not installed
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return f"jax cannot start on this machine (JAX_PLATFORMS={platforms} is not available); {NO_PLATFORM}"
  return None


def _run(argv: Sequence[str], keep_programs: bool) -> int:
  missing = missing_packages()
  if missing:
    raise ValueError(
      f"the command rc_jax needs packages that are not installed ({', '.join(missing)}); "
      "run: pip install 'rc_jax[train]'"
    )
  given = _given(argv)
  if any(name in given for name in HELP):
    topic = next(given[name] for name in HELP if name in given)
    streams.write_output(_help(topic, given.get("mode", "")) + "\n")
    return 0
  mode = given.get("mode", next(iter(MODES)))
  if mode not in MODES:
    close = difflib.get_close_matches(mode, MODES, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ValueError(f"--mode={mode}: no such mode; expected one of {', '.join(MODES)}{hint}")
  module = importlib.import_module(f"rc_jax.modes.{mode}")
  recipe = given.get("config", "")
  if mode == "study":
    recipe = module.recipe_of(given)
  elif not recipe and any(flag.name == "config" for flag in module.FLAGS):
    raise ValueError("--config is missing; try: python -m rc_jax.main --config=configs/demo.py")
  _refuse_unread(given, mode, module)
  values = _parse(argv, module, recipe)

  from rc_jax import command, console, distributed

  for variable, reason in UNFIT_SETTINGS.items():
    if os.environ.get(variable, "").lower() in ("1", "true", "t", "yes", "y", "on"):
      raise ValueError(f"{variable}={os.environ[variable]} in the environment: {reason}; unset it")
  if all(flag in module.FLAGS for flag in distributed.FLAGS):
    place = {flag.name: values.pop(flag.name) for flag in distributed.FLAGS}
    distributed.connect(**place, facts=_facts(mode, module, values))
  if keep_programs and mode in RUNS_NETWORKS:
    from rc_jax import compilation_cache

    several = distributed.is_one_of_several()
    compilation_cache.keep_programs(values["config"].train.compilation_cache, several)
  if "command" in inspect.signature(module.run).parameters:
    values["command"] = command.parse(argv, recipe, values["workdir"])
  try:
    arguments = {flag.name: flag.argument for flag in module.FLAGS}
    status = module.run(**{arguments.get(name, name): value for name, value in values.items()})
  finally:
    console.clear_line()  # the message of an error starts at the left margin
  return status if isinstance(status, int) else 0


def _facts(mode: str, module: ModuleType, values: dict[str, Any]) -> dict[str, Any]:
  """Returns what the processes of one run must have in common: command, config and software."""
  from rc_jax import agreement
  from rc_jax.config import shared_fields

  facts: dict[str, Any] = {"--mode": mode}
  for flag in module.FLAGS:
    # Files may lie elsewhere on another machine: the modes compare what they hold. All write to the same folder.
    if flag.name in values and (flag.default is not None or flag.name in WRITTEN):
      value = values[flag.name]
      facts |= shared_fields(value) if flag.name == "config" else {f"--{flag.name}": _plain(value)}
  return facts | agreement.software_facts()


def _plain(value: Any) -> Any:
  return str(value) if isinstance(value, pathlib.Path) else value


def _given(argv: Sequence[str]) -> dict[str, str]:
  """Returns the flags of a command line by name; the value of a flag without ``=`` is the argument after it."""
  given = {}
  for argument, following in zip(argv[1:], [*argv[2:], ""], strict=True):
    if argument.startswith("-"):
      name, equals, value = argument.lstrip("-").partition("=")
      given[name] = value if equals else ("" if following.startswith("-") else following)
  return given


def _refuse_unread(given: dict[str, str], mode: str, module: ModuleType) -> None:
  """Refuses a flag that the mode does not read but another does."""
  own = {flag.name for flag in module.FLAGS} | {"mode"}
  for name in given:
    plain = name.removeprefix("no") if name.removeprefix("no") in own else name
    if plain.partition(".")[0] in own:
      continue
    readers = [other for other in MODES if name.partition(".")[0] in _flag_names(other)]
    if readers:
      raise ValueError(f"--{name}: --mode={mode} does not read it, only {', '.join(readers)}; leave it out")


def _flag_names(mode: str) -> set[str]:
  names = {flag.name for flag in importlib.import_module(f"rc_jax.modes.{mode}").FLAGS}
  return names | {f"no{name}" for name in names}


def _parse(argv: Sequence[str], module: ModuleType, recipe: str) -> dict[str, Any]:
  """Parses the flags of a mode; returns the arguments of its ``run``."""
  from absl import flags

  from rc_jax.config import check_override

  # Grain passes absl's flags of a process to the processes that read data; nothing is defined there.
  flags.FLAGS.mark_as_parsed()
  defined = flags.FlagValues()
  flags.DEFINE_string("mode", "", "", flag_values=defined)
  for flag in module.FLAGS:
    options: dict[str, Any] = {"flag_values": defined}
    if flag.name == "config":
      overrides = _last_overrides(argv)
      for argument in overrides:
        override = re.match(_OVERRIDE, argument)
        if override:
          check_override(override[1])
      _define_config(recipe, overrides, defined)
    elif flag.choices:
      flags.DEFINE_enum(flag.name, str(flag.default), flag.choices, flag.meaning, **options)
    elif isinstance(flag.default, bool):
      flags.DEFINE_bool(flag.name, flag.default, flag.meaning, **options)
    elif isinstance(flag.default, int):
      flags.DEFINE_integer(flag.name, flag.default, flag.meaning, **options)
    elif isinstance(flag.default, float):
      flags.DEFINE_float(flag.name, flag.default, flag.meaning, **options)
    elif isinstance(flag.default, tuple):
      flags.DEFINE_list(flag.name, list(flag.default), flag.meaning, **options)
    else:
      flags.DEFINE_string(flag.name, flag.default, flag.meaning, **options)
  try:
    rest = defined(_without_recipe(_last_overrides(argv)))
  except flags.Error as error:
    raise ValueError(_wrong_value(str(error))) from error
  if len(rest) > 1:
    raise ValueError(f"unexpected argument {rest[1]!r}; every option starts with --")

  values: dict[str, Any] = {flag.name: defined[flag.name].value for flag in module.FLAGS}
  for flag in module.FLAGS:
    if flag.default is None and values[flag.name] is not None:
      # A shell leaves ``~`` as it is in ``--workdir=~/runs``.
      values[flag.name] = pathlib.Path(os.path.expanduser(values[flag.name]))
  if "config" in values:
    from rc_jax.config import expand_home, validate

    validate(values["config"])
    expand_home(values["config"])
    values["config"] = values["config"].copy_and_resolve_references()
  if "workdir" in values:
    from rc_jax.command import default_workdir

    values["workdir"] = values["workdir"] or default_workdir(values.get("study") or recipe)
    if values["workdir"].exists() and not values["workdir"].is_dir():
      raise ValueError(f"--workdir={values['workdir']}: is a file; expected a folder, or a name that is free")
  return values


def _define_config(recipe: str, argv: Sequence[str], defined: "flags.FlagValues") -> None:
  from ml_collections import config_flags

  from rc_jax.config import load_recipe

  config = load_recipe(recipe)
  try:
    config_flags.DEFINE_config_dict(
      "config", config, flag_values=defined, sys_argv=list(_without_recipe(argv))
    )
  except (AttributeError, KeyError, TypeError) as error:
    # ml_collections names the typo and the closest field, in quotes inside quotes.
    text = str(error).replace("\\n", " ").replace("\\'", "'").replace('"', "").strip("\"' ")
    raise ValueError(f"--config: {text}") from error


def _wrong_value(text: str) -> str:
  """Returns the message of an error of absl in the words of the config, where a field has a wrong value."""
  from rc_jax.config import expected_value

  wrong = re.match(r"flag --config\.([\w.]+)=(.*?): ", text)
  if wrong:
    return f"config.{wrong[1]}: is {wrong[2]!r}; expected {expected_value(wrong[1])}"
  return re.sub(r": invalid literal for int\(\).*", ": expected a whole number", text)


def _without_recipe(argv: Sequence[str]) -> list[str]:
  """Returns a command line without ``--config=RECIPE``, which has been loaded; overrides of its fields stay."""
  kept, skip = [], False
  for argument in argv:
    if skip:
      skip = False
    elif argument.lstrip("-") == "config" and argument.startswith("-"):
      skip = True
    elif not (argument.startswith("-") and argument.lstrip("-").startswith("config=")):
      kept.append(argument)
  return kept


def _last_overrides(argv: Sequence[str]) -> list[str]:
  """Keeps the last of several values of one field: ml_collections would join those of a tuple."""
  owners: list[tuple[str, int]] = []  # of each argument: the field that it sets, and the place of its flag
  takes_value = False
  for place, argument in enumerate(argv):
    flag = re.match(_OVERRIDE, argument)
    # A value may follow its flag as an argument of its own; only numbers begin with a dash.
    is_value = takes_value and re.match(r"[^-]|-\.?\d|$", argument)
    owners.append((flag[1], place) if flag else owners[-1] if is_value else ("", place))
    takes_value = flag is not None and not flag[2]
  last = dict(owners)
  return [
    argument
    for argument, (field, place) in zip(argv, owners, strict=True)
    if not field or last[field] == place
  ]


def _help(topic: str, mode: str) -> str:
  """Returns the text of ``--help``: all modes, the flags of one ``mode``, or the config's fields."""
  if topic == "config":
    from rc_jax.config import FIELDS

    lines = ["Fields of a recipe, each set with --config.<field>=<value>:", ""]
    for field in FIELDS:
      expects = f" Expected: {field.expects}." if field.expects else ""
      lines += [f"  {field.path} = {field.default!r}", f"      {field.meaning}{expects}"]
    return "\n".join(lines)
  flags_of = {name: importlib.import_module(f"rc_jax.modes.{name}").FLAGS for name in MODES}
  lines = [f"usage: python -m rc_jax.main {_usage(mode, flags_of)}", ""]
  if mode in MODES:
    lines += [f"--mode={mode}: {MODES[mode]}", *map(_described, flags_of[mode]), ""]
  else:
    readers: dict[Any, list[str]] = {}
    for name, own in flags_of.items():
      for flag in own:
        readers.setdefault(flag, []).append(name)
    lines.append("flags that several modes read:")
    lines += [f"{_described(flag)} [{', '.join(of)}]" for flag, of in readers.items() if len(of) > 1]
    for name, own in flags_of.items():
      lines += ["", f"--mode={name}: {MODES[name]}"]
      lines += [_described(flag) for flag in own if len(readers[flag]) == 1]
    lines.append("")
  lines.append("--help=config lists the fields of a recipe with their meanings and defaults.")
  return "\n".join(lines)


def _usage(mode: str, flags_of: "Mapping[str, Sequence[Flag]]") -> str:
  """Returns the arguments of a command: of one ``mode``, or of any."""
  recipe, fields = "--config=RECIPE[:VARIANT]", "[--config.path.to.field=value ...]"
  if mode not in MODES:
    return f"{recipe} [--mode=MODE] {fields}"
  if mode == "study":
    return f"--mode=study --study=STUDY[:VARIANT] {fields}"
  reads_config = any(flag.name == "config" for flag in flags_of[mode])
  return f"{recipe} --mode={mode} {fields}" if reads_config else f"--mode={mode} [--flag=value ...]"


def _described(flag: "Flag") -> str:
  default = flag.default_text
  if flag.default is True:
    default += f"; --no{flag.name} turns it off"
  shown = f" Default: {default}." if default and flag.default is not False else ""
  return f"  --{flag.name}: {flag.meaning}{shown}"


def cli() -> int:
  """Runs the command line of this process; returns its exit status."""
  from rc_jax import huge_pages, parent_process

  huge_pages.restart_with_huge_pages()
  parent_process.stop_with_parent()  # after the restart, which would forget it
  try:
    return main(sys.argv, keep_programs=True)
  finally:
    streams.flush()


if __name__ == "__main__":
  sys.exit(cli())
