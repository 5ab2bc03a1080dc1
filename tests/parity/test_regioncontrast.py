"""The release of RegionContrast's authors: its names and order, always; the network itself where it can be found.

``RC_JAX_REGIONCONTRAST`` is the folder of a checkout of github.com/hzhupku/RegionContrast.
"""

import os

import jax
import pytest

from tests.models.test_segmenter import STRIDE_8, config
from tests.support import originals

CLASSES = 5
BRANCHES = {"conv1x1": "conv2.{}", "rate0": "conv3.{}", "rate1": "conv4.{}", "rate2": "conv5.{}"}


def authors_names():
  """Layers of our reference -> their names in the authors' ``ModelBuilder``."""
  names = {"head.aspp.pool.conv": "decoder.aspp.conv1.1", "head.aspp.pool.bn": "decoder.aspp.conv1.2"}
  for branch, theirs in BRANCHES.items():
    names[f"head.aspp.{branch}.conv"] = "decoder.aspp." + theirs.format(0)
    names[f"head.aspp.{branch}.bn"] = "decoder.aspp." + theirs.format(1)
  names |= {"head.fuse.conv": "decoder.head.0", "head.fuse.bn": "decoder.head.1"}
  names |= {"head.classifier": "decoder.final", "aux_head.classifier": "auxor.aux.4"}
  return names | {"aux_head.conv0.conv": "auxor.aux.0", "aux_head.conv0.bn": "auxor.aux.1"}


def checkpoint(state):
  """What ``train_contrast.py`` saves."""
  state = {f"module.{name}": value for name, value in state.items()}
  return {"epoch": 3, "model_state": state, "optimizer_state": {"state": {}, "param_groups": []}}


def test_names_order_of_branches_and_folded_bias(tmp_path):
  from tests.support import torch_reference

  torch = originals.torch
  backbone = torch_reference.ResNet(STRIDE_8, False, 16, "64-64-128", "3x3")
  reference = torch_reference.DeepLabV3(backbone, 128, 16, (2, 4, 6), CLASSES)
  torch_reference.randomize(reference, seed=8).eval()
  # The same function as the authors write it down: pooled branch first, and a bias before the auxiliary BatchNorm.
  names = authors_names()
  state = {}
  for name, value in reference.state_dict().items():
    layer, _, leaf = name.rpartition(".")
    state[f"{names.get(layer, layer)}.{leaf}".replace("backbone.", "encoder.")] = value.clone()
  fuse = state["decoder.head.0.weight"]
  state["decoder.head.0.weight"] = torch.cat([fuse[:, 64:], fuse[:, :64]], dim=1)
  bias = torch.randn(16, generator=torch.Generator().manual_seed(0))
  state["auxor.aux.0.bias"] = bias
  state["auxor.aux.1.running_mean"] += bias
  queues = {f"decoder.queue{i}": torch.randn(16, 7) for i in range(CLASSES)}
  queues |= {f"decoder.ptr{i}": torch.zeros(1, dtype=torch.long) for i in range(CLASSES)}

  fields = {field: config()[field] for field in ("backbone", "multi_grid", "channels", "aux_channels")}
  _, model, variables, report = originals.imported(
    checkpoint(state | queues), tmp_path, CLASSES, aspp_rates=(2, 4, 6), **fields
  )
  assert report.architecture == f"deeplabv3 on resnet_tiny with stem 64-64-128, {CLASSES} classes"
  assert report.reordered == ("module.decoder.head.0.weight",)
  assert report.folded == ("module.auxor.aux.0.bias",)
  assert not report.missing
  assert {name for name in report.left_out if "num_batches_tracked" not in name} == {
    f"module.{name}" for name in queues
  }
  assert report.different == ("model.multi_grid=(1,2)", "model.aspp_rates=(2,4,6)")
  assert "WARNING: the config has model.multi_grid=(1,2) model.aspp_rates=(2,4,6)" in report.summary()

  # Exported, the bias is 0 and the mean behind it without it: the same function.
  state["auxor.aux.1.running_mean"] -= bias
  state["auxor.aux.0.bias"] = torch.zeros(16)
  # The authors' basic blocks refuse dilation, on which no array depends.
  strided = model.copy_and_resolve_references()
  strided.output_stride = 32
  originals.assert_export_is(state, variables, strided, "regioncontrast")

  batch = originals.images((65, 90), batch=2)
  with torch.no_grad():
    expected = reference(torch.tensor(batch).permute(0, 3, 1, 2).float())
  for ours, theirs in zip(originals.both_logits(model, variables, batch), expected, strict=True):
    originals.assert_close(ours, theirs)


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101"])
def test_the_authors_network_gives_the_same_logits(backbone, tmp_path, monkeypatch):
  checkout = os.environ.get("RC_JAX_REGIONCONTRAST")
  if not checkout:
    pytest.skip("RC_JAX_REGIONCONTRAST names no checkout of the authors' release")
  monkeypatch.syspath_prepend(checkout)
  from pyseg.models.model_helper import ModelBuilder

  encoder = {"multi_grid": True, "replace_stride_with_dilation": [False, True, True], "pretrained": False}
  settings = {
    "num_classes": CLASSES,
    "sync_bn": False,  # the same arithmetic in evaluation, and on any machine
    "aux_loss": {"aux_plane": 1024, "loss_weight": 0.4},
    "encoder": {"type": f"pyseg.models.resnet.{backbone}", "kwargs": encoder},
    "decoder": {
      "type": "pyseg.models.decoder_contrast.dec_deeplabv3_contrast",
      "kwargs": {"inner_planes": 256, "dilations": [12, 24, 36], "queue_len": 5},
    },
  }
  original = originals.randomize(ModelBuilder(settings), seed=3).eval()
  network, model, variables, report = originals.imported(
    checkpoint(original.state_dict()), tmp_path, CLASSES, backbone=backbone
  )
  # The defaults of config.model are the authors' network.
  assert not report.missing and not report.different
  assert len(report.reordered) == len(report.folded) == 1
  assert {name.rstrip("0123456789") for name in report.left_out if "num_batches" not in name} == {
    "module.decoder.queue",
    "module.decoder.ptr",
  }

  def compare(ours, part, batch):
    with originals.torch.no_grad():
      middle, last = original.encoder(originals.normalized(batch))
      # Not decoder(last): it computes the contrastive loss too, on a GPU alone.
      decoder = original.decoder
      theirs = decoder.final(decoder.head(decoder.aspp(last))) if part == "head" else original.auxor(middle)
    originals.assert_close(ours, theirs)

  batch = originals.images((64, 98))
  compare(jax.jit(network.predict)(*variables, batch).logits, "head", batch)
  batch = originals.images((65, 97))
  for ours, part in zip(originals.both_logits(model, variables, batch), ("head", "aux_head"), strict=True):
    compare(ours, part, batch)
