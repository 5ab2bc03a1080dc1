"""Compares a head with its PyTorch original: outputs, gradients and statistics."""

import jax
import numpy as np
import torch

from rc_jax.models import Stages
from tests.support.head_checks import compiled_once, extra_logits
from tests.support.torch_reference import as_trees, randomize


def assert_same_in_prediction(module, original, stages):
  """Compares logits, features and, where the head has them in prediction, extra outputs.

  Args:
    module: the head, in float32.
    original: ``(stage1, stage3, last) -> (logits, features, *extra outputs)``, channels first.
    stages: float32 arrays, channels last.
  """
  randomize(original, seed=1).eval()
  params, batch_stats = as_trees(original.state_dict())
  with torch.no_grad():
    expected = [_channels_last(y).numpy() for y in original(*_tensors(stages, torch.float32))]
  variables = {"params": params, "batch_stats": batch_stats}
  outputs = compiled_once(lambda *given: module.apply(*given, False), variables, stages)
  ours = [outputs.logits, outputs.features, *extra_logits(outputs)]
  assert len(ours) in (2, len(expected))
  for ours_, theirs in zip(ours, expected, strict=False):
    assert ours_.shape == theirs.shape
    np.testing.assert_allclose(ours_, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def assert_same_in_training(module, original, stages, floor=0.0):
  """Compares all outputs, all gradients, none of them zero, and the new statistics with the original's in float64.

  Args:
    module: the head, in float32 and without dropout.
    original: as for ``assert_same_in_prediction``.
    stages: float32 arrays, channels last.
    floor: allowed error of a gradient relative to the largest gradient of all; for heads with parameters whose
      gradient is almost zero.
  """
  randomize(original, seed=2)
  params, batch_stats = as_trees(original.state_dict())
  original.double().train()
  tensors = _tensors(stages, torch.float64)
  expected = [_channels_last(y) for y in original(*tensors)]
  random = np.random.default_rng(3)
  weights = [random.standard_normal(y.shape).astype(np.float32) for y in expected]
  sum((y * torch.tensor(w)).sum() for y, w in zip(expected, weights, strict=True)).backward()

  def loss(params, stages):
    variables = {"params": params, "batch_stats": batch_stats}
    rngs = {"dropout": jax.random.key(0)}
    outputs, updates = module.apply(variables, stages, True, rngs=rngs, mutable=["batch_stats"])
    ours = [outputs.logits, outputs.features, *extra_logits(outputs)]
    return sum((y * w).sum() for y, w in zip(ours, weights, strict=True)), (ours, updates["batch_stats"])

  gradients, (ours, statistics) = compiled_once(jax.grad(loss, (0, 1), has_aux=True), params, stages)
  for ours_, theirs in zip(ours, expected, strict=True):
    theirs = theirs.detach().numpy()
    np.testing.assert_allclose(ours_, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())

  read = as_trees({name: parameter.grad for name, parameter in original.named_parameters()})[0]
  largest_of_all = max(np.abs(leaf).max() for leaf in jax.tree.leaves(read))

  def close(path, ours, theirs):
    where, largest = jax.tree_util.keystr(path), np.abs(theirs).max()
    # The bias of an attention's keys adds the same to all terms of a softmax: its gradient is rounding alone.
    constant = "'key'" in where and where.endswith("['bias']")
    assert constant or largest > 1e-6 * largest_of_all, f"{where}: the gradient is zero"
    assert np.abs(ours - theirs).max() < 1e-3 * largest + floor * largest_of_all, where

  jax.tree_util.tree_map_with_path(close, gradients[0], read)
  jax.tree_util.tree_map_with_path(close, statistics, as_trees(original.state_dict())[1])
  for name, ours_, tensor in zip(Stages._fields, gradients[1], tensors, strict=True):
    if tensor is not None and tensor.grad is not None:
      close((jax.tree_util.GetAttrKey(name),), ours_, _channels_last(tensor.grad).numpy())


def _channels_last(y):
  return y.permute(0, 2, 3, 1) if y.ndim == 4 else y


def _tensors(stages, dtype):
  """Stages channels first, leaves of the gradient; None stays None."""
  return [
    x if x is None else torch.tensor(x).permute(0, 3, 1, 2).to(dtype).detach().requires_grad_()
    for x in stages
  ]
