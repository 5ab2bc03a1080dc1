"""Reads damaged files without the product: other decoders, or a few lines of Python for the same format."""

import csv
import io
import json
import pathlib
import struct
import zlib
from typing import Any

import numpy as np

# The entry for the orientation 6 in EXIF data of either byte order.
_TURNED = (b"\x01\x12\0\x03\0\0\0\x01\0\x06", b"\x12\x01\x03\0\x01\0\0\0\x06\0")


def image(content: bytes) -> list[np.ndarray]:
  """Returns uint8 ``[H,W,3]`` by several readers; with damaged EXIF data both turned and not."""
  import cv2

  found = []
  if content[:4] == b"\x89PNG":
    found.append(png_colors(content))
  elif content[:4] in (b"II*\0", b"MM\0*"):
    samples = tiff_samples(content)
    found.append(samples if samples is None or samples.ndim == 3 else None)
  flags = [cv2.IMREAD_COLOR, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH]
  if not any(entry in content for entry in _TURNED):
    flags.append(cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
  for flag in flags:
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), flag)
    if decoded is not None:
      eight = (decoded >> 8).astype(np.uint8) if decoded.dtype == np.uint16 else decoded
      found.append(eight[..., ::-1])
  return [pixels for pixels in found if pixels is not None]


def indices(content: bytes) -> list[np.ndarray]:
  """Returns integers ``[H,W]`` of a file of one channel, by ``png_samples`` and by OpenCV."""
  import cv2

  found = []
  if content[:4] == b"\x89PNG":
    samples = png_samples(content)
    if samples is not None and samples.ndim == 2:
      found.append(samples)
  else:
    samples = tiff_samples(content)
    if samples is not None and samples.ndim == 2:
      found.append(samples)
    for flags in (cv2.IMREAD_UNCHANGED, cv2.IMREAD_ANYDEPTH):
      decoded = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
      if decoded is not None and decoded.ndim == 2:
        found.append(decoded)
  return found


def png_colors(content: bytes) -> np.ndarray | None:
  """Returns uint8 ``[H,W,3]`` of a PNG, turned where its EXIF data are undamaged; black where the palette ends."""
  samples = png_samples(content)
  if samples is None:
    return None
  if any(entry in content for entry in _TURNED):
    samples = np.rot90(samples, 3)
  bits, color = content[24], content[25]
  if color == 3:
    chunk = content.index(b"PLTE")
    (length,) = struct.unpack_from(">I", content, chunk - 4)
    palette = np.zeros((256, 3), np.uint8)
    entries = np.frombuffer(content[chunk + 4 : chunk + 4 + length // 3 * 3], np.uint8).reshape(-1, 3)
    palette[: len(entries)] = entries[:256]
    return palette[samples]
  eight = (samples >> 8 if bits == 16 else samples * 255 // ((1 << bits) - 1)).astype(np.uint8)
  if color in (0, 4):
    eight = eight.reshape(*eight.shape[:2], -1)[..., :1].repeat(3, axis=2)
  return eight[..., :3]


def tiff_samples(content: bytes) -> np.ndarray | None:
  """Returns the samples of an uncompressed TIFF of 8 or 16 bits, ``[H,W]`` or ``[H,W,3]``; None for others.

  Source: TIFF revision 6.0, section 2.
  """
  order = "<" if content[:2] == b"II" else ">"
  try:
    (at,) = struct.unpack_from(f"{order}I", content, 4)
    (count,) = struct.unpack_from(f"{order}H", content, at)
    tags = {}
    for entry in range(at + 2, at + 2 + 12 * count, 12):
      tag, kind, number = struct.unpack_from(f"{order}HHI", content, entry)
      size, code = {3: (2, "H"), 4: (4, "I")}.get(kind, (1, "B"))
      where = entry + 8
      if size * number > 4:
        (where,) = struct.unpack_from(f"{order}I", content, where)
      # More values than there can be are a sign of damage; the first ones count.
      tags[tag] = struct.unpack_from(f"{order}{min(number, 20)}{code}", content, where)
    width, height, rows = tags[256][0], tags[257][0], tags.get(278, tags[257])[0]
    bands, bits = tags.get(277, (1,))[0], tags.get(258, (1,))[0]
    starts = tags[273]
  except (struct.error, KeyError, IndexError):
    return None
  if tags.get(259, (1,)) != (1,) or bands not in (1, 3) or bits not in (8, 16) or width * height > 1 << 22:
    return None
  row_bytes = width * bands * bits // 8
  strips = [content[start : start + row_bytes * min(rows, height)] for start in starts]
  pixels = b"".join(strips)[: row_bytes * height]
  if len(pixels) < row_bytes * height:
    return None
  samples = np.frombuffer(pixels, f"{order}u{bits // 8}")
  return samples.reshape((height, width) if bands == 1 else (height, width, bands))


def png_samples(content: bytes) -> np.ndarray | None:
  """Returns the samples of a PNG as they are stored, ``[H,W]`` or ``[H,W,C]``; None where they are incomplete.

  Source: PNG (Portable Network Graphics) Specification, third edition, sections 9 (filters) and 11 (chunks).
  """
  at, header, packed = 8, b"", b""
  while at + 8 <= len(content):
    (length,) = struct.unpack_from(">I", content, at)
    kind, inner = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
    if kind == b"IHDR":
      header = inner
    elif kind == b"IDAT":
      packed += inner
    elif kind == b"IEND":
      break
    at += 12 + length
  if len(header) < 13:
    return None
  width, height, bits, color, _, _, interlaced = struct.unpack(">2I5B", header[:13])
  channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(color, 0)
  if not channels or interlaced or bits not in (1, 2, 4, 8, 16) or width * height > 1 << 22:
    return None
  row_bytes, step = (width * channels * bits + 7) // 8, max(1, channels * bits // 8)
  try:
    # Without the header of zlib: mutations make the checksums of chunks right, and not the one behind the pixels.
    raw = zlib.decompressobj(-15).decompress(packed[2:], (row_bytes + 1) * height)
  except zlib.error:
    return None
  if len(raw) < (row_bytes + 1) * height:
    return None
  rows, above = [], bytearray(row_bytes)
  for start in range(0, len(raw), row_bytes + 1):
    row = bytearray(raw[start + 1 : start + 1 + row_bytes])
    for place in range(row_bytes):
      left, up = (row[place - step] if place >= step else 0), above[place]
      corner = above[place - step] if place >= step else 0
      distances = (abs(up - corner), abs(left - corner), abs(left + up - 2 * corner))
      paeth = (left, up, corner)[distances.index(min(distances))]
      if raw[start] > 4:
        return None
      row[place] = (row[place] + (0, left, up, (left + up) // 2, paeth)[raw[start]]) & 255
    rows.append(row)
    above = row
  array = np.array(rows, np.uint8)
  if bits == 16:
    samples = array.reshape(height, -1, 2) @ np.array([256, 1])
  else:
    binary = np.unpackbits(array, axis=1).reshape(height, -1, bits)[:, : width * channels]
    samples = binary @ (1 << np.arange(bits - 1, -1, -1))
  return samples.reshape((height, width) if channels == 1 else (height, width, channels))


def mat_ids(content: bytes) -> list[np.ndarray]:
  """Returns the real numbers ``[H,W]`` of the field S in a MATLAB 5 file.

  Source: MAT-File Format, MathWorks, chapter 1 (version 5).
  """
  types = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}

  def elements(data: bytes, order: str) -> list[tuple[int, bytes]]:
    at, found = 0, []
    while at + 8 <= len(data):
      kind, length = struct.unpack_from(f"{order}II", data, at)
      if kind >> 16:
        found.append((kind & 0xFFFF, data[at + 4 : at + 4 + (kind >> 16)]))
        at += 8
      else:
        found.append((kind, data[at + 8 : at + 8 + length]))
        at += 8 + (length if kind == 15 else -(-length // 8) * 8)
    return found

  order = ">" if content[126:128] == b"MI" else "<"
  results = []
  for kind, data in elements(content[128:], order):
    if kind == 15:
      data = zlib.decompressobj().decompress(data, 1 << 24)
      (kind, data), *_ = elements(data, order)
    parts = elements(data, order) if kind == 14 else []
    if len(parts) >= 4 and parts[2][1] == b"S":
      shape = np.frombuffer(parts[1][1], f"{order}i4")
      values = np.frombuffer(parts[3][1], f"{order}{types[parts[3][0]]}")
      results.append(values[: np.prod(shape)].reshape(shape, order="F"))
  return results


def tile_pixels(content: bytes) -> np.ndarray:
  """Returns the pixels of ``rc_jax.data.prepared.tiles``, by the description of the format there, tile by tile."""
  import pyarrow

  _, height, width, channels, side = struct.unpack_from("<4s4I", content)
  if height * width * channels > 1 << 24 or not side:
    raise ValueError("not one of the damaged small images")
  pixels = np.zeros((height, width, channels), np.uint8)
  places = [(top, left) for top in range(0, height, side) for left in range(0, width, side)]
  sizes = struct.unpack_from(f"<{len(places)}I", content, 20)
  at = 20 + 4 * len(places)
  for (top, left), size in zip(places, sizes, strict=True):
    tile = pixels[top : top + side, left : left + side]
    inflated = pyarrow.decompress(content[at : at + size], tile.size, codec="zstd")
    tile[:] = np.frombuffer(inflated, np.uint8).reshape(tile.shape)
    at += size
    if channels > 1:
      tile[:] = np.cumsum(tile, axis=0, dtype=np.uint8)
      tile[..., 0] += tile[..., 1]
      tile[..., 2] += tile[..., 1]
  return pixels[..., 0] if channels == 1 else pixels


def safetensors(content: bytes) -> dict[str, np.ndarray]:
  """Returns the arrays of a safetensors file. Source: the format's description in its repository."""
  names = {
    "F32": "<f4",
    "F16": "<f2",
    "F64": "<f8",
    "I64": "<i8",
    "I32": "<i4",
    "U8": "u1",
    "I8": "i1",
    "BOOL": "?",
  }
  names |= {"I16": "<i2", "U16": "<u2", "U32": "<u4", "U64": "<u8"}
  length = int.from_bytes(content[:8], "little")
  header = json.loads(content[8 : 8 + length])
  arrays = {}
  for name, entry in header.items():
    if name != "__metadata__":
      first, last = entry["data_offsets"]
      data = content[8 + length + first : 8 + length + last]
      arrays[name] = np.frombuffer(data, names[entry["dtype"]]).reshape(entry["shape"])
  return arrays


def torch_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the arrays of a file of ``torch.save``, as PyTorch alone reads it."""
  import torch

  arrays: dict[str, np.ndarray] = {}

  def collect(node: Any, names: tuple[str, ...]) -> None:
    if isinstance(node, torch.Tensor):
      arrays[".".join(names)] = (node.float() if node.is_floating_point() else node).detach().numpy()
    elif isinstance(node, dict | list | tuple) and len(names) < 4:
      for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if "optim" not in str(key):
          collect(value, (*names, str(key)))

  collect(torch.load(path, map_location="cpu", weights_only=True), ())
  return arrays


def unicode_text(content: bytes) -> str:
  """Returns a text in the encoding of Unicode that its first bytes state, else in UTF-8."""
  if content.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
    return content.decode("utf-32")
  return content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")


def class_lines(content: bytes) -> list[list[str]]:
  """Returns the cells of the lines of a table of classes, without the first line and empty ones."""
  lines = csv.reader(io.StringIO(unicode_text(content), newline=""), skipinitialspace=True)
  return [[cell.strip() for cell in line] for line in lines if line][1:]


def json_lines(content: bytes) -> list[Any]:
  """Returns the lines that are JSON."""
  found = []
  for line in content.split(b"\n"):
    try:
      found.append(json.loads(line))
    except (ValueError, RecursionError):
      continue
  return found
