"""Zips of predictions in the form that a benchmark asks for, and what would make its server refuse one.

- ``cityscapes``: label ids, single channel PNGs of 2048x1024, found by ``<city>_<sequence>_<frame>*.png``
  (cityscapesScripts, ``evalPixelLevelSemanticLabeling.getPrediction``, which "Found multiple predictions" stops).
- ``ade20k``: ids 1-150, each PNG of its image's size and name (Scene Parsing Challenge, "Submission format").
- ``coco_stuff``: there is no server. The same form with the ids of the release that was trained on, 1-182 for 10k
  (as its ``.mat`` files) and 0-181 for 164k (as its ``.png`` files), for whoever scores it.
"""

import dataclasses
import io
import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from rc_jax.data import DatasetInfo

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclasses.dataclass(frozen=True)
class Format:
  """What a benchmark asks for.

  Attributes:
    name: of ``--format``.
    datasets: the names that its data sets have in ``config.dataset.name``.
    key: from an image's or a submitted file's stem to what pairs them; None where the stem says nothing.
    file_name: from a key to the name of the PNG.
    size: height and width of all images; None: each has its own.
    names: how names should look, for the errors.
  """

  name: str
  datasets: tuple[str, ...]
  key: Callable[[str], str | None]
  file_name: str
  size: tuple[int, int] | None
  names: str


def _frame(stem: str) -> str | None:
  found = re.match(r"[A-Za-z-]+_\d{6}_\d{6}(?!\d)", stem)
  return found.group() if found else None


FORMATS: dict[str, Format] = {
  "cityscapes": Format(
    name="cityscapes",
    datasets=("cityscapes",),
    key=_frame,
    file_name="{}_labelIds.png",
    size=(1024, 2048),
    names="<city>_<6 digits>_<6 digits>*.png",
  ),
  "ade20k": Format(
    name="ade20k",
    datasets=("ade20k",),
    key=lambda stem: stem,
    file_name="{}.png",
    size=None,
    names="the image's name with .png",
  ),
  "coco_stuff": Format(
    name="coco_stuff",
    datasets=("coco_stuff", "coco_stuff_10k", "coco_stuff_164k"),
    key=lambda stem: stem,
    file_name="{}.png",
    size=None,
    names="the image's name with .png",
  ),
}


def find(name: str, dataset: str) -> Format:
  """Returns the format called ``name``; raises ValueError when there is none, or it is not that data set's."""
  if name not in FORMATS:
    raise ValueError(f"--format={name}: no such format; expected one of {', '.join(FORMATS)}")
  if dataset not in FORMATS[name].datasets:
    wanted = " or ".join(FORMATS[name].datasets)
    raise ValueError(
      f"--format={name}: the config's dataset.name is {dataset}; expected {wanted}, whose ids the benchmark counts: "
      "use that data set's recipe, or leave --format out"
    )
  return FORMATS[name]


def expected_files(
  layout: Format, images: Iterable[tuple[str, tuple[int, int] | None]]
) -> dict[str, tuple[str, tuple[int, int]]]:
  """Pairs the images of a split with the keys of their predictions, before anything is computed.

  Args:
    layout: the format.
    images: name and ``(H,W)`` of each; None where the size could not be read.

  Returns:
    ``{key: (name, (H,W))}`` in the order of the images.

  Raises:
    ValueError: in one line, for a name that the benchmark would not find, two images of one key, a wrong size, or an
      image that cannot be read.
  """
  expected: dict[str, tuple[str, tuple[int, int]]] = {}
  for name, size in images:
    key = layout.key(pathlib.PurePosixPath(name).name)
    if key is None:
      raise ValueError(f"--format={layout.name}: the image {name} has no such name as {layout.names}")
    if key in expected:
      raise ValueError(
        f"--format={layout.name}: the images {expected[key][0]} and {name} would share one prediction"
      )
    if size is None:
      raise ValueError(
        f"--format={layout.name}: the image {name} cannot be read, and a submission needs all: copy or "
        "download it again"
      )
    if layout.size is not None and size != layout.size:
      raise ValueError(
        f"--format={layout.name}: the image {name} is {_size(size)} pixels, the benchmark's are {_size(layout.size)}: "
        "label the originals"
      )
    expected[key] = (name, size)
  return expected


def write(
  layout: Format,
  expected: Mapping[str, tuple[str, tuple[int, int]]],
  labels: pathlib.Path,
  info: DatasetInfo,
  target: pathlib.Path,
) -> None:
  """Zips the labels of a split, and checks the zip before it gets its name.

  Args:
    layout: the format.
    expected: from ``expected_files``.
    labels: the folder that holds ``<name>.png`` with the data set's ids.
    info: the ids that may occur.
    target: the zip, which holds PNGs alone, none in a folder. The same labels give the same bytes.

  Raises:
    ValueError: in one line, when the zip would be refused; ``target`` is left as it was.
  """
  partial = target.with_name(f".{target.name}.part")

  def encoded(name: str) -> bytes:
    with Image.open(labels / f"{name}.png") as image:
      # Indices without their palette: a reader that converts colours would make others of them.
      ids = np.asarray(image)
    content = io.BytesIO()
    Image.fromarray(ids).save(content, "PNG", optimize=True)
    return content.getvalue()

  names = [name for name, _ in expected.values()]
  with zipfile.ZipFile(partial, "w") as archive, ThreadPoolExecutor(os.cpu_count()) as pool:
    for first in range(0, len(names), 64):
      part = list(expected)[first : first + 64]
      contents = pool.map(encoded, names[first : first + 64])
      for key, content in zip(part, contents, strict=True):
        # A fixed date, and stored: a PNG is compressed already.
        entry = zipfile.ZipInfo(layout.file_name.format(key))
        entry.external_attr = 0o644 << 16  # the default lets nobody else read what was unpacked
        archive.writestr(entry, content)
  sizes = {key: size for key, (_, size) in expected.items()}
  problems = check(partial, layout, sizes, info)
  if problems:
    partial.unlink()
    raise ValueError(f"{target}: would be refused: {'; '.join(problems)}")
  os.replace(partial, target)


def check(
  path: pathlib.Path, layout: Format, sizes: Mapping[str, tuple[int, int]], info: DatasetInfo
) -> list[str]:
  """Reads a submission as its server would, and looks for all that it would refuse or score as nothing.

  Args:
    path: the zip.
    layout: the format.
    sizes: key -> ``(H,W)`` of every image of the split.
    info: the ids that may occur.

  Returns:
    A line for each kind of mistake, with the number of files and the first of them; empty when all is well.
  """
  found: dict[str, list[str]] = {}

  def note(kind: str, example: str) -> None:
    found.setdefault(kind, []).append(example)

  if not zipfile.is_zipfile(path):
    size = f"{path.stat().st_size:,} bytes" if path.is_file() else "nothing there"
    return [f"is no whole zip file ({size}): write it again"]
  with zipfile.ZipFile(path) as archive:
    seen: dict[str, str] = {}
    for entry in archive.infolist():
      name = entry.filename
      if entry.is_dir():
        continue
      file_name = pathlib.PurePosixPath(name.replace("\\", "/")).name
      if file_name != name:
        note("in a folder, where files must lie side by side", name)
      if not name.endswith(".png"):
        note("without the ending .png", name)
        continue
      key = layout.key(file_name.removesuffix(".png"))
      if key is None:
        note(f"with names other than {layout.names}", name)
        continue
      if key in seen:
        note("for an image that has one already", f"{name} beside {seen[key]}")
        continue
      seen[key] = name
      if key not in sizes:
        note("for an image that the split does not have", name)
        continue
      for kind in _mistakes(archive, entry, sizes[key], info):
        note(kind, name)
  missing = [layout.file_name.format(key) for key in sizes if key not in seen]
  if missing:
    found["missing"] = missing
  return [
    f"{len(names)} {'file' if len(names) == 1 else 'files'} {kind} ({names[0]}{', ...' if names[1:] else ''})"
    for kind, names in found.items()
  ]


def _mistakes(
  archive: zipfile.ZipFile, entry: zipfile.ZipInfo, size: tuple[int, int], info: DatasetInfo
) -> list[str]:
  try:
    content = archive.read(entry)
  except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError):
    # RuntimeError: it asks for a password.
    return ["that cannot be unpacked"]
  if not content.startswith(PNG_SIGNATURE):
    return ["that are no PNG inside"]
  try:
    with Image.open(io.BytesIO(content)) as image:
      image.load()
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
    return ["that cannot be decoded"]
  kinds = []
  if image.mode != "L":
    kinds.append(f"of mode {image.mode}, where one channel of 8 bits without palette is due")
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
    return f"with the id {info.ignore_label}, which stands for no class"
  if max(present) < info.num_classes:
    return f"with ids that {info.name} does not score, as if train ids had been written"
  return f"with ids that {info.name} does not score"


def _size(size: tuple[int, int]) -> str:
  return f"{size[1]}x{size[0]}"
