"""Imports the PyTorch originals on a machine without their compiled operations."""

import importlib
import importlib.machinery
import pathlib
import sys
import tempfile
import types

import jax
import numpy as np
import pytest

from rc_jax import models
from rc_jax.config import defaults
from rc_jax.models.heads.fcn import FCNHead
from rc_jax.models.layers import numerics
from rc_jax.models.segmenter import PIXEL_MEAN, PIXEL_STD
from rc_jax.weights import export_file, file_formats, pretrained

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

OPERATIONS = (
  "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
  "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library = None


class _Unused(nn.Module):
  """Replaces a compiled operation of mmcv that no network here uses."""

  def __init__(self, *args, **kwargs):
    super().__init__()


class _Operations(types.ModuleType):
  """A module with any name in it."""

  def __getattr__(self, name):
    if name.startswith("__"):
      raise AttributeError(name)
    return type(name, (_Unused,), {})


def torchvision():
  """Returns torchvision; one from PyPI beside a CPU build of PyTorch lacks the operations of its boxes."""
  global _library
  if "torchvision" not in sys.modules and _library is None:
    pytest.importorskip("PIL")
    _library = torch.library.Library("torchvision", "DEF")
    for schema in OPERATIONS:
      try:
        _library.define(schema)
      except RuntimeError:  # a torchvision that was built for this PyTorch brings them
        break
  return pytest.importorskip("torchvision", exc_type=ImportError)


def timm():
  """Returns timm, which imports torchvision."""
  torchvision()
  return pytest.importorskip("timm", exc_type=ImportError)


def mmsegmentation():
  """Returns mmsegmentation's registry of models; mmcv's compiled operations are replaced by empty modules."""
  torchvision()
  pytest.importorskip("mmcv", exc_type=ImportError)
  for name in ("mmcv.ops", "mmcv.ops.point_sample", "mmcv.ops.nms"):
    if name not in sys.modules:
      module = _Operations(name)
      module.__path__ = []
      module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
      sys.modules[name] = module
  pytest.importorskip("mmseg", exc_type=ImportError)
  importlib.import_module("mmseg.models")
  return importlib.import_module("mmseg.registry").MODELS


def randomize(module, seed):
  """Gives all parameters and statistics values other than the defaults, of a size that keeps activations near 1."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for part in module.modules():
      if isinstance(part, nn.Conv2d | nn.Linear):
        fan_in = part.weight[0].numel()
        part.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
        if part.bias is not None:
          part.bias.normal_(0, 0.5, generator=generator)
      if isinstance(part, nn.modules.batchnorm._BatchNorm):
        part.weight.uniform_(0.5, 1.5, generator=generator)
        part.bias.normal_(0, 0.3, generator=generator)
        part.running_mean.normal_(0, 0.3, generator=generator)
        part.running_var.uniform_(0.5, 2, generator=generator)
  return module


def settle(module, batch):
  """Gives BatchNorms the statistics of a batch of images ``[B,H,W,3]``, so that values neither grow nor fade."""
  norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
  for part in norms:
    part.momentum = 1.0
  with torch.no_grad():
    module.train()  # mmsegmentation returns nothing here
    module(normalized(batch))
  for part in norms:
    part.momentum = 0.1


def imported(saved, folder, classes, **fields):
  """Saves a checkpoint and imports it.

  Args:
    saved: for ``torch.save``.
    folder: for the file.
    classes: ``N``.
    **fields: of ``config.model``; float32, no dropout and an import of the head too, unless stated.

  Returns:
    The network, ``config.model``, the variables and the report.
  """
  path = folder / "original.pth"
  torch.save(saved, path)
  model = defaults().model
  model.update({"dtype": "float32", "dropout": 0.0, "pretrained_part": "all"} | fields)
  network = models.build(model, classes)
  variables, report = pretrained.load(str(path), network.init(jax.random.key(0)), model)
  return network, model, variables, report


def assert_export_is(state, variables, model, family, ignored=()):
  """Exports imported weights, and compares every array with the original's, bit for bit.

  Args:
    state: ``state_dict()`` of the original.
    variables: with the original's weights.
    model: ``config.model``.
    family: of the original.
    ignored: starts of the original's keys that the export has not.
  """
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "exported.safetensors"
    export_file.write_weights(path, family, variables, model, 7, "synthetic", ("road", "car"))
    arrays = file_formats.read(str(path))
  ignored = (*ignored, "never")
  expected = {
    key: value.numpy()
    for key, value in state.items()
    if not key.endswith("num_batches_tracked") and not key.startswith(ignored)
  }
  assert arrays.keys() == expected.keys()
  for key, array in expected.items():
    np.testing.assert_array_equal(arrays[key], array, err_msg=key)


def normalized(images):
  """Returns ``[B,3,H,W]`` as the originals take them, of uint8 ``[B,H,W,3]``: ImageNet's mean and deviation."""
  x = torch.tensor(images).permute(0, 3, 1, 2).float() / 255
  mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
  return (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def images(size, batch=1, seed=0):
  """Random ``[B,H,W,3]`` uint8."""
  return np.random.default_rng(seed).integers(0, 256, (batch, *size, 3), dtype=np.uint8)


def both_logits(model, variables, batch):
  """Logits and auxiliary logits in evaluation, where a network drops the latter: ``[B,h,w,N]`` each."""
  classes = variables.params["aux_head"]["classifier"]["bias"].shape[0]
  options = numerics(model)
  parts = {
    "backbone": models.backbones()[model.backbone].build(model),
    "head": models.heads()[model.name].build(model, classes),
    "aux_head": FCNHead(classes, model.aux_channels, **options),
  }

  @jax.jit
  def evaluate(variables, batch):
    def applied(part, inputs):
      trees = {"params": variables.params[part], "batch_stats": variables.batch_stats[part]}
      return parts[part].apply(trees, inputs, False)

    stages = applied("backbone", (batch - np.float32(PIXEL_MEAN)) / np.float32(PIXEL_STD))
    supervised = stages._replace(last=stages.stage3)
    return applied("head", stages).logits, applied("aux_head", supervised).logits

  return evaluate(variables, batch)


def assert_close(ours, theirs, tolerance=1e-4):
  """Compares ours ``[B,h,w,N]`` with theirs, a tensor ``[B,N,h,w]``, relative to the largest of theirs."""
  theirs = theirs.detach().permute(0, 2, 3, 1).numpy()
  assert ours.shape == theirs.shape
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())
