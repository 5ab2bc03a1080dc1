"""Explains wrong files and wrong labels, so that an error names the cause and the remedy."""

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from rc_jax.data.reading.dataset_info import IdMistakes

# First bytes of files that are found in place of images, their kind, and the remedy.
_SIGNATURES = (
  (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run git lfs pull"),
  (b"<!doctype html", "a web page (HTML)", "the download failed or needs a login: download it again"),
  (b"<html", "a web page (HTML)", "the download failed or needs a login: download it again"),
  (b"<?xml", "an XML document", "the download failed or it is another file: download it again"),
  (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "convert it"),
  (b"MATLAB 7.3", "a MATLAB 7.3 (HDF5) file", "save it with -v7"),
  (b"MATLAB", "a MATLAB file", "convert it"),
  (b"PK\x03\x04", "a zip archive", "unpack it"),
  (b"\x1f\x8b", "a gzip archive", "unpack it"),
  (b"\x93NUMPY", "a NumPy array", "save it as PNG"),
  (b"%PDF", "a PDF", "export it as PNG"),
  (b"\xff\x0a", "a JPEG XL image", "convert it to JPEG or PNG"),
  (b"\x00\x00\x00\x0cJXL ", "a JPEG XL image", "convert it to JPEG or PNG"),
  (b"II\xbc\x01", "a JPEG XR image", "convert it to JPEG or PNG"),
  (b"\x76\x2f\x31\x01", "an OpenEXR image", "convert it to PNG"),
  (b"#?RADIANCE", "a Radiance HDR image", "convert it to PNG"),
  (b"\x00\x05\x16\x07", "a metadata file of macOS (AppleDouble)", "remove it"),
)
_HEIC = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc")


def identify_file(content: bytes) -> tuple[str, str]:
  """Identifies a file that should be an image and cannot be decoded.

  Args:
    content: the file.

  Returns:
    Its kind and the remedy, ``("a web page (HTML)", "download it again")``; both empty where the kind is unknown.
  """
  if not content:
    return "an empty file", "copy or download it again"
  head = content[:512].lstrip().lower()
  for signature, kind, remedy in _SIGNATURES:
    if head.startswith(signature.lower()):
      return kind, remedy
  if content[4:12] in (b"ftypavif", b"ftypavis"):
    return "an AVIF image", "convert it to JPEG or PNG"
  if content[128:132] == b"DICM":
    return "a DICOM file", "export the picture as PNG"
  if content[4:12] in _HEIC:
    return "an HEIC photo", "convert it to JPEG or PNG"
  if not content.strip(b"\0"):
    return (
      f"{len(content):,} zero bytes",
      "the disk was full or the copy was interrupted: copy or download it again",
    )
  if re.fullmatch(rb"[\t\n\r\x20-\x7e]+", content[:512]):
    start = content[:30].decode("ascii").split("\n")[0].strip()
    return f"text ({start!r} ...)", "another file has its name: copy or download it again"
  return "", ""


def explain_ids(present: Collection[int], known: Collection[int], mistakes: IdMistakes) -> str:
  """Explains ids of a label that are not, or cannot be, those of the data set.

  Args:
    present: the ids in the label.
    known: the ids of the data set.
    mistakes: wrong ids that are common in labels of the data set.

  Returns:
    ``"a 0/255 mask: ..."`` with the remedy, or ``""`` where no explanation fits. For ids that are all known, the answer
    of ``mistakes.in_label`` alone.
  """
  ids, expected = set(present), set(known)
  unknown = ids - expected
  if unknown and max(ids) > 255:
    if all(own_id % 257 == 0 and own_id // 257 in expected for own_id in ids):
      return "ids that were stretched to 16 bits (multiples of 257): divide them by 257"
    if all(own_id % 256 == 0 and own_id // 256 in expected for own_id in ids):
      return "ids shifted to the high byte (multiples of 256): divide them by 256"
  explained = mistakes.in_label(ids, unknown)
  if explained or not unknown:
    return explained
  if ids <= {0, 255}:
    return "a 0/255 mask: write the id of the class in place of 255"
  if unknown == {255}:
    return "labels with 255 for pixels that are not labelled"
  largest = max((own_id for own_id in expected if own_id != 255), default=0)
  if unknown == {largest + 1} and {own_id - 1 for own_id in ids} <= expected:
    return f"ids that count from 1: subtract one, because {largest + 1} is one above the largest id"
  return ""


def explain_colors(
  pixels: np.ndarray, ids_by_color: Mapping[tuple[int, ...], Sequence[int]], known: Collection[int]
) -> str:
  """Explains a colour image that should be a label.

  Args:
    pixels: uint8 ``[H,W,3]`` or ``[H,W,4]``.
    ids_by_color: the colours of the classes, and their ids.
    known: the ids of the data set.

  Returns:
    The cause and the remedy.
  """
  flat = pixels.reshape(-1, pixels.shape[-1])[:, :3]
  if (flat == flat[:, :1]).all():
    unknown = sorted(set(np.unique(flat).tolist()) - set(known))
    if not unknown:
      return "its three channels are equal: keep one of them"
    shown = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
    return f"its three channels are equal, and {shown} are no ids: convert it to ids"
  distinct = np.unique(flat, axis=0)
  shared = [color for color in map(tuple, distinct.tolist()) if color in ids_by_color]
  if len(shared) > len(distinct) / 2:
    color = shared[0]
    return f"it has the colours of the classes: write their ids in place, such as {ids_by_color[color][0]} for {color}"
  return f"it has {len(distinct):,} colours: convert the colours to ids"
