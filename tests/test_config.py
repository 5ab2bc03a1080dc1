"""Recipes say what the paper says; what cannot work is refused in one line that names the field."""

import pathlib
import re
from typing import Any

import pytest

from rc_jax.config import (
  FIELDS,
  Config,
  defaults,
  different_network,
  different_run,
  height_width,
  load_recipe,
  validate,
)
from tests.support.paths import CONFIGS

VARIANTS = {
  "demo": ["", "baseline"],
  "camvid": ["", "cpu"],
  "cityscapes": ["", "resnet50", "resnet101", "hrnetv2_w48", "resnet101_test", "tpu"],
  "ade20k": ["", "resnet101", "resnet50", "hrnetv2_w48"],
  "coco_stuff": ["", "10k", "164k"],
}


def recipe(name: str, variant: str = "") -> Config:
  return load_recipe(f"{CONFIGS / name}.py:{variant}")


def test_every_recipe_is_listed_here() -> None:
  assert {path.stem for path in CONFIGS.glob("*.py")} == VARIANTS.keys()


@pytest.mark.parametrize(("name", "variant"), [(name, v) for name, all_ in VARIANTS.items() for v in all_])
def test_every_recipe_is_valid(name: str, variant: str) -> None:
  validate(recipe(name, variant))


@pytest.mark.parametrize("name", VARIANTS)
def test_an_unknown_variant_is_refused(name: str) -> None:
  with pytest.raises(ValueError, match="no such variant"):
    recipe(name, "tomorrow")


def test_cityscapes_is_the_papers_recipe() -> None:
  """Section 4 of the paper and, where it is silent, the authors' code; typed from the paper, not from the file."""
  config = recipe("cityscapes")
  paper = {
    "model.backbone": "resnet50",
    "model.output_stride": 8,
    "train.batch_size": 8,
    "train.steps": 30000,
    "optimizer.learning_rate": 0.01,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 0.0005,
    "optimizer.power": 0.9,
    "loss.pixel": "ce",
    "loss.aux_weight": 0.4,
    "loss.contrast_weight": 0.1,
    "contrast.scope": "bank",
    "contrast.centers": "dynamic",
    "contrast.bank_size": 2975,
    "contrast.temperature": 0.2,
    "optimizer.head_multiplier": 10.0,
    "model.multi_grid": (2, 2, 4),
    "model.aspp_rates": (12, 24, 36),
    "augment.scale": (0.5, 2.0),
    "augment.flip": 0.5,
  }
  for field, value in paper.items():
    section, name = field.split(".")
    assert config[section][name] == value, field
  assert height_width(config.train.crop_size) == (769, 769)
  test = recipe("cityscapes", "resnet101_test")
  assert (test.loss.pixel, test.loss.ohem_threshold, test.loss.ohem_min_kept) == ("ohem", 0.7, 100_000)
  assert (test.model.backbone, test.dataset.train_split) == ("resnet101", "trainval")


@pytest.mark.parametrize(
  ("name", "crop", "steps", "learning_rate", "images"),
  [("ade20k", 480, 150_000, 0.004, 20_210), ("coco_stuff", 520, 60_000, 0.001, 9_000)],
)
def test_the_papers_other_recipes(
  name: str, crop: int, steps: int, learning_rate: float, images: int
) -> None:
  config = recipe(name)
  assert height_width(config.train.crop_size) == (crop, crop) and config.train.steps == steps
  assert (config.train.batch_size, config.optimizer.learning_rate) == (16, learning_rate)
  assert (config.optimizer.weight_decay, config.optimizer.momentum, config.optimizer.power) == (
    1e-4,
    0.9,
    0.9,
  )
  assert config.contrast.bank_size == images
  assert (config.model.name, config.model.backbone, config.model.output_stride) == (
    "deeplabv3",
    "resnet101",
    8,
  )
  assert (config.loss.aux_weight, config.loss.contrast_weight, config.loss.pixel) == (0.4, 0.1, "ce")
  assert config.augment.scale == (0.5, 2.0) and config.augment.flip == 0.5


BAD = [
  ("train.batch_size", 0),
  ("train.crop_size", (8, 8)),
  ("train.crop_size", ()),
  ("train.crop_size", (64, 64, 3)),
  ("train.steps", 0),
  ("loss.pixel", "focl"),
  ("contrast.scope", "memory"),
  ("contrast.centers", "mean"),
  ("contrast.temperature", 0.0),
  ("contrast.bank_size", -1),
  ("contrast.bank_dtype", "int8"),
  ("model.output_stride", 0),
  ("model.hrnet_upsample", "cubic"),
  ("model.pretrained_part", "head"),
  ("model.pretrained_part", "all"),  # of no file
  ("model.psp_bins", (0,)),
  ("model.fcn_kernel_size", 2),
  ("model.dropout", 1.0),
  ("optimizer.learning_rate", -0.1),
  ("optimizer.momentum", 1.0),
  ("optimizer.name", "adam"),
  ("optimizer.schedule", "step"),
  ("optimizer.warmup_steps", 1_000_000),
  ("optimizer.layer_decay", 1.5),
  ("augment.scale", (2.0, 0.5)),
  ("augment.flip", 1.5),
  ("augment.cat_max_ratio", 0.0),
  ("augment.rotation", -5.0),
  ("augment.blur", 2.0),
  ("augment.blur_sigma", (2.0, 0.1)),
  ("augment.blur_sigma", (0.0, 1.0)),
  ("dataset.on_error", "ignore"),
  ("dataset.max_skipped", 1.0),
  ("data.cache_gb", -1.0),
  ("data.rare_class_temperature", -0.01),
  ("data.rare_class_min_pixels", 100),  # nothing reads it at temperature 0
  ("data.rare_class_crops", 1),
  ("eval.scales", ()),
  ("eval.stride", (9, 9)),
  ("data.workers", -1),
  ("train.crop_size", (70, 70)),
  ("augment.scale", (1.0,)),
  ("eval.scales", ("a",)),
  ("eval.split", "../val"),
  ("eval.split", "/data/val"),
  ("eval.split", "fold0/val/"),
  ("eval.split", "val+"),
  ("eval.split", ""),
  ("dataset.train_split", "fold0//train"),
  ("model.aspp_rates", (0, 6)),
  ("model.multi_grid", ()),
  ("model.bn_epsilon", 0.0),
]


@pytest.mark.parametrize(("field", "value"), BAD, ids=lambda value: str(value))
def test_what_cannot_work_is_refused(field: str, value: Any) -> None:
  config = recipe("demo")
  section, name = field.split(".")
  config[section][name] = value
  with pytest.raises(ValueError) as refusal:
    validate(config)
  assert f"config.{field}" in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("split", ["val", "train+val", "fold0/val", "fold 1/val+fold2/val", "val.v2"])
def test_a_split_may_lie_in_a_folder(split: str) -> None:
  config = recipe("demo")
  config.eval.split = config.dataset.train_split = split
  validate(config)


def test_a_window_stride_may_not_leave_gaps() -> None:
  config = recipe("demo")
  config.eval.crop_size, config.eval.stride = (64, 64), (64, 65)
  with pytest.raises(ValueError, match=r"eval\.stride.*gaps"):
    validate(config)


def test_the_contrast_starts_before_the_run_ends() -> None:
  config = recipe("demo")
  config.contrast.start_step = config.train.steps - 1
  validate(config)
  config.contrast.start_step = config.train.steps
  with pytest.raises(ValueError, match=r"config\.contrast\.start_step: .*expected below train\.steps, \d+"):
    validate(config)


def test_layers_of_a_projection_that_is_left_out_are_refused() -> None:
  config = recipe("demo")
  config.model.embedding_layers = 2
  with pytest.raises(ValueError, match=r"config\.model\.embedding_layers: is 2; expected 1 unless"):
    validate(config)
  config.model.embedding_channels = 8
  validate(config)


def test_a_field_that_nothing_reads_is_refused() -> None:
  config = defaults()
  config.train.batch_sise = 4
  with pytest.raises(ValueError, match=r"config\.train\.batch_sise.*did you mean 'batch_size'"):
    validate(config)


@pytest.mark.parametrize(
  ("field", "value", "reader"),
  [
    ("model.psp_bins", (1, 2), "pspnet"),
    ("model.hrnet_upsample", "nearest", "hrnetv2_w18"),
    ("loss.ohem_threshold", 0.5, "loss.pixel=ohem"),
    ("contrast.slots", "image", "contrast.scope=bank"),
    ("optimizer.beta2", 0.9, "optimizer.name=adamw"),
    ("optimizer.momentum", 0.8, "optimizer.name=sgd; leave it at 0.9"),
    ("optimizer.power", 2.0, "optimizer.schedule=poly; leave it at 0.9"),
    ("contrast.bank_size", 40, "contrast.slots=queue; leave it at 0"),
  ],
)
def test_a_field_that_the_chosen_network_or_loss_does_not_read_is_refused(
  field: str, value: Any, reader: str
) -> None:
  config = recipe("demo")
  config.contrast.update(
    {"contrast.slots": {"scope": "image"}, "contrast.bank_size": {"slots": "image"}}.get(field, {})
  )
  config.optimizer.update(
    {"optimizer.momentum": {"name": "adamw"}, "optimizer.power": {"schedule": "cosine"}}.get(field, {})
  )
  section, name = field.split(".")
  config[section][name] = value
  with pytest.raises(ValueError, match=rf"config\.{re.escape(field)}: .*{reader}"):
    validate(config)


def test_every_field_has_a_meaning_and_a_default_that_passes_its_check() -> None:
  assert len({field.path for field in FIELDS}) == len(FIELDS)
  for field in FIELDS:
    assert field.meaning.endswith("."), field.path
    assert field.path == "dataset.name" or field.check.holds(field.default), field.path


def test_a_run_of_an_older_version_lacks_fields_that_have_their_defaults() -> None:
  ours, theirs = recipe("demo").to_dict(), recipe("demo").to_dict()
  del theirs["model"]["psp_bins"]
  assert different_run(ours, theirs) == [] == different_network(ours, theirs)
  ours["model"]["psp_bins"] = (1, 2)
  assert different_run(ours, theirs) == ["model.psp_bins: [1, 2], there [1, 2, 3, 6]"]


RECIPE = """from rc_jax.config import defaults

def get_config():
  config = defaults()
  {line}
  return config
"""


@pytest.mark.parametrize(
  ("line", "wanted"),
  [
    ("config.train.steps = 'many'", ":5: TypeError"),
    ("config.trian.steps = 4", ":5: trian: no such field; did you mean 'train'?"),
    ("config.train.steps = int('many')", ":5: ValueError: invalid literal"),
    ("raise UserWarning('two\\nlines')", ":5: UserWarning: two lines"),
    ("return {}['a']", ":5: KeyError"),
    ("config train", ":5: SyntaxError"),
    ("return 5", "get_config returned int"),
  ],
)
def test_an_error_in_a_recipe_names_its_file_and_line(tmp_path: pathlib.Path, line: str, wanted: str) -> None:
  (tmp_path / "mine.py").write_text(RECIPE.format(line=line))
  with pytest.raises(ValueError) as refusal:
    load_recipe(str(tmp_path / "mine.py"))
  assert "mine.py" in str(refusal.value) and wanted in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
  ("encoding", "is_read"), [("utf-8", True), ("utf-8-sig", True), ("utf-16", False), ("cp1252", False)]
)
def test_a_recipe_in_another_encoding_is_named(tmp_path: pathlib.Path, encoding: str, is_read: bool) -> None:
  path = tmp_path / "mine.py"
  path.write_text(RECIPE.format(line="config.train.steps = len('Maße')"), encoding=encoding)
  if is_read:
    assert load_recipe(str(path)).train.steps == 4
    return
  with pytest.raises(ValueError) as refusal:
    load_recipe(str(path))
  assert "mine.py" in str(refusal.value) and "save the file as UTF-8" in str(refusal.value)


@pytest.mark.parametrize(
  ("text", "variant", "wanted"),
  [
    ("", "", "defines no function get_config; expected one that returns"),
    ("def get_config(first, second): pass", "", "needs arguments (get_config(first, second)); expected"),
    ("def get_config(): pass", ":big", "has no variants (get_config()), found :big; leave it out"),
  ],
)
def test_a_recipe_without_a_fitting_get_config(
  tmp_path: pathlib.Path, text: str, variant: str, wanted: str
) -> None:
  (tmp_path / "mine.py").write_text(text)
  with pytest.raises(ValueError) as refusal:
    load_recipe(f"{tmp_path / 'mine.py'}{variant}")
  assert "mine.py: " in str(refusal.value) and wanted in str(refusal.value)


def test_a_missing_field_is_refused() -> None:
  config = recipe("demo")
  del config.train.steps
  with pytest.raises(ValueError, match=r"config\.train\.steps"):
    validate(config)


def test_differences_name_the_fields_that_change_a_run() -> None:
  ours, theirs = recipe("demo").to_dict(), recipe("demo").to_dict()
  theirs["train"]["steps"] = 7
  theirs["train"]["log_every"] = 1  # does not change what is computed
  theirs["data"]["threads"] = 9
  theirs["model"]["multi_grid"] = list(theirs["model"]["multi_grid"])  # as JSON gives it back
  assert different_run(ours, theirs) == ["train.steps: 1000, there 7"]


def test_weights_of_another_network_are_told_by_the_fields_that_change_no_shape() -> None:
  ours, theirs = recipe("camvid").to_dict(), recipe("camvid", "cpu").to_dict()
  found = different_network(ours, theirs)
  assert "model.output_stride: 8, there 16" in found and not any(
    field.startswith("train.") for field in found
  )
  theirs = recipe("camvid").to_dict()
  theirs["model"]["pretrained"], theirs["eval"]["flip"] = "elsewhere.npz", True
  assert different_network(ours, theirs) == []
