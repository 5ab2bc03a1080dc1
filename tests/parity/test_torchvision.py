"""torchvision's segmentation networks, saved by PyTorch and imported with their heads."""

import functools

import jax
import pytest

from rc_jax.ops.resample import upsample
from tests.support import originals

CLASSES = 5
FIELDS = {"stem": "7x7", "ceil_pool": False, "align_corners": False, "multi_grid": (1, 1, 1)}
HEADS = {"deeplabv3": {"aspp_project": True}, "fcn": {"channels": 512}}
SLOW = [pytest.param(head, "resnet101", marks=pytest.mark.slow) for head in HEADS]


@functools.cache
def original(head, backbone):
  torchvision = originals.torchvision()
  build = getattr(torchvision.models.segmentation, f"{head}_{backbone}")
  network = build(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True)
  return originals.randomize(network, seed=1).eval()


@pytest.mark.long
@pytest.mark.parametrize(("head", "backbone"), [*((head, "resnet50") for head in HEADS), *SLOW])
def test_logits_at_an_odd_and_an_even_size_and_auxiliary_logits(head, backbone, tmp_path):
  theirs = original(head, backbone)
  network, model, variables, report = originals.imported(
    theirs.state_dict(), tmp_path, CLASSES, name=head, backbone=backbone, **FIELDS, **HEADS[head]
  )
  assert report.architecture == f"{head} on {backbone} with stem 7x7, {CLASSES} classes"
  assert not (report.missing or report.folded or report.reordered or report.different)
  assert all(name.endswith("num_batches_tracked") for name in report.left_out)
  originals.assert_export_is(theirs.state_dict(), variables, model, "torchvision")

  def compare(ours, name, size, batch):
    with originals.torch.no_grad():
      logits = theirs(originals.normalized(batch))[name]
    originals.assert_close(upsample(ours, size, network.align_corners), logits)

  batch = originals.images((64, 96))
  compare(jax.jit(network.predict)(*variables, batch).logits, "out", (64, 96), batch)
  batch = originals.images((65, 97))
  logits, aux_logits = originals.both_logits(model, variables, batch)
  compare(logits, "out", (65, 97), batch)
  compare(aux_logits, "aux", (65, 97), batch)
