"""Data sets with one defect each: training and inspection report it in the same line, with a remedy."""

import errno
import pathlib
import re
import shutil
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
import scipy.io
from PIL import Image

from rc_jax import data
from rc_jax.config import defaults
from rc_jax.data.datasets import camvid
from rc_jax.modes import inspect
from tests.support import small_datasets
from tests.support.small_datasets import photo, random_ids, save_label, save_mat

IMAGE, LABEL = "images/train/1.png", "labels/train/1.png"  # of CamVid and of a folder
FRAME = "leftImg8bit/train/ulm/ulm_train_1_leftImg8bit.png"
FRAME_LABEL = "gtFine/train/ulm/ulm_train_1_gtFine_labelIds.png"

Damage = Callable[[pathlib.Path], None]


@pytest.fixture(autouse=True)
def no_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
  """Contact sheets are tested in tests/modes/test_inspect.py."""
  monkeypatch.setattr(inspect, "draw_sheets", lambda *_: ())


def label_of(ids: np.ndarray, path: str = LABEL) -> Damage:
  return lambda root: save_label(root / path, ids)


def ids(*values: int) -> np.ndarray:
  array = random_ids("x", tuple(v % 256 for v in values)).astype(np.uint16 if max(values) > 255 else np.uint8)
  array.flat[: len(values)] = values
  return array


def bytes_of(content: bytes, path: str = IMAGE) -> Damage:
  return lambda root: (root / path).write_bytes(content)  # type: ignore[func-returns-value]


def cut(path: str) -> Damage:
  return lambda root: (root / path).write_bytes((root / path).read_bytes()[:-300])  # type: ignore[func-returns-value]


def gone(path: str) -> Damage:
  def remove(root: pathlib.Path) -> None:
    shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()

  return remove


def moved(path: str, to: str) -> Damage:
  def move(root: pathlib.Path) -> None:
    (root / to).parent.mkdir(parents=True, exist_ok=True)
    (root / path).rename(root / to)

  return move


def colored(root: pathlib.Path) -> None:
  save_label(root / LABEL, camvid.INFO.palette[random_ids("x", range(11))])


def indexed(root: pathlib.Path) -> None:
  image = Image.fromarray(random_ids("x", (0, 1))).convert("L")
  image = Image.frombytes("P", image.size, image.tobytes())
  image.putpalette(bytes(camvid.INFO.palette[[3, 8]].ravel().tolist()))
  image.save(root / LABEL)


def jpeg_label(root: pathlib.Path) -> None:
  Image.fromarray(random_ids("x", range(11))).save(root / "labels/train/1.jpg")
  (root / LABEL).unlink()


def jpeg_named_png(root: pathlib.Path) -> None:
  Image.fromarray(np.full((30, 40), 3, np.uint8)).save(root / LABEL, format="JPEG")


def turned(root: pathlib.Path) -> None:
  (root / IMAGE).unlink()
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.fromarray(photo("x")).save(root / "images/train/1.jpg", exif=exif)


def truncated_jpeg(root: pathlib.Path) -> None:
  (root / IMAGE).unlink()
  path = root / "images/train/1.jpg"
  Image.fromarray(photo("x")).save(path)
  path.write_bytes(path.read_bytes()[:-300])


def zipped(root: pathlib.Path) -> None:
  with zipfile.ZipFile(root / IMAGE, "w") as archive:
    archive.writestr("1.png", b"pixels")


def animated(path: str, form: str) -> Damage:
  def save(root: pathlib.Path) -> None:
    frames = [Image.fromarray(random_ids(seed, range(11))) for seed in "xyz"]
    frames[0].save(root / path, format=form, save_all=True, append_images=frames[1:])

  return save


def pages(root: pathlib.Path) -> None:
  (root / LABEL).unlink()
  animated("labels/train/1.tif", "TIFF")(root)


def image_pages(root: pathlib.Path) -> None:
  (root / IMAGE).unlink()
  animated("images/train/1.tif", "TIFF")(root)


def floats(root: pathlib.Path) -> None:
  (root / IMAGE).unlink()
  Image.fromarray(photo("x")[..., 0] / np.float32(255)).save(root / "images/train/1.tif")


def float_label(root: pathlib.Path) -> None:
  (root / LABEL).unlink()
  Image.fromarray(ids(1, 2).astype(np.float32)).save(root / "labels/train/1.tif")


def dangling(root: pathlib.Path) -> None:
  (root / LABEL).unlink()
  (root / LABEL).symlink_to("/nowhere/1.png")


def twice(root: pathlib.Path) -> None:
  Image.fromarray(photo("x")).save(root / "images/train/1.jpg")


def only_gifs(root: pathlib.Path) -> None:
  for kind in ("images", "labels"):
    shutil.rmtree(root / kind / "train")
    (root / kind / "train").mkdir()
  (root / "images/train/1.gif").write_bytes(b"GIF89a")


def emptied(root: pathlib.Path, folder: str) -> None:
  shutil.rmtree(root / folder)
  (root / folder).mkdir()


def nested(root: pathlib.Path) -> None:
  (root / "leftImg8bit").rename(root / "x")
  (root / "leftImg8bit").mkdir()
  (root / "x").rename(root / "leftImg8bit/leftImg8bit")


def two_fields(root: pathlib.Path) -> None:
  scipy.io.savemat(root / "annotations/train_1.mat", {"LabelMap": np.ones((30, 40)), "names": "x"})


def nothing(root: pathlib.Path) -> None:
  del root


def classes(text: str) -> Damage:
  return lambda root: (root / "classes.csv").write_text(text)  # type: ignore[func-returns-value]


ADE, ADE_LABEL = "ade20k", "annotations/training/1.png"
COCO_LABEL = "annotations/train2017/1.png"
MAT = "annotations/train_1.mat"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"

# Defect -> (data set, function that damages it, words of the error: file, found, expected, remedy). For a defect of the
# config, ``dataset.root`` relative to the data set and ``dataset.name`` follow.
DAMAGED: dict[str, tuple] = {
  "a label out of range": ("camvid", label_of(ids(1, 77)), (LABEL, "ids 77", "0-11", "convert")),
  "a 0/255 mask": ("camvid", label_of(ids(0, 255)), (LABEL, "255", "a 0/255 mask", "write the id")),
  "a mask in the colours of the classes": (
    "camvid",
    colored,
    (LABEL, "mode RGB", "one channel", "write their ids"),
  ),
  "a mask in any colours": ("camvid", label_of(photo("x")), (LABEL, "mode RGB", "colours: convert")),
  "a grey mask with three channels": (
    "camvid",
    label_of(np.dstack([random_ids("x", range(11))] * 3)),
    (LABEL, "mode RGB", "three channels are equal: keep one"),
  ),
  "a mask with transparency": (
    "camvid",
    label_of(np.dstack([photo("x"), photo("y")[..., 0]])),
    (LABEL, "mode RGBA", "one channel", "convert the colours"),
  ),
  "palette indices that are no ids": ("camvid", indexed, (LABEL, "index 0", "colour of id 3", "convert")),
  "wide ids": ("camvid", label_of(ids(1, 40_000)), (LABEL, "40000", "0-11")),
  "ids stretched to 16 bits": (
    "camvid",
    label_of(random_ids("x", range(11)).astype(np.uint16) * 257),
    (LABEL, "multiples of 257", "divide"),
  ),
  "labels as JPEG": (
    "camvid",
    jpeg_label,
    (IMAGE, "no label", LABEL, "1.jpg: JPEG changes ids", "as PNG"),
  ),
  "a label that is a JPEG inside": ("camvid", jpeg_named_png, (LABEL, "JPEG file", "expected PNG", "export")),
  "a label one pixel smaller": (
    "camvid",
    label_of(random_ids("x", range(11))[:, 1:]),
    (LABEL, "39x30", IMAGE, "40x30", "export the label again"),
  ),
  "a turned photo, its label not": (
    "camvid",
    turned,
    (LABEL, "40x30", "30x40", "turned by 90 degrees", "EXIF"),
  ),
  "no label": ("camvid", gone(LABEL), (IMAGE, "no label", LABEL, "add the label or remove")),
  "no image": ("camvid", gone(IMAGE), (LABEL, "no image", "images/train/1.jpg", "add the image or remove")),
  "a label in other capitals": (
    "camvid",
    lambda root: (moved(IMAGE, "images/train/Ab.png")(root), moved(LABEL, "labels/train/ab.png")(root)),
    ("images/train/Ab.png", "no label", "labels/train/Ab.png", "labels/train/ab.png: move or rename"),
  ),
  "a truncated PNG": ("camvid", cut(IMAGE), (IMAGE, "cannot be decoded", "complete image file", "again")),
  "a truncated JPEG": (
    "camvid",
    truncated_jpeg,
    ("images/train/1.jpg", "truncated", "complete image", "again"),
  ),
  "a truncated label": (
    "camvid",
    bytes_of(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0", LABEL),
    (LABEL, "decoded", "again"),
  ),
  "an empty file": ("camvid", bytes_of(b""), (IMAGE, "an empty file", "again")),
  "a file of zeros": ("camvid", bytes_of(bytes(5000)), (IMAGE, "5,000 zero bytes", "again")),
  "a web page": (
    "camvid",
    bytes_of(b"\n<!DOCTYPE html><html>"),
    (IMAGE, "a web page", "expected an image", "login"),
  ),
  "a text": ("camvid", bytes_of(b"404: Not Found\n", LABEL), (LABEL, "text ('404: Not Found'", "again")),
  "a Git LFS pointer": ("camvid", bytes_of(LFS), (IMAGE, "Git LFS pointer", "git lfs pull")),
  "an archive": ("camvid", zipped, (IMAGE, "zip archive", "unpack")),
  "a phone's HEIC": (
    "camvid",
    bytes_of(b"\0\0\0\x18ftypheic" + bytes(range(99))),
    (IMAGE, "HEIC", "convert"),
  ),
  "an animated PNG": ("camvid", animated(IMAGE, "PNG"), (IMAGE, "animation of 3", "expected one", "save")),
  "an animated GIF as label": ("camvid", animated(LABEL, "GIF"), (LABEL, "animation of 3", "expected one")),
  "an image of several pages": (
    "camvid",
    image_pages,
    ("images/train/1.tif", "holds 3 pages", "expected one picture", "export the right page alone"),
  ),
  "a label of several pages": ("camvid", pages, ("labels/train/1.tif", "3 pages", "expected one", "export")),
  "an image of floats": (
    "camvid",
    floats,
    ("images/train/1.tif", "floating point", "8 or 16 bits", "convert"),
  ),
  "a label of floats": (
    "camvid",
    float_label,
    ("labels/train/1.tif", "floating point", "one channel", "convert"),
  ),
  "a link to nowhere": (
    "camvid",
    dangling,
    (LABEL, "link to /nowhere/1.png", "does not exist", "remove the link"),
  ),
  "two images of one name": ("camvid", twice, (IMAGE, "same name as 1.jpg", "expected one", "remove one")),
  "no images but others": (
    "camvid",
    only_gifs,
    ("images/train", "no images, only 1 file ending .gif", "check"),
  ),
  "no folder of labels": (
    "camvid",
    gone("labels/train"),
    ("labels/train", "does not exist", "labels/<split>/"),
  ),
  "255 for void": ("camvid", label_of(ids(1, 2, 255)), (LABEL, "255", "255 for void", "write 11")),
  "the original's 32 classes": (
    "camvid",
    label_of(ids(1, 2, 31)),
    (LABEL, "31", "32 classes", "11 of SegNet"),
  ),
  "train ids in place of label ids": (
    "cityscapes",
    label_of(ids(0, 3, 18, 255), FRAME_LABEL),
    (FRAME_LABEL, "0, 3, 18, 255", "labelTrainIds", "give the *_labelIds.png"),
  ),
  "instance ids in place of label ids": (
    "cityscapes",
    label_of(ids(7, 26_001), FRAME_LABEL),
    (FRAME_LABEL, "26001", "instanceIds", "give the *_labelIds.png"),
  ),
  "colour files alone": (
    "cityscapes",
    moved(FRAME_LABEL, FRAME_LABEL.replace("labelIds", "color")),
    (FRAME, "no label", FRAME_LABEL, "found only ulm_train_1_gtFine_color.png", "add the label"),
  ),
  "a label in another city": (
    "cityscapes",
    moved(FRAME_LABEL, FRAME_LABEL.replace("/ulm/", "/bonn/")),
    (FRAME, "no label", FRAME_LABEL, "gtFine/train/bonn", "move"),
  ),
  "an id too large": ("cityscapes", label_of(ids(7, 34), FRAME_LABEL), (FRAME_LABEL, "34", "0-33, 255")),
  "no files at all": (
    "cityscapes",
    lambda root: [emptied(root, kind) for kind in ("leftImg8bit/train", "gtFine/train")],  # type: ignore[func-returns-value]
    ("leftImg8bit/train", "no images, only an empty folder", "check the folder"),
  ),
  "unpacked into its own name": (
    "cityscapes",
    nested,
    ("leftImg8bit/train", "does not exist", "these commands move them: mv", "leftImg8bit/leftImg8bit/*"),
  ),
  "ids reduced already": (
    ADE,
    label_of(ids(0, 149, 255), ADE_LABEL),
    (ADE_LABEL, "255", "0-150", "reduced by one already", "as downloaded"),
  ),
  "ids reduced twice": (
    ADE,
    label_of(ids(0, 148, 254), ADE_LABEL),
    (ADE_LABEL, "254", "one twice", "as downloaded"),
  ),
  "no field": ("coco_stuff_10k", two_fields, (MAT, "the fields LabelMap, names", "field S", "again")),
  "a damaged MATLAB file": (
    "coco_stuff_10k",
    bytes_of(b"MATLAB 5.0 MAT-file, cut", MAT),
    (MAT, "decoded", "again"),
  ),
  "an HDF5 MATLAB file": (
    "coco_stuff_10k",
    bytes_of(b"MATLAB 7.3 MAT-file, Platform: x".ljust(512) + b"\x89HDF\r\n\x1a\n", MAT),
    (MAT, "MATLAB 7.3 (HDF5)", "MATLAB 5", "save it with -v7"),
  ),
  "an empty MATLAB file": ("coco_stuff_10k", bytes_of(b"", MAT), (MAT, "empty file", "MATLAB 5", "again")),
  "a MATLAB field of three dimensions": (
    "coco_stuff_10k",
    lambda root: scipy.io.savemat(root / MAT, {"S": np.zeros((2, 2, 2))}),
    (MAT, "[2, 2, 2]", "MATLAB 5", "field S", "again"),
  ),
  "a text in place of a MATLAB file": (
    "coco_stuff_10k",
    bytes_of(b"404: Not Found\n", MAT),
    (MAT, "is text", "MATLAB 5", "again"),
  ),
  "ids that are fractions": (
    "coco_stuff_10k",
    lambda root: scipy.io.savemat(root / MAT, {"S": np.full((30, 40), 1.5)}),
    (MAT, "no ids", "field S"),
  ),
  "ids of the larger release": (
    "coco_stuff_10k",
    lambda root: save_mat(root / MAT, ids(0, 181, 255)),
    (MAT, "255", "0-182", "COCO-Stuff 164k", "dataset.name"),
  ),
  "a listed image that is not there": (
    "coco_stuff_10k",
    gone("images/train_1.jpg"),
    ("imageLists/train.txt", "lists train_1", "images/train_1.jpg", "download"),
  ),
  "an annotation that is not there": (
    "coco_stuff_10k",
    gone(MAT),
    ("images/train_1.jpg", "no label", MAT, "add"),
  ),
  "no list": ("coco_stuff_10k", gone("imageLists/train.txt"), ("imageLists/train.txt", "does not exist")),
  "ids of the smaller release": (
    "coco_stuff_164k",
    label_of(ids(0, 182), COCO_LABEL),
    (COCO_LABEL, "182", "0-181, 255", "COCO-Stuff 10k", "dataset.name"),
  ),
  "no folder of a split": (
    "coco_stuff_164k",
    gone("images/train2017"),
    ("train2017", "does not exist", "COCO 2017"),
  ),
  "a value that the table lacks": (
    "folder",
    label_of(ids(0, 9)),
    (LABEL, "9", "0-2, 255", "add a line to classes.csv"),
  ),
  "ids that count from 1": ("folder", label_of(ids(1, 2, 3)), (LABEL, "3", "count from 1", "subtract one")),
  "no table": ("folder", gone("classes.csv"), ("classes.csv", "does not exist", "id,name[,color]")),
  "a table without its first line": (
    "folder",
    classes("0,road\n1,car\n"),
    ("classes.csv", "0,road", "id,name", "add"),
  ),
  "an id twice": (
    "folder",
    classes("id,name\n0,a\n0,b\n"),
    ("classes.csv, line 3", "id 0", "listed twice", "remove"),
  ),
  "a colour that is none": (
    "folder",
    classes("id,name,color\n0,a,red\n"),
    ("line 2", "'red'", "#rrggbb", "change"),
  ),
  "an id that is no number": ("folder", classes("id,name\nx,a\n"), ("line 2", "'x'", "0 to 65535", "change")),
  "a root too deep": (
    "camvid",
    nothing,
    ("does not exist", "found the data set in", "give that folder"),
    "images",
  ),
  "a root too high": (ADE, nothing, ("does not exist", "found the data set in", "give that folder"), ".."),
  "a root with a typo": (ADE, nothing, ("does not exist", "did you mean", "/set?"), "../sett"),
  "the name of another set": (
    "cityscapes",
    nothing,
    ("images/training", "looks like cityscapes", "--config.dataset.name=cityscapes"),
    "",
    ADE,
  ),
  "the name of the other release": (
    "coco_stuff_10k",
    nothing,
    ("does not exist", "looks like coco_stuff_10k", "--config.dataset.name=coco_stuff_10k"),
    "",
    "coco_stuff_164k",
  ),
  "labels of another set": (
    "camvid",
    nothing,
    ("classes.csv", "looks like camvid", "dataset.name=camvid"),
    "",
    "folder",
  ),
}


@pytest.mark.parametrize("defect", DAMAGED)
def test_a_defect_is_one_line_in_training_and_in_inspection(tmp_path: pathlib.Path, defect: str) -> None:
  made, damage, words, *wrong = DAMAGED[defect]
  root = tmp_path / "set"
  small_datasets.MAKERS[made](root)
  damage(root)
  name = wrong[1] if len(wrong) > 1 else made
  root = root / wrong[0] if wrong else root
  in_training = first_error(name, str(root))
  assert "\n" not in in_training
  for word in words:
    assert word in in_training, f"{word!r} is not in: {in_training}"
  try:
    status, report = inspected(name, str(root), tmp_path)
  except (ValueError, OSError) as error:
    # For a wrong table of classes or a wrong root, inspection reports nothing else.
    assert str(error) == in_training
    assert "does not exist" in in_training or "classes.csv" in in_training
    return
  assert status == inspect.DEFECTIVE
  assert report.count("DEFECT: ") == 1 and f"DEFECT: {in_training}\n" in report


def first_error(name: str, root: str) -> str:
  """Returns the error of reading the training batches of an epoch."""
  with pytest.raises((ValueError, FileNotFoundError)) as error:
    read_all(name, root)
  return str(error.value)


def read_all(name: str, root: str) -> None:
  source = data.load(name, root, "train")
  augment = defaults().augment
  with data.train_batches(
    source, seed=0, batch_size=len(source), crop_size=(33, 33), augment=augment, threads=0
  ) as batches:
    next(batches)


def inspected(name: str, root: str, tmp_path: pathlib.Path) -> tuple[int, str]:
  config = defaults()
  config.dataset.name, config.dataset.root = name, root
  config.train.crop_size = (33, 33)
  config.eval.split = "test" if name == "coco_stuff_10k" else "val"
  status = inspect.run(config, tmp_path / "run")
  return status, (tmp_path / "run/inspect/report.txt").read_text()


def test_a_file_without_the_permission_to_read(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  small_datasets.camvid(tmp_path / "set")
  read = pathlib.Path.read_bytes

  def refused(path: pathlib.Path) -> bytes:
    # Not by the file's mode, which does not stop the user root.
    if path == tmp_path / "set" / LABEL:
      raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return read(path)

  monkeypatch.setattr(pathlib.Path, "read_bytes", refused)
  message = first_error("camvid", str(tmp_path / "set"))
  assert LABEL in message and "permissions" in message


def test_all_defects_are_listed(tmp_path: pathlib.Path) -> None:
  root = tmp_path / "set"
  small_datasets.camvid(root)
  for number in range(2, 9):
    small_datasets.save_image(root / f"images/train/{number}.png", str(number))  # seven without labels
  label_of(ids(1, 77))(root)
  bytes_of(b"")(root)  # and both halves of a pair
  bytes_of(LFS, "images/val/0.png")(root)
  status, report = inspected("camvid", str(root), tmp_path)
  assert status == inspect.DEFECTIVE and report.count("DEFECT: ") == 10
  assert len(re.findall(r"images/train/[2-8]\.png: this image has no label", report)) == 7
  assert "unexpected id 77: " in report


ODD: dict[str, tuple[str, Damage]] = {}


def odd(name: str, made: str = "camvid") -> Callable[[Damage], Damage]:
  def keep(change: Damage) -> Damage:
    ODD[name] = made, change
    return change

  return keep


@odd("suffixes in capitals")
def _(root: pathlib.Path) -> None:
  moved(IMAGE, "images/train/1.PNG")(root)
  moved(LABEL, "labels/train/1.PNG")(root)


@odd("suffixes in capitals, cityscapes", "cityscapes")
def _(root: pathlib.Path) -> None:
  moved(FRAME, FRAME.replace(".png", ".PNG"))(root)


@odd("what macOS and Windows leave")
def _(root: pathlib.Path) -> None:
  for name in (
    "images/train/._1.png",
    "labels/train/.DS_Store",
    "images/train/Thumbs.db",
    "labels/val/._0.png",
  ):
    (root / name).write_bytes(b"\0\5\x16\7")


@odd("what macOS leaves, cityscapes", "cityscapes")
def _(root: pathlib.Path) -> None:
  path = root / FRAME
  (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7")


@odd("a photo turned by EXIF, its label as displayed")
def _(root: pathlib.Path) -> None:
  turned(root)
  save_label(root / LABEL, random_ids("x", range(12), (40, 30))[:39, :28])
  save_label(root / LABEL, np.rot90(random_ids("x", range(12))).copy())


@odd("a grey image")
def _(root: pathlib.Path) -> None:
  Image.fromarray(photo("x")[..., 0]).save(root / IMAGE)


@odd("a 16-bit image")
def _(root: pathlib.Path) -> None:
  Image.fromarray(photo("x")[..., 0].astype(np.uint16) * 256).save(root / IMAGE)


@odd("a CMYK image")
def _(root: pathlib.Path) -> None:
  (root / IMAGE).unlink()
  Image.fromarray(photo("x")).convert("CMYK").save(root / "images/train/1.jpg")


@odd("an image with transparency")
def _(root: pathlib.Path) -> None:
  Image.fromarray(np.dstack([photo("x"), photo("y")[..., :1]])).save(root / IMAGE)


@odd("a BMP label of 16 colours and an image as WebP")
def _(root: pathlib.Path) -> None:
  (root / IMAGE).unlink()
  (root / LABEL).unlink()
  Image.fromarray(photo("x")).save(root / "images/train/1.webp")
  Image.fromarray(random_ids("x", range(12))).save(root / "labels/train/1.bmp")


@odd("a 16-bit label")
def _(root: pathlib.Path) -> None:
  save_label(root / LABEL, random_ids("x", range(12)).astype(np.uint16))


@odd("other files of Cityscapes beside the labels", "cityscapes")
def _(root: pathlib.Path) -> None:
  for end in ("color.png", "instanceIds.png", "polygons.json", "labelTrainIds.png"):
    (root / FRAME_LABEL.replace("labelIds.png", end)).write_bytes(b"not looked at")


@odd("train ids of mmsegmentation beside the labels", "coco_stuff_164k")
def _(root: pathlib.Path) -> None:
  (root / "annotations/train2017/1_labelTrainIds.png").write_bytes(b"not looked at")


@odd("a link to an image elsewhere")
def _(root: pathlib.Path) -> None:
  moved(IMAGE, "store.png")(root)
  (root / IMAGE).symlink_to(root / "store.png")


@pytest.mark.parametrize("name", ODD)
def test_unusual_and_valid_files_are_read(tmp_path: pathlib.Path, name: str) -> None:
  made, change = ODD[name]
  small_datasets.MAKERS[made](tmp_path / "set")
  change(tmp_path / "set")
  read_all(made, str(tmp_path / "set"))
  status, report = inspected(made, str(tmp_path / "set"), tmp_path)
  assert status == inspect.CLEAN and "DEFECT" not in report
  assert "train: 2 images" in report
