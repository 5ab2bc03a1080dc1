"""Every head on every kind of backbone: one update, contrast on, lowers the loss of the batch that it came from."""

import dataclasses

import jax
import numpy as np
import pytest

from rc_jax import models, sharding
from rc_jax.training import initial_state, optimizer
from rc_jax.training.train_step import make_train_step
from tests.support import run_tiny

CLASSES = 5
SLOPE = 0.05  # by how much the gradient says that the loss falls
# Those that supervise more than logits on the tiny network; the rest, and the real backbones, take minutes.
QUICK = [(head, run_tiny.BACKBONE) for head in ("danet", "encnet", "ocrnet")]
SLOW = [
  pytest.param(head, backbone, marks=pytest.mark.slow)
  for backbone in (run_tiny.BACKBONE, "hrnetv2_tiny", "resnet50", "hrnetv2_w18")
  for head in sorted(models.HEADS)
  if (head, backbone) not in QUICK
]


def calmed(tree, depth=0):
  """Scales what residual blocks add to a tenth, as training does; fresh ones double the gradient every few blocks."""
  if not isinstance(tree, dict):
    return tree
  tree = {name: calmed(part, depth + 1) for name, part in tree.items()}
  last = next((norm for norm in ("bn3", "bn2") if depth and norm in tree), None)
  if last:
    tree[last] = tree[last] | {"scale": 0.1 * tree[last]["scale"]}
  return tree


@pytest.mark.long
@pytest.mark.parametrize(("head", "backbone"), [*QUICK, *SLOW])
def test_one_update_lowers_the_loss_of_its_batch(head, backbone):
  config = run_tiny.get_config()
  config.model.name, config.model.backbone, config.model.dropout = head, backbone, 0.0
  config.model.danet_key_channels = config.model.ocr_key_channels = config.model.encnet_codes = 8
  config.model.multi_grid = (1, 1, 1) if backbone == "resnet50" else (1,)
  config.model.output_stride = 4 if backbone.startswith("hrnet") else 8
  config.optimizer.learning_rate, config.optimizer.head_multiplier = 1.0, 1.0
  config.optimizer.weight_decay = 0.0
  network = models.build(config.model, CLASSES)
  state, update_rule = initial_state.initial_state(config, network, 20, sharding.local_mesh(), fresh=True)
  params = state.params | {"backbone": calmed(state.params["backbone"])}
  state = dataclasses.replace(state, params=params)
  random = np.random.default_rng(0)
  blocks = random.integers(0, CLASSES, (2, 2, 3))
  label = np.kron(blocks, np.ones((1, 33, 33), np.uint8))[:, :65, :97].astype(np.uint8)
  colors = random.integers(0, 206, (CLASSES, 3))
  image = colors[label] + random.integers(0, 50, (2, 65, 97, 3))
  batch = {"image": image.astype(np.uint8), "label": label}
  step = make_train_step(network, update_rule, optimizer.learning_rate(config.optimizer, 10), config)
  # Quickly compiled: it runs three times.
  step = jax.jit(step).lower(state, batch).compile(compiler_options={"xla_backend_optimization_level": 0})

  bank = step(state, batch)[0].bank  # the keys of this batch: at first there are none to contrast with
  state = dataclasses.replace(state, bank=bank)
  updated, before = step(state, batch)
  # Only a short step stays on the slope that it saw. The first update is proportional to the learning rate, so that
  # the step need not be compiled again for the right one.
  rate = SLOPE / before["gradient_norm"] ** 2
  params = jax.tree.map(lambda old, new: old + rate * (new - old), state.params, updated.params)
  _, after = step(dataclasses.replace(state, params=params), batch)
  assert before["loss_contrast"] > 0 and before["contrast_queries"] > 0
  assert after["loss"] < before["loss"] - 0.1 * SLOPE, (before, after)
  assert ("loss_branch" in after) == (head == "danet") and ("loss_presence" in after) == (head == "encnet")
