"""One update of a network: forward, both losses, backward, SGD, running statistics; against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax.config import defaults
from rc_jax.train_state import TrainState
from rc_jax.training import optimizer
from rc_jax.training.train_step import make_train_step
from rc_jax.weights.key_names import array_paths, map_keys
from tests.support import originals

CLASSES, BATCH, SIZE = 5, 6, (33, 49)
RATE, DECAY = 0.05, 5e-4
TOLERANCE = 1e-3


def keep_clear_of_kinks(network, seed):
  """Sets BatchNorms so that three quarters of the channels always pass their ReLU and the others never do.

  A ReLU's gradient jumps at 0. With PyTorch's own initial values, its float32 is off by up to 25 % of an array's
  change from its float64, because rounding puts a few of so many values on the other side; so no two programs could be
  held to 1e-3. A channel's sign depends on its number alone: sums of shortcuts keep it.
  """
  torch = originals.torch
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for part in network.modules():
      if isinstance(part, torch.nn.BatchNorm2d):
        channels = part.num_features
        passes = torch.tensor(np.random.default_rng(channels).random(channels) < 0.75)
        part.weight.uniform_(0.5, 1, generator=generator)
        part.bias.normal_(0, 0.3, generator=generator).add_(torch.where(passes, 4.0, -4.0))


def settle_statistics(network, images, seed):
  """Brings running statistics near those of the batch, as in any network that was trained, and not to them."""
  torch = originals.torch
  generator = torch.Generator().manual_seed(seed)
  norms = [part for part in network.modules() if isinstance(part, torch.nn.BatchNorm2d)]
  for part in norms:
    part.momentum = 1.0
  with torch.no_grad():
    network.train()(originals.normalized(images))
    for part in norms:
      part.momentum = 0.1
      deviation = part.running_var.sqrt()
      part.running_mean.add_(deviation * torch.randn(part.num_features, generator=generator))
      part.running_var.mul_(torch.rand(part.num_features, generator=generator) + 0.5)


def batch():
  """Noise on a color of each image's own, without which the pooled branch would see nearly equal images."""
  random = np.random.default_rng(3)
  colors = random.integers(0, 128, (BATCH, 1, 1, 3))
  images = (originals.images(SIZE, BATCH) // 2 + colors).astype(np.uint8)
  labels = random.integers(0, CLASSES + 1, (BATCH, 5, 5)).repeat(7, 1).repeat(10, 2)[:, : SIZE[0], : SIZE[1]]
  return images, np.where(labels == CLASSES, 255, labels).astype(np.uint8)


def pytorchs_step(original, images, labels):
  """Makes one update of the original in float64; returns its loss and, by name, its arrays before and after."""
  torch = originals.torch
  original = original.double().train()
  heads = [*original.classifier.parameters(), *original.aux_classifier.parameters()]
  groups = [{"params": original.backbone.parameters(), "lr": RATE}, {"params": heads, "lr": 10 * RATE}]
  update = torch.optim.SGD(groups, momentum=0.9, weight_decay=DECAY)
  before = {name: value.clone().numpy() for name, value in original.state_dict().items()}
  outputs = original(originals.normalized(images).double())
  cross_entropy = torch.nn.CrossEntropyLoss(ignore_index=255)
  target = torch.tensor(labels).long()
  loss = cross_entropy(outputs["out"], target) + 0.4 * cross_entropy(outputs["aux"], target)
  loss.backward()
  update.step()
  return loss.item(), before, {name: value.numpy() for name, value in original.state_dict().items()}


def errors_of_changes(before, after, exact):
  """The largest error of each array's change, as a share of its largest change; ``exact`` is after a float64 step.

  The last digit of a float32 is not counted: a step may change a bias of 4 by a thousand of them.
  """
  errors = {}
  for name, values in after.items():
    stored = np.spacing(np.abs(exact[name]).astype(np.float32))
    error = np.maximum(np.abs(values - exact[name]) - stored, 0)
    errors[name] = error.max() / np.abs(exact[name] - before[name]).max()
  return errors


@pytest.mark.long
def test_a_step_of_deeplabv3_changes_every_array_as_in_pytorch(tmp_path):
  """Holds the change of each array to the original's: largest difference below 1e-3 of the largest change.

  The original computes in float64, so that all rounding counted is ours.
  """
  torch = originals.torch
  build = originals.torchvision().models.segmentation.deeplabv3_resnet50
  original = build(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True)
  keep_clear_of_kinks(originals.randomize(original, seed=5), seed=6)
  images, labels = batch()
  settle_statistics(original, images, seed=7)
  network, model, variables, _ = originals.imported(
    original.state_dict(),
    tmp_path,
    CLASSES,
    stem="7x7",
    ceil_pool=False,
    align_corners=False,
    multi_grid=(1, 1, 1),
    aspp_project=True,
  )
  for part in original.modules():
    if isinstance(part, torch.nn.Dropout):
      part.p = 0.0
  loss, before, exact = pytorchs_step(original, images, labels)

  config = defaults()
  config.model = model
  config.contrast.scope = "none"
  config.optimizer.learning_rate, config.optimizer.weight_decay = RATE, DECAY
  config.optimizer.head_multiplier = 10.0
  rule = optimizer.build(config.optimizer, config.train.steps, variables.params, network.stages)
  schedule = optimizer.learning_rate(config.optimizer, config.train.steps)
  state = TrainState(
    step=jnp.int32(0),
    params=variables.params,
    batch_stats=variables.batch_stats,
    opt_state=rule.init(variables.params),
    bank=None,
  )
  step = jax.jit(make_train_step(network, rule, schedule, config))
  state, metrics = step(state, {"image": jnp.asarray(images), "label": jnp.asarray(labels)})
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)

  trees = {"params": state.params, "batch_stats": state.batch_stats}
  ours = {}
  for name, path in array_paths(**trees).items():
    leaf = trees
    for key in path:
      leaf = leaf[key]
    ours[name] = np.asarray(leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf)
  names = map_keys(before).names
  assert set(names.values()) == set(ours)
  changed = {theirs: ours[name] for theirs, name in names.items()}
  errors = errors_of_changes(before, changed, exact)
  worst = max(errors, key=lambda name: errors[name])
  assert errors[worst] < TOLERANCE, f"{worst}: {errors[worst]}"
