"""Recognises files that are no weights, or incomplete, and names the remedy: nothing in them is run or unpacked."""

import json
import pathlib
import zipfile
from typing import Any

from rc_jax.files import one_line

# How a file starts -> what it is, and what to do with it.
_STARTS: dict[bytes, str] = {
  b"version https://git-lfs": "is a Git LFS pointer, not the weights: run git lfs pull, or download the file itself",
  b"\x89HDF": "is an HDF5 file, as Keras writes it: save its arrays by numpy.savez",
  b"\x93NUMPY": "is one array (.npy): save all arrays of the network by numpy.savez",
  b"\x1f\x8b": "is compressed by gzip: unpack it",
  b"BZh": "is compressed by bzip2: unpack it",
  b"\xfd7zXZ": "is compressed by xz: unpack it",
  b"7z\xbc\xaf": "is a 7z archive: unpack it and give the file of weights in it",
  b"Rar!": "is a RAR archive: unpack it and give the file of weights in it",
  b"GGUF": "is a GGUF file, of quantised weights: give the original weights",
  b"\x89PNG": "is a PNG image: give a file of weights",
  b"\xff\xd8\xff": "is a JPEG image: give a file of weights",
  b"%PDF": "is a PDF: give a file of weights",
}

_WEB = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")
_PAGE = "is a web page, not the weights: download the file itself (Hugging Face: /resolve/, not /blob/)"

# How torch.save began before PyTorch 1.6: a pickle of this number.
_TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

# What a damaged JSON header raises; RecursionError: brackets in brackets, thousands deep.
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)

# Longest header that the safetensors library accepts, in bytes.
_LONGEST_HEADER = 100_000_000


def describe(file: pathlib.Path) -> str | None:
  """Says what a file is that holds no readable weights, and what to do.

  Args:
    file: an existing file.

  Returns:
    A clause that follows the file's name, such as ``"is empty (0 bytes): download it again"``; None where the file
    seems to be a complete ``.npz``, ``.safetensors`` or file of ``torch.save``.
  """
  size = file.stat().st_size
  if size == 0:
    return "is empty (0 bytes): download it again"
  with file.open("rb") as opened:
    start = opened.read(1024)
  text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
  if text.startswith(_WEB):
    return _PAGE
  for first, clause in _STARTS.items():
    if start.startswith(first):
      return clause
  if start[257:262] == b"ustar":
    return "is a tar archive: unpack it and give the file of weights in it"
  if start[4:8] == b"TFL3":
    return "is a TensorFlow Lite program: give the original weights"
  if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _LONGEST_HEADER:
    return _safetensors(file, size)
  if text[:1] in (b"{", b"["):
    return "is JSON text, not the weights: give the file of weights beside it"
  if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):  # the latter: an empty archive
    return _zip(file, size)
  if start.startswith(b"\x80") and start[2 : 2 + len(_TORCH_MAGIC)] != _TORCH_MAGIC:
    return (
      "is a pickle that torch.save did not write, which is not run: load it with the program that wrote it, and save "
      "the arrays by numpy.savez"
    )
  return None


def _safetensors(file: pathlib.Path, size: int) -> str | None:
  """Compares a file's length with its header: the library reports a cut file by the name of an internal error."""
  with file.open("rb") as opened:
    length = int.from_bytes(opened.read(8), "little")
    raw = opened.read(length)
  if len(raw) < length:
    return f"is cut: {size:,} bytes, and its header alone has {8 + length:,}: download it again"
  try:
    header: dict[str, dict[str, Any]] = json.loads(raw)
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    narrow = sorted(
      name for name, entry in entries.items() if str(entry["dtype"]).startswith(("F8_", "F6_", "F4"))
    )
    end = int(end)
  except _DAMAGE as error:
    return f"has a damaged header ({one_line(error)}): download it again"
  if size < end:
    return f"is cut: {size:,} bytes, expected {end:,}: download it again"
  if narrow:
    name, dtype = one_line(narrow[0], 80), entries[narrow[0]]["dtype"]
    return f"has {name} of dtype {dtype}, a quantised export: give the original weights, of 16 or 32 bits"
  return None


def _zip(file: pathlib.Path, size: int) -> str | None:
  try:
    if not zipfile.is_zipfile(file):
      return f"is cut: {size:,} bytes of a .npz or .pth without the directory at its end: download it again"
    with zipfile.ZipFile(file) as archive:
      names = archive.namelist()
  except Exception as error:  # damaged files raise errors of any type
    return f"is damaged, the directory at its end cannot be read ({one_line(error)}): download it again"
  if any("/code/" in name for name in names) and any(name.endswith("constants.pkl") for name in names):
    return "is a TorchScript program: save its state_dict() by torch.save"
  if "model.weights.h5" in names:
    return "is a Keras archive: save its arrays by numpy.savez"
  if names and (
    all(name.endswith(".npy") for name in names) or any(name.endswith("data.pkl") for name in names)
  ):
    return None
  listed = one_line(", ".join(names[:3])) + (" ..." if len(names) > 3 else "")
  return f"is a zip archive ({listed or 'empty'}): unpack it and give the file of weights in it"
