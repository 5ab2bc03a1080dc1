"""Zips of predictions for test servers, and checks for all that a server would refuse.

The file of each data set states its format (``rc_jax.data.SubmissionFormat``).
"""

import io
import os
import pathlib
import zipfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from rc_jax import files
from rc_jax.data import DATASETS, DatasetInfo, SubmissionFormat
from rc_jax.data.reading.decode import label_ids, read_file
from rc_jax.files import one_line

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def formats() -> dict[str, list[str]]:
  """Returns the names of the submission formats, each with the names of its data sets."""
  names: dict[str, list[str]] = {}
  for name, dataset in DATASETS.items():
    if dataset.submission is not None:
      names.setdefault(dataset.submission.name, []).append(name)
  return names


def find(name: str, dataset: str, info: DatasetInfo | None = None) -> SubmissionFormat:
  """Returns the submission format of a data set.

  Args:
    name: the name of the format.
    dataset: the name of the data set.
    info: the classes of the network; None: those of the data set.

  Raises:
    ValueError: in one line: there is no such format, it is the format of another data set, or ``info`` merges or leaves
      out classes that the benchmark scores.
  """
  known = formats()
  if name not in known:
    raise ValueError(f"--format={name}: no such format; expected one of {', '.join(known)}")
  submission = DATASETS[dataset].submission
  if submission is None or submission.name != name:
    raise ValueError(
      f"--format={name}: the config's dataset.name is {dataset}; expected {' or '.join(known[name])}, whose ids the "
      "benchmark scores: use the recipe of that data set, or leave --format out"
    )
  scored = set(DATASETS[dataset].info_at("").label_ids.tolist())
  if info is not None and scored != set(info.label_ids.tolist()):
    raise ValueError(
      f"--format={name}: the benchmark scores {len(scored)} classes, and the network has {info.num_classes}, because "
      "dataset.classes merges or leaves out some: leave --format out, or train on the classes of the data set"
    )
  return submission


def expected_files(
  submission: SubmissionFormat, images: Iterable[tuple[str, tuple[int, int] | None]]
) -> dict[str, tuple[str, tuple[int, int]]]:
  """Pairs the images of a split with the keys of their predictions, before any prediction is computed.

  Args:
    submission: the format.
    images: name and ``(H,W)`` of each image; None in place of a size that could not be read.

  Returns:
    ``{key: (name, (H,W))}`` in the order of the images.

  Raises:
    ValueError: in one line: the benchmark would not find an image's name, a zip cannot hold it, two images have one
      key, an image has a wrong size or cannot be read.
  """
  expected: dict[str, tuple[str, tuple[int, int]]] = {}
  for name, size in images:
    key = submission.key(pathlib.PurePosixPath(name).name)
    if key is None:
      raise ValueError(
        f"--format={submission.name}: the image {name} has another name than {submission.names}: predict the images "
        "of the data set, with their original names"
      )
    try:
      key.encode()
    except UnicodeEncodeError:
      raise ValueError(
        f"--format={submission.name}: the name of the image {name} holds bytes that are no UTF-8, and names in a zip "
        "are: rename the image"
      ) from None
    if key in expected:
      raise ValueError(
        f"--format={submission.name}: the images {expected[key][0]} and {name} would share one prediction: predict "
        "each image once"
      )
    if size is None:
      raise ValueError(
        f"--format={submission.name}: the image {name} cannot be read, and a submission needs all images: predict "
        "without --format, which names the reason"
      )
    if submission.size is not None and size != submission.size:
      raise ValueError(
        f"--format={submission.name}: the image {name} is {_size(size)} pixels, expected {_size(submission.size)}: "
        "predict the original images"
      )
    expected[key] = (name, size)
  return expected


def write(
  submission: SubmissionFormat,
  expected: Mapping[str, tuple[str, tuple[int, int]]],
  labels: pathlib.Path,
  info: DatasetInfo,
  target: pathlib.Path,
) -> None:
  """Zips the predicted labels of a split, and checks the zip before it gets its name.

  Args:
    submission: the format.
    expected: from ``expected_files``.
    labels: the folder that holds ``<name>.png`` with the data set's ids.
    info: the data set's classes, whose ids may occur.
    target: the zip. It holds PNGs, none in a folder, and equal labels give equal bytes.

  Raises:
    ValueError: in one line, a label is damaged or a server would refuse the zip; ``target`` stays unchanged.
  OSError: in one line, the zip cannot be written.
  """

  def encoded(name: str) -> bytes:
    path = labels / f"{name}.png"
    # Ids without their palette: a reader that converts colours would change them.
    try:
      ids, _, _ = label_ids(read_file(path), str(path), dict.fromkeys(info.label_ids.tolist(), 0), info)
    except ValueError as error:
      raise ValueError(f"{error}; or predict with --overwrite, which writes it again") from None
    content = io.BytesIO()
    Image.fromarray(ids).save(content, "PNG", optimize=True)
    return content.getvalue()

  names = [name for name, _ in expected.values()]
  with files.atomic_write(target) as file:
    with zipfile.ZipFile(file, "w") as archive, ThreadPoolExecutor(os.cpu_count()) as pool:
      for first in range(0, len(names), 64):
        part = list(expected)[first : first + 64]
        contents = pool.map(encoded, names[first : first + 64])
        for key, content in zip(part, contents, strict=True):
          # With a fixed date, and not compressed again.
          entry = zipfile.ZipInfo(submission.file_name.format(key))
          entry.external_attr = 0o644 << 16  # by default only the owner may read the unpacked files
          archive.writestr(entry, content)
    file.flush()
    sizes = {key: size for key, (_, size) in expected.items()}
    problems = check(pathlib.Path(file.name), submission, sizes, info)
    if problems:
      raise ValueError(
        f"{target}: the server would refuse it: {'; '.join(problems)}; predict with --overwrite"
      )


def check(
  path: pathlib.Path,
  submission: SubmissionFormat,
  sizes: Mapping[str, tuple[int, int]],
  info: DatasetInfo,
) -> list[str]:
  """Finds the files of a zip that its server would refuse or not count.

  Args:
    path: the zip.
    submission: the format.
    sizes: key -> ``(H,W)`` of every image of the split.
    info: the data set's classes, whose ids may occur.

  Returns:
    A line for each kind of mistake, with the number of files and the first of them; empty for a valid zip.
  """
  mistakes: dict[str, list[str]] = {}

  def note(kind: str, file: str) -> None:
    mistakes.setdefault(kind, []).append(file)

  if not zipfile.is_zipfile(path):
    size = f"{path.stat().st_size:,} bytes" if path.is_file() else "no such file"
    return [f"is no complete zip file ({size}): write it again"]
  try:
    archive = zipfile.ZipFile(path)
  except Exception as error:  # damaged files raise errors of any type
    return [f"cannot be read as a zip file ({one_line(error)}): write it again"]
  with archive:
    seen: dict[str, str] = {}
    for entry in archive.infolist():
      name = entry.filename
      if entry.is_dir():
        continue
      file_name = pathlib.PurePosixPath(name.replace("\\", "/")).name
      if file_name != name:
        note("in a folder, but the server expects none", name)
      if not name.endswith(".png"):
        note("without the ending .png", name)
        continue
      key = submission.key(file_name.removesuffix(".png"))
      if key is None:
        note(f"with names other than {submission.names}", name)
        continue
      if key in seen:
        note("for an image that has another file", f"{name} and {seen[key]}")
        continue
      seen[key] = name
      if key not in sizes:
        note("for an image that is not in the split", name)
        continue
      for kind in _mistakes(archive, entry, sizes[key], info):
        note(kind, name)
  missing = [submission.file_name.format(key) for key in sizes if key not in seen]
  if missing:
    mistakes["missing"] = missing
  return [
    f"{len(names)} {'file' if len(names) == 1 else 'files'} {kind} ({names[0]}{', ...' if names[1:] else ''})"
    for kind, names in mistakes.items()
  ]


def _mistakes(
  archive: zipfile.ZipFile, entry: zipfile.ZipInfo, size: tuple[int, int], info: DatasetInfo
) -> list[str]:
  try:
    content = archive.read(entry)
  except Exception:  # damaged files raise errors of any type, and so do passwords
    return ["that cannot be unpacked"]
  if not content.startswith(PNG_SIGNATURE):
    return ["with another content than PNG"]
  try:
    with Image.open(io.BytesIO(content)) as image:
      image.load()
  except Exception:
    return ["that cannot be decoded"]
  kinds = []
  if image.mode != "L":
    kinds.append(f"of mode {image.mode}, expected one channel of 8 bits without palette")
  if image.size != size[::-1]:
    kinds.append("of another size than their image")
  if image.mode in ("L", "P"):
    present = set(np.flatnonzero(image.histogram()).tolist())
    allowed = set(info.label_ids.tolist())
    if not present <= allowed:
      kinds.append(_wrong_ids(present - allowed, present, info))
  return kinds


def _wrong_ids(wrong: set[int], present: set[int], info: DatasetInfo) -> str:
  if info.ignore_label in wrong:
    return f"with the id {info.ignore_label}, which is no class"
  if max(present) < info.num_classes:
    return f"with ids that {info.name} does not score, as if train ids had been written"
  return f"with ids that {info.name} does not score"


def _size(size: tuple[int, int]) -> str:
  return f"{size[1]}x{size[0]}"
