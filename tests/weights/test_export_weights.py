"""``--mode=export --as``: files that PyTorch's originals load, and that ``model.pretrained`` reads back."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

import rc_jax
from rc_jax import models
from rc_jax.config import defaults
from rc_jax.models import Variables
from rc_jax.models.backbones import resnet
from rc_jax.modes import export
from rc_jax.ops.resample import upsample
from rc_jax.weights import exported_names, key_names, pretrained
from rc_jax.weights.export_file import write_weights
from rc_jax.weights.torch_arrays import torch_shapes
from tests.support import tiny_predictions

CLASSES = 3
NAMES = ("road", "car", "sky")
SIZE = (33, 49)


@pytest.fixture
def bottlenecks(monkeypatch):
  """The ResNet of bottlenecks with the fewest blocks that torchvision builds."""
  spec = resnet.ResNetSpec((1, 1, 1, 1), bottleneck=True)
  monkeypatch.setitem(models.BACKBONES, "bottlenecks", resnet.backbone(spec))


def config_model(**fields):
  model = defaults().model
  plain = {"stem": "7x7", "ceil_pool": False, "align_corners": False, "multi_grid": (1,), "dtype": "float32"}
  model.update({"backbone": "bottlenecks", "pretrained_part": "all", **plain} | fields)
  return model


def random_variables(model, classes: int = CLASSES) -> Variables:
  """Values other than initial ones in every array, of a size that keeps activations near 1."""
  variables = models.build(model, classes).init(jax.random.key(0), SIZE)
  random = np.random.default_rng(0)

  def draw(leaf):
    if leaf.ndim == 4:
      return leaf + jnp.float32(random.normal(0, 0.01, leaf.shape))
    return jnp.float32(random.uniform(0.5, 1.5, leaf.shape))

  return jax.tree.map(draw, variables)


def write(path, family, variables, model):
  return write_weights(path, family, variables, model, 7, "folder", NAMES)


def assert_read_back(path, variables, model) -> None:
  fresh = jax.tree.map(jnp.zeros_like, variables)
  found, report = pretrained.load(str(path), fresh, model, NAMES)
  parts = ("backbone",) if model.pretrained_part == "backbone" else tuple(variables.params)
  for ours, theirs in zip(found, variables, strict=True):
    for part in parts:
      if part in theirs:
        jax.tree.map(np.testing.assert_array_equal, ours[part], theirs[part])
  assert not (report.different or report.of_classes)


def photos(count: int = 1) -> np.ndarray:
  return np.random.default_rng(1).integers(0, 256, (count, *SIZE, 3), np.uint8)


@pytest.mark.long
@pytest.mark.parametrize(
  ("head", "fields"), [("fcn", {"channels": 512}), ("deeplabv3", {"aspp_project": True})]
)
def test_torchvision_gives_our_logits(bottlenecks, tmp_path, head, fields) -> None:
  from tests.support import originals

  torchvision = originals.torchvision()
  model = config_model(name=head, **fields)
  variables = random_variables(model)
  report = write(tmp_path / "weights.safetensors", "torchvision", variables, model)
  assert not report.left_out and not report.different

  segmentation = getattr(torchvision.models.segmentation, head)
  layers = torchvision.models.resnet.ResNet(
    torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], replace_stride_with_dilation=[False, True, True]
  )
  build = getattr(segmentation, f"_{head}_resnet")
  theirs = build(layers, CLASSES, True).eval()
  import safetensors.torch

  theirs.load_state_dict(safetensors.torch.load_file(tmp_path / "weights.safetensors"), strict=True)
  with originals.torch.no_grad():
    expected = theirs(originals.normalized(photos()))["out"]
    program = originals.torch.export.export(theirs, (originals.normalized(photos()),))
    originals.torch.testing.assert_close(
      program.module()(originals.normalized(photos()))["out"], expected, rtol=1e-5, atol=1e-5
    )
  network = models.build(model, CLASSES)
  logits = jax.jit(network.predict)(*variables, photos()).logits
  originals.assert_close(upsample(logits, SIZE, align_corners=False), expected)
  assert_read_back(tmp_path / "weights.safetensors", variables, model)


@pytest.mark.long
@pytest.mark.parametrize("stem", ["7x7", "32-32-64", "64-64-128"])
def test_timm_gives_our_features(bottlenecks, tmp_path, stem) -> None:
  from tests.support import originals

  timm = originals.timm()
  model = config_model(name="fcn", stem=stem, pretrained_part="backbone")
  variables = random_variables(model)
  report = write(tmp_path / "weights.safetensors", "timm", variables, model)
  assert {name.partition(".")[0] for name in report.left_out} == {"head", "aux_head"}
  options = {} if stem == "7x7" else {"stem_type": "deep", "stem_width": int(stem[:2])}
  theirs = timm.models.resnet.ResNet(
    timm.models.resnet.Bottleneck, (1, 1, 1, 1), num_classes=0, output_stride=8, **options
  ).eval()
  import safetensors.torch

  theirs.load_state_dict(safetensors.torch.load_file(tmp_path / "weights.safetensors"), strict=True)
  with originals.torch.no_grad():
    expected = theirs.forward_features(originals.normalized(photos()))
  module = models.backbones()[model.backbone].build(model)
  trees = {"params": variables.params["backbone"], "batch_stats": variables.batch_stats["backbone"]}
  pixels = originals.normalized(photos()).permute(0, 2, 3, 1).numpy()
  stages = jax.jit(lambda trees, x: module.apply(trees, x, False))(trees, pixels)
  originals.assert_close(stages.last, expected)
  assert_read_back(tmp_path / "weights.safetensors", variables, model)


def test_a_file_of_the_mode_holds_names_step_and_classes_and_is_read_back(tmp_path, capsys) -> None:
  path = tiny_predictions.export_tiny(tmp_path, as_="rc_jax")
  assert path == tmp_path / "rc_jax.safetensors"
  with safetensors.safe_open(path, framework="np") as file:
    metadata, keys = file.metadata(), set(file.keys())
  config, variables = tiny_predictions.tiny_config(), tiny_predictions.tiny_variables()
  assert keys == set(torch_shapes(variables))
  assert (metadata["rc_jax_version"], metadata["step"]) == (rc_jax.__version__, "7")
  assert json.loads(metadata["class_names"])[0] == "road" or len(json.loads(metadata["class_names"])) == 11
  assert json.loads(metadata["model"])["channels"] == config.model.channels
  config.model.pretrained_part = "all"
  found, report = pretrained.load(str(path), variables, config.model, json.loads(metadata["class_names"]))
  jax.tree.map(np.testing.assert_array_equal, found, variables)
  assert not report.missing and "WARNING" not in capsys.readouterr().out
  with pytest.raises(ValueError, match=r"rc_jax\.safetensors: exists; add --overwrite"):
    tiny_predictions.export_tiny(tmp_path, as_="rc_jax")
  # Scoring with it refuses other classes.
  others = [f"class {i}" for i in range(11)]
  with pytest.raises(ValueError, match="was trained on other classes"):
    pretrained.load(str(path), variables, config.model, others)


def test_fields_that_the_other_network_must_be_built_with_are_said(tmp_path, capsys) -> None:
  path = tiny_predictions.export_tiny(tmp_path, as_="mmsegmentation")
  said = capsys.readouterr().out
  assert (
    "WARNING: networks of mmsegmentation differ from this one in align_corners=True (there False)" in said
  )
  assert "aspp_rates=(1,2,3) (there (12,24,36))" in said
  variables, model = tiny_predictions.tiny_variables(), tiny_predictions.tiny_config().model
  model.pretrained_part = "all"
  found, _ = pretrained.load(str(path), variables, model)
  jax.tree.map(np.testing.assert_array_equal, found, variables)


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"as_": "torchvision"}, r"torchvision has no backbone resnet_least with model\.stem=64-64-128"),
    ({"as_": "regioncontrast"}, "this network can be exported as mmsegmentation, rc_jax, timm"),
    ({"as_": "keras"}, "--as=keras: no such family; expected one of mmsegmentation, regioncontrast, "),
    ({"as_": "timm", "size": "41,57", "batch": 2}, "--size, --batch: is of programs"),
  ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(tmp_path, options, words) -> None:
  with pytest.raises(ValueError, match=words) as error:
    tiny_predictions.export_tiny(tmp_path / "out", **options)
  assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_network_that_a_family_builds_otherwise_is_refused(bottlenecks) -> None:
  model = config_model(name="deeplabv3", aspp_project=False)
  names = torch_shapes(models.build(model, CLASSES).init(jax.random.key(0), SIZE))
  with pytest.raises(
    ValueError, match=r"has head\.aspp\.project\.conv, which this network lacks; .* rc_jax, timm"
  ):
    exported_names.exported_names(names, "torchvision", model)
  model.stem = "64-64-128"
  exported = exported_names.exported_names(
    [name.replace("backbone.conv1.", "backbone.conv1.0.") for name in names], "regioncontrast", model
  )
  assert exported.zeros == {"auxor.aux.0.bias": "aux_head.conv0.conv.weight"}
  assert exported.keys["backbone.conv1.0.weight"] == "encoder.conv1.0.weight"
  assert exported.keys["head.classifier.bias"] == "decoder.final.bias"
  model.name = "pspnet"
  with pytest.raises(ValueError, match="torchvision has no"):
    exported_names.exported_names(names, "torchvision", model)


RULES = [
  (f"{name}, {family}", published.key_rules)
  for name, head in models.heads().items()
  for family, published in head.published.items()
] + [(key, rules) for backbone in models.backbones().values() for key, rules in backbone.key_rules.items()]


@pytest.mark.parametrize("rules", [rules for _, rules in RULES], ids=[name for name, _ in RULES])
def test_every_rule_reads_back_what_its_inverse_writes(rules) -> None:
  backwards = exported_names.inverted(rules)
  for pattern, _ in backwards:
    # A name that the inverse matches: the first choice of each group, and one digit.
    name = re.sub(r"\((?:\\d\+|\[(\d)\d*\]|(\w+)[^)]*)\)", lambda match: match[1] or match[2] or "2", pattern)
    name = name.replace("\\", "") + "weight"
    key = key_names.apply_rules(backwards, name)
    assert key is not None and key_names.apply_rules(rules, key) == name


def test_a_rule_that_is_no_plain_text_is_refused() -> None:
  for rule in ((r"a\.(\d+)\.", "b."), (r"a.*\.", "b."), (r"(a)(b)\.", r"\2.\2.")):
    with pytest.raises(ValueError, match="cannot be inverted"):
      exported_names.inverted((rule,))


def test_weights_beside_a_program_are_read_back(tmp_path) -> None:
  flat = {
    name: np.asarray(leaf)
    for name, leaf in zip(
      export.flat_names(tuple(tiny_predictions.tiny_variables())),
      jax.tree.leaves(tuple(tiny_predictions.tiny_variables())),
      strict=True,
    )
  }
  safetensors.numpy.save_file(flat, tmp_path / "weights.safetensors")
  model = tiny_predictions.tiny_config().model
  model.pretrained_part = "all"
  variables = tiny_predictions.tiny_variables()
  fresh = jax.tree.map(jnp.zeros_like, variables)
  found, _ = pretrained.load(str(tmp_path / "weights.safetensors"), fresh, model)
  jax.tree.map(np.testing.assert_array_equal, found, variables)
