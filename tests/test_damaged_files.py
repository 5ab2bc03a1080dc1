"""Damaged files that once ended in a library's error, a crash or a wrong result; found by ``benchmarks.fuzz``."""

import io
import json
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import scipy.io
from PIL import Image

from benchmarks.fuzz import checks
from benchmarks.fuzz.kinds import KINDS
from rc_jax.data.reading.complete import refuse_short_png
from rc_jax.data.reading.decode import decode_image
from rc_jax.data.reading.mat import MatError, read_array
from rc_jax.drawing.report.series import column, columns
from rc_jax.files import one_line
from tests.support.image_bytes import png, tiff

Damage = Callable[[bytes], bytes]
IDS = np.kron(np.arange(6).reshape(2, 3), np.ones((4, 4), int))


def put(content: bytes | str) -> Damage:
  return lambda _: content if isinstance(content, bytes) else content.encode()


def swap(old: str, new: str) -> Damage:
  def damage(content: bytes) -> bytes:
    assert old.encode() in content
    return content.replace(old.encode(), new.encode(), 1)

  return damage


def field(path: str, value: object) -> Damage:
  """Sets a field of a JSON document, or of the first line of JSON lines, by its dotted path."""

  def damage(content: bytes) -> bytes:
    first, *rest = (
      content.split(b"\n") if content.count(b'{"') > 1 and content.startswith(b'{"') else (content,)
    )
    document = json.loads(first)
    node = document
    *outer, last = path.split(".")
    for name in outer:
      node = node[int(name)] if isinstance(node, list) else node[name]
    if value is ...:
      del node[last]
    else:
      node[last] = value
    return b"\n".join([json.dumps(document).encode(), *rest])

  return damage


def png_chunk(chunk: bytes) -> Damage:
  """Puts a chunk of a type and a content, ``b"tIMEabc"``, in front of the pixels of a PNG."""
  packed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
  return lambda content: content[:33] + packed + content[33:]


def flipped(content: bytes) -> bytes:
  """Flips a bit in the checksum of a PNG's pixels."""
  at = content.index(b"IEND") - 5
  return content[:at] + bytes((content[at] ^ 1,)) + content[at + 1 :]


def mangled_directory(content: bytes) -> bytes:
  return content.replace(b"PK\x01\x02", b"PK\x01\x03")


def payload(content: bytes) -> bytes:
  """Puts a command into the pickle of a file of ``torch.save``; the checksums of the archive are right."""
  result = io.BytesIO()
  with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(result, "w") as changed:
    for name in archive.namelist():
      inner = archive.read(name)
      command = b"cos\nsystem\n(S'touch executed_by_a_file'\ntR0"
      changed.writestr(name, inner[:2] + command + inner[2:] if name.endswith("data.pkl") else inner)
  return result.getvalue()


DEEP = "[" * 100_000
SUBMITTED = "ADE_test_00000001"
INDEX, SHARD = "packed/prepared.json", "splits.train.shards.0"
# The entry RowsPerStrip of a TIFF, 8 and 1.
ROWS = (b"\x16\1\4\0\1\0\0\0\x08", b"\x16\1\4\0\1\0\0\0\1")
# (kind, file, damage, a part of the message)
CASES: dict[str, tuple[str, str, Damage, str]] = {
  "a PNG that Pillow fails to open": ("png", "label.png", png_chunk(b"iCCP"), "cannot be decoded"),
  "damaged EXIF data": ("png", "label.png", png_chunk(b"eXIfII*\0\x08\0\0\0"), "EXIF data"),
  "a TIFF with one strip of 20": ("tiff", "label_16.tif", put(tiff(IDS, 16).replace(*ROWS)), "12 of 96 pixels"),
  # A power failure leaves such files. scipy.io.loadmat ends the process with a segmentation fault.
  "a matrix of zero bytes": ("mat", "label_bytes.mat", lambda content: content[:176] + bytes(568), "of type 0"),
  "a table that is not UTF-8": ("classes_csv", "classes.csv", put(b"id,name\n1,f\xe9e\n2,b\n"), "UTF-8"),
  "a cell of 200,000 letters": ("classes_csv", "classes.csv", swap("road", chr(34) + "x" * 200_000), "is no line"),
  "an id of 5,000 digits": ("classes_csv", "classes.csv", swap("1,road", "9" * 5000 + ",road"), "the id is"),
  "a first line of 9,000 letters": ("classes_csv", "classes.csv", put("x" * 9000), "expected id,name"),
  "a name that clears the screen": ("classes_csv", "classes.csv", swap("road", "\x1b[2J"), r"the name '\x1b[2J'"),
  "brackets 100,000 deep as classes": ("classes_json", "classes.json", put(DEEP), "is not JSON"),
  "no ids of the classes": ("classes_json", "classes.json", field("label_ids", ...), "label_ids is missing"),
  "a colour of two numbers": ("classes_json", "classes.json", field("palette", [[1, 2]] * 11), "out of range"),
  "brackets as the config": ("config", "config.json", put(DEEP), "is not JSON"),
  "a long value in the config": ("config", "config.json", field("model.name", "x" * 10_000), "model.name: deeplabv3"),
  "control characters in the config": ("config", "config.json", field("model.name", "\x1b[2J"), r"there \x1b[2J"),
  "a dict as protocol": ("metrics", "metrics.jsonl", field("protocol", {}), "line 1 is"),
  "a step of 400 digits": ("metrics", "metrics.jsonl", field("step", 10**400), "line 1 is"),
  "scores without mIoU": ("scores", "eval/val.json", field("miou", ...), "miou is missing"),
  "scores in brackets": ("scores", "eval/val.json", put(DEEP), "is not JSON"),
  "another IoU of a class": ("scores", "eval/val.json", field("iou", dict.fromkeys("xyz", 0.5)), "belongs to another"),
  "a scale that is text": ("scores", "eval/val.json", field("scales", ["x"]), "scales is ['x']"),
  "damaged counts": ("scores", "eval/val_images.npz", mangled_directory, "val_images.npz: cannot be read"),
  "a damaged confusion matrix": ("scores", "eval/val_confusion.npy", put(b"\x93NUMPY\1\0\4\0(((\n"), "cannot be read"),
  "an index without its data set": ("prepared", INDEX, field("dataset", ...), "dataset is no name"),
  "an index of text": ("prepared", INDEX, field("splits", "train"), "splits is empty"),
  "a shard above the folder": ("prepared", INDEX, field(f"{SHARD}.file", "../a"), "no list of files"),
  "fewer examples than written": ("prepared", INDEX, field(f"{SHARD}.examples", 1), "count 2 examples, its index 1"),
  "records without labels": ("prepared", "packed/features.json", swap('"label"', '"lebel"'), "cannot be read"),
  "tiles of no side": ("tiles", "label.tiles", lambda content: content[:16] + bytes(4) + content[20:], "of side 0"),
  "tiles of no pixels": ("tiles", "label.tiles", lambda content: content[:4] + bytes(4) + content[8:], "0 x 28 pixels"),
  "tiles of 2 ** 28 rows": ("tiles", "label.tiles", swap("RCT1\x14\0\0\0", "RCT1\0\0\0\x10"), "1 to 268,435,456"),
  "tiles of 2 ** 28 channels": ("tiles", "image.tiles", swap("\3\0\0\0", "\3\0\0\x10"), "channels, expected 1 or 3:"),
  "too few tiles": ("tiles", "image.tiles", lambda content: content[:24], "too few for 4 tiles"),
  "a plan without shards": ("plan", "packed/plan.json", field("shards", ...), "names no shards"),
  "a plan of another kind": ("plan", "packed/plan.json", field("encoding", ...), "other settings (encoding None"),
  "settings with damaged classes": ("predictions", "predictions.json", field("classes.palette", 3), "damaged"),
  "settings of 10,000 letters": ("predictions", "predictions.json", field("weights", "x" * 10_000), "weights: 0123"),
  "a damaged prediction": ("submission", f"{SUBMITTED}.png", flipped, "do not fit their checksum"),
  "checksums in brackets": ("checkpoint", "checkpoints/8/checksums.json", put(DEEP), "checksums.json cannot be read"),
  "a list of names that is not UTF-8": ("split_list", "raw/imageLists/train.txt", put(b"a\xe9"), "UTF-8"),
  "a listed name of an escape": ("split_list", "raw/imageLists/train.txt", put("a\x1b[2J"), r"lists a\x1b[2J"),
  "an archive without its directory": ("npz", "weights.npz", mangled_directory, "is damaged"),
  "the same of PyTorch": ("pth", "checkpoint.pth", mangled_directory, "is damaged"),
  "a command in a pickle": ("pth", "checkpoint.pth", payload, "without running code"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_file_is_one_line(
  case: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  kind, name, damage, words = CASES[case]
  if kind == "pth":
    pytest.importorskip("torch")
  monkeypatch.chdir(tmp_path)
  folder = tmp_path / "files"
  folder.mkdir()
  KINDS[kind].make(folder)
  path = folder / name
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises((ValueError, OSError)) as refusal:
    KINDS[kind].read(folder, name)
  assert not checks.unclear(refusal.value, folder)
  assert words in str(refusal.value)
  assert not (tmp_path / "executed_by_a_file").exists()


def test_no_flipped_bit_changes_the_pixels_of_a_png() -> None:
  """Pillow reads three of these files with other ids, because it compares no checksum behind the last pixel."""
  content = png(IDS, 8)
  expected = decode_image(content, "a.png")
  for bit in range(8 * 33, 8 * (len(content) - 12)):
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    try:
      pixels = decode_image(bytes(damaged), "a.png")
    except ValueError:
      continue
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8"])
@pytest.mark.parametrize("compressed", [False, True])
def test_matrices_of_every_type_are_read_as_scipy_reads_them(dtype: str, compressed: bool) -> None:
  buffer = io.BytesIO()
  fields = {
    "names": np.array(["a", "b"], object),
    "S": IDS.astype(dtype),
    "empty": np.zeros((0, 3)),
    "one": 3.0,
  }
  scipy.io.savemat(buffer, fields, do_compression=compressed)
  content = buffer.getvalue()
  for name in ("S", "empty", "one"):
    expected = scipy.io.loadmat(io.BytesIO(content))[name]
    found = read_array(content, name)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
  for name, words in (("names", "cells"), ("absent", "fields names, S, empty, one")):
    with pytest.raises(MatError, match=words):
      read_array(content, name)


def test_a_matrix_has_as_many_numbers_as_its_header_says() -> None:
  buffer = io.BytesIO()
  scipy.io.savemat(buffer, {"S": IDS.astype(np.uint8)})
  content = bytearray(buffer.getvalue())
  for at in range(128, len(content) - IDS.size):
    for value in (0, 1, 15, 127, 255):
      damaged = bytes(content[:at]) + bytes((value,)) + bytes(content[at + 1 :])
      try:
        found = read_array(damaged, "S")
      except MatError:
        continue
      assert found.size == IDS.size  # such as [1,96] in place of [8,12]


def test_values_of_other_types_are_unknown_in_a_chart() -> None:
  lines = [{"loss": value, "ious": value} for value in (1, "x", None, [1], 10**400, float("nan"), {"a": 2})]
  np.testing.assert_array_equal(column(lines, "loss"), [1] + [np.nan] * 6)
  np.testing.assert_array_equal(columns(lines, "ious", ["a"])[:, 0], [np.nan] * 6 + [2])


def test_text_of_a_file_is_one_printable_line() -> None:
  assert one_line("a\n b\x1b[2J\ud800\u2028c") == r"a b\x1b[2J\ud800 c"
  assert len(one_line("x" * 10**6)) == 203


def with_height(content: bytes, height: int) -> bytes:
  """A PNG that claims another height, with the checksum that belongs to it."""
  header = content[12:20] + struct.pack(">I", height) + content[24:29]
  return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGB", "RGBA", "LA", "I;16"])
@pytest.mark.parametrize("size", [(9, 7), (1, 1), (16, 3)])
def test_a_png_with_fewer_rows_than_it_claims_is_refused(mode: str, size: tuple[int, int]) -> None:
  image = Image.new(mode, size)
  stream = io.BytesIO()
  image.save(stream, "PNG")
  refuse_short_png(stream.getvalue(), image)  # zeros alone are no damage
  longer = with_height(stream.getvalue(), size[1] + 2)
  with pytest.raises(
    ValueError, match=r"a\.png: cannot be decoded \(it has [\d,]+ of [\d,]+ bytes of pixels"
  ):
    decode_image(longer, "a.png")


def test_an_interlaced_png_of_zeros_is_complete() -> None:
  # Pillow writes none: the pixels of each pass, a byte for the filter before each row.
  for width, height in ((1, 1), (5, 9), (8, 8), (13, 3)):
    rows = 0
    for left, top, across, down in (
      (0, 0, 8, 8),
      (4, 0, 8, 8),
      (0, 4, 4, 8),
      (2, 0, 4, 4),
      (0, 2, 2, 4),
      (1, 0, 2, 2),
      (0, 1, 1, 2),
    ):
      columns = len(range(left, width, across))
      rows += len(range(top, height, down)) * (1 + columns) if columns else 0
    chunks = [
      (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)),
      (b"IDAT", zlib.compress(bytes(rows))),
    ]
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in (*chunks, (b"IEND", b"")):
      content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    assert decode_image(content, "a.png").shape == (height, width, 3)
    with pytest.raises(ValueError, match="cannot be decoded"):
      decode_image(with_height(content, height + 8), "a.png")


def test_a_png_without_its_end_is_refused() -> None:
  content = png(IDS, 8)
  with pytest.raises(ValueError, match=r"a\.png: cannot be decoded \(its end is cut off\)"):
    decode_image(content[:-12], "a.png")


@pytest.mark.parametrize("bits", [None, 1, 2, 8])
def test_a_tiff_of_16_bits_that_claims_fewer_is_refused(bits: int | None) -> None:
  stream = io.BytesIO()
  Image.fromarray(IDS.astype(np.uint16)).save(stream, "TIFF")
  content = bytearray(stream.getvalue())
  at = content.index(struct.pack("<HHI", 258, 3, 1))
  # A tag that no reader knows takes the place of the missing one.
  content[at : at + 10] = struct.pack("<HHIH", 65000 if bits is None else 258, 3, 1, bits or 16)
  with pytest.raises(ValueError, match="are more than the"):
    decode_image(bytes(content), "a.tif")
