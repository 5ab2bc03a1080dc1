"""Ways to damage a file: of any file, of text and JSON, and of containers whose checksums are made right again."""

import io
import json
import pickle
import random
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

# (content, random numbers, contents of undamaged files of the same kind) -> damaged content.
Mutation = Callable[[bytes, random.Random, Sequence[bytes]], bytes]

# What a file asks to run leaves a file of this name, which the reading process looks for.
MARKER = "executed_by_a_file"
_LIMITS = (0, 1, -1, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
MOST_BYTES = 4 << 20  # of a damaged file


def damaged(
  content: bytes, rng: random.Random, others: Sequence[bytes], of_format: Sequence[Mutation]
) -> bytes:
  """Returns a damaged copy: one to three mutations, half of them those of the format."""
  result = content
  for _ in range(rng.choice((1, 1, 1, 2, 3))):
    choices = of_format if of_format and rng.random() < 0.5 else GENERAL
    result = rng.choice(choices)(result, rng, others)[:MOST_BYTES]
  return result


def flip_bits(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
  changed = bytearray(content)
  for _ in range(rng.choice((1, 1, 2, 8)) if content else 0):
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
  return bytes(changed)


def set_bytes(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
  start, end = _range(content, rng, 16)
  return content[:start] + rng.randbytes(end - start) + content[end:]


def truncate(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
  return content[: rng.randrange(len(content) + 1)]


def cut_start(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
  return content[rng.randrange(len(content) + 1) :]


def zero(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
  """Fills a part, or all from some place on as after a power failure, with zero bytes."""
  start, end = _range(content, rng, 512)
  end = rng.choice((end, len(content)))
  return content[:start] + bytes(end - start) + content[end:]


def remove(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
  start, end = _range(content, rng, 256)
  return content[:start] + content[end:]


def duplicate(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
  start, end = _range(content, rng, 256)
  return content[:end] + content[start:end] * rng.choice((1, 1, 2, 100, 5000)) + content[end:]


def splice(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
  """Replaces a part by one of another file of the kind."""
  start, end = _range(content, rng, 1024)
  other = rng.choice(others)
  first, last = _range(other, rng, 1024)
  return content[:start] + other[first:last] + content[end:]


def append(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
  return content + rng.choice((bytes(100), rng.randbytes(100), content, rng.choice(others)))


def extreme_number(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
  """Overwrites 1 to 8 bytes with a number at the limit of a type, in either order, often in the header."""
  size = rng.choice((1, 2, 4, 4, 8))
  number = rng.choice(_LIMITS) % (1 << 8 * size)
  at = rng.randrange(max(1, len(content) if rng.random() < 0.5 else min(len(content), 128)))
  return content[:at] + number.to_bytes(size, rng.choice(("little", "big"))) + content[at + size :]


GENERAL: tuple[Mutation, ...] = (
  *(flip_bits, flip_bits, set_bytes, truncate, truncate, cut_start, zero, remove, duplicate, splice, append),
  extreme_number,
)


# Text, and JSON in it.

_VALUES = (
  *(
    "NaN",
    "-Infinity",
    "1e999",
    "-1e999",
    "9" * 400,
    "9" * 5000,
    "-1",
    "0",
    "0.5",
    "1e-400",
    "18446744073709551616",
  ),
  *(
    "null",
    "true",
    "false",
    "[]",
    "{}",
    '""',
    '"text"',
    '"\\ud800"',
    '"\\u0000"',
    '"\\u001b[2J"',
    "[null]",
    "[[1]]",
  ),
  *(
    '{"a": {"b": 1}}',
    "[1, 2, 3]",
    '"' + "x" * 100_000 + '"',
    '["a"]',
    "255",
    "256",
    "65536",
    "01",
    "'a'",
    "",
  ),
)
_DEPTHS = (10, 500, 5_000, 100_000)


def replace_value(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
  """Replaces a number, word or string by a value of another type or size."""
  found = list(re.finditer(rb'"[^"\n]*"|[-+.\w]+', content))
  if not found:
    return content
  match = rng.choice(found)
  return content[: match.start()] + rng.choice(_VALUES).encode() + content[match.end() :]


def replace_json_value(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
  """Replaces a value anywhere in a JSON document, or removes it; the document stays valid for Python."""
  lines = content.split(b"\n")
  places = [index for index, line in enumerate(lines) if line.strip().startswith((b"{", b"["))]
  is_lines = len(places) > 1 and all(
    line.strip().endswith(b"}") for line in (lines[place] for place in places)
  )
  place = rng.choice(places) if is_lines else 0
  try:
    document = json.loads(lines[place] if is_lines else content)
  except (ValueError, RecursionError):
    return content
  slots: list[tuple[Any, Any]] = []
  _collect(document, slots)
  if not slots:
    return content
  node, key = rng.choice(slots)
  values = (
    None,
    True,
    0,
    -1,
    0.5,
    10**400,
    float("nan"),
    float("inf"),
    "",
    "text",
    "\x1b[2J",
    "\ud800",
    "\n",
    [],
    {},
  )
  more = (
    [None],
    [[1]],
    {"a": 1},
    {"a": {"b": []}},
    [1, 2, 3, 4],
    255,
    256,
    2**64,
    -(2**63),
    "x" * 10_000,
    _deep(),
  )
  action = rng.random()
  if action < 0.15:
    del node[key]
  elif action < 0.25 and isinstance(node, list):
    node.insert(key, node[key])
  elif action < 0.4 and isinstance(node, dict):
    node[rng.choice(("", "a", "../x", "\x1b[2J", "x" * 1000, "split", "step", "loss", "miou"))] = node.pop(
      key
    )
  else:
    node[key] = rng.choice((*values, *more, rng.choice(slots)[0]))
  try:
    text = json.dumps(document).encode()
  except (ValueError, RecursionError):  # a node within itself
    return content
  return b"\n".join((*lines[:place], text, *lines[place + 1 :])) if is_lines else text


def _collect(node: Any, slots: list[tuple[Any, Any]]) -> None:
  entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
  for key, value in entries:
    slots.append((node, key))
    _collect(value, slots)


def _deep() -> list:
  node: list = []
  for _ in range(300):
    node = [node]
  return node


def nest(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
  """Puts deep brackets in place of a value, or around the document."""
  depth = rng.choice(_DEPTHS)
  opened, closed = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
  inner = opened * depth + b"1" + closed * rng.choice((0, depth))
  numbers = list(re.finditer(rb"[-+.\w]+", content))
  if not numbers or rng.random() < 0.3:
    return inner
  match = rng.choice(numbers)
  return content[: match.start()] + inner + content[match.end() :]


def encode_otherwise(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
  """Writes the text in another encoding, with other ends of lines, or puts bytes that are no text into it."""
  text = content.decode(errors="replace")
  at = rng.randrange(len(content) + 1)
  foreign = rng.choice(
    (b"\xff", b"\xe9", b"\0", b"\x1b[31m", b"\xc3", "\u2028".encode(), b"\x85", b"\r", b'"', b",")
  )
  ways: tuple[bytes, ...] = (
    *(b"\xef\xbb\xbf" + content, text.encode("utf-16"), text.encode("utf-32", "replace")),
    *(text.encode("latin-1", "replace"), content.replace(b"\n", b"\r\n"), content.replace(b"\n", b"\r")),
    *(content[:at] + foreign + content[at:], content[:at] + foreign + content[at + 1 :]),
  )
  return rng.choice(ways)


def repeat_lines(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
  lines = content.splitlines(keepends=True)
  if not lines:
    return content
  line = rng.choice(lines)
  at = rng.randrange(len(lines) + 1)
  ways = (
    lines[:at] + [line] * rng.choice((1, 3, 1000)) + lines[at:],
    [*lines[:at], b"\n", *lines[at:]],
    rng.sample(lines, len(lines)),
    [other for other in lines if other is not line],
    [other.rstrip(b"\n") if other is line else other for other in lines],
  )
  return b"".join(rng.choice(ways))


TEXT: tuple[Mutation, ...] = (replace_value, replace_value, nest, encode_otherwise, repeat_lines)
JSON: tuple[Mutation, ...] = (*TEXT, *(replace_json_value,) * 5)


# Containers. Their checksums are made right again, so that the damage reaches the reader behind them.


def png_chunk(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
  """Changes a chunk of a PNG: its content, its type, its order, or the pixels in it."""
  chunks, at = [], 8
  while at + 12 <= len(content):
    (length,) = struct.unpack_from(">I", content, at)
    chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
    at += 12 + length
  if not chunks:
    return content
  index = rng.randrange(len(chunks))
  kind, inner = chunks[index]
  action = rng.random()
  if kind == b"IDAT" and action < 0.5:
    try:
      chunks[index] = (
        kind,
        zlib.compress(_small_change(zlib.decompressobj().decompress(inner, 1 << 20), rng, others)),
      )
    except zlib.error:
      return content
  elif action < 0.75:
    chunks[index] = (kind, _small_change(inner, rng, others))
  elif action < 0.85:
    kinds = (
      b"IHDR",
      b"PLTE",
      b"IDAT",
      b"IEND",
      b"tRNS",
      b"eXIf",
      b"iCCP",
      b"zTXt",
      b"acTL",
      b"fcTL",
      b"iTXt",
    )
    chunks[index] = (rng.choice(kinds), inner)
  elif action < 0.95:
    chunks.insert(rng.randrange(len(chunks) + 1), chunks[index])
  else:
    rng.shuffle(chunks)
  packed = (
    struct.pack(">I", len(data)) + of + data + struct.pack(">I", zlib.crc32(of + data)) for of, data in chunks
  )
  return content[:8] + b"".join(packed)


def tiff_entry(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
  """Changes the tag, type, number or value in an entry of a TIFF's first directory."""
  order = ">" if content[:2] == b"MM" else "<"
  try:
    (directory,) = struct.unpack_from(f"{order}I", content, 4)
    (count,) = struct.unpack_from(f"{order}H", content, directory)
  except struct.error:
    return content
  at = directory + 2 + 12 * rng.randrange(max(1, min(count, 64)))
  if at + 12 > len(content):
    return content
  entry = list(struct.unpack_from(f"{order}HHII", content, at))
  part = rng.randrange(4)
  tags = (
    256,
    257,
    258,
    259,
    262,
    266,
    273,
    274,
    277,
    278,
    279,
    282,
    284,
    317,
    320,
    322,
    323,
    324,
    330,
    338,
    339,
  )
  choices = (
    tags,
    range(20),
    (*_LIMITS[:6], 2**32 - 1, 1000),
    (*_LIMITS, 2, 3, 5, 7, 8, 16, 32, 50_000, 32946),
  )
  entry[part] = rng.choice(tuple(choices[part])) % (1 << (16 if part < 2 else 32))
  return content[:at] + struct.pack(f"{order}HHII", *entry) + content[at + 12 :]


def mat_element(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
  """Damages the inflated data of a MATLAB file, and deflates them again."""
  try:
    inner = zlib.decompress(content[136:])
  except zlib.error:
    return content
  packed = zlib.compress(_small_change(inner, rng, others))
  return content[:128] + struct.pack("<II", 15, len(packed)) + packed


def zip_member(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
  """Damages, renames, doubles or removes a member of a zip archive; its checksum is right."""
  members = _members(content)
  if not members:
    return content
  index = rng.randrange(len(members))
  name, inner = members[index]
  action = rng.random()
  if action < 0.6:
    members[index] = (name, _small_change(inner, rng, others))
  elif action < 0.7:
    members[index] = (
      rng.choice(("a.npy", "/a", "../a.npy", "x/data.pkl", "", "\x1b[2J.npy", rng.choice(members)[0])),
      inner,
    )
  elif action < 0.8:
    members.append(members[index])
  elif action < 0.9:
    del members[index]
  else:
    members[index] = (name, inner[:200] + bytes(rng.choice((1 << 20, 200 << 20))))  # inflates to much
  return _zip(members, rng)


def npy_header(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
  """Gives an array in a ``.npz`` another shape, dtype or header."""
  members = _members(content)
  if not members:
    return content
  index = rng.randrange(len(members))
  name, inner = members[index]
  header = rng.choice(
    (
      "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }",
      "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
      "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999,), }",
      "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 2147483648), }",
      "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3, 4), }",
      "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
      "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,), }",
      "{'descr': '|V2000000000', 'fortran_order': False, 'shape': (5,), }",
      "{'descr': '<M8[ns]', 'fortran_order': False, 'shape': (2,), }",
      "{'descr': '<U100', 'fortran_order': False, 'shape': (2,), }",
      "{'descr': 1, 'shape': [1]}",
      "__import__('os').system('touch " + MARKER + "')",
      "(" * 3000 + ")" * 3000,
      "[" * 90,
      "9" * 20_000,
    )
  )
  text = header.encode() + b"\n"
  version = rng.choice((1, 1, 1, 2, 3, 9))
  length = struct.pack("<H" if version == 1 else "<I", len(text))
  payload = rng.choice((inner[64:], pickle_payload(rng), b""))
  members[index] = (name, b"\x93NUMPY" + bytes((version, 0)) + length + text + payload)
  return _zip(members, rng)


def safetensors_header(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
  """Damages the JSON header of a safetensors file, and makes its length right."""
  length = int.from_bytes(content[:8], "little")
  header = rng.choice((*TEXT, *(replace_json_value,) * 6))(content[8 : 8 + length], rng, others)[: 1 << 20]
  return len(header).to_bytes(8, "little") + header + content[8 + length :]


def pickle_opcodes(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
  """Puts opcodes into a pickle that run a command, in a file of ``torch.save`` of either form or in place of it."""
  payload = pickle_payload(rng)
  members = _members(content)
  if not members:
    # After a protocol's two bytes, at a random place, or before the end.
    at = rng.choice((0, 2, rng.randrange(len(content) + 1)))
    return content[:at] + payload + content[at:]
  for index, (name, inner) in enumerate(members):
    if name.endswith("data.pkl"):
      at = rng.choice((2, rng.randrange(len(inner) + 1), max(0, len(inner) - 1)))
      ways = (inner[:at] + payload.rstrip(b".") + inner[at:], inner[:at] + payload, b"\x80\x02" + payload)
      members[index] = (name, rng.choice(ways))
  return _zip(members, rng)


def pickle_payload(rng: random.Random) -> bytes:
  """Returns opcodes that would leave the file ``MARKER``, or ask for much memory or depth, if they were run."""
  shell = f"touch {MARKER}"
  code = f"open({MARKER!r}, 'w').close()"
  return rng.choice(
    (
      f"cos\nsystem\n(S'{shell}'\ntR.".encode(),
      f"cposix\nsystem\n(S'{shell}'\ntR.".encode(),
      f'c__builtin__\neval\n(S"{code}"\ntR.'.encode(),
      f'cbuiltins\nexec\n(S"{code}"\ntR.'.encode(),
      f"(S'{shell}'\nios\nsystem\n.".encode(),
      f"(cos\nsystem\nS'{shell}'\no.".encode(),
      f"csubprocess\ncheck_call\n((lS'touch'\naS'{MARKER}'\natR.".encode(),
      b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes((len(shell),)) + shell.encode() + b"\x85R.",
      f"ctorch.serialization\nload\n(S'{MARKER}'\ntR.".encode(),
      f"ctorch._utils\n_rebuild_tensor_v2\n(S'{MARKER}'\ntR.".encode(),
      f"ccollections\nOrderedDict\n(S'{MARKER}'\ntR.".encode(),
      f"ctorch.nn.modules.linear\nLinear\n(S'{shell}'\ntR}}S'__reduce__'\nS'a'\nsb.".encode(),
      f"cnumpy.core.multiarray\nscalar\n(S'{shell}'\ntR.".encode(),
      pickle.dumps({"state_dict": {"a": [1, "x" * 50]}}, 2),
      b"\x80\x02" + b"(" * 20_000 + b"t" * 20_000 + b".",
      b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".",
      b"\x8b" + struct.pack("<i", 2**31 - 1) + b"1.",
      b"\x8d" + struct.pack("<Q", 2**62) + b"x.",
      b"\x80\x02)" + b"2\x86" * 40 + b".",  # pairs of pairs: 2 ** 40 leaves
      b"T" + struct.pack("<i", -1) + b"x.",
      b"r" + struct.pack("<I", 2**32 - 1) + b".",
    )
  )


def _members(content: bytes) -> list[tuple[str, bytes]]:
  try:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
      return [(name, archive.read(name)) for name in archive.namelist()]
  except Exception:  # damaged by an earlier mutation, in any way
    return []


def _zip(members: Sequence[tuple[str, bytes]], rng: random.Random) -> bytes:
  buffer = io.BytesIO()
  way = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
  with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", way) as archive:
    warnings.simplefilter("ignore")  # of two members of one name
    for name, inner in members:
      # A fixed date: equal seeds give equal files.
      archive.writestr(zipfile.ZipInfo(name), inner, archive.compression)
  return buffer.getvalue()


def _small_change(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
  return rng.choice(
    (flip_bits, flip_bits, set_bytes, truncate, extreme_number, extreme_number, duplicate, remove)
  )(content, rng, others)


def _range(content: bytes, rng: random.Random, most: int) -> tuple[int, int]:
  start = rng.randrange(len(content) + 1)
  return start, min(len(content), start + rng.randint(1, most))
