"""Networks: the contract of ``build``, and logits, gradients and statistics of the PyTorch originals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc_jax import models
from rc_jax.config import defaults
from rc_jax.weights import pretrained

CLASSES = 5


def config(**fields):
  """The default ``config.model``, made small."""
  model = defaults().model
  small = {
    "backbone": "resnet_tiny",
    "multi_grid": (1, 2),
    "aspp_rates": (2, 4, 6),
    "channels": 16,
    "aux_channels": 16,
    "dtype": "float32",
  }
  model.update(small | fields)
  return model


def images(size, batch=2, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (batch, *size, 3), dtype=np.uint8)


@pytest.mark.long
def test_a_projection_of_two_layers_exists_in_training_only():
  fields = {"embedding_channels": 6, "dropout": 0.0}
  plain, two = (
    models.build(config(**each), CLASSES) for each in ({"dropout": 0.0}, fields | {"embedding_layers": 2})
  )
  variables, without = (network.init(jax.random.key(0), (33, 33)) for network in (two, plain))
  pixels, rng = images((33, 33)), jax.random.key(1)
  found, statistics = jax.jit(two.train)(*variables, pixels, rng)
  expected, _ = jax.jit(plain.train)(*without, pixels, rng)
  np.testing.assert_array_equal(found.logits, expected.logits)
  layers = jax.tree.map(np.asarray, variables.params["projection"])
  hidden = np.asarray(expected.features, np.float64) @ layers["hidden"]["conv"]["kernel"][0, 0]
  mean, var = hidden.mean(axis=(0, 1, 2)), hidden.var(axis=(0, 1, 2))
  hidden = np.maximum((hidden - mean) / np.sqrt(var + 1e-5), 0)
  projected = hidden @ layers["out"]["kernel"][0, 0] + layers["out"]["bias"]
  np.testing.assert_allclose(found.features, projected, rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(
    statistics["projection"]["hidden"]["bn"]["mean"], 0.1 * mean, rtol=1e-3, atol=1e-5
  )
  predicted = jax.jit(plain.predict)(*without, pixels)
  alone = [{name: tree[name] for name in ("backbone", "head")} for tree in variables]
  np.testing.assert_array_equal(jax.jit(two.predict)(*alone, pixels).logits, predicted.logits)


@pytest.fixture(scope="module")
def tiny():
  """A network in bfloat16 with dropout 0.5, its variables, and both compiled functions."""
  network = models.build(config(dtype="bfloat16", dropout=0.5), CLASSES)
  variables = network.init(jax.random.key(0), (65, 97))
  return network, variables, jax.jit(network.train), jax.jit(network.predict)


def test_shapes_dtypes_and_top_level_names(tiny):
  network, variables, train, predict = tiny
  for tree in variables:
    assert set(tree) == {"backbone", "head", "aux_head"}
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype("float32")}
  outputs, batch_stats = train(*variables, images((65, 97)), jax.random.key(1))
  assert outputs.logits.shape == (2, 9, 13, CLASSES) and outputs.logits.dtype == jnp.float32
  assert outputs.features.shape == (2, 9, 13, network.channels) and outputs.features.dtype == jnp.bfloat16
  aux = outputs.extra["aux"]
  assert aux.logits.shape == (2, 9, 13, CLASSES) and aux.logits.dtype == jnp.float32 and aux.term == "aux"
  assert jax.tree.map(jnp.shape, batch_stats) == jax.tree.map(jnp.shape, variables.batch_stats)
  assert {leaf.dtype for leaf in jax.tree.leaves(batch_stats)} == {jnp.dtype("float32")}
  changed = jax.tree.map(lambda old, new: bool((old != new).any()), variables.batch_stats, batch_stats)
  assert all(jax.tree.leaves(changed))
  outputs = predict(*variables, images((65, 97)))
  assert outputs.extra == {}
  assert (network.num_classes, network.channels, network.align_corners) == (CLASSES, 16, True)


def test_dropout_works_in_training_and_only_there(tiny):
  _, variables, train, predict = tiny
  batch = images((65, 97))
  first, second, again = (train(*variables, batch, jax.random.key(seed))[0] for seed in (1, 2, 1))
  np.testing.assert_array_equal(first.logits, again.logits)
  assert (first.logits != second.logits).any()
  assert (first.extra["aux"].logits != second.extra["aux"].logits).any()
  np.testing.assert_array_equal(first.features, second.features)  # they are read before dropout
  np.testing.assert_array_equal(predict(*variables, batch).logits, predict(*variables, batch).logits)
  classifier = variables.params["head"]["classifier"]
  features = predict(*variables, batch).features.astype(jnp.float32)
  read = features @ classifier["kernel"][0, 0] + classifier["bias"]
  np.testing.assert_allclose(predict(*variables, batch).logits, read, rtol=1e-5, atol=1e-5)


def test_float_images_of_0_to_255_give_the_same_as_uint8(tiny):
  _, variables, _, predict = tiny
  batch = images((65, 97))
  as_float = predict(*variables, batch.astype(np.float32)).logits
  np.testing.assert_array_equal(as_float, predict(*variables, batch).logits)


def reference(plan, seed=0, **fields):
  """A random PyTorch DeepLabV3 on the tiny ResNet, and our variables of the same values."""
  from tests.support import torch_reference

  backbone = torch_reference.ResNet(plan, False, 16, "64-64-128", "3x3")
  original = torch_reference.DeepLabV3(backbone, 128, 16, (2, 4, 6), CLASSES, **fields)
  torch_reference.randomize(original, seed)
  return original, models.Variables(*torch_reference.as_trees(original.state_dict()))


STRIDE_8 = [
  [(1, 1, 1)] * 2,
  [(2, 1, 1), (1, 1, 1)],
  [(1, 1, 2), (1, 2, 2)],
  [(1, 2, 4), (1, 8, 8)],  # multi-grid (1, 2)
]
STRIDE_16 = [[(1, 1, 1)] * 2, [(2, 1, 1), (1, 1, 1)], [(2, 1, 1), (1, 1, 1)], [(1, 1, 2), (1, 4, 4)]]


@pytest.mark.parametrize(("output_stride", "plan"), [(8, STRIDE_8), (16, STRIDE_16)])
@pytest.mark.parametrize("project", [False, True])
def test_logits_equal_the_originals(output_stride, plan, project):
  torch = pytest.importorskip("torch")
  original, variables = reference(plan, project=project)
  network = models.build(config(output_stride=output_stride, aspp_project=project), CLASSES)
  fresh = network.init(jax.random.key(0))
  assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, variables)
  batch = images((65, 90))
  with torch.no_grad():
    theirs = original.eval()(torch.tensor(batch).permute(0, 3, 1, 2).float())[0].permute(0, 2, 3, 1).numpy()
  ours = jax.jit(network.predict)(*variables, batch).logits
  assert ours.shape == theirs.shape
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_resnet50_from_a_file_gives_the_originals_logits(tmp_path):
  torch = pytest.importorskip("torch")
  from tests.support import torch_reference

  plan = [[(1, 1, 1)] * 3, [(2, 1, 1)] + [(1, 1, 1)] * 3, [(1, 1, 1)] + [(1, 2, 2)] * 5]
  plan.append([(1, 4, 4), (1, 8, 8), (1, 16, 16)])
  backbone = torch_reference.ResNet(plan, True, 64, "64-64-128", "3x3")
  original = torch_reference.DeepLabV3(backbone, 2048, 16, (12, 24, 36), CLASSES)
  torch_reference.randomize(original, seed=4).eval()
  torch.save({"state_dict": original.state_dict()}, tmp_path / "network.pth")

  model = config(backbone="resnet50", multi_grid=(2, 2, 4), aspp_rates=(12, 24, 36), pretrained_part="all")
  network = models.build(model, CLASSES)
  variables, report = pretrained.load(str(tmp_path / "network.pth"), network.init(jax.random.key(0)), model)
  assert not report.missing
  batch = images((66, 97), batch=1)
  with torch.no_grad():
    theirs = original(torch.tensor(batch).permute(0, 3, 1, 2).float())[0].permute(0, 2, 3, 1).numpy()
  ours = jax.jit(network.predict)(*variables, batch).logits
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.long
def test_training_gradients_and_statistics_equal_the_originals():
  torch = pytest.importorskip("torch")
  original, variables = reference(STRIDE_8, seed=6)
  original = original.double().train()
  network = models.build(config(dropout=0.0), CLASSES)
  batch = images((65, 80), batch=3)
  random = np.random.default_rng(1)
  weights = [random.standard_normal((3, 9, 11, CLASSES)).astype(np.float32) for _ in range(2)]

  logits, aux_logits = original(torch.tensor(batch).permute(0, 3, 1, 2).double())
  pairs = zip((logits, aux_logits), weights, strict=True)
  total = sum((y * torch.tensor(w).permute(0, 3, 1, 2).double()).sum() for y, w in pairs)
  total.backward()

  def loss(params):
    outputs, batch_stats = network.train(params, variables.batch_stats, batch, jax.random.key(0))
    both = (outputs.logits, outputs.extra["aux"].logits)
    return sum((y * w).sum() for y, w in zip(both, weights, strict=True)), batch_stats

  (value, batch_stats), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables.params)
  np.testing.assert_allclose(value, total.item(), rtol=1e-4)
  from tests.support import torch_reference

  expected, _ = torch_reference.as_trees({name: p.grad for name, p in original.named_parameters()})
  _, expected_statistics = torch_reference.as_trees(original.state_dict())

  def close(path, ours, theirs):
    error = np.abs(ours - theirs).max() / (np.abs(theirs).max() + 1e-3)
    assert error < 1e-3, f"{jax.tree_util.keystr(path)}: {error}"

  jax.tree_util.tree_map_with_path(close, gradients, expected)
  jax.tree_util.tree_map_with_path(close, batch_stats, expected_statistics)


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"name": "deeplab"}, ("config.model.name", "closest is deeplabv3")),
    ({"dtype": "bf16"}, ("config.model.dtype: is 'bf16'", "'bfloat16', 'float32'")),
    ({"dropout": 1.0}, ("config.model.dropout: is 1.0", "below 1")),
    # The chosen head's own field is checked, too; another head's is not.
    ({"name": "fcn", "fcn_kernel_size": 2}, ("config.model.fcn_kernel_size: is 2", "an odd number")),
  ],
)
def test_a_wrong_field_is_named_with_its_choices(fields, words):
  with pytest.raises(ValueError) as error:
    models.build(config(**fields), CLASSES)
  assert "\n" not in str(error.value)
  for word in words:
    assert word in str(error.value)


def test_a_function_counts_as_a_head_that_may_read_any_field(monkeypatch):
  assert models.readers("model.psp_bins") == ("pspnet",) and models.readers("model.channels") == ()
  assert models.reads("model.psp_bins", "pspnet", "resnet50")
  assert not models.reads("model.psp_bins", "fcn", "resnet50")
  assert models.reads("model.channels", "fcn", "resnet50")
  monkeypatch.setitem(models.HEADS, "users", lambda model, num_classes: None)
  assert models.reads("model.psp_bins", "users", "resnet50")
  monkeypatch.setitem(models.BACKBONES, "users", lambda model: None)
  assert models.reads("model.stem", "fcn", "users")
  assert "users" not in models.readers("model.psp_bins")


def test_each_field_is_stated_once():
  paths = [field.path for field in models.fields()]
  assert len(paths) == len(set(paths)) and {path.partition(".")[0] for path in paths} == {"model", "loss"}
