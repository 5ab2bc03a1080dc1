"""Initial values: their distributions, what they depend on, and which modules they concern."""

import math
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax import models
from rc_jax.models.initial_values import initial_variables
from rc_jax.models.layers import BatchNorm, Conv, DepthwiseConv, Linear
from tests.models.test_segmenter import config


class Layers(nn.Module):
  """One layer of each kind."""

  @nn.compact
  def __call__(self, x):
    x = Conv(128, 3, name="conv")(x)
    x = BatchNorm(name="bn")(x, True)
    x = DepthwiseConv(3, name="depthwise")(x)
    logits = Conv(150, 1, use_bias=True, name="classifier")(x)
    return logits, Linear(200, name="gate")(x.mean((1, 2)))


def test_distributions_are_pytorchs():
  images = jax.ShapeDtypeStruct((1, 8, 8, 64), jnp.float32)
  outputs, params, batch_stats = initial_variables(Layers().init_with_output, jax.random.key(0), images)
  assert [y.shape for y in outputs] == [(1, 8, 8, 150), (1, 200)]
  for name, deviation in (("conv", math.sqrt(2 / (9 * 128))), ("depthwise", math.sqrt(2 / (9 * 128)))):
    kernel = np.asarray(params[name]["kernel"])
    assert kernel.std() == pytest.approx(deviation, rel=0.05)
    assert abs(kernel.mean()) < 0.1 * deviation
  bound = 1 / math.sqrt(128)
  for layer in ("classifier", "gate"):
    for leaf in params[layer].values():
      assert np.abs(leaf).max() <= bound
      assert np.std(leaf) == pytest.approx(bound / math.sqrt(3), rel=0.1)
  norm = params["bn"] | batch_stats["bn"]
  assert {name: set(np.asarray(leaf).tolist()) for name, leaf in norm.items()} == {
    "scale": {1.0},
    "bias": {0.0},
    "mean": {0.0},
    "var": {1.0},
  }


def test_values_depend_on_the_key_and_the_path_alone():
  network = models.build(config(), 5)
  first, same, other = (
    network.init(jax.random.key(seed), size) for seed, size in ((0, (33, 33)), (0, (64, 97)), (1, (33, 33)))
  )
  assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), first, same)))
  layers = first.params["backbone"]["layer1"]
  assert (layers["0"]["conv2"]["kernel"] != layers["1"]["conv1"]["kernel"]).all()
  assert (layers["0"]["conv1"]["kernel"] != other.params["backbone"]["layer1"]["0"]["conv1"]["kernel"]).all()
  # Neither the number of classes nor the head changes a backbone of the same key.
  wider = models.build(config(), 7).init(jax.random.key(0))
  np.testing.assert_array_equal(
    layers["0"]["conv1"]["kernel"], wider.params["backbone"]["layer1"]["0"]["conv1"]["kernel"]
  )


class UsersHead(nn.Module):
  """A head of Flax's layers with initialisers of their own, and one layer of this project."""

  num_classes: int
  channels: int

  @nn.compact
  def __call__(self, stages, train):
    x = nn.Conv(self.channels, (3, 3), kernel_init=nn.initializers.constant(0.25), name="conv")(stages.last)
    x = nn.BatchNorm(not train, scale_init=nn.initializers.constant(0.5), name="norm")(x)
    x = nn.Dense(self.channels, bias_init=nn.initializers.constant(3), name="dense")(x)
    features = Conv(self.channels, 1, name="fuse")(nn.relu(x))
    return models.Outputs(Conv(self.num_classes, 1, use_bias=True, name="classifier")(features), features)


def test_a_users_modules_keep_their_own_initialisers(monkeypatch):
  monkeypatch.setitem(
    models.HEADS, "users", lambda model, num_classes: UsersHead(num_classes, model.channels)
  )
  key = jax.random.key(0)
  variables = models.build(config(name="users"), 5).init(key)
  head = variables.params["head"]
  assert (head["conv"]["kernel"] == 0.25).all() and (head["conv"]["bias"] == 0).all()
  assert (head["norm"]["scale"] == 0.5).all() and (head["dense"]["bias"] == 3).all()
  lecun = np.asarray(head["dense"]["kernel"])
  assert lecun.std() == pytest.approx(1 / math.sqrt(16), rel=0.2)
  assert set(variables.batch_stats["head"]["norm"]) == {"mean", "var"}
  # Layers of this project have the values that they have in any other head.
  fcn = models.build(config(name="fcn"), 5).init(key).params
  np.testing.assert_array_equal(head["classifier"]["kernel"], fcn["head"]["classifier"]["kernel"])
  np.testing.assert_array_equal(variables.params["backbone"]["bn1"]["scale"], fcn["backbone"]["bn1"]["scale"])


# Head, backbone -> a projection of the initial values as of version 0.1.0: a run with the same seed starts from them. A
# projection, not a digest: NumPy's normal deviates may differ in their last bit between machines.
PROJECTIONS = {
  ("ccnet", "resnet_tiny"): 29.7681,
  ("danet", "resnet_tiny"): 57.6748,
  ("deeplabv3", "resnet_tiny"): -29.2519,
  ("deeplabv3plus", "resnet_tiny"): 27.1245,
  ("encnet", "resnet_tiny"): 63.1177,
  ("fcn", "hrnetv2_tiny"): -47.5323,
  ("ocrnet", "hrnetv2_tiny"): -81.0510,
  ("pspnet", "resnet50"): 501.1905,
}
# Drawn by ``jax.random``.
NOT_FROM_NUMPY = {"codewords", "smoothing"}


def projection(tree):
  """Returns the sum over all leaves drawn in NumPy of their product with -1, 0 and 1, drawn from each leaf's path."""
  total = 0.0
  for path, leaf in jax.tree.leaves_with_path(tree):
    if path[-1].key not in NOT_FROM_NUMPY:
      rng = np.random.default_rng(zlib.crc32(f"{jax.tree_util.keystr(path)} {leaf.shape}".encode()))
      total += float(np.sum(np.float64(leaf) * rng.integers(-1, 2, leaf.shape)))
  return total


@pytest.mark.long
@pytest.mark.parametrize(("head", "backbone"), PROJECTIONS)
def test_built_in_networks_start_from_the_values_of_earlier_versions(head, backbone):
  model = config(name=head, backbone=backbone, embedding_channels=8, danet_key_channels=8, encnet_codes=8)
  model.output_stride = 4 if backbone.startswith("hrnet") else 8
  model.multi_grid = (1, 1, 1) if backbone == "resnet50" else (1, 1)
  variables = models.build(model, 5).init(jax.random.key(3), (65, 97))
  # Values of about 0.1, up to 50 million of them: another seed or order moves the sum by 10 and more.
  assert projection(tuple(variables)) == pytest.approx(PROJECTIONS[head, backbone], abs=1e-2)


def test_every_head_is_among_the_projections():
  assert {head for head, _ in PROJECTIONS} == set(models.HEADS)
