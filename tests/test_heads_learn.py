"""Every head on every kind of backbone: one update, contrast on, lowers the loss of the batch that it came from."""

import dataclasses

import jax
import numpy as np
import pytest

from rc_jax import models, optimizer, sharding, train
from rc_jax.train_step import make_train_step
from tests import run_tiny

CLASSES = 5
# Those that supervise more than logits on the tiny network; the rest, and the real backbones, take minutes.
QUICK = [(head, "resnet_tiny") for head in ("danet", "encnet", "ocrnet")]
SLOW = [
  pytest.param(head, backbone, marks=pytest.mark.slow)
  for backbone in ("resnet_tiny", "hrnetv2_tiny", "resnet50", "hrnetv2_w18")
  for head in sorted(models.HEADS)
  if (head, backbone) not in QUICK
]


@pytest.mark.parametrize(("head", "backbone"), [*QUICK, *SLOW])
def test_one_update_lowers_the_loss_of_its_batch(head, backbone):
  config = run_tiny.get_config()
  config.model.name, config.model.backbone, config.model.dropout = head, backbone, 0.0
  config.model.danet_key_channels = config.model.ocr_key_channels = config.model.encnet_codes = 8
  config.model.multi_grid = (1, 1, 1) if backbone == "resnet50" else (1, 1)
  config.model.output_stride = 4 if backbone.startswith("hrnet") else 8
  # A fresh deep network's gradient is steep (its norm is 200 on these): only a short step stays on the slope it saw.
  config.optimizer.learning_rate, config.optimizer.head_multiplier = 1e-5, 1.0
  network = models.build(config.model, CLASSES)
  state, update_rule = train.initial_state(config, network, 20, sharding.local_mesh(), fresh=True)
  random = np.random.default_rng(0)
  blocks = random.integers(0, CLASSES, (2, 2, 3))
  batch = {
    "image": random.integers(0, 256, (2, 65, 97, 3), np.uint8),
    "label": np.kron(blocks, np.ones((1, 33, 33)))[:, :65, :97].astype(np.uint8),
  }
  step = make_train_step(network, update_rule, optimizer.learning_rate(config.optimizer, 10), config)
  # Quickly compiled: it runs three times.
  step = jax.jit(step).lower(state, batch).compile(compiler_options={"xla_backend_optimization_level": 0})

  bank = step(state, batch)[0].bank  # the keys of this batch: at first there are none to contrast with
  updated, before = step(dataclasses.replace(state, bank=bank), batch)
  _, after = step(dataclasses.replace(updated, bank=bank), batch)
  assert before["loss_contrast"] > 0 and before["contrast_queries"] > 0
  assert after["loss"] < before["loss"], (before, after)
  assert ("loss_branch" in after) == (head == "danet") and ("loss_presence" in after) == (head == "encnet")
