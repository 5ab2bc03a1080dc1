"""A file with several sets of weights is refused until one is chosen; families and dtypes are not guessed."""

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from rc_jax import models
from rc_jax.weights import key_names, pretrained
from tests.models.test_segmenter import config
from tests.weights.test_pretrained import save, torch_arrays

PLAIN = config(stem="7x7")


@pytest.fixture(scope="module")
def fresh():
  """Variables of the tiny ResNet with a plain stem."""
  return models.build(PLAIN, 5).init(jax.random.key(0))


def with_prefix(prefix, arrays):
  return {prefix + name: array for name, array in arrays.items()}


@pytest.mark.parametrize(
  ("first", "second", "names"),
  [
    ("state_dict.", "state_dict_ema.", ("state_dict", "state_dict_ema")),
    ("model.backbone.", "ema_model.backbone.", ("model", "ema_model")),
    ("student.module.encoder.", "teacher.module.encoder.", ("student.module", "teacher.module")),
    ("module.encoder_q.", "module.encoder_k.", ("module.encoder_q", "module.encoder_k")),
    ("backbone.", "teacher.backbone.", (".", "teacher")),
    ("encoder.module.", "ema.encoder.module.", (".", "ema")),
    ("", "ema.", (".", "ema")),
    ("ema.module.", "", ("ema.module", ".")),
  ],
)
def test_two_sets_of_weights_are_a_choice(fresh, tmp_path, first, second, names) -> None:
  sets = {first: torch_arrays(fresh, seed=1), second: torch_arrays(fresh, seed=2)}
  path = save(tmp_path / "weights.npz", with_prefix(first, sets[first]) | with_prefix(second, sets[second]))
  with pytest.raises(ValueError, match="holds 2 sets of weights") as error:
    pretrained.load(path, fresh, PLAIN)
  assert "\n" not in str(error.value) and "model.pretrained_key=" in str(error.value)
  for name, arrays in zip(names, sets.values(), strict=True):
    assert f"{name} ({len(arrays)} arrays)" in str(error.value)
    variables, report = pretrained.load(path, fresh, config(stem="7x7", pretrained_key=name))
    stem = variables.params["backbone"]["conv1"]["kernel"]
    np.testing.assert_array_equal(stem, arrays["conv1.weight"].transpose(2, 3, 1, 0))
    assert len(report.matched) == len(arrays) and not report.left_out
    assert name == "." or f"weights.npz, {name}: " in report.summary()


def test_the_buffers_of_a_moving_average_are_a_set(fresh, tmp_path) -> None:
  raw, average = torch_arrays(fresh, seed=1), torch_arrays(fresh, seed=2)
  buffers = {
    f"ema_{name.replace('.', '_')}": array for name, array in with_prefix("backbone.", average).items()
  }
  path = save(tmp_path / "weights.npz", with_prefix("backbone.", raw) | buffers)
  with pytest.raises(ValueError, match=r"2 sets of weights: \. .*, ema .*model\.pretrained_key=ema"):
    pretrained.load(path, fresh, PLAIN)
  variables, _ = pretrained.load(path, fresh, config(stem="7x7", pretrained_key="ema"))
  stem = variables.params["backbone"]["conv1"]["kernel"]
  np.testing.assert_array_equal(stem, average["conv1.weight"].transpose(2, 3, 1, 0))


def test_a_set_of_another_name_is_refused_with_the_names(fresh, tmp_path) -> None:
  path = save(tmp_path / "weights.npz", with_prefix("net.", torch_arrays(fresh)))
  with pytest.raises(
    ValueError, match=r"model.pretrained_key: is 'ema', but the sets.*weights.npz are: net$"
  ):
    pretrained.load(path, fresh, config(stem="7x7", pretrained_key="ema"))
  _, report = pretrained.load(path, fresh, PLAIN)
  assert report.weight_set == "net" and not report.missing


def test_sets_of_an_unknown_backbone_are_a_choice(fresh, tmp_path) -> None:
  arrays = {f"stages.{i}.weight": np.ones(3, np.float32) for i in range(3)}
  path = save(
    tmp_path / "weights.npz", with_prefix("state_dict.", arrays) | with_prefix("state_dict_ema.", arrays)
  )
  with pytest.raises(ValueError, match=r"state_dict \(3 arrays\), state_dict_ema \(3 arrays\)"):
    pretrained.load(path, fresh, PLAIN)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "bool", "complex64"])
def test_only_floats_are_weights(fresh, tmp_path, dtype) -> None:
  arrays = torch_arrays(fresh)
  arrays["layer2.0.conv1.weight"] = arrays["layer2.0.conv1.weight"].astype(dtype)
  words = rf"layer2.0.conv1.weight of dtype {dtype}, expected a float of 16, 32 or 64 bits.*original weights"
  with pytest.raises(ValueError, match=words):
    pretrained.load(save(tmp_path / "weights.npz", arrays), fresh, PLAIN)


def test_arrays_without_a_number_are_refused(fresh, tmp_path) -> None:
  arrays = torch_arrays(fresh)
  for array in (
    arrays["bn1.bias"].astype(ml_dtypes.bfloat16),  # numpy.savez keeps its bytes and forgets its dtype
    np.full(16, "x"),
  ):
    with pytest.raises(ValueError, match=r"weights.npz has bn1.bias of dtype"):
      pretrained.load(save(tmp_path / "weights.npz", arrays | {"bn1.bias": array}), fresh, PLAIN)
  _, report = pretrained.load(
    save(tmp_path / "weights.npz", arrays | {"fc.weight": np.full(3, "x")}), fresh, PLAIN
  )
  assert report.left_out == ("fc.weight",)
  with pytest.raises(ValueError, match=r"negative variances in bn1\.running_var"):
    broken = arrays | {"bn1.running_var": -arrays["bn1.running_var"]}
    pretrained.load(save(tmp_path / "weights.npz", broken), fresh, PLAIN)


@pytest.mark.parametrize("key", ["conv1.weight", "layer1.0.bn1.running_var"])
def test_kernels_and_variances_of_zeros_alone_are_refused(fresh, tmp_path, key) -> None:
  arrays = torch_arrays(fresh)
  path = save(tmp_path / "weights.npz", arrays | {key: np.zeros_like(arrays[key])})
  with pytest.raises(ValueError, match=rf"weights\.npz has only zeros in {key}, .*: give an undamaged file"):
    pretrained.load(path, fresh, PLAIN)


@pytest.mark.parametrize("dtype", ["float16", "float64", ml_dtypes.bfloat16])
def test_floats_of_every_width_are_read(fresh, tmp_path, dtype) -> None:
  arrays = {name: array.astype(dtype) for name, array in torch_arrays(fresh).items()}
  safetensors.numpy.save_file(arrays, tmp_path / "weights.safetensors")
  variables, _ = pretrained.load(str(tmp_path / "weights.safetensors"), fresh, PLAIN)
  expected = arrays["bn1.running_var"].astype(np.float32)
  np.testing.assert_array_equal(variables.batch_stats["backbone"]["bn1"]["var"], expected)


# PyTorch moves its own quantised tensors to another package, and their files stay.
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning", "ignore:TypedStorage:UserWarning")
def test_quantised_tensors_are_refused(fresh, tmp_path) -> None:
  torch = pytest.importorskip("torch")
  kernel = torch.tensor(torch_arrays(fresh)["conv1.weight"])
  for other in (torch.quantize_per_tensor(kernel, 0.1, 0, torch.qint8), kernel.to(torch.float8_e4m3fn)):
    state = {name: torch.tensor(array) for name, array in torch_arrays(fresh).items()} | {
      "conv1.weight": other
    }
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"conv1\.weight of dtype u?int8, .*quantised export"):
      pretrained.load(str(tmp_path / "weights.pth"), fresh, PLAIN)


@pytest.mark.parametrize(
  ("prefix", "others", "family"),
  [
    ("backbone.", ["head.fc.weight", "head.fc.bias"], "imagenet"),  # mmpretrain
    ("", ["head.weight", "head.bias"], "imagenet"),
    ("", ["classifier.weight", "classifier.bias"], "imagenet"),
    ("encoder.", ["decoder.aspp.0.convs.0.0.weight", "decoder.block1.0.weight"], "imagenet"),  # smp
    ("encoder.", ["decoder.aspp.conv1.1.weight", "decoder.final.weight"], "regioncontrast"),
    ("backbone.", ["decode_head.lateral_convs.0.conv.weight"], "mmsegmentation"),
    ("backbone.", ["classifier.0.weight", "classifier.4.weight", "aux_classifier.4.weight"], "torchvision"),
    ("backbone.", ["head.aspp.pool.conv.weight", "head.classifier.weight"], "rc_jax"),
  ],
)
def test_one_prefix_does_not_decide_on_the_family(fresh, prefix, others, family) -> None:
  keys = [*with_prefix(prefix, torch_arrays(fresh)), *others]
  assert key_names.map_keys(keys).family == family


def test_weights_with_a_classifier_named_head_expect_the_pooling_of_imagenet(fresh, tmp_path) -> None:
  arrays = with_prefix("backbone.", torch_arrays(fresh)) | {"head.fc.weight": np.ones((10, 128), np.float32)}
  _, report = pretrained.load(
    save(tmp_path / "weights.npz", arrays), fresh, config(stem="7x7", ceil_pool=True)
  )
  assert report.different == ("model.ceil_pool=True",) and report.left_out == ("head.fc.weight",)
  assert "WARNING: the config has model.ceil_pool=True" in report.summary()
