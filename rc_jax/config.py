"""Every field of a run: its default, its meaning, and what its value may be.

A recipe in ``configs/`` starts from ``defaults()`` and writes what its paper's paragraph on implementation says.
What that paragraph leaves out stands here, with its source. ``validate`` is called once, before anything is
built, and refuses what cannot work in one line that names the field.
"""

import difflib
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import ml_collections

Config: TypeAlias = ml_collections.ConfigDict

CENTERS = ("dynamic", "ep_hp", "average")
SCOPES = ("bank", "image", "batch", "none")

# Fields that do not change what a run computes: a resumed run may have others than the run it continues.
RESUMABLE = (
  "dataset.root",
  "dataset.on_error",
  "dataset.max_skipped",
  "train.log_every",
  "train.eval_every",
  "train.checkpoint_every",
  "train.keep_checkpoints",
  "data",
  "eval",
)

# Fields that decide what a checkpoint's weights compute, or what its classes mean; most change no array's shape.
NETWORK = ("dataset.name", "model")
TRAINING_ONLY = ("model.pretrained", "model.pretrained_part", "model.dropout", "model.bn_momentum")


def defaults() -> Config:
  """Returns a config that holds every field; a recipe overwrites what its paper states."""
  config = Config()
  config.seed = 0

  config.dataset = Config()
  config.dataset.name = ""  # a key of rc_jax.data.DATASETS
  config.dataset.root = ""  # the folder of the official layout; `synthetic` needs none
  config.dataset.train_split = "train"  # Cityscapes also has "trainval"
  # What a training file that cannot be read does: "refuse" stops the run there, saved; "skip" trains on the next
  # example of the split in its place, and lists the file in the run's skipped.jsonl. Scoring never skips.
  config.dataset.on_error = "refuse"
  config.dataset.max_skipped = 0.01  # the share of the training split above which skipping stops the run

  config.model = Config()
  config.model.name = "deeplabv3"  # the head: a key of rc_jax.models.HEADS
  config.model.backbone = "resnet50"  # a key of rc_jax.models.BACKBONES
  config.model.pretrained = ""  # path of weights (.npz, .safetensors, .pth); empty: random
  config.model.pretrained_part = "backbone"  # or "all": the head too, for the same classes
  config.model.channels = 256  # of the head's features
  config.model.embedding_channels = (
    0  # C of a linear projection for the contrast alone; 0: the features as they are
  )
  config.model.aux_channels = 256  # of the auxiliary head on stage 3
  config.model.align_corners = True  # of all resampling; False in mmsegmentation's and torchvision's networks
  # Of ResNets alone:
  config.model.output_stride = 8
  config.model.multi_grid = (2, 2, 4)  # the authors' code; the paper is silent
  config.model.stem = "64-64-128"  # the authors'; "32-32-64": ResNetV1c (mmsegmentation); "7x7": torchvision
  config.model.stride_on = (
    "3x3"  # the convolution of a bottleneck that strides: "3x3" (torchvision), "1x1" (Caffe)
  )
  config.model.ceil_pool = True  # the authors' max pooling; torchvision's and mmsegmentation's is False
  # Of HRNets alone; their output stride is 4:
  config.model.hrnet_upsample = (
    "bilinear"  # as their authors segment; "bilinear-twice": mmsegmentation's; "nearest": timm's classifiers
  )
  # Of single heads:
  config.model.aspp_rates = (12, 24, 36)  # the authors' code, at output stride 8
  config.model.aspp_project = False  # torchvision's 1x1 before the fusing 3x3; the authors have none
  config.model.fcn_convs = 1  # mmsegmentation's FCN: 2
  config.model.fcn_kernel_size = 3  # HRNetV2's: 1
  config.model.fcn_concat_input = False  # mmsegmentation's FCN: True
  config.model.psp_bins = (1, 2, 3, 6)  # PSPNet: sides of the grids that the map is averaged to
  config.model.early_channels = 48  # DeepLabV3+: what the finest stage is brought to
  config.model.separable = True  # DeepLabV3+: depthwise separable 3x3 convolutions
  config.model.ocr_key_channels = 256  # OCRNet: of queries, keys and values between pixels and object regions
  config.model.danet_key_channels = 64  # DANet: of queries and keys between pixels
  config.model.ccnet_recurrence = 2  # CCNet: rounds of criss-cross attention
  config.model.encnet_codes = 32  # EncNet: codewords
  config.model.dropout = 0.1  # before the classifiers, as the authors' code
  config.model.dtype = "bfloat16"  # of activations; parameters, statistics and losses are float32
  config.model.bn_momentum = 0.9  # the share of the old statistic that stays: PyTorch's momentum 0.1
  config.model.bn_epsilon = 1e-5

  config.train = Config()
  config.train.batch_size = 8  # images in the global batch, over all devices and hosts
  config.train.steps = 30_000
  config.train.crop_size = (769, 769)  # height, width; one number on the command line means a square
  config.train.log_every = 10
  config.train.eval_every = 1_000  # 0: at the end alone
  config.train.checkpoint_every = 500
  config.train.keep_checkpoints = 2  # the newest so many stay, and the best by mIoU

  config.optimizer = Config()
  config.optimizer.learning_rate = 0.01
  config.optimizer.momentum = 0.9
  config.optimizer.weight_decay = 5e-4
  config.optimizer.power = 0.9  # of the poly schedule, every step
  config.optimizer.head_multiplier = (
    10.0  # the authors' code: everything outside the backbone learns 10 x faster
  )
  config.optimizer.decay_norm_and_bias = True  # PyTorch's SGD decays all

  config.loss = Config()
  config.loss.pixel = "ce"  # "ce" or "ohem"
  config.loss.ohem_threshold = 0.7
  config.loss.ohem_min_kept = 100_000
  config.loss.aux_weight = 0.4
  config.loss.branch_weight = 1.0  # of DANet's two attentions alone, as its authors
  config.loss.presence_weight = 0.2  # of EncNet's classes in the image, as its authors
  config.loss.contrast_weight = 0.1  # 0 or scope "none": the paper's baseline

  config.contrast = Config()
  config.contrast.scope = "bank"
  config.contrast.centers = "dynamic"
  config.contrast.bank_size = 0  # M, slots of a class; 0: as many as training images, the paper's choice
  config.contrast.temperature = 0.2  # the authors' code; the paper is silent
  config.contrast.bank_dtype = "float32"  # or "bfloat16": half the memory

  config.augment = Config()
  config.augment.scale = (0.5, 2.0)  # the image's scale is drawn uniformly from here
  config.augment.rotation = 0.0  # degrees: the image is turned by up to so many either way, uniformly
  # A crop is drawn again, up to 10 times, while one class covers this share of its labelled pixels; 1: never.
  # mmsegmentation's recipes have 0.75.
  config.augment.cat_max_ratio = 1.0
  config.augment.flip = 0.5  # probability of a left-right flip
  config.augment.photometric = False  # brightness, contrast, saturation, hue
  config.augment.blur = 0.0  # probability of a Gaussian blur
  config.augment.blur_sigma = (0.1, 2.0)  # its standard deviation in pixels is drawn uniformly from here

  config.data = Config()
  config.data.workers = 0  # processes that decode and augment; 0: threads of this process
  config.data.threads = 4  # in each process
  # GiB of decoded training images that each process of a run keeps, its workers sharing them; 0: none. Kept are the
  # first that fit, at 4 bytes a pixel: Cityscapes' 2975 need 23.3.
  config.data.cache_gb = 0.0

  config.eval = Config()
  config.eval.split = "val"
  config.eval.scales = (1.0,)
  config.eval.flip = False  # average with the mirrored image
  config.eval.crop_size = ()  # (): whole image; otherwise the sliding window's height, width
  config.eval.stride = ()  # (): two thirds of the window
  config.eval.batch_size = 1  # images of one size that go through together, on each device
  return config


def height_width(size: tuple[int, ...]) -> tuple[int, int]:
  """Returns ``(height, width)`` of a size field, where one number (769,) means a square."""
  return (int(size[0]), int(size[-1]))


def validate(config: Config) -> None:
  """Checks every field of a config that can be checked without data or devices.

  Raises:
    ValueError: one line with the field, what was found and what would work.
  """
  _check_fields(config, defaults(), "config")
  model, train, loss, contrast = config.model, config.train, config.loss, config.contrast

  _require(bool(config.dataset.name), "dataset.name", config.dataset.name, "the name of a data set")
  _choice("loss.pixel", loss.pixel, ("ce", "ohem"))
  _choice("contrast.scope", contrast.scope, SCOPES)
  _choice("contrast.centers", contrast.centers, CENTERS)
  _choice("contrast.bank_dtype", contrast.bank_dtype, ("float32", "bfloat16"))
  _choice("model.dtype", model.dtype, ("float32", "bfloat16"))
  _require(model.output_stride >= 1, "model.output_stride", model.output_stride, "4, 8, 16 or 32")
  _choice("model.hrnet_upsample", model.hrnet_upsample, ("bilinear", "bilinear-twice", "nearest"))
  _choice("model.pretrained_part", model.pretrained_part, ("backbone", "all"))

  for field in ("batch_size", "steps", "log_every", "checkpoint_every", "keep_checkpoints"):
    _require(train[field] >= 1, f"train.{field}", train[field], "1 or more")
  _require(train.eval_every >= 0, "train.eval_every", train.eval_every, "0 (at the end alone) or more")
  _require(config.eval.batch_size > 0, "eval.batch_size", config.eval.batch_size, "1 or more")
  _size("train.crop_size", train.crop_size)
  for side in height_width(train.crop_size):
    # A feature grid of one row has no corners to align, and ASPP nothing to look at.
    _require(
      side > model.output_stride,
      "train.crop_size",
      train.crop_size,
      f"sides above the output stride {model.output_stride}",
    )
    # The grid's corners lie on the crop's (769 = 8 x 96 + 1), or its cells tile it (480 = 8 x 60).
    stride = model.output_stride
    _require(
      side % stride in (0, 1),
      "train.crop_size",
      train.crop_size,
      f"sides that the output stride {stride} fits, such as {side // stride * stride + 1}",
    )
  if config.eval.crop_size:
    _size("eval.crop_size", config.eval.crop_size)
  if config.eval.stride:
    _size("eval.stride", config.eval.stride)
    _require(
      bool(config.eval.crop_size), "eval.stride", config.eval.stride, "() unless eval.crop_size is set"
    )
    window, stride = height_width(config.eval.crop_size), height_width(config.eval.stride)
    fits = all(s <= w for s, w in zip(stride, window, strict=True))
    _require(
      fits,
      "eval.stride",
      config.eval.stride,
      f"at most eval.crop_size {tuple(config.eval.crop_size)}: a longer stride leaves gaps between windows",
    )
  _positive("eval.scales", config.eval.scales, "one or more positive scales")
  _positive("model.multi_grid", model.multi_grid, "positive factors, one for each block of the last stage")
  _positive("model.aspp_rates", model.aspp_rates, "positive dilation rates")
  _positive("augment.scale", config.augment.scale, "(low, high) with 0 < low <= high")
  scale = tuple(config.augment.scale)
  _require(
    len(scale) == 2 and scale[0] <= scale[1], "augment.scale", scale, "(low, high) with 0 < low <= high"
  )
  for field in ("flip", "blur"):
    _require(
      0 <= config.augment[field] <= 1, f"augment.{field}", config.augment[field], "a probability in 0..1"
    )
  ratio, rotation, sigma = config.augment.cat_max_ratio, config.augment.rotation, config.augment.blur_sigma
  _require(0 < ratio <= 1, "augment.cat_max_ratio", ratio, "a share above 0, or 1 (off)")
  _require(0 <= rotation <= 180, "augment.rotation", rotation, "0 (off) to 180 degrees")
  _positive("augment.blur_sigma", sigma, "(low, high) with 0 < low <= high")
  _require(
    len(sigma) == 2 and sigma[0] <= sigma[1], "augment.blur_sigma", sigma, "(low, high) with 0 < low <= high"
  )
  _choice("dataset.on_error", config.dataset.on_error, ("refuse", "skip"))
  share = config.dataset.max_skipped
  _require(0 <= share < 1, "dataset.max_skipped", share, "a share in 0..1, below 1")
  _require(config.data.cache_gb >= 0, "data.cache_gb", config.data.cache_gb, "0 (off) or more GiB")
  _require(0 <= model.dropout < 1, "model.dropout", model.dropout, "a probability in 0..1, below 1")
  _require(0 <= model.bn_momentum < 1, "model.bn_momentum", model.bn_momentum, "a share in 0..1, below 1")
  _require(model.bn_epsilon > 0, "model.bn_epsilon", model.bn_epsilon, "above 0")
  _positive("model.psp_bins", model.psp_bins, "positive sides of pooling grids")
  for field in (
    *("channels", "aux_channels", "fcn_kernel_size", "early_channels", "ocr_key_channels"),
    *("danet_key_channels", "ccnet_recurrence", "encnet_codes"),
  ):
    _require(model[field] >= 1, f"model.{field}", model[field], "1 or more")
  for field in ("embedding_channels", "fcn_convs"):
    _require(model[field] >= 0, f"model.{field}", model[field], "0 or more")
  _require(model.fcn_kernel_size % 2 == 1, "model.fcn_kernel_size", model.fcn_kernel_size, "an odd number")
  _require(config.data.workers >= 0, "data.workers", config.data.workers, "0 or more")
  _require(config.data.threads >= 1, "data.threads", config.data.threads, "1 or more")

  _require(
    config.optimizer.learning_rate > 0, "optimizer.learning_rate", config.optimizer.learning_rate, "above 0"
  )
  _require(
    0 <= config.optimizer.momentum < 1, "optimizer.momentum", config.optimizer.momentum, "0 or more, below 1"
  )
  for section, field in (
    ("optimizer", "weight_decay"),
    ("optimizer", "power"),
    ("optimizer", "head_multiplier"),
    ("loss", "aux_weight"),
    ("loss", "branch_weight"),
    ("loss", "presence_weight"),
    ("loss", "contrast_weight"),
  ):
    _require(config[section][field] >= 0, f"{section}.{field}", config[section][field], "0 or more")
  _require(0 <= loss.ohem_threshold <= 1, "loss.ohem_threshold", loss.ohem_threshold, "a probability in 0..1")
  _require(loss.ohem_min_kept >= 1, "loss.ohem_min_kept", loss.ohem_min_kept, "1 or more")
  _require(contrast.temperature > 0, "contrast.temperature", contrast.temperature, "above 0")
  _require(
    contrast.bank_size >= 0, "contrast.bank_size", contrast.bank_size, "0 (size of the training set) or more"
  )


def uses_contrast(config: Config) -> bool:
  """True unless the config is the paper's baseline: scope ``none``, or a weight of 0 on the contrastive loss."""
  return config.contrast.scope != "none" and config.loss.contrast_weight > 0


def different_run(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
  """Lists the fields that make two configs two different runs, as ``field: ours, there theirs``.

  Args:
    ours: a config as nested plain dicts.
    theirs: the same of the other run.

  Returns:
    One string a field; empty when a run of one may continue the other. Fields of ``RESUMABLE`` do not count.
  """
  return _differences(ours, theirs, lambda field: not _is_below(field, RESUMABLE))


def different_network(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
  """Lists the fields by which a checkpoint's weights would compute something else; see ``different_run``."""
  return _differences(ours, theirs, lambda field: _is_below(field, NETWORK) and field not in TRAINING_ONLY)


def as_dict(config: Config) -> dict[str, Any]:
  """Returns a config as nested plain dicts of what JSON knows."""
  return dict(json.loads(json.dumps(config.to_dict())))


def _is_below(field: str, groups: tuple[str, ...]) -> bool:
  return any(field == group or field.startswith(group + ".") for group in groups)


def _differences(ours: dict[str, Any], theirs: dict[str, Any], counts: Callable[[str], bool]) -> list[str]:
  flat_ours, flat_theirs = flatten(ours), flatten(theirs)
  found = []
  for field in sorted(flat_ours.keys() | flat_theirs.keys()):
    one, other = flat_ours.get(field, "absent"), flat_theirs.get(field, "absent")
    if counts(field) and one != other:
      found.append(f"{field}: {one}, there {other}")
  return found


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns nested fields by their dotted paths, ``{"train.steps": 30000}``; tuples as lists, as JSON has them."""
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat.update(flatten(value, f"{prefix}{key}."))
    else:
      flat[prefix + key] = list(value) if isinstance(value, tuple) else value
  return flat


def _check_fields(config: Config, reference: Config, path: str) -> None:
  """A field that nothing reads is a typo in a recipe; a missing one would fail deep inside."""
  for key in config:
    if key not in reference:
      close = difflib.get_close_matches(key, list(reference), n=1)
      hint = f"did you mean {close[0]!r}?" if close else f"known fields: {', '.join(sorted(reference))}"
      raise ValueError(f"{path}.{key}: nothing reads this field; {hint}")
  for key, value in reference.items():
    if key not in config:
      raise ValueError(f"{path}.{key}: missing; start the recipe from rc_jax.config.defaults()")
    if isinstance(value, ml_collections.ConfigDict):
      if not isinstance(config[key], ml_collections.ConfigDict):
        raise ValueError(
          f"{path}.{key}: is {config[key]!r}; expected a group with {', '.join(sorted(value))}"
        )
      _check_fields(config[key], value, f"{path}.{key}")


def _require(holds: bool, field: str, found: Any, expected: str) -> None:
  if not holds:
    raise ValueError(f"config.{field}: is {found!r}; expected {expected}")


def _choice(field: str, found: Any, choices: tuple[Any, ...]) -> None:
  _require(found in choices, field, found, "one of " + ", ".join(map(repr, choices)))


def _positive(field: str, found: Any, expected: str) -> None:
  numbers = isinstance(found, tuple) and len(found) > 0 and all(isinstance(n, int | float) for n in found)
  _require(numbers and min(found) > 0, field, found, expected)


def _size(field: str, size: Any) -> None:
  positive = (
    isinstance(size, tuple) and len(size) in (1, 2) and all(isinstance(s, int) and s > 0 for s in size)
  )
  _require(positive, field, size, "(height, width) in pixels, or one number for a square")


def reads_banks(config: Config) -> bool:
  """True where the contrast has memory banks."""
  return uses_contrast(config) and bool(config.contrast.scope == "bank")
