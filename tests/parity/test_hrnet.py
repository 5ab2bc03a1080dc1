"""HRNets: timm's branches, and mmsegmentation's networks on them."""

import jax
import numpy as np
import pytest

from rc_jax import models
from rc_jax.config import defaults
from rc_jax.models.backbones import hrnet
from rc_jax.models.backbones.hrnet import HRNetSpec
from tests.support import originals
from tests.support.head_checks import compiled_once
from tests.support.mmsegmentation import COMMON, EVEN, FIELDS, NORM, ODD, assert_same_outputs, cascade

# What timm's and the authors' classifiers have behind the branches.
BESIDE = ("incre_modules", "downsamp_modules", "final_layer", "classifier")
SPECS = {"tiny": HRNetSpec(6, modules=(1, 2, 1), blocks=1), "hrnetv2_w18": HRNetSpec(18)}
NAMES = ["tiny", pytest.param("hrnetv2_w18", marks=pytest.mark.slow)]


def mmsegmentations(spec):
  """The backbone of mmsegmentation's configs named ``hr<width>``, of any spec."""
  branches = [spec.width * 2**i for i in range(4)]
  extra = {"stage1": stage(1, "BOTTLENECK", spec.blocks, (spec.stem,))}
  for i, number in enumerate(spec.modules, start=2):
    extra[f"stage{i}"] = stage(number, "BASIC", spec.blocks, tuple(branches[:i]))
  read = {"in_channels": branches, "in_index": (0, 1, 2, 3), "input_transform": "resize_concat"}
  return {"type": "HRNet", "norm_cfg": NORM, "extra": extra}, read


def stage(modules, block, blocks, channels):
  branches = len(channels)
  return {
    "num_modules": modules,
    "num_branches": branches,
    "block": block,
    "num_blocks": (blocks,) * branches,
    "num_channels": channels,
  }


def fcn(read, channels):
  return (
    COMMON
    | read
    | {"type": "FCNHead", "channels": channels, "kernel_size": 1, "num_convs": 1}
    | {"concat_input": False}
  )


@pytest.fixture
def tiny(monkeypatch):
  monkeypatch.setitem(models.BACKBONES, "tiny", hrnet.backbone(SPECS["tiny"]))


def fields(backbone, **more):
  return FIELDS | {"backbone": backbone, "output_stride": 4, "hrnet_upsample": "bilinear-twice"} | more


@pytest.mark.long
@pytest.mark.parametrize("backbone", NAMES)
def test_fcn_equals_mmsegmentations(tmp_path, tiny, backbone):
  theirs, read = mmsegmentations(SPECS[backbone])
  channels = 15 * SPECS[backbone].width
  config = {"type": "EncoderDecoder", "backbone": theirs, "decode_head": fcn(read, channels)}
  ours = fields(backbone, name="fcn", fcn_kernel_size=1, channels=channels)
  assert_same_outputs(tmp_path, config, ours, sizes=(ODD, EVEN), training_size=None)


@pytest.mark.parametrize(
  ("backbone", "training_size"),
  [
    ("tiny", None),
    pytest.param("tiny", EVEN, marks=pytest.mark.slow),
    pytest.param("hrnetv2_w18", None, marks=pytest.mark.slow),
  ],
)
def test_ocrnet_equals_mmsegmentations(tmp_path, tiny, backbone, training_size):
  theirs, read = mmsegmentations(SPECS[backbone])
  coarse = fcn(read, 15 * SPECS[backbone].width)
  config = cascade(theirs, coarse, read | {"ocr_channels": 10})
  ours = fields(backbone, name="ocrnet", ocr_key_channels=10)
  assert_same_outputs(tmp_path, config, ours, sizes=(ODD, EVEN), training_size=training_size)


@pytest.mark.long
@pytest.mark.parametrize("width", [18, pytest.param(48, marks=pytest.mark.slow)])
def test_branches_equal_timms(width, tmp_path):
  """At a size that halves evenly: timm's classifiers take no other."""
  timm = originals.timm()
  original = originals.randomize(timm.create_model(f"hrnet_w{width}"), seed=2).eval()
  batch = originals.images((64, 96))
  x = originals.normalized(batch)
  with originals.torch.no_grad():
    branches = original.stages(
      original.act2(original.bn2(original.conv2(original.act1(original.bn1(original.conv1(x))))))
    )
    grid = branches[0].shape[2:]
    resized = [originals.torch.nn.functional.interpolate(y, grid, mode="bilinear") for y in branches]
  ours = {"backbone": f"hrnetv2_w{width}", "output_stride": 4, "hrnet_upsample": "nearest", "name": "fcn"}
  _, model, variables, report = originals.imported(
    original.state_dict(), tmp_path, 5, pretrained_part="backbone", align_corners=False, **ours
  )
  originals.assert_export_is(original.state_dict(), variables, model, "timm", BESIDE)
  assert report.architecture == f"hrnetv2_w{width}" and not report.missing and not report.different
  assert all(name.startswith(BESIDE) for name in report.left_out if "num_batches_tracked" not in name)
  trees = {"params": variables.params["backbone"], "batch_stats": variables.batch_stats["backbone"]}
  module = models.backbones()[model.backbone].build(model)
  pixels = x.permute(0, 2, 3, 1).numpy()
  stages = compiled_once(lambda v, x: module.apply(v, x, False), trees, pixels)
  originals.assert_close(stages.stage1, branches[0])
  originals.assert_close(stages.last, originals.torch.cat(resized, 1))
  assert stages.stage3 is None


@pytest.mark.parametrize("width", [18, 32, 48])
def test_as_many_parameters_as_timms(width):
  timm = originals.timm()
  original = timm.create_model(f"hrnet_w{width}")
  theirs = sum(p.numel() for name, p in original.named_parameters() if not name.startswith(BESIDE))
  model = defaults().model
  model.update({"backbone": f"hrnetv2_w{width}", "output_stride": 4})
  module = models.backbones()[model.backbone].build(model)
  image = np.zeros((1, 64, 64, 3), np.float32)
  shapes = jax.eval_shape(lambda rng: module.init(rng, image, False), jax.random.key(0))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == theirs
