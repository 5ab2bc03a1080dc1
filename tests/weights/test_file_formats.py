"""Files that are no weights are named for what they are, with a remedy; nested ones are searched."""

import gzip
import json
import pathlib
import tarfile
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy

from rc_jax import models
from rc_jax.weights import file_formats, pretrained
from tests.models.test_segmenter import config
from tests.weights.test_pretrained import torch_arrays

PLAIN = config(stem="7x7")


@pytest.fixture(scope="module")
def fresh():
  """Variables of the tiny ResNet with a plain stem."""
  return models.build(PLAIN, 5).init(jax.random.key(0))


def small_arrays() -> dict[str, np.ndarray]:
  return {"conv1.weight": np.ones((4, 3, 3, 3), np.float32), "bn1.weight": np.ones(4, np.float32)}


def safetensors_of(header: dict[str, object], payload: bytes = b"") -> bytes:
  text = json.dumps(header).encode()
  return len(text).to_bytes(8, "little") + text + payload


def write_zip(path: pathlib.Path, names: list[str]) -> None:
  with zipfile.ZipFile(path, "w") as archive:
    for name in names:
      archive.writestr(name, b"x")


BYTES = {
  "empty": (b"", "is empty (0 bytes): download it again"),
  "pointer": (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 102530333\n",
    "is a Git LFS pointer, not the weights: run git lfs pull",
  ),
  "page": (b"\n<!DOCTYPE html>\n<html lang='en'>", "is a web page, not the weights"),
  "xml": (b'\xef\xbb\xbf<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
  "json": (b'{"error": "Repository not found"}', "is JSON text, not the weights"),
  "keras": (b"\x89HDF\r\n\x1a\n" + bytes(64), "is an HDF5 file"),
  "gzip": (gzip.compress(b"weights"), "is compressed by gzip: unpack it"),
  "pickle": (b"\x80\x03}q\x00X\x05\x00\x00\x00modelq\x01", "is a pickle that torch.save did not write"),
  "lite": (b"\x1c\x00\x00\x00TFL3" + bytes(64), "is a TensorFlow Lite program"),
  "cut header": (safetensors_of({"a": {}})[:12], "is cut: 12 bytes, and its header alone has"),
  "cut data": (
    safetensors_of({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, bytes(7)),
    "is cut: ",
  ),
  "float8": (
    safetensors_of({"a.weight": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}, bytes(4)),
    "has a.weight of dtype F8_E4M3, a quantised export",
  ),
  "bad header": (safetensors_of({"a": 3}), "has a damaged header"),
  "noise": (bytes(range(200, 256)), "is neither .npz, .safetensors nor .pth, by its first bytes"),
}


@pytest.mark.parametrize("name", BYTES)
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
def test_a_file_that_holds_no_weights_is_named_for_what_it_is(tmp_path, name, suffix) -> None:
  content, words = BYTES[name]
  path = tmp_path / f"weights{suffix}"
  path.write_bytes(content)
  with pytest.raises(ValueError) as error:
    file_formats.read(str(path))
  assert str(error.value).startswith(f"model.pretrained: {path} ") and words in str(error.value)
  assert "\n" not in str(error.value)


def test_a_file_cut_at_any_byte_is_refused(tmp_path) -> None:
  safetensors.numpy.save_file(small_arrays(), tmp_path / "complete.safetensors")
  np.savez(tmp_path / "complete.npz", **small_arrays())
  for name in ("complete.safetensors", "complete.npz"):
    content = (tmp_path / name).read_bytes()
    for length in range(0, len(content), 7):
      (tmp_path / "cut").write_bytes(content[:length])
      with pytest.raises(ValueError, match=r"cut(:| |$)") as error:
        file_formats.read(str(tmp_path / "cut"))
      assert "\n" not in str(error.value) and "model.pretrained: " in str(error.value)


def test_archives_are_named_with_what_they_hold(tmp_path) -> None:
  path = tmp_path / "weights.zip"
  for names, words in (
    (["resnet50.pth", "README.md"], r"is a zip archive \(resnet50.pth, README.md\): unpack it"),
    ([], r"is a zip archive \(empty\)"),
    (["net/data.pkl", "net/code/__torch__.py", "net/constants.pkl"], "is a TorchScript program"),
    (["config.json", "model.weights.h5"], "is a Keras archive"),
  ):
    write_zip(path, names)
    with pytest.raises(ValueError, match=words):
      file_formats.read(str(path))
  with tarfile.open(tmp_path / "model.pth.tar", "w") as archive:
    archive.add(path, "weights.zip")
  with pytest.raises(ValueError, match="is a tar archive: unpack it"):
    file_formats.read(str(tmp_path / "model.pth.tar"))
  with pytest.raises(ValueError, match=r"is a folder: give the \.npz, \.safetensors or \.pth file in it"):
    file_formats.read(str(tmp_path))


def test_pickled_objects_in_a_numpy_file_are_not_run(tmp_path) -> None:
  np.savez(tmp_path / "weights.npz", params=np.array({"conv1.weight": 3}, object))
  with pytest.raises(ValueError, match="holds a pickled object in params, which is not run"):
    file_formats.read(str(tmp_path / "weights.npz"))


def test_a_flipped_byte_is_noticed(tmp_path) -> None:
  torch = pytest.importorskip("torch")
  arrays = {"conv1.weight": np.random.default_rng(0).normal(size=(64, 3, 7, 7)).astype(np.float32)}
  np.savez(tmp_path / "weights.npz", **arrays)
  torch.save({name: torch.tensor(array) for name, array in arrays.items()}, tmp_path / "weights.pth")
  for name in ("weights.npz", "weights.pth"):
    content = bytearray((tmp_path / name).read_bytes())
    start = bytes(content).index(arrays["conv1.weight"].tobytes()[:64])
    content[start + 4001] ^= 0x40
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="it may be damaged"):
      file_formats.read(str(tmp_path / name))


@pytest.mark.parametrize(
  "keys", [("module",), ("net",), ("teacher",), ("params",), ("model_ema",), ("state", "model"), (0,), ()]
)
@pytest.mark.parametrize("legacy", [False, True])
def test_weights_lie_at_any_depth_and_may_require_gradients(fresh, tmp_path, keys, legacy) -> None:
  torch = pytest.importorskip("torch")
  arrays = torch_arrays(fresh)
  saved = {name: torch.nn.Parameter(torch.tensor(array)) for name, array in arrays.items()}
  momentum = {"state": {0: {"momentum_buffer": torch.ones(64, 3, 7, 7)}}}
  for key in reversed(keys):
    saved = [saved] if key == 0 else {"epoch": 3, "optimizer": momentum, key: saved}
  torch.save(saved, tmp_path / "weights.pth", _use_new_zipfile_serialization=not legacy)
  variables, report = pretrained.load(str(tmp_path / "weights.pth"), fresh, PLAIN)
  assert len(report.matched) == len(arrays) and not report.missing and not report.left_out
  assert report.weight_set == (".".join(map(str, keys)) or ".")
  stem = variables.params["backbone"]["conv1"]["kernel"]
  np.testing.assert_array_equal(stem, arrays["conv1.weight"].transpose(2, 3, 1, 0))


def test_what_a_pytorch_file_holds_instead_of_weights_is_named(tmp_path) -> None:
  torch = pytest.importorskip("torch")
  network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.GELU())
  module = "holds a pickled module.*whose code is not run.*save model.state_dict"
  for saved, words in (
    (network, module),
    ({"model": network, "epoch": 3}, module),
    ({"epoch": 3, "args": "resnet50"}, "holds no arrays, only epoch, args: save the network's state_dict"),
    ({}, "holds no arrays, only an empty dict"),
    (3, "holds no arrays, only int"),
    ({"a.weight": torch.ones(3, device="meta")}, "holds no values of a.weight"),
  ):
    torch.save(saved, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=words) as error:
      file_formats.read(str(tmp_path / "weights.pth"))
    assert "\n" not in str(error.value)


def test_code_in_a_pytorch_file_does_not_run(tmp_path) -> None:
  torch = pytest.importorskip("torch")
  target = tmp_path / "was run"

  class Payload:
    def __reduce__(self):
      return pathlib.Path.touch, (target,)

  for legacy in (False, True):
    path = tmp_path / f"weights{legacy}.pth"
    torch.save({"a.weight": torch.ones(3), "x": Payload()}, path, _use_new_zipfile_serialization=not legacy)
    try:
      assert set(file_formats.read(str(path))) == {"a.weight"}
    except ValueError as error:
      assert "\n" not in str(error)
    assert not target.exists()
