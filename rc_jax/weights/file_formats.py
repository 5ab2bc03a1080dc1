"""Reads the arrays of a weights file in any of the formats, and runs no code from it."""

import io
import pathlib
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
import safetensors.numpy

# Keys of the network's state dict in checkpoints: of mmengine and Lightning, of others, of RegionContrast's authors.
STATES = ("state_dict", "model", "model_state", "model_state_dict")


def read(path: str) -> dict[str, np.ndarray]:
  """Reads all arrays of a file. Its contents decide on the format, not its extension.

  Args:
    path: a ``.npz`` or ``.safetensors`` file, or a file of ``torch.save`` of any version (needs PyTorch), which holds a
      state dict, or a checkpoint with a state dict in it.

  Returns:
    Name -> array, in the file's dtypes (bfloat16 of PyTorch as float32).

  Raises:
    FileNotFoundError: no such file.
    ValueError: the file is none of the formats or damaged, or PyTorch is needed and missing; one line.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise FileNotFoundError(f"model.pretrained: {path} is not a file: give a .npz, .safetensors or .pth file")
  with file.open("rb") as opened:
    start = opened.read(9)
  try:
    if zipfile.is_zipfile(file):
      with zipfile.ZipFile(file) as archive:
        numpy_file = all(name.endswith(".npy") for name in archive.namelist())
      if numpy_file:
        with np.load(file, allow_pickle=False) as loaded:
          return {name: loaded[name] for name in loaded.files}
      return _read_torch(file)
    if start[8:] == b"{":
      return dict(safetensors.numpy.load_file(file))
    if start[:1] == b"\x80":  # a pickle: torch.save before PyTorch 1.6
      return _read_torch(file)
  except ImportError as error:
    raise ValueError(
      f"model.pretrained: reading {path} needs the package torch, which is not installed: "
      "pip install torch, or convert the file to .safetensors or .npz"
    ) from error
  except Exception as error:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise ValueError(f"model.pretrained: {path} cannot be read, it may be damaged: {reason}") from error
  raise ValueError(
    f"model.pretrained: {path} is neither .npz, .safetensors nor .pth, by its first bytes {start[:4]!r}"
  )


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


def _read_torch(file: pathlib.Path) -> dict[str, np.ndarray]:
  import torch  # optional: only this format needs it

  # Checkpoints of mmengine hold objects of its logger, others NumPy scalars or namespaces. _Inert replaces each name
  # outside PyTorch while the file is read: the file opens without those packages, and none of their code runs.
  foreign = [name for name in _pickled_names(file) if not name.startswith(("torch.", "collections."))]
  with torch.serialization.safe_globals([(_Inert, name) for name in foreign]):
    # Without weights_only, a pickle may run any code.
    saved = torch.load(file, map_location="cpu", weights_only=True)
  if not isinstance(saved, Mapping):
    raise ValueError("it holds no dict of arrays; save the network's state_dict()")
  state = next((saved[key] for key in STATES if isinstance(saved.get(key), Mapping)), saved)
  tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
  if not tensors:
    raise ValueError(f"it holds no arrays, only {', '.join(map(str, list(state)[:5])) or 'nothing'}")
  return {name: (t.float() if t.is_floating_point() else t).numpy() for name, t in tensors.items()}


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
