"""Finds the files of a split and pairs images with labels, with errors that name each file without a counterpart."""

import bisect
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from rc_jax.data.reading.dataset_info import DatasetInfo
from rc_jax.data.reading.label_names import find_renames
from rc_jax.data.reading.listing import UNREAD_SUFFIXES, files_in, left_out
from rc_jax.data.reading.rearrange import MissingFolder
from rc_jax.data.reading.source import FilePairs, IncompleteSplit

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".bmp", ".webp", ".tif", ".tiff")
# Lossless formats alone: JPEG changes ids.
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe")


def files_by_stem(
  folder: pathlib.Path, suffixes: tuple[str, ...], defects: list[str]
) -> dict[str, pathlib.Path]:
  """Lists the files of a folder by their names without suffix.

  Args:
    folder: its files are listed, without folders and hidden files.
    suffixes: in lower case; files with others are left out.
    defects: gets a line for each file that differs from another in its suffix alone.
  """
  return files_by_key(((path.stem, path) for path in files_in(folder, recursive=False)), suffixes, defects)


def files_by_key(
  named: Iterable[tuple[str, pathlib.Path]], suffixes: tuple[str, ...], defects: list[str]
) -> dict[str, pathlib.Path]:
  """Collects files by a key.

  Args:
    named: pairs of key and path; files whose names begin with a dot are left out.
    suffixes: in lower case; files with others are left out.
    defects: gets a line for each file whose key another file has.
  """
  files: dict[str, pathlib.Path] = {}
  for key, path in named:
    if path.suffix.lower() not in suffixes or path.name.startswith("."):
      continue
    if key in files:
      defects.append(
        f"{path}: has the same name as {files[key].name}, expected one file for each image: remove one"
      )
    files.setdefault(key, path)
  return files


def pair_files(
  info: DatasetInfo,
  train_ids: Mapping[int, int],
  images: Mapping[str, pathlib.Path],
  labels: Mapping[str, pathlib.Path] | None,
  *,
  images_at: str,
  labels_at: str,
  images_in: pathlib.Path | None = None,
  listed: Iterable[tuple[str, pathlib.Path]] = (),
  defects: Sequence[str] = (),
  notes: Sequence[str] = (),
) -> FilePairs:
  """Pairs images and labels that share a key, in the order of the keys.

  Args:
    info: the data set's classes.
    train_ids: the data set's id -> train id or ``info.ignore_label``.
    images: key -> image path.
    labels: key -> label path; None for a split without labels.
    images_at: the expected path of an image, with ``*`` for the key, for error messages.
    labels_at: the expected path of a label, likewise.
    images_in: the folder of the images, for a note on the pictures in ``listed``; None: no such note.
    listed: key and path of all files in it. The split has a note on the pictures among them that are not read.
    defects: lines on defects that were found while the files were listed.
    notes: further lines on files that were left out.

  Returns:
    The split.

  Raises:
    IncompleteSplit: an image or a label has no counterpart, or ``defects`` is not empty.
    ValueError: there is no image.
  """
  if not images and not labels and not defects:
    folder = pathlib.Path(images_at.partition("*")[0])
    raise ValueError(
      f"{images_at}: no images, only {_content_of(folder)}; expected at least one image: "
      "check the folder and --config.dataset.root="
    )
  if images_in is not None:
    # The line on a label without an image names its picture, if that is of a type that is not read.
    alone = (labels or {}).keys() - images.keys()
    pictures = [path for key, path in listed if key not in alone]
    notes = (*left_out(images_in, pictures, IMAGE_SUFFIXES), *notes)
  complete = sorted(images if labels is None else images.keys() & labels.keys())
  pairs = FilePairs(
    info,
    tuple(images[key] for key in complete),
    None if labels is None else tuple(labels[key] for key in complete),
    train_ids,
    tuple(notes),
  )
  lines = list(defects)
  renames: Mapping[str, str] = {}
  if labels is not None:
    renames, renamed = find_renames(info, train_ids, images, labels, labels_at)
    lines += _without_counterpart("image", images, "label", labels, labels_at, renames)
    # A label with a wrong name is named in the line on its image: a second line would repeat it.
    named = {_last_part(key) for key in images.keys() - labels.keys()}
    others = {
      key: path
      for key, path in labels.items()
      if key in images or (_last_part(key) not in named and key not in renamed)
    }
    lines += _without_counterpart("label", others, "image", images, images_at, {})
  if lines:
    raise IncompleteSplit(lines, pairs, renames=len(renames))
  return pairs


def pair_folders(
  info: DatasetInfo, train_ids: Mapping[int, int], images: pathlib.Path, labels: pathlib.Path | None
) -> FilePairs:
  """Pairs the files of a folder of images and a folder of labels by their names without suffix.

  Args:
    info: the data set's classes.
    train_ids: the data set's id -> train id or ``info.ignore_label``.
    images: the folder of images.
    labels: the folder of labels; None for a split without labels.

  Returns:
    The split, in the order of the names.

  Raises:
    IncompleteSplit: an image or a label has no counterpart, or two files differ in their suffix alone.
    ValueError: there is no image.
  """
  defects: list[str] = []
  listed = [(path.stem, path) for path in files_in(images, recursive=False)]
  images_by_stem = files_by_key(listed, IMAGE_SUFFIXES, defects)
  labels_by_stem = files_by_stem(labels, LABEL_SUFFIXES, defects) if labels else None
  return pair_files(
    info,
    train_ids,
    images_by_stem,
    labels_by_stem,
    images_at=str(images / "*.jpg"),
    labels_at=str((labels or images) / "*.png"),
    images_in=images,
    listed=listed,
    defects=defects,
    notes=_deeper(images),
  )


def _deeper(folder: pathlib.Path) -> list[str]:
  """Returns a line on the images in the folders of a folder; none where there is no such image."""
  images = [
    path
    for path in files_in(folder, recursive=True)
    if path.parent != folder and path.suffix.lower() in IMAGE_SUFFIXES
  ]
  if not images:
    return []
  return [
    f"{folder}: images left out: {len(images):,}, because they lie in folders below ({images[0].relative_to(folder)}, "
    "...); move them up, or read the data as dataset.name=folder"
  ]


def check_root(root: str, name: str, layout: str, folders: Sequence[str]) -> pathlib.Path:
  """Returns ``root`` as a path if it holds ``folders``.

  Raises:
    FileNotFoundError: the root, or as MissingFolder a folder in it, does not exist; with the expected layout.
  """
  remedy = f"expected {layout}: give the folder with --config.dataset.root="
  if not root:
    raise FileNotFoundError(f"dataset.root is empty, but the data set {name} is read from files; {remedy}")
  path = pathlib.Path(os.path.expanduser(root))
  for folder in ("", *folders):
    if not (path / folder).is_dir():
      state = "is a file" if (path / folder).exists() else "does not exist"
      message = f"{path / folder}: this folder of the data set {name} {state}; {remedy}"
      raise MissingFolder(message, folder) if folder else FileNotFoundError(message)
  return path


def check_split(split: str, name: str, splits: Sequence[str]) -> None:
  """Raises ValueError if ``split`` is not one of the data set's ``splits``."""
  if split not in splits:
    raise ValueError(
      f"split {split!r}: the data set {name} has no such split, expected one of {', '.join(splits)}"
    )


def _without_counterpart(
  kind: str,
  files: Mapping[str, pathlib.Path],
  missing: str,
  others: Mapping[str, pathlib.Path],
  where: str,
  renames: Mapping[str, str],
) -> list[str]:
  """Returns a line for each file whose key ``others`` lacks, with a file that may be meant as its counterpart.

  Args:
    kind: of the files, ``image`` or ``label``.
    files: key -> path.
    missing: the kind of the other files.
    others: key -> path.
    where: the expected path of the other file, with ``*`` for the key.
    renames: key -> advice to rename a file, which has been tried.
  """
  alone = sorted(files.keys() - others.keys())
  # A label in the folder of another city, or a name that differs in capitals.
  elsewhere = {_last_part(key): others[key] for key in others.keys() - files.keys()} if alone else {}
  names = _NamesInFolders()
  lines = []
  for key in alone:
    expected = pathlib.Path(where.replace("*", key))
    stem = key.rpartition("/")[2]
    similar = names.longer(expected.parent, stem)
    unread = [name for name in similar if name[len(stem) :].lower() in UNREAD_SUFFIXES]
    if _last_part(key) in elsewhere:
      remedy = f"found {elsewhere[_last_part(key)]}: move or rename it"
    elif key in renames:
      remedy = renames[key]
    elif unread:
      convert = "convert it to JPEG or PNG" if missing == "image" else "export the label as PNG"
      remedy = f"found {unread[0]}, a file that is not read: {convert}"
    elif any(name.lower().endswith(_JPEG_SUFFIXES) for name in similar) and missing == "label":
      remedy = f"found {similar[0]}: JPEG changes ids, export the label as PNG"
    elif similar:
      remedy = f"found only {', '.join(similar[:3])}: add the {missing}"
    else:
      remedy = f"add the {missing} or remove the {kind}"
    lines.append(f"{files[key]}: this {kind} has no {missing}, expected {expected}: {remedy}")
  return lines


def _last_part(key: str) -> str:
  return key.rpartition("/")[2].lower()


class _NamesInFolders:
  """The names in folders, each listed once."""

  def __init__(self) -> None:
    self._sorted: dict[pathlib.Path, list[str]] = {}

  def longer(self, folder: pathlib.Path, start: str) -> list[str]:
    """Returns the names in a folder that begin with ``start`` and go on after a dot, an underscore or a hyphen."""
    if folder not in self._sorted:
      self._sorted[folder] = sorted(os.listdir(folder)) if folder.is_dir() else []
    names = self._sorted[folder]
    first = bisect.bisect_right(names, start)
    last = bisect.bisect_left(names, start + "\U0010ffff", lo=first)
    return [name for name in names[first:last] if name[len(start)] in "._-"]


def _content_of(folder: pathlib.Path) -> str:
  """Describes the content of a folder: ``"3 files ending .gif"``, ``"the folders a, b"``, ``"an empty folder"``."""
  counts: dict[str, int] = {}
  folders = []
  for path in sorted(folder.iterdir()) if folder.is_dir() else ():
    if path.is_dir():
      folders.append(path.name)
    elif not path.name.startswith("."):
      counts[path.suffix.lower()] = counts.get(path.suffix.lower(), 0) + 1
  parts = [
    f"{count:,} file{'s' if count > 1 else ''}" + (f" ending {suffix}" if suffix else "")
    for suffix, count in counts.items()
  ]
  if folders:
    parts.append(f"the folders {', '.join(folders[:4])}" + (", ..." if len(folders) > 4 else ""))
  return ", ".join(parts) or "an empty folder"
