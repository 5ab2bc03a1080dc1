"""Reads a matrix of numbers from a MATLAB 5 file.

``scipy.io.loadmat`` reads more, and some damaged files crash it: a signal ends the process, without a message.
"""

import math
import struct
import zlib

import numpy as np

# Types of elements, and the NumPy types of their numbers.
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED = 14, 15
# Classes of arrays; those above hold numbers.
_OTHER_CLASSES = {1: "cells", 2: "a struct", 3: "an object", 4: "text", 5: "a sparse matrix"}
_COMPLEX = 1 << 11
_HEADER_BYTES = 128
_START_BYTES = 4096  # of a compressed array; they hold its flags, shape and name
_MOST_BYTES = 1 << 31


class MatError(ValueError):
  """The content is damaged or holds no such matrix; the message is a clause without the name of the file."""


def is_mat5(content: bytes) -> bool:
  """Returns whether the content has the header of a MATLAB 5 file."""
  return len(content) >= _HEADER_BYTES and content[126:128] in (b"IM", b"MI")


def read_array(content: bytes, name: str) -> np.ndarray:
  """Returns an array of numbers from a MATLAB 5 file.

  Args:
    content: the file.
    name: of the array.

  Returns:
    The array, in the type in which the file stores its numbers.

  Raises:
    MatError: the content is damaged, lacks the array, or holds something else than real numbers under its name.

  Source: MAT-File Format, MathWorks, chapter 1.
  """
  if not is_mat5(content):
    raise MatError("it lacks the header of MATLAB 5")
  order = ">" if content[126:128] == b"MI" else "<"
  names = []
  at = _HEADER_BYTES
  while at < len(content):
    kind, data, at = _element(content, at, order)
    inflater = zlib.decompressobj() if kind == _COMPRESSED else None
    if inflater:
      kind, length, data = _inflated_start(inflater, data, order)
    if kind != _MATRIX:
      raise MatError(f"it holds an element of type {kind}, expected arrays")
    found, values_at = _name_of(data, order)
    if found != name:
      names.append(found)
      continue
    if inflater:
      data += _inflated_rest(inflater, length - len(data))
    return _numbers(data, values_at, order, name)
  raise MatError(f"found the fields {', '.join(names[:8]) or 'none'}")


def _element(data: bytes, at: int, order: str) -> tuple[int, bytes, int]:
  """Returns type and content of the element at a place, and the place of the next one."""
  if at + 8 > len(data):
    raise MatError("an element is cut off")
  kind, length = struct.unpack_from(f"{order}II", data, at)
  if kind >> 16:  # up to 4 bytes stand beside the type
    kind, length, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
  else:
    # All but compressed elements fill up to 8 bytes; the last may end without.
    start, end = at + 8, at + 8 + (length if kind == _COMPRESSED else -(-length // 8) * 8)
  if start + length > len(data) or (start == at + 4 and length > 4):
    raise MatError("an element is cut off")
  return kind, data[start : start + length], end


def _inflated_start(inflater: "zlib._Decompress", data: bytes, order: str) -> tuple[int, int, bytes]:
  """Returns type, length and first bytes of a compressed element."""
  try:
    start = inflater.decompress(data, _START_BYTES)
  except zlib.error as error:
    raise MatError(f"an array cannot be inflated ({error})") from None
  if len(start) < 8:
    raise MatError("a compressed array is cut off")
  kind, length = struct.unpack_from(f"{order}II", start)
  if length > _MOST_BYTES:
    raise MatError(f"an array has {length:,} bytes, expected at most {_MOST_BYTES:,}")
  return kind, length, start[8 : 8 + length]


def _inflated_rest(inflater: "zlib._Decompress", length: int) -> bytes:
  """Returns the remaining bytes of a compressed element, whose checksum must fit."""
  try:
    rest = inflater.decompress(inflater.unconsumed_tail, length) if length else b""
    if not inflater.eof:
      rest += inflater.decompress(inflater.unconsumed_tail, 1)
  except zlib.error as error:
    raise MatError(f"an array cannot be inflated ({error})") from None
  if len(rest) != length or not inflater.eof:
    raise MatError("a compressed array has another length than its header says")
  return rest


def _name_of(data: bytes, order: str) -> tuple[str, int]:
  """Returns the name of an array, and the place of what follows it."""
  at = 0
  for _ in range(2):  # flags, shape
    _, _, at = _element(data, at, order)
  _, name, at = _element(data, at, order)
  return name.decode("latin-1"), at


def _numbers(data: bytes, at: int, order: str, name: str) -> np.ndarray:
  _, flags, shape_at = _element(data, 0, order)
  _, sides, _ = _element(data, shape_at, order)
  if len(flags) < 4 or len(sides) % 4:
    raise MatError(f"the header of {name} is damaged")
  (flag,) = struct.unpack_from(f"{order}I", flags)
  if flag & 255 in _OTHER_CLASSES or flag & _COMPLEX:
    raise MatError(f"{name} holds {_OTHER_CLASSES.get(flag & 255, 'complex numbers')}")
  shape = struct.unpack(f"{order}{len(sides) // 4}i", sides)
  kind, values, _ = _element(data, at, order)
  if kind not in _NUMBERS:
    raise MatError(f"{name} holds elements of type {kind}")
  numbers = np.dtype(f"{order}{_NUMBERS[kind]}")
  if min(shape, default=0) < 0 or math.prod(shape) * numbers.itemsize != len(values):
    raise MatError(f"{name} has {len(values):,} bytes for {list(shape)} numbers of type {numbers.name}")
  return np.frombuffer(values, numbers).reshape(shape, order="F")
