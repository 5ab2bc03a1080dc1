"""What wrong files and wrong labels look like, so that an error says what was found and not only that it is wrong."""

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np

# Beginnings of files that come in place of images, and what to do about each.
_BEGINNINGS = (
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
  (b"\x00\x05\x16\x07", "what macOS leaves beside a file (AppleDouble)", "remove it"),
)
_HEIC = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc")


def content(data: bytes) -> tuple[str, str]:
  """Names what a file is that was to be an image.

  Args:
    data: the file.

  Returns:
    What it is and what to do, ``("a web page (HTML)", "download it again")``; both empty when it says nothing.
  """
  if not data:
    return "an empty file", "copy or download it again"
  head = data[:512].lstrip().lower()
  for beginning, what, remedy in _BEGINNINGS:
    if head.startswith(beginning.lower()):
      return what, remedy
  if data[4:12] in _HEIC:
    return "an HEIC photo", "convert it to JPEG or PNG"
  if not data.strip(b"\0"):
    return f"{len(data):,} zero bytes", "the disk was full or the copy broke off: copy or download it again"
  if re.fullmatch(rb"[\t\n\r\x20-\x7e]+", data[:512]):
    start = data[:30].decode("ascii").split("\n")[0].strip()
    return f"text ({start!r} ...)", "another file has its name: copy or download it again"
  return "", ""


def ids(name: str, present: Collection[int], known: Collection[int]) -> str:
  """Says what the ids of a label look like that are not, or cannot be, those of the data set.

  Args:
    name: of the data set.
    present: the ids in the label.
    known: the ids that the data set has.

  Returns:
    ``"a 0/255 mask: ..."`` with the remedy, or nothing when they look like nothing known; for known ids alone nothing,
    but for Cityscapes' train ids, which are label ids too.
  """
  found, expected = set(present), set(known)
  unknown = found - expected
  if name == "cityscapes" and 255 in found and max(found - {255}, default=0) <= 18:
    # Frames in label ids have 1 and 3 at their border and hardly ever 255; in train ids all of that border is 255.
    return "train ids (labelTrainIds, 0-18 and 255): give the *_labelIds.png as downloaded"
  if not unknown:
    return ""
  if max(found) > 255 and all(own_id % 257 == 0 for own_id in found):
    return "ids that were stretched to 16 bits (multiples of 257): divide them by 257"
  if max(found) > 255 and all(own_id % 256 == 0 for own_id in found):
    return "ids shifted to the high byte (multiples of 256): divide them by 256"
  if name == "cityscapes" and max(unknown) >= 1000:
    return "instance ids (instanceIds): give the *_labelIds.png as downloaded"
  if name == "ade20k" and 254 in unknown:
    return "ADE20K's ids reduced by one twice (254 was 0): give the annotations as downloaded, 0-150"
  if name == "ade20k" and 255 in unknown and max(found - {255}, default=0) < 150:
    return "ADE20K's ids reduced by one already (255 was 0): give the annotations as downloaded, 0-150"
  if name == "coco_stuff_10k" and unknown == {255}:
    return "the ids of COCO-Stuff 164k (0-181, 255 for unlabelled): check dataset.name, or convert them"
  if name == "coco_stuff_164k" and unknown == {182}:
    return "the ids of COCO-Stuff 10k (0 for unlabelled, 1-182): check dataset.name, or subtract one"
  if found <= {0, 255}:
    return "a 0/255 mask: write the id of the class in place of 255"
  if name == "camvid" and unknown == {255}:
    return "CamVid with 255 for void: write 11 in place of 255"
  if name == "camvid" and max(unknown) <= 31:
    return "the 32 classes of the original CamVid: convert them to the 11 of SegNet"
  if unknown == {255}:
    return "labels that say 255 where nothing is labelled"
  largest = max((own_id for own_id in expected if own_id != 255), default=0)
  if unknown == {largest + 1} and 0 not in found:
    return f"ids that count from 1: subtract one, for {largest + 1} is one above the largest id"
  return ""


def split_ids(name: str, counts: Mapping[int, int]) -> str:
  """Says what the ids of a whole split look like, where each label for itself is possible; else nothing.

  Args:
    name: of the data set.
    counts: pixels of each id.
  """
  present = {own_id for own_id, pixels in counts.items() if pixels}
  if not present:
    return ""
  if name == "cityscapes" and max(present) <= 18:
    return "no id above 18 occurs, as if they were train ids (labelTrainIds) in place of label ids"
  if name == "ade20k" and len(present) > 100 and 0 not in present and 150 not in present:
    return "neither 0 nor 150 occurs, as if the ids were reduced by one already"
  if name == "coco_stuff_164k" and len(present) > 100 and 255 not in present:
    return "255 (unlabelled) never occurs, as if the ids were those of COCO-Stuff 10k"
  if name == "coco_stuff_10k" and len(present) > 100 and 182 not in present:
    return "182 never occurs, as if the ids were those of COCO-Stuff 164k, one lower"
  return ""


def colors(pixels: np.ndarray, palette: np.ndarray, own_ids: Sequence[int]) -> str:
  """Says what a colour image is that was to be a label.

  Args:
    pixels: uint8 ``[H,W,3]`` or ``[H,W,4]``.
    palette: uint8 ``[N,3]``, the colours of the classes.
    own_ids: ``[N]``, their ids.

  Returns:
    A few words and the remedy.
  """
  flat = pixels.reshape(-1, pixels.shape[-1])[:, :3]
  if (flat == flat[:, :1]).all():
    return "its three channels are equal: keep one of them"
  distinct = np.unique(flat, axis=0)
  known = {tuple(color): own_id for color, own_id in zip(palette.tolist(), own_ids, strict=True)}
  shared = [color for color in map(tuple, distinct.tolist()) if color in known]
  if len(shared) > len(distinct) / 2:
    color = shared[0]
    return f"it has the colours of the classes: write their ids in place, such as {known[color]} for {color}"
  return f"it has {len(distinct):,} colours: convert the colours to ids"
