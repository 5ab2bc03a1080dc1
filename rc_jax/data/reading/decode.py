"""Decodes the bytes of image and label files to arrays; an error names the file, its defect and the remedy."""

import io
import pathlib
import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from rc_jax.data.reading.complete import refuse_damaged_png, refuse_incomplete_tiff, refuse_short_png
from rc_jax.data.reading.dataset_info import DatasetInfo
from rc_jax.data.reading.diagnose import explain_colors, explain_ids, identify_file
from rc_jax.data.reading.mat import MatError, read_array
from rc_jax.data.reading.palette import is_standard
from rc_jax.data.reading.samples import (
  check_brightness,
  check_label_format,
  check_unsigned,
  full_pages,
  grey_step,
  wide_to_eight_bits,
)
from rc_jax.data.reading.unsupported import identify_unsupported
from rc_jax.files import one_line

_MAT_FIELD = "S"  # of COCO-Stuff's annotations
# In other formats, further pictures are a photo's thumbnails or its second view.
_ANIMATED = ("PNG", "GIF", "WEBP", "AVIF")
# Its two lines of advice for servers are none for data sets; the limit at twice that size stays.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_image(path: pathlib.Path) -> np.ndarray:
  """Reads an image file; returns and raises as ``decode_image``."""
  return decode_image(read_file(path), str(path))


def read_label(path: pathlib.Path, train_ids: Mapping[int, int], info: DatasetInfo) -> np.ndarray:
  """Reads a label file; arguments, result and errors as for ``decode_label``."""
  return decode_label(read_file(path), str(path), train_ids, info)


def read_file(path: pathlib.Path) -> bytes:
  """Returns the content of a file; raises ValueError, in one line, when it cannot be read."""
  try:
    return path.read_bytes()
  except FileNotFoundError:
    if path.is_symlink():
      raise ValueError(
        f"{path}: is a link to {path.readlink()}, which does not exist: restore that file or remove the link"
      ) from None
    raise ValueError(f"{path}: was removed after the folder was listed: restore it or start again") from None
  except OSError as error:
    raise ValueError(
      f"{path}: cannot be read ({error.strerror}): check the disk and the permissions"
    ) from None


def decode_image(content: bytes, where: str) -> np.ndarray:
  """Decodes an image, with the rotation of its EXIF data applied.

  Args:
    content: a file of any format that Pillow reads; greyscale, palette, CMYK, RGBA and 16-bit greyscale images become
      RGB.
    where: the file's name, for error messages.

  Returns:
    uint8 ``[H,W,3]``, RGB.

  Raises:
    ValueError: the content is truncated or no image, or holds samples that 8 bits cannot show.
  """
  image = _decode(content, where)
  if image.mode == "F":
    raise ValueError(
      f"{where}: the image holds floating point numbers, expected integers of 8 or 16 bits: convert it"
    )
  check_unsigned(image, where)
  _turn(image, where)
  if image.mode.startswith("I"):
    # Pillow's conversion clips at 255, and the high byte holds the picture.
    grey = wide_to_eight_bits(image, content, where)
    return np.repeat(grey[..., None], 3, axis=-1)
  pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
  check_brightness(image, content, pixels, where)
  return pixels


def decode_label(
  content: bytes, where: str, train_ids: Mapping[int, int], info: DatasetInfo, *, converted: bool = False
) -> np.ndarray:
  """Decodes a label image and maps the data set's ids to train ids.

  Args:
    content: a single-channel image of ids, a palette PNG whose indices are the ids, or a MATLAB file with the ids in
      its field ``S``.
    where: the file's name, for error messages.
    train_ids: id -> train id or ``info.ignore_label``.
    info: the data set's classes.
    converted: whether the content holds train ids, so that they are not reported as wrong ids.

  Returns:
    uint8 ``[H,W]``: train ids, ``info.ignore_label`` where ignored.

  Raises:
    ValueError: the content cannot be decoded, has several channels, or holds colours in place of ids or an id that
      the data set lacks.
  """
  ids, counts, palette = label_ids(content, where, train_ids, info)
  check_ids(where, counts, palette, train_ids, info, converted=converted)
  table = np.full(len(counts), info.ignore_label, np.uint8)
  for own_id in np.flatnonzero(counts).tolist():
    table[own_id] = train_ids[own_id]
  return np.take(table, ids)


def check_ids(
  where: str,
  counts: np.ndarray,
  palette: np.ndarray | None,
  train_ids: Mapping[int, int],
  info: DatasetInfo,
  *,
  converted: bool = False,
) -> None:
  """Refuses a label whose ids cannot be those of the data set.

  Args:
    where: the file's name, for error messages.
    counts: pixels of each id, from ``label_ids``.
    palette: the file's palette, from ``label_ids``.
    train_ids: id -> train id or ``info.ignore_label``.
    info: the data set's classes.
    converted: whether the ids are train ids.

  Raises:
    ValueError: an id that the data set lacks, colours in place of ids, or ids of another kind.
  """
  present = np.flatnonzero(counts).tolist()
  unknown = [own_id for own_id in present if own_id not in train_ids]
  explained = "" if converted else explain_ids(present, train_ids, info.mistakes)
  if unknown:
    shown = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
    kind = "ids" if palette is None else "palette indices"
    seems = f" (it looks like {explained})" if explained else ""
    raise ValueError(
      f"{where}: the label holds {kind} {shown} that {info.name} does not have, "
      f"expected {id_ranges(train_ids)}: {info.mistakes.remedy}{seems}"
    )
  if explained:
    raise ValueError(f"{where}: the label holds the ids {id_ranges(present)}, which look like {explained}")
  if palette is not None:
    _check_palette(where, palette, present, info)


def label_ids(
  content: bytes, where: str, train_ids: Mapping[int, int], info: DatasetInfo
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
  """Decodes a label image to its ids, with the rotation of its EXIF data applied, without checking them.

  Args:
    content: as for ``decode_label``.
    where: the file's name, for error messages.
    train_ids: its keys are the expected ids, for error messages.
    info: its colours are compared with those of a file that holds colours in place of ids.

  Returns:
    The ids, unsigned ``[H,W]``; the pixels of each id, int ``[K]`` with ``K`` above the largest id; and the palette,
    uint8 ``[P,3]``, of a file that has one, else None.

  Raises:
    ValueError: the content cannot be decoded, has several channels, or was compressed with loss.
  """
  if content[:6] == b"MATLAB" or where.endswith(".mat"):
    ids = _decode_mat(content, where)
    return ids, np.bincount(ids.ravel()), None
  image = _decode(content, where)
  check_label_format(image, where)
  check_unsigned(image, where)
  if image.mode not in ("L", "P", "1") and not image.mode.startswith("I"):
    if image.mode == "F":
      raise ValueError(
        f"{where}: the label holds floating point numbers, expected one channel of ids "
        f"({id_ranges(train_ids)}): convert it"
      )
    advice = "convert it to ids"
    if image.mode in ("RGB", "RGBA"):
      advice = explain_colors(np.asarray(image), info.ids_by_color(), train_ids)
    raise ValueError(
      f"{where}: the label is a colour image (mode {image.mode}), expected one channel that holds class ids "
      f"({id_ranges(train_ids)}): {advice}"
    )
  # As for the image, in whose pair some tools write the same EXIF data.
  _turn(image, where)
  ids = np.asarray(image)
  if image.mode in ("L", "P"):
    palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3) if image.mode == "P" else None
    # Pillow counts 8-bit pixels many times faster than NumPy.
    counts = np.array(image.histogram())
    step = grey_step(image, content) if image.mode == "L" else 1
    return (ids // step, counts[::step], palette) if step > 1 else (ids, counts, palette)
  low, high = int(ids.min()), int(ids.max())
  if low < 0 or high >= 2**16:
    raise ValueError(
      f"{where}: the label holds {low} to {high}, expected ids ({id_ranges(train_ids)}): convert it"
    )
  ids = ids.astype(np.uint8 if ids.dtype == bool else np.uint16)
  return ids, np.bincount(ids.ravel()), None


def exif_orientation(content: bytes) -> int:
  """Returns the orientation 1..8 in the EXIF data of an image file; 1 where it has none or cannot be read."""
  # Pillow decodes a PNG completely to look for EXIF data behind its pixels.
  if content.startswith(b"\x89PNG") and b"eXIf" not in content and b"XML:com.adobe.xmp" not in content:
    return 1
  try:
    with Image.open(io.BytesIO(content)) as image:
      orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
  except Exception:  # damaged files raise errors of any type
    return 1
  return orientation if orientation in range(1, 9) else 1


def is_transparent(content: bytes) -> bool:
  """Returns whether an image file, which ``decode_image`` reads, has pixels that are not opaque."""
  with Image.open(io.BytesIO(content)) as image:
    return image.has_transparency_data and bool((np.asarray(image.convert("RGBA"))[..., 3] < 255).any())


def check_sizes(image: np.ndarray, label: np.ndarray, image_at: str, label_at: str) -> None:
  """Raises ValueError when image ``[H,W,3]`` and label ``[H,W]`` differ in size."""
  if image.shape[:2] == label.shape:
    return
  remedy = "export the label again from the image as it is displayed"
  if image.shape[:2] == label.shape[::-1]:
    remedy = "one of them is turned by 90 degrees: turn the label as the image is displayed"
  raise ValueError(
    f"{label_at}: the label is {_size(label)} pixels, but its image {image_at} is {_size(image)} (after its EXIF "
    f"rotation, if any); expected equal sizes: {remedy}"
  )


def _decode(content: bytes, where: str) -> Image.Image:
  try:
    refuse_damaged_png(content)
    image = Image.open(io.BytesIO(content))
    refuse_incomplete_tiff(image)
    image.load()
    refuse_short_png(content, image)
    pictures = getattr(image, "n_frames", 1) if image.format in _ANIMATED else 1
  except Exception as error:  # damaged files raise errors of any type
    limit, remedy = identify_unsupported(content, error)
    if limit:
      raise ValueError(f"{where}: {limit}: {remedy}") from None
    kind, remedy = identify_file(content)
    if kind:
      raise ValueError(f"{where}: is {kind}, expected an image file: {remedy}") from None
    # Its text names the buffer, whose address helps nobody.
    reason = "is no image" if isinstance(error, UnidentifiedImageError) else _described(error)
    raise ValueError(
      f"{where}: cannot be decoded ({reason}), found {len(content):,} bytes, expected a complete image file: "
      "copy or download it again"
    ) from None
  if image.format == "TIFF":
    pages = full_pages(content)
    if pages > 1:
      raise ValueError(f"{where}: holds {pages} pages, expected one picture: export the right page alone")
  if pictures > 1:
    raise ValueError(
      f"{where}: is an animation of {pictures} pictures, expected one: save the right one alone"
    )
  return image


def _turn(image: Image.Image, where: str) -> None:
  """Turns a decoded image as its EXIF data say; in place, because a copy takes time where there is no rotation."""
  try:
    ImageOps.exif_transpose(image, in_place=True)
  except Exception as error:  # damaged files raise errors of any type
    raise ValueError(
      f"{where}: its EXIF data, which say how it is turned, cannot be read ({_described(error)}): copy or download "
      "it again, or remove these data"
    ) from None


def _described(error: Exception) -> str:
  return one_line(error) or type(error).__name__  # such as MemoryError


def _decode_mat(content: bytes, where: str) -> np.ndarray:
  remedy = f"expected a MATLAB 5 file with a field {_MAT_FIELD} of ids [H,W]: download it again"
  try:
    ids = read_array(content, _MAT_FIELD)
  except MatError as error:
    kind, advice = ("", "") if content[:10] == b"MATLAB 5.0" else identify_file(content)
    if kind:
      raise ValueError(f"{where}: is {kind}, {remedy.partition(':')[0]}: {advice}") from None
    raise ValueError(f"{where}: cannot be decoded ({one_line(error)}), {remedy}") from None
  if ids.ndim != 2 or ids.size == 0:
    raise ValueError(f"{where}: found {ids.dtype} {list(ids.shape)}, {remedy}")
  with np.errstate(invalid="ignore"):
    integers = ids.astype(np.uint16)
  if not np.array_equal(integers, ids):
    raise ValueError(f"{where}: found values that are no ids, {remedy}")
  return integers


def _check_palette(where: str, palette: np.ndarray, present: Sequence[int], info: DatasetInfo) -> None:
  # A colour mask that was saved as an indexed PNG also has small indices, in any order. It is recognised by an index
  # whose colour in the palette is that of another class.
  if is_standard(palette, present):
    return
  ids_by_color = info.ids_by_color()
  for index in present:
    color = tuple(palette[index].tolist()) if index < len(palette) else ()
    ids_of_color = ids_by_color.get(color, [index])
    # The palette's last entry is white in many tools, as a class may be.
    if index not in ids_of_color and index != info.ignore_label:
      raise ValueError(
        f"{where}: the label is a colour mask saved with a palette (index {index} has the colour of id "
        f"{ids_of_color[0]}, {color}), expected indices that are the ids: convert the colours to ids"
      )


def _size(array: np.ndarray) -> str:
  return f"{array.shape[1]}x{array.shape[0]}"


def id_ranges(ids: Iterable[int]) -> str:
  """Writes ids as ranges, without negative ones.

  >>> id_ranges({0, 1, 2, 3, 255})
  '0-3, 255'
  """
  runs: list[list[int]] = []
  for own_id in sorted(own_id for own_id in ids if own_id >= 0):
    if runs and own_id == runs[-1][1] + 1:
      runs[-1][1] = own_id
    else:
      runs.append([own_id, own_id])
  return ", ".join(f"{low}-{high}" if low != high else f"{low}" for low, high in runs)
