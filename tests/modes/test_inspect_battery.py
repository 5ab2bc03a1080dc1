"""``--mode=inspect`` on a folder with every defect of data: one line each, whose remedy a second run confirms."""

import dataclasses
import io
import pathlib
import re
import shutil
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from rc_jax.config import defaults
from rc_jax.data.reading.palette import colormap
from rc_jax.modes import inspect as inspect_mode
from tests.support.image_bytes import broad_png, png, tiff
from tests.support.small_datasets import photo, random_ids

SIZE = (36, 48)
CLASSES = "id,name,color\n0,sky,#102030\n1,road,#804080\n2,car,#00008e\n255,ignore\n"
COLORS = np.array([[0x10, 0x20, 0x30], [0x80, 0x40, 0x80], [0x00, 0x00, 0x8E]], np.uint8)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n"


@dataclasses.dataclass(frozen=True)
class Pair:
  """The files of an example, and what they should hold."""

  root: pathlib.Path
  stem: str
  split: str = "train"

  @property
  def image(self) -> pathlib.Path:
    return self.root / "images" / self.split / f"{self.stem}.png"

  @property
  def label(self) -> pathlib.Path:
    return self.root / "labels" / self.split / f"{self.stem}.png"

  @property
  def pixels(self) -> np.ndarray:
    return photo(self.stem, SIZE)

  @property
  def twelve_bits(self) -> np.ndarray:
    return np.random.default_rng(list(self.stem.encode())).integers(0, 4096, SIZE)

  @property
  def ids(self) -> np.ndarray:
    return random_ids(self.stem, (0, 1, 2), SIZE)


@dataclasses.dataclass(frozen=True)
class Case:
  """A defect of one example.

  Attributes:
    damage: makes it, from an intact example.
    words: a pattern in the one line that names a file of the example; "" where nothing is wrong.
    remedy: does what the line says.
  """

  damage: Callable[[Pair], object]
  words: str = ""
  remedy: Callable[[Pair], object] = lambda pair: None


def encoded(array: np.ndarray, form: str = "PNG", mode: str | None = None, **options: object) -> bytes:
  file = io.BytesIO()
  Image.fromarray(array).convert(mode).save(file, form, **options)
  return file.getvalue()


def indexed(ids: np.ndarray, palette: np.ndarray) -> bytes:
  image = Image.fromarray(ids).convert("P")
  image.putdata(ids.ravel())
  image.putpalette(palette.tobytes())
  file = io.BytesIO()
  image.save(file, "PNG")
  return file.getvalue()


def exif(orientation: int) -> Image.Exif:
  tags = Image.Exif()
  tags[0x0112] = orientation
  return tags


def image(content: bytes | Callable[[Pair], bytes]) -> Callable[[Pair], object]:
  return lambda pair: pair.image.write_bytes(content if isinstance(content, bytes) else content(pair))


def label(content: bytes | Callable[[Pair], bytes]) -> Callable[[Pair], object]:
  return lambda pair: pair.label.write_bytes(content if isinstance(content, bytes) else content(pair))


def both(*steps: Callable[[Pair], object]) -> Callable[[Pair], object]:
  return lambda pair: [step(pair) for step in steps]


def image_as(suffix: str, content: bytes | Callable[[Pair], bytes]) -> Callable[[Pair], object]:
  """Replaces the image by a file of another suffix."""

  def replace(pair: Pair) -> None:
    pair.image.unlink()
    content_of = content if isinstance(content, bytes) else content(pair)
    pair.image.with_suffix(suffix).write_bytes(content_of)

  return replace


def link_to_nothing(path: pathlib.Path) -> None:
  path.unlink()
  path.symlink_to("/nowhere/photo.png")


write_image = image(lambda pair: encoded(pair.pixels))
write_label = label(lambda pair: encoded(pair.ids))
remove = both(lambda pair: pair.image.unlink(), lambda pair: pair.label.unlink())


def in_tall_frame(pair: Pair) -> None:
  """Writes a label of other sides than the image."""
  pair.label.write_bytes(encoded(random_ids(pair.stem, (0, 1, 2), (24, 48))))


def indices_of_colors(pair: Pair, order: tuple[int, ...], colors: np.ndarray = COLORS) -> bytes:
  """Returns the colour mask of a label as an indexed PNG whose palette has the colours in the given order."""
  return indexed(np.argsort(order).astype(np.uint8)[pair.ids], colors[list(order)])


NAMED_BY_OTHERS = COLORS + np.uint8(7)
CASES: dict[str, Case] = {
  # Files that are not what their names say.
  "cut_png": Case(image(lambda p: encoded(p.pixels)[:500]), "cut off.*copy or download it", write_image),
  "cut_jpeg": Case(image(lambda p: encoded(p.pixels, "JPEG")[:900]), "truncated.*download", write_image),
  "cut_label": Case(label(lambda p: encoded(p.ids)[:70]), "cut off.*download it again", write_label),
  "pointer": Case(image(POINTER), "a Git LFS pointer.*run git lfs pull", write_image),
  "label_pointer": Case(label(POINTER), "a Git LFS pointer.*run git lfs pull", write_label),
  "html": Case(image(b"<!DOCTYPE html><html></html>"), "a web page.*download it again", write_image),
  "empty": Case(image(b""), "an empty file.*download it again", write_image),
  "empty_too": Case(image(b""), "an empty file.*download it again", write_image),
  "empty_label": Case(label(b""), "an empty file.*download it again", write_label),
  "zeros": Case(image(bytes(100)), "100 zero bytes.*copy or download it again", write_image),
  "heic_inside": Case(image(b"\0\0\0\x18ftypheic\0\0"), "an HEIC photo.*convert it", write_image),
  "text": Case(image(b"hello"), "is text .*copy or download it again", write_image),
  # Files without counterpart, twice, or in a place or of a type that is not read.
  "label_missing": Case(lambda p: p.label.unlink(), "has no label.*add the label", write_label),
  "image_missing": Case(
    lambda p: p.image.unlink(), "has no image.*remove the label", lambda p: p.label.unlink()
  ),
  "two_images": Case(
    lambda p: p.image.with_suffix(".jpg").write_bytes(encoded(p.pixels, "JPEG")),
    "has the same name as two_images.jpg.*remove one",
    lambda p: p.image.with_suffix(".jpg").unlink(),
  ),
  "two_labels": Case(
    lambda p: p.label.with_suffix(".tif").write_bytes(encoded(p.ids, "TIFF")),
    "has the same name as two_labels.png.*remove one",
    lambda p: p.label.with_suffix(".tif").unlink(),
  ),
  "Capital": Case(
    lambda p: p.label.rename(p.label.with_name("capital.png")),
    "found .*/capital.png: move or rename it",
    lambda p: p.label.with_name("capital.png").rename(p.label),
  ),
  "link": Case(lambda p: link_to_nothing(p.image), "does not exist: restore that file or remove the link"),
  "label_link": Case(lambda p: link_to_nothing(p.label), "is a link to .*does not exist: restore"),
  "heic": Case(image_as(".heic", b"x"), "found heic.heic, a file that is not read: convert it", write_image),
  "gif": Case(image_as(".gif", b"x"), "found gif.gif, a file that is not read: convert it", write_image),
  "jpeg_label": Case(
    lambda p: p.label.rename(p.label.with_suffix(".jpg")),
    "found jpeg_label.jpg: JPEG changes ids, export the label as PNG",
    write_label,
  ),
  # Images.
  "jfif": Case(image_as(".jfif", lambda p: encoded(p.pixels, "JPEG"))),
  "cmyk": Case(image_as(".jpg", lambda p: encoded(p.pixels, "JPEG", "CMYK"))),
  "sixteen_bits": Case(image(lambda p: png(p.twelve_bits * 16, 16))),
  "twelve_bits": Case(
    image(lambda p: png(p.twelve_bits, 16)),
    "none above 4095.*scale them",
    image(lambda p: png(p.twelve_bits * 16, 16)),
  ),
  "int32": Case(
    image(lambda p: tiff(p.twelve_bits, 32)),
    "32 bits from .*scale them to 0-255",
    image(lambda p: png(p.twelve_bits >> 4, 8)),
  ),
  "floats": Case(
    image(lambda p: tiff(p.twelve_bits / 4096, 32, 1, 3)),
    "floating point.*convert it",
    image(lambda p: png(p.twelve_bits >> 4, 8)),
  ),
  "five_bands": Case(
    image(lambda p: tiff(np.dstack([p.pixels, p.ids, p.ids]), 8, 1, extra=(0,) * 4)),
    "5 bands of 8-bit.*expected 1 or 3 bands.*export these bands alone as PNG",
    write_image,
  ),
  "broad": Case(
    image(broad_png(20_000, 10_000)),
    "200 megapixels.*cut it into tiles or save it smaller",
    write_image,
  ),
  "animated": Case(
    image(lambda p: encoded(p.pixels, save_all=True, append_images=[Image.new("RGB", SIZE[::-1])])),
    "an animation of 2 pictures.*save the right one alone",
    write_image,
  ),
  "transparent": Case(
    image(lambda p: encoded(np.dstack([p.pixels, np.where(p.ids == 1, 0, 255)]).astype(np.uint8))),
    "transparent pixels.*save them without an alpha channel",
    write_image,
  ),
  "opaque": Case(image(lambda p: encoded(p.pixels, "PNG", "RGBA"))),
  "fourteen_bits": Case(
    image(lambda p: png(p.twelve_bits * 4, 16)),
    "nearly black.*scale them",
    image(lambda p: png(p.twelve_bits * 16, 16)),
  ),
  "from_0_to_1": Case(
    image(lambda p: encoded(p.pixels // 128)),
    "nearly black.*scale them to the range 0-255",
    write_image,
  ),
  "signed": Case(
    image(lambda p: tiff(p.pixels[..., 0], 8, sample_format=2)),
    "signed integers of 8 bits.*save them without sign",
    write_image,
  ),
  "black": Case(image(lambda p: encoded(p.pixels * 0)), "show one colour alone.*remove these pairs", remove),
  "one_pixel": Case(
    both(image(lambda p: encoded(p.pixels[:1, :1])), label(lambda p: encoded(p.ids[:1, :1]))),
    "smaller than the crop.*use the originals",
    both(write_image, write_label),
  ),
  # Pairs.
  "turned_image": Case(
    image(lambda p: encoded(p.pixels, exif=exif(3))),
    "EXIF data that turn.*without EXIF data",
    write_image,
  ),
  "turned_label": Case(
    label(lambda p: encoded(p.ids, exif=exif(2))),
    "EXIF data that turn.*without EXIF data",
    write_label,
  ),
  "turned_both": Case(
    both(
      image(lambda p: encoded(p.pixels, exif=exif(3))),
      label(lambda p: encoded(p.ids, exif=exif(3))),
    )
  ),
  "quarter_turn": Case(
    image(lambda p: encoded(p.pixels, exif=exif(6))),
    "turned by 90 degrees: turn the label",
    label(lambda p: encoded(np.rot90(p.ids, -1).copy())),
  ),
  "other_size": Case(in_tall_frame, "label is 48x24 .* is 48x36.*export the label again", write_label),
  "copy": Case(image(encoded(photo("copied", SIZE)))),
  "copy_again": Case(
    image(encoded(photo("copied", SIZE), compress_level=1)),
    r"equal another image .*\(as copy.png\).*remove one",
    remove,
  ),
  # Ids.
  "colors": Case(label(lambda p: encoded(COLORS[p.ids])), "colours of the classes: write", write_label),
  "other_colors": Case(
    label(lambda p: encoded(NAMED_BY_OTHERS[p.ids])), "has 3 colours: convert the colours to ids", write_label
  ),
  "three_equal_bands": Case(
    label(lambda p: encoded(np.dstack([p.ids] * 3))), "three channels are equal: keep one", write_label
  ),
  "outside": Case(
    label(lambda p: encoded(np.where(p.ids == 1, 77, p.ids).astype(np.uint8))),
    "ids 77 that folder does not have.*convert the labels",
    write_label,
  ),
  "from_1": Case(
    label(lambda p: encoded(np.array([1, 2, 5], np.uint8)[p.ids])), "from 1: subtract one", write_label
  ),
  "stretched": Case(label(lambda p: png(p.ids.astype(int) * 257, 16)), "divide them by 257", write_label),
  "mask": Case(
    label(lambda p: encoded(np.where(p.ids == 1, 255, 0).astype(np.uint8))),
    "ids 0 and 255 alone.*write its id in place of 255",
    label(lambda p: encoded((p.ids == 1).astype(np.uint8))),
  ),
  "all_ignored": Case(
    label(lambda p: encoded(p.ids * 0 + np.uint8(255))), "ignored pixels alone.*remove the pairs", remove
  ),
  "two_bits": Case(label(lambda p: png(p.ids, 2))),
  "four_bits": Case(label(lambda p: png(p.ids, 4))),
  "tool_palette": Case(label(lambda p: indexed(p.ids, colormap(256)))),
  "class_colors": Case(label(lambda p: indexed(p.ids, COLORS))),
  "swapped_palette": Case(
    label(lambda p: indices_of_colors(p, (2, 1, 0))), "colour mask saved with a palette.*convert", write_label
  ),
  "own_palette": Case(label(lambda p: indices_of_colors(p, (0, 1, 2), NAMED_BY_OTHERS))),
  "own_palette_again": Case(label(lambda p: indices_of_colors(p, (0, 1, 2), NAMED_BY_OTHERS))),
  "unlike_palette": Case(
    label(lambda p: indices_of_colors(p, (1, 2, 0), NAMED_BY_OTHERS)),
    "an index has another colour.*convert their colours to ids",
    write_label,
  ),
  "jpeg_inside": Case(label(lambda p: encoded(p.ids, "JPEG")), "a JPEG file.*export.*as PNG", write_label),
  "tiff_jpeg": Case(
    label(lambda p: encoded(p.ids, "TIFF", compression="jpeg")), "JPEG compression.*as PNG", write_label
  ),
  "grey_alpha": Case(label(lambda p: encoded(p.ids, "PNG", "LA")), "mode LA.*convert it to ids", write_label),
}


def restore_links(pair: Pair) -> None:
  for path, write in ((pair.image, write_image), (pair.label, write_label)):
    if path.is_symlink():
      path.unlink()
      write(pair)


def write_pair(pair: Pair) -> None:
  for path in (pair.image, pair.label):
    path.parent.mkdir(parents=True, exist_ok=True)
  write_image(pair)
  write_label(pair)


def inspect(root: pathlib.Path, workdir: pathlib.Path) -> tuple[int, list[str]]:
  config = defaults()
  config.dataset.name, config.dataset.root = "folder", str(root)
  config.train.crop_size = (33, 33)
  status = inspect_mode.run(config, workdir)
  return status, (workdir / "inspect/report.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture
def damaged(tmp_path: pathlib.Path) -> pathlib.Path:
  """Returns a folder data set with each defect of ``CASES``, and some of the data set as such."""
  root = tmp_path / "set"
  for stem, case in CASES.items():
    pair = Pair(root, stem)
    write_pair(pair)
    case.damage(pair)
  for stem in ("first", "second"):
    write_pair(Pair(root, stem, "val"))
  shutil.copy(Pair(root, "jfif").image.with_suffix(".jfif"), Pair(root, "second", "val").image)
  (root / "images/train/further.gif").write_bytes(b"x")
  # Files that nobody means, and files in a folder elsewhere.
  for hidden in (".ipynb_checkpoints", "@eaDir"):
    (root / "images/train" / hidden).mkdir()
    (root / "images/train" / hidden / "cut_png.png").write_bytes(b"")
  write_pair(Pair(tmp_path / "disk", "elsewhere"))
  for kind in ("images", "labels"):
    (root / kind / "train/linked").symlink_to(tmp_path / "disk" / kind / "train")
  (root / "classes.csv").write_text(CLASSES + "3,ghost,#ffee11\n4,Void,#112233\n")
  return root


def test_each_defect_has_one_line_and_its_remedy_works(damaged: pathlib.Path, tmp_path: pathlib.Path) -> None:
  status, report = inspect(damaged, tmp_path / "run")
  assert status == inspect_mode.DEFECTIVE
  remaining = [line for line in report if line.startswith(("note: ", "DEFECT: ", "smaller"))]
  named: set[str] = set()
  for stem, case in CASES.items():
    lines = [line for line in remaining if re.search(rf"(?<!as )(?<!as train: )(?<!\w){stem}\.\w+", line)]
    assert len(lines) == bool(case.words), (stem, lines)
    assert all(re.search(case.words, line) for line in lines), (stem, lines)
    named.update(lines)
  others = [line for line in remaining if line not in named]
  for words in (
    r"left out: 1, because files ending .gif are not read \(further.gif\); convert them",
    r"1 images of val are also trained on.*: second.png \(as train: jfif.jfif\); remove them from one",
    "classes occur in no label of train, val: ghost, Void; check .* or remove the lines",
    "line 7: 'Void' is a class of its own; if its pixels count nowhere, name it ignore",
  ):
    found = [line for line in others if re.search(words, line)]
    assert len(found) == 1, (words, others)
    others = [line for line in others if line not in found]
  assert not others

  for stem, case in CASES.items():
    case.remedy(Pair(damaged, stem))
    restore_links(Pair(damaged, stem))
  for suffix in (".heic", ".gif"):
    (damaged / f"images/train/{suffix[1:]}{suffix}").unlink()
  (damaged / "images/train/further.gif").unlink()
  write_image(Pair(damaged, "second", "val"))
  (damaged / "classes.csv").write_text(CLASSES)
  status, report = inspect(damaged, tmp_path / "run")
  assert [line for line in report if line.startswith(("note: ", "DEFECT: ", "smaller", "never"))] == []
  assert status == inspect_mode.CLEAN
