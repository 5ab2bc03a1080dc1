"""The fields of a run's config: name, default, check and meaning of each, stated once.

A recipe in ``configs/`` starts from ``defaults()`` and writes what its paper's paragraph on implementation says. Where
the paper is silent, the default here applies, and ``Field.meaning`` gives its source. ``validate`` refuses what cannot
work in one line that names the field. The fields of heads, backbones, pixel losses and augmentations stand in their
own files (``rc_jax/models``, ``rc_jax/losses``, ``rc_jax/data/augment``).
"""

import difflib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from rc_jax import losses, models
from rc_jax.data import augment
from rc_jax.fields import (
  SPLITS,
  Check,
  Config,
  Field,
  above,
  at_least,
  below_one,
  one_of,
  positive_numbers,
  require,
  size,
)
from rc_jax.files import one_line
from rc_jax.recipes import run_recipe

_DIFFERENCES_SHOWN = 8  # fields in one message

CENTERS = ("dynamic", "ep_hp", "average")
SCOPES = ("bank", "image", "batch", "none")
SLOTS = ("queue", "image")
OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("poly", "cosine")

_SIDES = "(height, width) in pixels, or one number for a square"

FIELDS: tuple[Field, ...] = (
  Field("seed", 0, "Seed of initial weights, data order, augmentation and dropout."),
  Field(
    "dataset.name",
    "",
    "The data set, a key of ``rc_jax.data.DATASETS``.",
    Check("the name of a data set", bool),
  ),
  Field(
    "dataset.root",
    "",
    "Folder of the data set in its official layout, or as written by ``--mode=prepare``; ``synthetic`` needs none.",
    resumable=True,
    is_path=True,
  ),
  Field(
    "dataset.classes",
    "",
    "A table that renames, merges and leaves out classes: the line ``class,name``, then a line for each class of the "
    "data set with its new name or ``ignore``; empty: its own classes.",
    resumable=True,
    is_path=True,
  ),
  Field(
    "dataset.train_split",
    "train",
    "The split to train on, or several joined by ``+``, such as ``train+val``.",
    SPLITS,
  ),
  Field(
    "dataset.on_error",
    "refuse",
    "On an unreadable training file: ``refuse`` saves and stops; ``skip`` trains on the next example in its place and "
    "lists the file in ``skipped.jsonl``. Scoring never skips.",
    one_of("refuse", "skip"),
    resumable=True,
  ),
  Field(
    "dataset.max_skipped",
    0.01,
    "Share of the training split above which skipping stops the run.",
    below_one("a share in 0..1, below 1"),
    resumable=True,
  ),
  *models.fields(),
  Field(
    "model.pretrained",
    "",
    "Weights to start from: a file (.npz, .safetensors, .pth), a run's folder (its newest step) or one of its "
    "checkpoints; empty: random values.",
    training_only=True,
    is_path=True,
  ),
  Field(
    "model.pretrained_part",
    "backbone",
    "What to take from ``model.pretrained``: the backbone, or all; of weights for other classes, all but what depends "
    "on the classes.",
    one_of("backbone", "all"),
    training_only=True,
  ),
  Field(
    "model.pretrained_key",
    "",
    "Start of the keys of the weights in a file that holds several, such as ``state_dict_ema``; ``.``: the keys "
    "without such a start; empty: the file holds one.",
    training_only=True,
  ),
  Field(
    "train.batch_size",
    8,
    "Images in the global batch, over all devices and hosts; 2 or more for a head that pools a map to one value.",
    at_least(1),
  ),
  Field("train.steps", 30_000, "Number of updates.", at_least(1)),
  Field(
    "train.crop_size",
    (769, 769),
    "Height and width of the training crops in pixels; one number on the command line means a square.",
    size(_SIDES),
  ),
  Field("train.log_every", 10, "Steps between two lines of ``metrics.jsonl``.", at_least(1), resumable=True),
  Field(
    "train.eval_every",
    1_000,
    "Steps between two scorings of ``eval.split``; 0: at the end alone.",
    at_least(0, "at the end alone"),
    resumable=True,
  ),
  Field("train.checkpoint_every", 500, "Steps between two checkpoints.", at_least(1), resumable=True),
  Field(
    "train.keep_checkpoints",
    2,
    "How many of the newest checkpoints to keep, besides the best by mIoU.",
    at_least(1),
    resumable=True,
  ),
  Field(
    "train.microbatches",
    1,
    "Parts of a batch that are computed one after another, so that it fits less memory; their gradients are averaged.",
    at_least(1),
  ),
  Field(
    "train.ema_decay",
    0.0,
    "Decay of a moving average of the weights, such as 0.999, which ``eval.ema`` then scores; 0: none.",
    below_one("0 (no average) or more, below 1"),
  ),
  Field(
    "train.log_to",
    "tensorboard",
    "Where to log besides ``metrics.jsonl``: keys of ``rc_jax.training.log_writers.LOG_WRITERS``, separated by commas, "
    "such as ``tensorboard,wandb``; empty: nowhere else.",
    resumable=True,
  ),
  Field(
    "train.compilation_cache",
    "",
    "Folder in which ``train``, ``eval``, ``predict``, ``report`` and ``centers`` keep compiled programs for the next "
    "start; ``off``: none; empty: ``rc_jax/programs`` in ``$XDG_CACHE_HOME`` or ``~/.cache``, with several processes "
    "none. ``JAX_COMPILATION_CACHE_DIR`` wins.",
    resumable=True,
    is_path=True,
    per_process=True,
  ),
  Field(
    "optimizer.name",
    "sgd",
    "The optimizer: sgd with momentum, or adamw (decoupled weight decay); both as PyTorch's.",
    one_of(*OPTIMIZERS),
  ),
  Field(
    "optimizer.learning_rate",
    0.01,
    "Learning rate of the backbone that the schedule starts from. The default is for SGD; AdamW needs about 1e-4.",
    above(0),
  ),
  Field(
    "optimizer.momentum",
    0.9,
    "Momentum of SGD.",
    below_one("0 or more, below 1"),
    read_when=("optimizer.name", ("sgd",)),
  ),
  Field(
    "optimizer.beta1",
    0.9,
    "AdamW: decay rate of the mean of gradients.",
    below_one("0 or more, below 1"),
    read_when=("optimizer.name", ("adamw",)),
  ),
  Field(
    "optimizer.beta2",
    0.999,
    "AdamW: decay rate of the mean of squared gradients.",
    below_one("0 or more, below 1"),
    read_when=("optimizer.name", ("adamw",)),
  ),
  Field(
    "optimizer.epsilon",
    1e-8,
    "AdamW: added to the root of the mean of squared gradients.",
    above(0),
    read_when=("optimizer.name", ("adamw",)),
  ),
  Field(
    "optimizer.weight_decay",
    5e-4,
    "Weight decay: of SGD, an L2 term of the gradient; of AdamW, a share of the parameter times the learning rate, "
    "usually 0.01 to 0.05.",
    at_least(0),
  ),
  Field(
    "optimizer.schedule",
    "poly",
    "The learning rate's schedule, applied every step: poly, ``(1 - step / steps) ** power``, or cosine, "
    "``(1 + cos(pi * step / steps)) / 2``.",
    one_of(*SCHEDULES),
  ),
  Field(
    "optimizer.power",
    0.9,
    "Power of the poly schedule.",
    at_least(0),
    read_when=("optimizer.schedule", ("poly",)),
  ),
  Field(
    "optimizer.warmup_steps",
    0,
    "Steps of linear warm-up: step k, counted from 0, has ``(k + 1) / warmup_steps`` of the schedule's learning rate.",
    at_least(0, "none"),
  ),
  Field(
    "optimizer.clip_norm",
    0.0,
    "Largest norm of the gradient over all parameters; a larger gradient is scaled down. The logged ``gradient_norm`` "
    "is the norm before.",
    at_least(0, "no clipping"),
  ),
  Field(
    "optimizer.head_multiplier",
    10.0,
    "Factor on the learning rate of everything outside the backbone, as in the authors' code.",
    at_least(0),
  ),
  Field(
    "optimizer.layer_decay",
    1.0,
    "Factor on the backbone's learning rate for each stage before the head: once in the last stage, once more in each "
    "stage before it, the stem included, as in mmsegmentation.",
    Check("above 0, at most 1 (no decay)", lambda value: 0 < value <= 1),
  ),
  Field(
    "optimizer.decay_norm_and_bias",
    True,
    "Applies weight decay to BatchNorm parameters and biases too, as PyTorch's optimizers.",
  ),
  *losses.fields(),
  Field("loss.aux_weight", 0.4, "Weight of the auxiliary head's cross entropy (Eq. 5).", at_least(0)),
  Field(
    "loss.contrast_weight",
    0.1,
    "Weight of the contrastive loss (Eq. 5); 0 trains the paper's baseline, as ``contrast.scope=none``.",
    at_least(0),
  ),
  Field(
    "contrast.method",
    "region",
    "The contrastive method, a key of ``rc_jax.training.objective.METHODS``.",
  ),
  Field(
    "contrast.scope",
    "bank",
    "Keys of the contrastive loss: memory banks, the same image's centers, the batch's centers, or none (baseline).",
    one_of(*SCOPES),
  ),
  Field(
    "contrast.centers",
    "dynamic",
    "Pixel weights of region centers: dynamic (Eq. 3), ep_hp or average (Eq. 2).",
    one_of(*CENTERS),
  ),
  Field(
    "contrast.slots",
    "queue",
    "Slots of a memory bank: ``queue``: each key replaces its class's oldest; ``image``: slot k belongs to training "
    "image k, so that each key is replaced in the next epoch.",
    one_of(*SLOTS),
    read_when=("contrast.scope", ("bank",)),
  ),
  Field(
    "contrast.bank_size",
    0,
    "Slots of each class's memory bank, M; 0: as many as training images, the paper's choice.",
    at_least(0, "size of the training set"),
    read_when=("contrast.slots", ("queue",)),
  ),
  Field(
    "contrast.temperature",
    0.2,
    "Temperature of the contrastive loss, from the authors' code; the paper is silent.",
    above(0),
  ),
  Field(
    "contrast.start_step",
    0,
    "Updates before the contrastive loss counts. Memory banks are filled from the start, so that it starts with keys.",
    at_least(0, "counts at once"),
    read_when=("contrast.scope", ("bank", "image", "batch")),
  ),
  Field(
    "contrast.bank_dtype",
    "float32",
    "Dtype of the keys; bfloat16 takes half the memory.",
    one_of("float32", "bfloat16"),
  ),
  *augment.FIELDS,
  Field(
    "data.workers",
    0,
    "Processes that decode and augment on each host; 0: threads of the training process.",
    at_least(0),
    resumable=True,
    per_process=True,
  ),
  Field(
    "data.threads", 4, "Decoding threads in each process.", at_least(1), resumable=True, per_process=True
  ),
  Field(
    "data.cache_gb",
    0.0,
    "GiB of decoded training images that each host keeps in memory, 4 bytes a pixel, the first that fit; 0: none. "
    "Cityscapes' 2975 images need 23.3.",
    at_least(0, "off"),
    resumable=True,
    per_process=True,
  ),
  Field(
    "data.rare_class_temperature",
    0.0,
    "Temperature T of rare class sampling (DAFormer, CVPR 2022, with 0.01): a class is drawn with the probability "
    "softmax((1 - its share of the pixels) / T), then an image that holds it. 0: each epoch shows every image once.",
    at_least(0, "off"),
  ),
  Field(
    "data.rare_class_min_pixels",
    3_000,
    "Least number of pixels of the drawn class in an image; where no image has so many, all that hold the class serve.",
    at_least(1),
  ),
  Field(
    "data.rare_class_crops",
    10,
    "Crops to draw of such an image at most, until one holds half as many pixels of the class (DAFormer's code: 10).",
    at_least(1),
  ),
  Field("eval.split", "val", "The split to score.", SPLITS, resumable=True),
  Field(
    "eval.scales",
    (1.0,),
    "Scales whose probabilities are averaged.",
    positive_numbers("one or more positive scales"),
    resumable=True,
  ),
  Field(
    "eval.ema",
    True,
    "Scores, predicts, exports and draws the moving average of the weights where the run keeps one "
    "(``train.ema_decay``); False: the weights themselves.",
  ),
  Field("eval.flip", False, "Averages with the mirrored image.", resumable=True),
  Field(
    "eval.pad_to_grid",
    True,
    "Pads full images at the right and the bottom with ImageNet's mean colour until the corners of the feature grid "
    "lie on theirs: to a multiple of the network's stride, plus 1. Otherwise aligned corners stretch the prediction by "
    "up to a stride. False for a network that was trained on crops of other sides.",
    resumable=True,
  ),
  Field(
    "eval.crop_size",
    (),
    "Height and width of the sliding window in pixels; (): full images.",
    size(_SIDES, optional=True),
    resumable=True,
  ),
  Field(
    "eval.stride",
    (),
    "Height and width of the sliding window's step in pixels; (): two thirds of the window.",
    size(_SIDES, optional=True),
    resumable=True,
  ),
  Field(
    "eval.batch_size",
    1,
    "Images (or windows) that each device computes at a time.",
    at_least(1),
    resumable=True,
  ),
)
_BY_PATH = {field.path: field for field in FIELDS}


def defaults() -> Config:
  """Returns a config that holds every field; a recipe overwrites what its paper states.

  >>> config = defaults()
  >>> config.contrast.temperature
  0.2
  """
  config = Config()
  for field in FIELDS:
    group = field.path.rpartition(".")[0]
    if group and group not in config:
      config[group] = Config()
    set_field(config, field.path, field.default)
  return config


def set_field(config: Config, path: str, value: Any) -> None:
  """Sets a field by its path, ``"train.steps"``.

  Raises:
    KeyError or AttributeError: there is no such field.
    TypeError: the value has another type than the field.
  """
  group, _, name = path.rpartition(".")
  (config[group] if group else config)[name] = value


def load_recipe(recipe: str) -> Config:
  """Loads the config of a recipe file.

  Args:
    recipe: a file, or the name of a recipe that comes with rc_jax, and its variant: ``cityscapes:resnet101``. The file
      defines ``get_config``, which takes the variant where it has any.

  Raises:
    ValueError: there is no such file or variant, or the file itself fails; one line with file and line number.
  """
  config = run_recipe(recipe)
  if not isinstance(config, ml_collections.ConfigDict):
    raise ValueError(
      f"{recipe.partition(':')[0]}: get_config returned {type(config).__name__}; expected rc_jax.config.defaults(), "
      "changed"
    )
  return config


def height_width(size: tuple[int, ...]) -> tuple[int, int]:
  """Returns ``(height, width)`` of a size field, where one number (769,) means a square."""
  return (int(size[0]), int(size[-1]))


def expand_home(config: Config) -> None:
  """Replaces ``~`` in the paths of a config, which a shell leaves in ``--config.dataset.root=~/data``."""
  for field in FIELDS:
    if field.is_path:
      group, _, name = field.path.rpartition(".")
      config[group][name] = os.path.expanduser(config[group][name] or "")


def validate(config: Config) -> None:
  """Checks every field of a config that can be checked without data or devices.

  Raises:
    ValueError: one line with the field, what was found and what would work.
  """
  _check_names(config, defaults(), "config")
  values = _values(config)
  for field in FIELDS:
    require(field.check.holds(values[field.path]), field.path, values[field.path], field.expects)
  _check_crop_size(config)
  _check_eval_stride(config)
  _check_start_step(config)
  _check_rare_classes(config)
  _check_pretrained_part(config)
  _check_optimizer(config)
  _check_microbatches(config)
  models.check_projection(config.model)
  models.check_parts(config.model)
  losses.check_class_weights(config.loss)
  _check_read(config)


def _check_crop_size(config: Config) -> None:
  stride, size = config.model.output_stride, config.train.crop_size
  for side in height_width(size):
    # A feature grid of one row has no corners to align, and ASPP has no context to read.
    require(side > stride, "train.crop_size", size, f"sides above the output stride {stride}")
    # The grid's corners lie on the crop's (769 = 8 x 96 + 1), or its cells tile it (480 = 8 x 60).
    fitting = side // stride * stride + 1
    expected = f"sides that the output stride {stride} fits, such as {fitting}"
    require(side % stride in (0, 1), "train.crop_size", size, expected)


def _check_eval_stride(config: Config) -> None:
  stride, window = config.eval.stride, config.eval.crop_size
  if not stride:
    return
  require(bool(window), "eval.stride", stride, "() unless eval.crop_size is set")
  fits = all(s <= w for s, w in zip(height_width(stride), height_width(window), strict=True))
  expected = f"at most eval.crop_size {tuple(window)}: a longer stride leaves gaps between windows"
  require(fits, "eval.stride", stride, expected)


def _check_start_step(config: Config) -> None:
  step, steps = config.contrast.start_step, config.train.steps
  require(step < steps, "contrast.start_step", step, f"below train.steps, {steps}")


def _check_rare_classes(config: Config) -> None:
  if config.data.rare_class_temperature:
    return
  for path in ("data.rare_class_min_pixels", "data.rare_class_crops"):
    default, found = _BY_PATH[path].default, config.data[path.rpartition(".")[2]]
    require(found == default, path, found, f"{default} unless data.rare_class_temperature is above 0")


def _check_pretrained_part(config: Config) -> None:
  path, found = "model.pretrained_part", config.model.pretrained_part
  default = _BY_PATH[path].default
  require(
    bool(config.model.pretrained) or found == default,
    path,
    found,
    f"{default!r} unless model.pretrained is set",
  )


def _check_optimizer(config: Config) -> None:
  warmup, steps, decay = config.optimizer.warmup_steps, config.train.steps, config.optimizer.layer_decay
  require(warmup <= steps, "optimizer.warmup_steps", warmup, f"at most train.steps, {steps}")
  backbone = models.backbones().get(config.model.backbone)
  if decay != 1 and backbone is not None:
    expected = f"1.0 with model.backbone={config.model.backbone}, which names no stages (Backbone.stages)"
    require(bool(backbone.stages), "optimizer.layer_decay", decay, expected)


def _check_microbatches(config: Config) -> None:
  parts, images = config.train.microbatches, config.train.batch_size
  require(images % parts == 0, "train.microbatches", parts, f"a divisor of train.batch_size, {images}")


def _check_read(config: Config) -> None:
  """Refuses a field that differs from its default where nothing reads it."""
  values = _values(config)
  chosen = (config.model.name, config.model.backbone)
  for field in FIELDS:
    if values[field.path] == field.default:
      continue
    if not models.reads(field.path, *chosen):
      readers = ", ".join(models.readers(field.path))
      raise ValueError(
        f"config.{field.path}: is {values[field.path]!r}, but only {readers} read it and the network is "
        f"{' on '.join(chosen)}; leave it at {field.default!r}"
      )
    if field.read_when and not _is_read(values[field.read_when[0]], *field.read_when):
      other, needed = field.read_when
      raise ValueError(
        f"config.{field.path}: is {values[field.path]!r}, but it is read only with {other}="
        f"{' or '.join(map(str, needed))}; leave it at {field.default!r}"
      )


def _is_read(value: Any, path: str, needed: tuple[Any, ...]) -> bool:
  parts = _BY_PATH[path].parts
  return any(part in needed for part in (parts(value) if parts else (value,)))


def uses_contrast(config: Config) -> bool:
  """True unless the config is the paper's baseline: scope ``none``, or a weight of 0 on the contrastive loss."""
  return config.contrast.scope != "none" and config.loss.contrast_weight > 0


def contrast_title(config: Config) -> str:
  """Returns the name of the contrastive method for people, and its scope.

  >>> config = defaults()
  >>> contrast_title(config)
  'RegionContrast, scope bank'
  >>> config.contrast.method = "pixels"
  >>> contrast_title(config)
  'pixels, scope bank'
  """
  return f"{method_title(config)}, scope {config.contrast.scope}"


def method_title(config: Config) -> str:
  """Returns ``RegionContrast``, or the key of another contrastive method of ``METHODS``."""
  return "RegionContrast" if config.contrast.method == "region" else str(config.contrast.method)


def reads_banks(config: Config) -> bool:
  """True where the contrastive method may have a bank."""
  return uses_contrast(config) and bool(config.contrast.scope == "bank")


def reads_image_index(config: Config) -> bool:
  """True where a training batch holds ``index [B]``, the place of each image in ``dataset.train_split``."""
  return reads_banks(config) and bool(config.contrast.slots == "image")


def different_run(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
  """Lists the fields that make two configs two different runs, as ``field: ours, there theirs``.

  Args:
    ours: a config as nested plain dicts.
    theirs: the same of the other run; a field that it lacks, as an older version wrote it, has its default.

  Returns:
    One string for each field; empty when a run of one may continue the other. ``Field.resumable`` ones do not count.
  """
  return _differences(ours, theirs, lambda path: path not in _BY_PATH or not _BY_PATH[path].resumable)


def different_network(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
  """Lists the fields by which weights of one config would compute something else in the other's network.

  These are the data set's name and the fields of ``model`` that are not ``Field.training_only``; most change no array's
  shape. Arguments and result as for ``different_run``.
  """

  def counts(path: str) -> bool:
    if path == "dataset.name":
      return True
    return path.startswith("model.") and not is_training_only(path)

  return _differences(ours, theirs, counts)


def is_training_only(path: str) -> bool:
  """Whether a field's value changes nothing about what trained weights compute."""
  return path in _BY_PATH and _BY_PATH[path].training_only


def shared_fields(config: Config) -> dict[str, Any]:
  """Returns the value of each field, by its path, that all processes of one run must have in common."""
  values = _values(config)
  return {field.path: values[field.path] for field in FIELDS if not (field.per_process or field.is_path)}


def as_dict(config: Config) -> dict[str, Any]:
  """Returns a config as nested plain dicts of what JSON knows."""
  return dict(json.loads(json.dumps(config.to_dict())))


def _differences(ours: dict[str, Any], theirs: dict[str, Any], counts: Callable[[str], bool]) -> list[str]:
  flat_ours, flat_theirs = flatten(ours), flatten(theirs)
  found = []
  for path in sorted(flat_ours.keys() | flat_theirs.keys()):
    default = _BY_PATH[path].default if path in _BY_PATH else "absent"
    absent = list(default) if isinstance(default, tuple) else default
    one, other = flat_ours.get(path, absent), flat_theirs.get(path, absent)
    if counts(path) and one != other:
      found.append(f"{one_line(path, 80)}: {one_line(one, 80)}, there {one_line(other, 80)}")
  more = len(found) - _DIFFERENCES_SHOWN
  return [*found[:_DIFFERENCES_SHOWN], f"{more} more"] if more > 1 else found


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns nested fields by their dotted paths, ``{"train.steps": 30000}``; tuples as lists, as JSON has them."""
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat.update(flatten(value, f"{prefix}{key}."))
    else:
      flat[prefix + key] = list(value) if isinstance(value, tuple) else value
  return flat


def _values(config: Config) -> dict[str, Any]:
  """Returns the value of each of ``FIELDS`` by its path."""
  values = {}
  for path in _BY_PATH:
    group, _, name = path.rpartition(".")
    values[path] = (config[group] if group else config)[name]
  return values


def _check_names(config: Config, reference: Config, path: str) -> None:
  """Refuses unknown fields, which are typos in a recipe, and missing ones, which would fail deep inside."""
  for key in config:
    if key not in reference:
      raise _unknown_field(path, key, reference)
  for key, value in reference.items():
    if key not in config:
      raise ValueError(f"{path}.{key}: missing; start the recipe from rc_jax.config.defaults()")
    if isinstance(value, ml_collections.ConfigDict):
      if not isinstance(config[key], ml_collections.ConfigDict):
        raise ValueError(
          f"{path}.{key}: is {config[key]!r}; expected a group with {', '.join(sorted(value))}"
        )
      _check_names(config[key], value, f"{path}.{key}")


def _unknown_field(path: str, key: str, reference: Config) -> ValueError:
  close = difflib.get_close_matches(key, list(reference), n=1)
  hint = f"did you mean {close[0]!r}?" if close else f"known fields: {', '.join(sorted(reference))}"
  return ValueError(f"{path}.{key}: nothing reads this field; {hint}")


def check_override(path: str) -> None:
  """Refuses a path in ``--config.<path>=<value>`` that is not that of a field.

  Raises:
    ValueError: one line with what would work.
  """
  reference, where = defaults(), "config"
  for key in path.split("."):
    if not isinstance(reference, ml_collections.ConfigDict):
      raise ValueError(f"{where}.{key}: {where} is a field, not a group; expected --{where}=VALUE")
    if key not in reference:
      raise _unknown_field(where, key, reference)
    reference, where = reference[key], f"{where}.{key}"
  if isinstance(reference, ml_collections.ConfigDict):
    raise ValueError(f"{where}: is a group; expected one of its fields: {', '.join(sorted(reference))}")


def expected_value(path: str) -> str:
  """Returns what the value of a field must be, for an error message: ``"a whole number, 1 or more"``."""
  field = _BY_PATH[path]
  kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
  return ", ".join(filter(None, (kinds.get(type(field.default), "numbers"), field.expects)))


__all__ = [
  "CENTERS",
  "FIELDS",
  "OPTIMIZERS",
  "SCHEDULES",
  "SCOPES",
  "SLOTS",
  "Config",
  "as_dict",
  "check_override",
  "contrast_title",
  "defaults",
  "different_network",
  "different_run",
  "expand_home",
  "expected_value",
  "flatten",
  "height_width",
  "is_training_only",
  "load_recipe",
  "method_title",
  "reads_banks",
  "reads_image_index",
  "set_field",
  "uses_contrast",
  "validate",
]
