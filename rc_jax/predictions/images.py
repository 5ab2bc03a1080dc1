"""The images that a user wants labelled: a file, a folder of any, or a split; found, named, sized and read ahead."""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import ExifTags, Image

from rc_jax import data
from rc_jax.data import IMAGE_SUFFIXES, read_image
from rc_jax.predictions.folder import Stamp

# Orientations of EXIF that turn an image by a quarter.
TURNED = (5, 6, 7, 8)


@dataclasses.dataclass(frozen=True)
class Picture:
  """An image to label.

  Attributes:
    name: what its outputs are called, without suffix; may hold folders.
    size: ``(H,W)`` as displayed; None where the head of the file cannot be read.
    stamp: what tells it from another image of that name.
    read: returns uint8 ``[H,W,3]``, or raises ValueError in one line.
  """

  name: str
  size: tuple[int, int] | None
  stamp: Stamp
  read: Callable[[], np.ndarray]


def from_path(path: pathlib.Path, recursive: bool, outputs: pathlib.Path) -> list[Picture]:
  """Lists an image, or the images of a folder in the order of their names.

  Args:
    path: a file or a folder.
    recursive: also follow the folders in it; names then hold them.
    outputs: a folder that is left out: predictions are no images to label.

  Raises:
    FileNotFoundError: nothing is there, or no image.
    ValueError: two images differ in their suffix alone, so that their labels would share a file.
  """
  if path.is_file():
    return _described([(path.stem, path)])
  if not path.is_dir():
    raise FileNotFoundError(f"--images={path}: no such file or folder")

  def images_in(files: Iterator[pathlib.Path]) -> list[pathlib.Path]:
    # Names that begin with a dot are what other systems leave beside a photo, not photos.
    return sorted(
      file
      for file in files
      if file.suffix.lower() in IMAGE_SUFFIXES
      and not any(part.startswith(".") for part in file.relative_to(path).parts)
      and outputs not in file.parents
      and file.is_file()
    )

  files = images_in(path.rglob("*") if recursive else path.iterdir())
  if not files:
    below = 0 if recursive else len(images_in(path.rglob("*")))
    remedy = f"; the folders in it hold {below}: add --recursive" if below else ""
    raise FileNotFoundError(
      f"--images={path}: holds no image; expected files ending {', '.join(IMAGE_SUFFIXES)}{remedy}"
    )
  named: dict[str, pathlib.Path] = {}
  for file in files:
    name = file.relative_to(path).with_suffix("").as_posix()
    if name in named:
      raise ValueError(f"--images: {named[name]} and {file} would both become {name}.png; rename one")
    named[name] = file
  return _described(list(named.items()))


def from_source(source: data.Source, split: str) -> list[Picture]:
  """Lists the images of a split, by the stems of their files where these differ.

  Labels are not read where the split lies in files.
  """
  files = _files(source)
  if files is None:
    # Drawn, or packed: an example is read to learn its name.
    pictures = []
    for index in range(len(source)):
      example = source[index]
      read = functools.partial(_image_of, source, index)
      stamp = Stamp(source=f"{source.info.name}/{split}/{index}")
      pictures.append(Picture(example["name"], example["image"].shape[:2], stamp, read))
    return pictures
  names = [file.stem for file in files]
  if len(set(names)) < len(names):
    top = pathlib.Path(*_common(files))
    names = [file.relative_to(top).with_suffix("").as_posix() for file in files]
  return _described(list(zip(names, files, strict=True)))


def by_size(pictures: Sequence[Picture]) -> list[Picture]:
  """Orders pictures so that those of one size follow each other; sizes and pictures keep their order otherwise."""
  first: dict[tuple[int, int] | None, int] = {}
  for picture in pictures:
    first.setdefault(picture.size, len(first))
  return sorted(pictures, key=lambda picture: first[picture.size])


def read_ahead(
  pictures: Sequence[Picture], threads: int
) -> Iterator[tuple[Picture, np.ndarray | ValueError]]:
  """Reads images in order with threads; a damaged one gives its error, and the others follow."""

  def read(picture: Picture) -> np.ndarray | ValueError:
    try:
      return picture.read()
    except ValueError as error:
      return error

  with ThreadPoolExecutor(threads) as pool:
    waiting: collections.deque = collections.deque()
    for picture in pictures:
      waiting.append((picture, pool.submit(read, picture)))
      if len(waiting) > 2 * threads:
        ahead, reading = waiting.popleft()
        yield ahead, reading.result()
    for ahead, reading in waiting:
      yield ahead, reading.result()


def displayed_size(path: pathlib.Path) -> tuple[int, int] | None:
  """Reads ``(H,W)`` from the head of an image file, after its EXIF rotation; None where that fails."""
  try:
    with Image.open(path) as image:
      width, height = image.size
      # Pillow decodes a whole PNG to look for EXIF data behind its pixels, where hardly anybody puts it.
      has_exif = image.format != "PNG" or "exif" in image.info
      turned = has_exif and image.getexif().get(ExifTags.Base.Orientation) in TURNED
  except (OSError, SyntaxError, EOFError, ValueError, Image.DecompressionBombError):
    return None
  return (width, height) if turned else (height, width)


def _described(named: list[tuple[str, pathlib.Path]]) -> list[Picture]:
  def describe(item: tuple[str, pathlib.Path]) -> Picture:
    name, file = item
    status = file.stat()
    stamp = Stamp(str(file), status.st_size, status.st_mtime_ns)
    return Picture(name, displayed_size(file), stamp, functools.partial(read_image, file))

  with ThreadPoolExecutor() as pool:
    return list(pool.map(describe, named))


def _files(source: data.Source) -> tuple[pathlib.Path, ...] | None:
  """The image files of a split, those of its parts one after the other; None where it does not lie in files."""
  parts = getattr(source, "parts", None)
  if parts is not None:
    files = [_files(part) for part in parts]
    return None if None in files else tuple(file for part in files for file in part or ())
  return getattr(source, "images", None)


def _common(files: Sequence[pathlib.Path]) -> tuple[str, ...]:
  """The folders that all files share, from the top."""
  shared = []
  for parts in zip(*(file.parent.parts for file in files), strict=False):
    if len(set(parts)) > 1:
      break
    shared.append(parts[0])
  return tuple(shared)


def _image_of(source: data.Source, index: int) -> np.ndarray:
  image: np.ndarray = source[index]["image"]
  return image
