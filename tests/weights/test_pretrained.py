"""The import of published weights: values, reports and every error."""

import builtins

import jax
import numpy as np
import pytest
import safetensors.numpy

from rc_jax import models
from rc_jax.weights import pretrained
from tests.models.test_segmenter import config

PLAIN = config(stem="7x7")


@pytest.fixture(scope="module")
def fresh():
  """Variables of the tiny ResNet with a plain stem."""
  return models.build(PLAIN, 5).init(jax.random.key(0))


def torch_arrays(variables, seed=0, dtype=np.float32):
  """Random arrays under torchvision's names for the backbone of ``variables``, built from its paths."""
  random = np.random.default_rng(seed)
  arrays = {}
  leaves = jax.tree_util.tree_flatten_with_path([tree["backbone"] for tree in variables])[0]
  last = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
  for path, leaf in leaves:
    *parts, name = [entry.key for entry in path[1:]]
    shape = tuple(leaf.shape[i] for i in (3, 2, 0, 1)) if leaf.ndim == 4 else leaf.shape
    arrays[".".join([*parts, last[name]])] = random.uniform(0.1, 1, shape).astype(dtype)
  return arrays


def test_values_are_stored_under_their_names_transposed_and_in_float32(fresh, tmp_path):
  arrays = torch_arrays(fresh, dtype=np.float16)
  extra = {"fc.weight": np.ones((10, 128), np.float32), "bn1.num_batches_tracked": np.array(7)}
  np.savez(tmp_path / "weights.npz", **arrays, **extra)
  variables, report = pretrained.load(str(tmp_path / "weights.npz"), fresh, PLAIN)
  kernel = variables.params["backbone"]["layer2"]["0"]["downsample"]["0"]["kernel"]
  expected = arrays["layer2.0.downsample.0.weight"].astype(np.float32)
  assert kernel.dtype == np.float32 and kernel.shape == (1, 1, 16, 32)
  for row, column, i, o in ((0, 0, 3, 5), (0, 0, 15, 31)):
    assert kernel[row, column, i, o] == expected[o, i, row, column]
  stem = variables.params["backbone"]["conv1"]["kernel"]
  assert stem[2, 5, 1, 7] == np.float32(arrays["conv1.weight"][7, 1, 2, 5])
  norm = "layer3", "1", "bn2"
  params, statistics = variables.params["backbone"], variables.batch_stats["backbone"]
  for part in norm:
    params, statistics = params[part], statistics[part]
  found = [params["scale"], params["bias"], statistics["mean"], statistics["var"]]
  for leaf, name in zip(found, ("weight", "bias", "running_mean", "running_var"), strict=True):
    np.testing.assert_array_equal(leaf, arrays[f"layer3.1.bn2.{name}"].astype(np.float32))
  assert variables.params["head"] is fresh.params["head"]
  assert (fresh.params["backbone"]["conv1"]["kernel"] != stem).all()  # the argument is not changed

  assert set(report.matched) == set(arrays) and not report.missing
  assert set(report.transposed) == {name for name, array in arrays.items() if array.ndim == 4}
  assert set(report.left_out) == set(extra)
  summary = report.summary()
  assert "\n" not in summary
  for words in (
    "resnet_tiny with stem 7x7",
    f"{len(arrays)} arrays matched",
    "fc.weight",
    "0 missing",
  ):
    assert words in summary


def test_missing_arrays_are_an_error(fresh, tmp_path):
  arrays = torch_arrays(fresh)
  del arrays["layer4.1.bn2.running_var"], arrays["layer1.0.conv2.weight"]
  np.savez(tmp_path / "weights.npz", **arrays)
  lacks = r"lacks backbone\.layer1\.0\.conv2\.weight, backbone\.layer4\.1\.bn2\.running_var: "
  with pytest.raises(ValueError, match=lacks):
    pretrained.load(str(tmp_path / "weights.npz"), fresh, PLAIN)


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.backbone.", "_orig_mod.encoder."])
def test_prefixes_of_wrappers_are_stripped(fresh, tmp_path, prefix):
  arrays = {prefix + name: array for name, array in torch_arrays(fresh).items()}
  arrays["decode_head.conv_seg.weight"] = np.ones((3, 3, 1, 1), np.float32)
  np.savez(tmp_path / "weights.npz", **arrays)
  _, report = pretrained.load(str(tmp_path / "weights.npz"), fresh, PLAIN)
  assert not report.missing and report.left_out == ("decode_head.conv_seg.weight",)


def test_other_names_of_the_deep_stem(tmp_path):
  deep = models.build(config(), 5).init(jax.random.key(0))
  arrays = torch_arrays(deep)
  ours = [f"conv1.{i}" for i in (0, 1, 3, 4, 6)] + ["bn1"]
  for theirs in (
    [f"stem.{i}" for i in (0, 1, 3, 4, 6, 7)],
    ["conv1", "bn1", "conv2", "bn2", "conv3", "bn3"],
  ):
    names = dict(zip(ours, theirs, strict=True))
    split = {name: name.rpartition(".") for name in arrays}
    renamed = {f"{names.get(layer, layer)}.{leaf}": arrays[name] for name, (layer, _, leaf) in split.items()}
    np.savez(tmp_path / "weights.npz", **renamed)
    variables, report = pretrained.load(str(tmp_path / "weights.npz"), deep, config())
    assert not report.missing and not report.left_out
    last = variables.params["backbone"]["conv1"]["6"]["kernel"]
    np.testing.assert_array_equal(last, arrays["conv1.6.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(variables.params["backbone"]["bn1"]["bias"], arrays["bn1.bias"])


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.npz"])
def test_contents_decide_on_the_format_not_the_extension(fresh, tmp_path, name):
  arrays = torch_arrays(fresh)
  safetensors.numpy.save_file(arrays, tmp_path / name)
  variables, report = pretrained.load(str(tmp_path / name), fresh, PLAIN)
  assert not report.missing
  stem = variables.params["backbone"]["conv1"]["kernel"]
  np.testing.assert_array_equal(stem, arrays["conv1.weight"].transpose(2, 3, 1, 0))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapper", [None, "state_dict"])
def test_pytorch_files(fresh, tmp_path, legacy, wrapper):
  torch = pytest.importorskip("torch")
  arrays = torch_arrays(fresh)
  state = {f"module.{name}": torch.tensor(array) for name, array in arrays.items()}
  state["module.layer1.0.conv1.weight"] = state["module.layer1.0.conv1.weight"].bfloat16()
  saved = {wrapper: state, "epoch": 3} if wrapper else state
  torch.save(saved, tmp_path / "weights.pth", _use_new_zipfile_serialization=not legacy)
  variables, report = pretrained.load(str(tmp_path / "weights.pth"), fresh, PLAIN)
  assert not report.missing
  kernel = variables.params["backbone"]["layer1"]["0"]["conv1"]["kernel"]
  np.testing.assert_allclose(kernel, arrays["layer1.0.conv1.weight"].transpose(2, 3, 1, 0), rtol=1e-2)


def test_a_pytorch_file_without_pytorch(fresh, tmp_path, monkeypatch):
  path = tmp_path / "weights.pth"
  path.write_bytes(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")  # how torch.save began before version 1.6
  imported = builtins.__import__

  def without_torch(name, *args, **kwargs):
    if name == "torch":
      raise ModuleNotFoundError("No module named 'torch'")
    return imported(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", without_torch)
  with pytest.raises(ValueError, match=r"weights.pth needs the package torch.*pip install torch.*\.npz"):
    pretrained.load(str(path), fresh, PLAIN)


def save(path, arrays):
  np.savez(path, **arrays)
  return str(path)


def test_another_architecture_is_named_with_the_field_to_change(fresh, tmp_path):
  deeper = torch_arrays(models.build(config(backbone="resnet18", stem="7x7"), 5).init(jax.random.key(0)))
  stemmed = torch_arrays(models.build(config(), 5).init(jax.random.key(0)))
  unknown = torch_arrays(fresh) | {"layer3.2.conv1.weight": np.ones((64, 64, 3, 3), np.float32)}
  tiny = config(backbone="hrnetv2_tiny", output_stride=4)
  hrnet = torch_arrays(models.build(tiny, 5).init(jax.random.key(0)))
  wider = {"stage2.0.branches.0.0.conv1.weight": np.ones((16, 16, 3, 3), np.float32)}
  for arrays, words in (
    (deeper, ("holds resnet18 with stem 7x7", "network is resnet_tiny", "model.backbone=resnet18")),
    (stemmed, ("with stem 64-64-128", "set model.stem=64-64-128")),
    (unknown, ("a ResNet of 2-2-3-2 basic blocks, 16 channels wide", "give a file of resnet_tiny")),
    (hrnet, ("holds hrnetv2_tiny, but the network is resnet_tiny", "set model.backbone=hrnetv2_tiny,")),
    (hrnet | wider, ("an HRNet of 1-1-1 modules, 16 channels wide", "give a file of resnet_tiny")),
  ):
    with pytest.raises(ValueError) as error:
      pretrained.load(save(tmp_path / "weights.npz", arrays), fresh, PLAIN)
    assert "\n" not in str(error.value)
    for word in (*words, "weights.npz", "model.pretrained"):
      assert word in str(error.value)


def test_damaged_and_foreign_files(fresh, tmp_path):
  arrays = torch_arrays(fresh)
  wide = arrays | {"layer2.1.conv2.weight": np.ones((32, 16, 3, 3), np.float32)}
  broken = arrays | {"layer2.1.bn1.weight": np.full(32, np.nan, np.float32)}
  twice = arrays | {"module.conv1.weight": arrays["conv1.weight"]}
  foreign = {"block1.conv.kernel": np.ones(3)}
  cut = tmp_path / "cut.npz"
  save(cut, arrays)
  cut.write_bytes(cut.read_bytes()[:5000])
  text = tmp_path / "weights.txt"
  text.write_text("hello")
  for path, kind, words in (
    (save(tmp_path / "wide.npz", wide), ValueError, "layer2.1.conv2.weight of shape"),
    (save(tmp_path / "nan.npz", broken), ValueError, "NaN or infinity in layer2.1.bn1.weight"),
    (save(tmp_path / "twice.npz", twice), ValueError, "has conv1.weight twice"),
    (
      save(tmp_path / "foreign.npz", foreign),
      ValueError,
      "no backbone that is known.*like conv1.weight, found block1",
    ),
    (str(cut), ValueError, "cut.npz"),
    (str(text), ValueError, "neither .npz, .safetensors nor .pth"),
    (str(tmp_path / "none.npz"), FileNotFoundError, "none.npz is not a file"),
  ):
    with pytest.raises(kind, match=words) as error:
      pretrained.load(path, fresh, PLAIN)
    assert "\n" not in str(error.value)


def test_the_real_resnet50_is_complete(shared_dir):
  path = shared_dir / "weights" / "resnet50_imagenet.npz"
  model = config(backbone="resnet50", multi_grid=(2, 2, 4), stem="7x7", stride_on="1x1")
  network = models.build(model, 5)
  variables, report = pretrained.load(str(path), network.init(jax.random.key(0)), model)
  assert report.architecture == "resnet50 with stem 7x7"
  assert (len(report.matched), len(report.transposed)) == (265, 53)
  assert not report.missing and not report.left_out
  with np.load(path) as arrays:
    expected = arrays["layer3.2.conv2.weight"].astype(np.float32).transpose(2, 3, 1, 0)
  np.testing.assert_array_equal(variables.params["backbone"]["layer3"]["2"]["conv2"]["kernel"], expected)
