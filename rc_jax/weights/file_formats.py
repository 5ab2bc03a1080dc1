"""Reads the arrays of a weights file in any of the formats, and runs no code from it."""

import io
import pathlib
import pickle
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy

from rc_jax.files import one_line
from rc_jax.weights import other_files

# Depth of the dicts that are searched for arrays, such as ``{"state": {"model": {"backbone.conv1.weight": ...}}}``.
_DEPTH = 4


def read(path: str) -> dict[str, np.ndarray]:
  """Reads all arrays of a file. Its contents decide on the format, not its extension.

  Args:
    path: a ``.npz`` or ``.safetensors`` file, or a file of ``torch.save`` of any version (needs PyTorch).

  Returns:
    Name -> array, in the file's dtypes (floats of PyTorch as float32). The names of arrays in nested dicts are joined
    by dots, ``{"state_dict": {"conv1.weight": ...}}`` gives ``state_dict.conv1.weight``. The state of optimizers is
    left out.

  Raises:
    FileNotFoundError: no such file.
    ValueError: the file is none of the formats or damaged, or PyTorch is needed and missing; one line.
  """
  file = pathlib.Path(path)
  if file.is_dir():
    raise ValueError(f"model.pretrained: {path} is a folder: give the .npz, .safetensors or .pth file in it")
  if not file.is_file():
    raise FileNotFoundError(f"model.pretrained: {path} is not a file: give a .npz, .safetensors or .pth file")
  clause = other_files.describe(file)
  if clause:
    raise ValueError(f"model.pretrained: {path} {clause}")
  with file.open("rb") as opened:
    start = opened.read(16)
  try:
    if zipfile.is_zipfile(file):
      with zipfile.ZipFile(file) as archive:
        numpy_file = all(name.endswith(".npy") for name in archive.namelist())
      return _read_numpy(file) if numpy_file else _read_torch(file)
    if start[8:9] == b"{":
      return dict(safetensors.numpy.load_file(file))
    if start[:1] == b"\x80":  # a pickle: torch.save before PyTorch 1.6
      return _read_torch(file)
  except ImportError as error:
    raise ValueError(
      f"model.pretrained: reading {path} needs the package torch, which is not installed: "
      "pip install torch, or convert the file to .safetensors or .npz"
    ) from error
  except _NoArraysError as error:
    raise ValueError(f"model.pretrained: {path} {error}") from error
  except Exception as error:
    reason = one_line(str(error).partition("\n")[0]) or type(error).__name__
    raise ValueError(
      f"model.pretrained: {path} cannot be read, it may be damaged ({reason}): download it again"
    ) from error
  raise ValueError(
    f"model.pretrained: {path} is neither .npz, .safetensors nor .pth, by its first bytes {start!r}"
  )


def read_metadata(path: str) -> dict[str, str]:
  """Returns the text that a ``.safetensors`` file holds beside its arrays; empty for any other file.

  Args:
    path: a file that ``read`` has read.
  """
  with pathlib.Path(path).open("rb") as opened:
    start = opened.read(16)
  if start[8:9] != b"{" or zipfile.is_zipfile(path):
    return {}
  with safetensors.safe_open(path, framework="np") as file:
    return dict(file.metadata() or {})


class _NoArraysError(Exception):
  """The file is complete and holds something else than arrays; the message is a clause that follows its name."""


class _Inert:
  """Replaces a class or function that a pickle names and nothing here needs: takes any arguments and does nothing."""

  def __new__(cls, *args: Any, **kwargs: Any) -> "_Inert":
    return super().__new__(cls)

  def __init__(self, *args: Any, **kwargs: Any) -> None:
    pass

  def __setstate__(self, state: Any) -> None:
    pass

  def __setitem__(self, key: Any, value: Any) -> None:
    pass


def _read_numpy(file: pathlib.Path) -> dict[str, np.ndarray]:
  with zipfile.ZipFile(file) as archive:
    for name in archive.namelist():
      with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        read_header = (
          np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        if read_header(member)[2].hasobject:
          key = one_line(name.removesuffix(".npy"))
          raise _NoArraysError(
            f"holds a pickled object in {key}, which is not run: save each array under a name of its own"
          )
  with np.load(file, allow_pickle=False) as loaded:
    return {name: loaded[name] for name in loaded.files}


def _read_torch(file: pathlib.Path) -> dict[str, np.ndarray]:
  import torch  # optional: only this format needs it

  _refuse_other_checksums(file)
  # Checkpoints of mmengine hold objects of its logger, others NumPy scalars, namespaces or modules. _Inert
  # replaces each such name while the file is read: it opens without those packages, and none of their code runs.
  names = _pickled_names(file)
  foreign = [name for name in names if not name.startswith(("torch.", "collections."))]
  modules = [name for name in names if name.startswith(("torch.nn.modules.", "torch.nn.parallel."))]
  others = [name for name in names if name.startswith(("torch.optim.", "torch.torch_version."))]
  listed = one_line(", ".join(sorted(foreign or modules)[:3]))
  module = _NoArraysError(
    f"holds a pickled module ({listed}), whose code is not run: load it where it was saved, and save "
    "model.state_dict() by torch.save"
  )
  try:
    with torch.serialization.safe_globals([(_Inert, name) for name in (*foreign, *modules, *others)]):
      # Without weights_only, a pickle may run any code.
      saved = torch.load(file, map_location="cpu", weights_only=True)
  except pickle.UnpicklingError:
    if modules:
      raise module from None
    # PyTorch's message recommends to run the file's code.
    raise _NoArraysError(
      "cannot be read without running code that is in it, or is damaged: download it again, or save "
      "model.state_dict() by torch.save where it was made"
    ) from None
  tensors: dict[str, Any] = {}
  _collect(saved, (), tensors, torch.Tensor)
  if not tensors and modules:
    raise module
  if not tensors:
    held = (
      ", ".join(map(str, list(saved)[:5])) if isinstance(saved, Mapping) else type(saved).__name__.strip("_")
    )
    raise _NoArraysError(
      f"holds no arrays, only {one_line(held) or 'an empty dict'}: save the network's state_dict()"
    )
  arrays = {}
  for name, tensor in tensors.items():
    tensor = tensor.detach()  # parameters require gradients, and have no NumPy array
    if tensor.is_meta:
      raise _NoArraysError(
        f"holds no values of {one_line(name)}, only its shape (device meta): give complete weights"
      )
    if tensor.is_quantized:
      tensor = tensor.int_repr()
    elif tensor.is_floating_point():
      # The value of an 8-bit float lacks its scale: its bits stand for it, and no bits are taken for a weight.
      tensor = tensor.float() if tensor.element_size() > 1 else tensor.view(torch.uint8)
    arrays[name] = (tensor.to_dense() if tensor.layout != torch.strided else tensor).resolve_conj().numpy()
  return arrays


def _refuse_other_checksums(file: pathlib.Path) -> None:
  """Checks the checksums of a zip archive, which torch.load does not."""
  if zipfile.is_zipfile(file):
    with zipfile.ZipFile(file) as archive:
      damaged = archive.testzip()
    if damaged:
      raise ValueError(f"{damaged} does not fit its checksum")


def _collect(node: Any, path: tuple[str, ...], tensors: dict[str, Any], tensor_type: type) -> None:
  """Adds the tensors of nested dicts, lists and tuples by their names, joined by dots."""
  if isinstance(node, tensor_type):
    name = ".".join(path)
    if name in tensors:
      raise ValueError(f"{one_line(name)} occurs twice")
    tensors[name] = node
  elif len(path) < _DEPTH and isinstance(node, Mapping | list | tuple):
    for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
      # Momentum has the shapes of weights, and perhaps their names.
      if "optim" not in str(key):
        _collect(value, (*path, str(key)), tensors, tensor_type)


def _pickled_names(file: pathlib.Path) -> set[str]:
  """Lists the classes and functions that a file's pickles name, without running them."""
  names = set()
  for opened in _pickles(file):
    for opcode, argument, _ in pickletools.genops(opened):
      # The opcode of protocol 2, which PyTorch writes; its reader refuses those of later protocols.
      if opcode.name == "GLOBAL":
        names.add(str(argument).replace(" ", "."))
  return names


def _pickles(file: pathlib.Path) -> Iterator[BinaryIO]:
  if zipfile.is_zipfile(file):
    with zipfile.ZipFile(file) as archive:
      for name in archive.namelist():
        if name.endswith("/data.pkl"):
          yield io.BytesIO(archive.read(name))
    return
  with file.open("rb") as opened:
    for _ in range(4):  # a magic number, the protocol, the sizes of types; then the saved object
      yield opened
