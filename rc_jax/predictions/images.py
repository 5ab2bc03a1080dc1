"""The images that ``--mode=predict`` labels: a file, a folder or a split; listed, named, measured and read ahead."""

import collections
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from rc_jax import data
from rc_jax.data import IMAGE_SUFFIXES, UNREAD_SUFFIXES, files_in, read_image
from rc_jax.predictions.folder import KINDS, Fingerprint

# EXIF orientations that rotate an image by 90 or 270 degrees.
ROTATED = (5, 6, 7, 8)


@dataclasses.dataclass(frozen=True)
class InputImage:
  """An image to label.

  Attributes:
    name: of its outputs, without suffix; may hold folders.
    size: ``(H,W)`` as displayed; None if the header of the file cannot be read.
    fingerprint: distinguishes it from another image of that name.
    read: returns uint8 ``[H,W,3]``, or raises ValueError in one line.
  """

  name: str
  size: tuple[int, int] | None
  fingerprint: Fingerprint
  read: Callable[[], np.ndarray]


def from_path(path: pathlib.Path, recursive: bool, outputs: pathlib.Path) -> list[InputImage]:
  """Lists an image, or the images of a folder in the order of their names, with pictures that cannot be read.

  Args:
    path: a file or a folder.
    recursive: also list the images of the folders in it, whose names then hold those folders. Hidden folders are left
      out, and links are followed.
    outputs: the folder of the predictions, whose labels and pictures are left out.

  Raises:
    FileNotFoundError: the path does not exist, or holds no image.
    ValueError: two images differ only in their suffix, so their labels would share a file.
  """
  if path.is_file():
    return _described([(path.stem, path)])
  if not path.is_dir():
    raise FileNotFoundError(f"--images={path}: no such file or folder")

  written = {outputs / kind for kind in KINDS}

  def listed(recursive: bool, suffixes: Collection[str]) -> list[pathlib.Path]:
    files = files_in(path, recursive=recursive)
    return [file for file in files if file.suffix.lower() in suffixes and written.isdisjoint(file.parents)]

  files = listed(recursive, IMAGE_SUFFIXES)
  unread = listed(recursive, UNREAD_SUFFIXES)
  if not files and not unread:
    below = 0 if recursive else len(listed(True, IMAGE_SUFFIXES))
    remedy = f"; the folders in it hold {below}: add --recursive" if below else ""
    raise FileNotFoundError(
      f"--images={path}: holds no image; expected files ending {', '.join(IMAGE_SUFFIXES)}{remedy}"
    )
  named: dict[str, pathlib.Path] = {}
  for file in files:
    name = file.relative_to(path).with_suffix("").as_posix()
    if name in named:
      raise ValueError(f"--images: {named[name]} and {file} would both become {name}.png; rename one of them")
    named[name] = file
  refused = {file.relative_to(path).with_suffix("").as_posix(): file for file in unread}
  return _described(list(named.items())) + [
    InputImage(name, None, Fingerprint(str(file)), functools.partial(_refuse, file))
    for name, file in refused.items()
    if name not in named  # a phone's HEIC photo often lies beside its copy as JPEG
  ]


def from_source(source: data.Source, split: str) -> list[InputImage]:
  """Lists the images of a split, named by the stems of their files if these differ.

  Labels are not read if the split lies in files.

  Raises:
    ValueError: two images have one name, so their labels would share a file.
  """
  files = _files(source)
  if files is not None:
    return _described(list(zip(data.names_of_files(files), files, strict=True)))
  # Synthetic or prepared data: only the example itself knows its name.
  images = []
  for index in range(len(source)):
    example = source[index]
    read = functools.partial(_read_example, source, index)
    # The same place of the same split may hold another image: in other prepared data, or after preparing anew.
    digest = hashlib.sha256(np.asarray(example["image"]).tobytes()).hexdigest()[:16]
    fingerprint = Fingerprint(source=f"{source.info.name}/{split}/{index}", digest=digest)
    images.append(InputImage(example["name"], example["image"].shape[:2], fingerprint, read))
  if isinstance(source, data.Joined) and _repeated(images):
    parts = data.parts_of(source.info.name, split)
    folders = [name for name, part in zip(parts, source.parts, strict=True) for _ in range(len(part))]
    images = [
      dataclasses.replace(image, name=f"{folder}/{image.name}")
      for folder, image in zip(folders, images, strict=True)
    ]
  repeated = _repeated(images)
  if repeated:
    raise ValueError(
      f"split {split} of {source.info.name}: {len(repeated):,} names belong to several images ({repeated[0]}), whose "
      "labels would share a file; expected names that differ: prepare the data again with this version"
    )
  return images


def _repeated(images: Sequence[InputImage]) -> list[str]:
  counts = collections.Counter(image.name for image in images)
  return [name for name, count in counts.items() if count > 1]


def ordered_by_size(images: Sequence[InputImage]) -> list[InputImage]:
  """Orders images so that those of one size follow each other; sizes and images keep their order otherwise."""
  first: dict[tuple[int, int] | None, int] = {}
  for image in images:
    first.setdefault(image.size, len(first))
  return sorted(images, key=lambda image: first[image.size])


def read_ahead(
  images: Sequence[InputImage], threads: int
) -> Iterator[tuple[InputImage, np.ndarray | ValueError]]:
  """Reads images in order with threads; yields pixels uint8 ``[H,W,3]``, or the error of a damaged image."""

  def read(image: InputImage) -> np.ndarray | ValueError:
    try:
      return image.read()
    except ValueError as error:
      return error

  with ThreadPoolExecutor(threads) as pool:
    reading: collections.deque = collections.deque()
    for image in images:
      reading.append((image, pool.submit(read, image)))
      if len(reading) > 2 * threads:
        oldest, pixels = reading.popleft()
        yield oldest, pixels.result()
    for oldest, pixels in reading:
      yield oldest, pixels.result()


def displayed_size(path: pathlib.Path) -> tuple[int, int] | None:
  """Reads ``(H,W)`` from the header of an image file, after its EXIF rotation; None if that fails."""
  try:
    with Image.open(path) as image:
      width, height = image.size
      if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Some versions of Pillow give the displayed size, others the stored one.
        width, height = image.tag_v2[ExifTags.Base.ImageWidth], image.tag_v2[ExifTags.Base.ImageLength]
      # Pillow decodes a PNG completely to look for EXIF data behind its pixels, where they hardly ever are.
      has_exif = image.format != "PNG" or any(
        key in image.info for key in ("exif", "XML:com.adobe.xmp", "xmp")
      )
      rotated = has_exif and image.getexif().get(ExifTags.Base.Orientation) in ROTATED
  except Exception:  # damaged files raise errors of any type
    return None
  return (width, height) if rotated else (height, width)


def _described(named: list[tuple[str, pathlib.Path]]) -> list[InputImage]:
  def describe(item: tuple[str, pathlib.Path]) -> InputImage:
    name, file = item
    try:
      status = file.stat()
    except OSError:  # a link to nothing, of which reading gives the error
      return InputImage(name, None, Fingerprint(str(file)), functools.partial(read_image, file))
    fingerprint = Fingerprint(str(file), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return InputImage(name, displayed_size(file), fingerprint, functools.partial(read_image, file))

  with ThreadPoolExecutor() as pool:
    return list(pool.map(describe, named))


def _refuse(file: pathlib.Path) -> np.ndarray:
  raise ValueError(
    f"{file}: is a picture of a type that is not read, expected a file ending {', '.join(IMAGE_SUFFIXES)}: convert it "
    "to JPEG or PNG"
  )


def _files(source: data.Source) -> tuple[pathlib.Path, ...] | None:
  """Returns the image files of a split, those of its parts one after the other; None if it does not lie in files."""
  parts = getattr(source, "parts", None)
  if parts is not None:
    files = [_files(part) for part in parts]
    return None if None in files else tuple(file for part in files for file in part or ())
  return getattr(source, "images", None)


def _read_example(source: data.Source, index: int) -> np.ndarray:
  image: np.ndarray = source[index]["image"]
  return image
