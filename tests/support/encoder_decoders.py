"""mmsegmentation's networks as its standard configs build them, and ours of their weights."""

import jax
import pytest

from rc_jax.models import segmenter
from rc_jax.models.backbones import resnet
from tests.support import originals
from tests.support.head_checks import compiled_once

torch = originals.torch

ODD, EVEN = (65, 97), (64, 96)
CLASSES = 7
CHANNELS, AUX_CHANNELS = 24, 16
NORM = {"type": "BN"}
COMMON = {"dropout_ratio": 0.0, "num_classes": CLASSES, "norm_cfg": NORM, "align_corners": False}

# What mmsegmentation's networks compute, in fields of ``config.model``.
FIELDS = {
  "align_corners": False,
  "ceil_pool": False,
  "channels": CHANNELS,
  "aux_channels": AUX_CHANNELS,
}
RESNET_FIELDS = FIELDS | {"output_stride": 8, "stem": "32-32-64"}


@pytest.fixture
def narrow(monkeypatch):
  """A ResNet of few bottlenecks, a quarter as wide as ResNet-50, in both: seconds where ResNet-50 takes a minute.

  Its stages, from 1 to 4, have 64, 128, 256 and 512 channels.
  """
  originals.mmsegmentation()
  from mmseg.models.backbones.resnet import Bottleneck, ResNet

  monkeypatch.setitem(ResNet.arch_settings, 20, (Bottleneck, (1, 1, 2, 2)))
  monkeypatch.setitem(resnet.RESNETS, "narrow", resnet.Layout((1, 1, 2, 2), bottleneck=True, width=16))
  monkeypatch.setitem(segmenter.BACKBONES, "narrow", segmenter.BACKBONES["resnet50"])
  theirs = resnet_v1c(20) | {"stem_channels": 16, "base_channels": 16}
  return theirs, RESNET_FIELDS | {"backbone": "narrow", "multi_grid": (1, 1)}


def resnet_v1c(depth):
  """The backbone of mmsegmentation's configs named ``r<depth>-d8``."""
  return {
    "type": "ResNetV1c",
    "depth": depth,
    "dilations": (1, 1, 2, 4),
    "strides": (1, 2, 1, 1),
    "contract_dilation": True,
    "norm_cfg": NORM,
  }


def auxiliary(inputs):
  """The head on stage 3."""
  return COMMON | {
    "type": "FCNHead",
    "in_channels": inputs,
    "in_index": 2,
    "channels": AUX_CHANNELS,
    "num_convs": 1,
    "concat_input": False,
  }


def assert_same_logits(tmp_path, config, fields, training_batch=3):
  """Holds logits and auxiliary logits to the original's, its weights read from a checkpoint as it would lie in the zoo.

  Args:
    tmp_path: a folder for the checkpoint.
    config: of mmsegmentation's network.
    fields: of ``config.model``.
    training_batch: images of the even size in training mode, which alone gives auxiliary logits; 0: they are
      predicted, as those of the odd size. In training mode the roundings of 50 layers of BatchNorm add up to 2e-4 of
      the largest logit, in PyTorch as here.

  Returns:
    The report of the import.
  """
  original = originals.randomize(originals.mmsegmentation().build(config), seed=0)
  if config["backbone"]["type"] == "HRNet":
    # Its many sums would grow beyond what a softmax takes.
    originals.settle(original.backbone, originals.images(ODD, 2, seed=5))
  saved = {"meta": {"epoch": 1}, "state_dict": original.state_dict()}
  network, _, variables, report = originals.imported(saved, tmp_path, CLASSES, **fields)
  assert not report.missing and not report.different, report.summary()
  assert all(name.endswith("num_batches_tracked") for name in report.left_out), report.summary()

  for size in ODD, *(() if training_batch else (EVEN,)):
    batch = originals.images(size)
    theirs, _ = _both_logits(original.eval(), batch)
    originals.assert_close(compiled_once(network.predict, *variables, batch).logits, theirs)
  if training_batch:
    batch = originals.images(EVEN, training_batch)
    theirs, theirs_aux = _both_logits(original.train(), batch)
    outputs, _ = compiled_once(network.train, *variables, batch, jax.random.key(0))
    originals.assert_close(outputs.logits, theirs)
    originals.assert_close(outputs.extra["aux"].logits, theirs_aux)
  return report


def _both_logits(original, batch):
  with torch.no_grad():
    features = original.extract_feat(originals.normalized(batch))
    if isinstance(original.decode_head, torch.nn.ModuleList):
      coarse = original.decode_head[0](features)
      return original.decode_head[1](features, coarse), coarse
    return original.decode_head(features), original.auxiliary_head(
      features
    ) if original.with_auxiliary_head else None
