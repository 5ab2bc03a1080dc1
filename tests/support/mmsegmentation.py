"""mmsegmentation's networks as its standard configs build them, and this project's with their weights."""

import sys

import jax
import pytest

from rc_jax.models import segmenter
from rc_jax.models.backbones import resnet
from tests.support import originals, rounding
from tests.support.head_checks import extra_logits

torch = originals.torch
nn = torch.nn

ODD, EVEN = (65, 97), (64, 96)
CLASSES = 7
CHANNELS, AUX_CHANNELS = 24, 16
NORM = {"type": "BN"}
COMMON = {"dropout_ratio": 0.0, "num_classes": CLASSES, "norm_cfg": NORM, "align_corners": False}

# ``config.model`` of mmsegmentation's networks.
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
  spec = resnet.ResNetSpec((1, 1, 2, 2), bottleneck=True, width=16)
  monkeypatch.setitem(segmenter.BACKBONES, "narrow", resnet.backbone(spec))
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


def encoder_decoder(backbone, channels, head):
  """A network with a head on stage 4, which has so many channels, and the auxiliary head."""
  return {
    "type": "EncoderDecoder",
    "backbone": backbone,
    "decode_head": COMMON | {"in_channels": channels, "in_index": 3, "channels": CHANNELS} | head,
    "auxiliary_head": auxiliary(channels // 2),
  }


def cascade(backbone, coarse, fine):
  """An OCRNet: a head for the coarse prediction, then the head that refines it."""
  head = COMMON | {"type": "OCRHead", "channels": CHANNELS} | fine
  return {
    "type": "CascadeEncoderDecoder",
    "num_stages": 2,
    "backbone": backbone,
    "decode_head": [coarse, head],
  }


class _Scale(nn.Module):
  def __init__(self):
    super().__init__()
    self.scale = nn.Parameter(torch.zeros(()))


class CrissCrossAttention(nn.Module):
  """Stands for mmcv's compiled module, with its names; written from the paper, a loop over the pixels."""

  def __init__(self, channels):
    super().__init__()
    self.query_conv, self.key_conv = (nn.Conv2d(channels, channels // 8, 1) for _ in range(2))
    self.value_conv, self.gamma = nn.Conv2d(channels, channels, 1), _Scale()

  def forward(self, x):
    query, key, value = self.query_conv(x), self.key_conv(x), self.value_conv(x)
    attended = torch.zeros_like(value)
    height, width = x.shape[2:]
    for i in range(height):
      rows = [row for row in range(height) if row != i]
      for j in range(width):
        keys, values = (torch.cat([y[:, :, rows, j], y[:, :, i, :]], 2) for y in (key, value))
        weights = torch.einsum("bd,bdn->bn", query[:, :, i, j], keys).softmax(1)
        attended[:, :, i, j] = torch.einsum("bn,bcn->bc", weights, values)
    return x + self.gamma.scale * attended


def build(config):
  """Builds mmsegmentation's network at random values.

  Attentions are scaled to their inputs, encodings to a spread over several codewords: at other values, they would
  contribute nothing, or everything.
  """
  models = originals.mmsegmentation()
  head_module = sys.modules["mmseg.models.decode_heads.cc_head"]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(head_module, "CrissCrossAttention", CrissCrossAttention)
    network = originals.randomize(models.build(config), seed=0)
  generator = torch.Generator().manual_seed(1)
  with torch.no_grad():
    for name, parameter in network.named_parameters():
      if name.endswith("gamma.scale"):
        parameter.uniform_(0.5, 1.5, generator=generator)
      if name.endswith(("query_project.weight", "query_conv.weight")):
        parameter.mul_(0.5)
      if name.endswith("encoding.0.codewords"):
        parameter.normal_(0.5, 0.5, generator=generator)
      if name.endswith("encoding.0.scale"):
        parameter.uniform_(-0.2, 0, generator=generator)
  if config["backbone"]["type"] == "HRNet":
    # Its many sums would grow beyond what a softmax takes.
    originals.settle(network.backbone, originals.images(ODD, 2, seed=5))
  return network


def assert_same_outputs(tmp_path, config, fields, sizes=(ODD,), training_size=EVEN, optimisation=0):
  """Compares a network with the original, whose weights are read from a checkpoint as the model zoo has it.

  Args:
    tmp_path: a folder for the checkpoint.
    config: of mmsegmentation's network.
    fields: of ``config.model``.
    sizes: of the images for the logits in prediction.
    training_size: of three images for all outputs of training; None: prediction alone.
    optimisation: XLA's level for a CPU. Attentions amplify the rounding of unoptimised code, which takes level 3.

  Returns:
    The report of the import.
  """
  original = build(config)
  saved = {"meta": {"epoch": 1}, "state_dict": original.state_dict()}
  network, model, variables, report = originals.imported(saved, tmp_path, CLASSES, **fields)
  originals.assert_export_is(original.state_dict(), variables, model, "mmsegmentation")
  assert not report.missing and not report.different, report.summary()
  assert all(name.endswith("num_batches_tracked") for name in report.left_out), report.summary()

  def assert_same(outputs_of, theirs):
    """Rounding of many layers of BatchNorm moves logits by up to 2e-4 of the largest, in PyTorch as here."""
    options = {"xla_backend_optimization_level": optimisation}
    compiled = jax.jit(outputs_of).lower(variables).compile(compiler_options=options)
    ours = compiled(variables)
    tolerances = rounding.tolerances(compiled, variables, ours)
    for ours_, theirs_, tolerance in zip(ours, theirs, tolerances, strict=True):
      # Logits of an image are compared as a map of one pixel.
      originals.assert_close(
        ours_ if ours_.ndim == 4 else ours_[:, None, None],
        theirs_ if theirs_.ndim == 4 else theirs_[..., None, None],
        tolerance,
      )

  for size in sizes:
    batch = originals.images(size)
    theirs, *_ = _outputs(original.eval(), batch)
    assert_same(lambda given, batch=batch: [network.predict(*given, batch).logits], [theirs])
  if training_size is not None:
    batch = originals.images(training_size, batch=3)

    def train(given):
      outputs, _ = network.train(*given, batch, jax.random.key(0))
      return [outputs.logits, *extra_logits(outputs)]

    assert_same(train, _outputs(original.train(), batch))
  return report


def _outputs(original, batch):
  """Returns logits and those of ``extra_logits``."""
  with torch.no_grad():
    features = original.extract_feat(originals.normalized(batch))
    if isinstance(original.decode_head, nn.ModuleList):
      coarse = original.decode_head[0](features)
      return original.decode_head[1](features, coarse), coarse
    head = original.decode_head(features)
    logits, *further = head if isinstance(head, tuple) else (head,)
    auxiliary_logits = [original.auxiliary_head(features)] if original.with_auxiliary_head else []
    return logits, *auxiliary_logits, *further
